"""Suites: which tasks a benchmark runs, on which data and with which protocols, from a YAML file."""

from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from patchssl.errors import ConfigError
from patchssl.pooling import parse_tokens
from patchssl.recipes import SUITES, config_names, read_yaml, validate
from patchssl.setting_types import Count, Positive, Section

BUILTIN = "builtin"
# Fields of tasks that name data besides those that are tested.
FURTHER_DATA = ("distractors", "whitening_images")

OpenFraction = Annotated[float, Field(gt=0, lt=1)]
CropFraction = Annotated[float, Field(gt=0, le=1)]


def _usable_tokens(text: str) -> str:
    try:
        parts = parse_tokens(text)
    except ConfigError as error:
        raise ValueError(str(error)) from None
    if parts[0].kind == "patches":
        raise ValueError("patches are many vectors of an image; take mean or gem of them")
    return text


Tokens = Annotated[str, AfterValidator(_usable_tokens)]
_TOKENS = "what stands for an image: cls, mean, gem, cls:4, or joined by +"


class Task(Section):
    """What all tasks have."""

    task: str
    protocol: str
    name: str | None = Field(None, description="what it is called; null: task, protocol and data")
    data: str | None = Field(None, description="builtin, or a path, or the NAME of --data NAME=PATH; null: the suite's")
    image_size: Count | None = Field(None, description="side of the crop, px; null: the suite's")

    def options(self) -> dict[str, Any]:
        """What the task sets besides the protocol's defaults."""
        values = self.model_dump(exclude=set(Task.model_fields))
        return {name: value for name, value in values.items() if value is not None}

    def how(self) -> dict[str, str]:
        """What besides the name of the data decides how they are opened, further data sets among it."""
        return {}

    def further_data(self) -> tuple[str, ...]:
        """The names of the further data sets among that."""
        fields = (getattr(self, name, None) for name in FURTHER_DATA)
        return tuple(name for name in fields if name is not None)

    def geometry(self) -> tuple[Any, ...]:
        """What of the task decides how images come to the backbone; tasks that share it share a pass."""
        return (self.image_size,)


class KnnTask(Task):
    """k-NN classification."""

    task: Literal["knn"]
    protocol: str = "dino"
    tokens: Tokens = Field("cls", description=_TOKENS)
    k: tuple[Count, ...] | None = Field(None, description="neighbours that vote, a number or a list")
    temperature: Positive | None = Field(None, description="of the votes")
    shots: Count | None = Field(None, description="training images of a class; few-shot only")
    draws: Count | None = Field(None, description="how often they are drawn; few-shot only")

    @field_validator("k", mode="before")
    @classmethod
    def _one_k(cls, value: Any) -> Any:
        return (value,) if isinstance(value, int) else value

    @model_validator(mode="after")
    def _usable(self) -> "KnnTask":
        if self.k == ():
            raise ValueError("k is empty; give at least one number, or leave it out")
        return self


class LinearTask(Task):
    """Linear classification."""

    task: Literal["linear"]
    protocol: str = "dino"
    blocks: Count | None = Field(None, description="class tokens of so many last blocks")
    avgpool: bool | None = Field(None, description="the mean of the patches besides")
    epochs: Count | None = Field(None, description="passes over the training images; dino only")
    iterations: Count | None = Field(None, description="steps of training; dinov2 only")
    learning_rates: tuple[Positive, ...] | None = Field(
        None, description="for 256 images in a batch, a number or a list; dino takes one, dinov2 compares several"
    )
    train_batch_size: Count | None = Field(None, description="images in a step of training; dino and dinov2 only")
    val_fraction: OpenFraction | None = Field(
        None, description="of the training images, held out to choose by; dinov2 and logistic only"
    )

    @field_validator("learning_rates", mode="before")
    @classmethod
    def _one_rate(cls, value: Any) -> Any:
        return (value,) if isinstance(value, int | float) else value


class CopyDetectTask(Task):
    """Copy detection."""

    task: Literal["copydetect"]
    protocol: str = "dino"
    tokens: Tokens | None = Field(None, description=_TOKENS)
    distractors: str | None = Field(None, description="a folder of further images to search in, or its NAME in --data")
    whitening_images: str | None = Field(None, description="a folder of images to learn the whitening from, or NAME")
    whitening: Literal["uncentred", "centred", "none"] | None = Field(None, description="how descriptors are whitened")
    k: Count | None = Field(None, description="references that count for each query")

    def how(self) -> dict[str, str]:
        """Distractors and images to learn from, as the protocol lists them."""
        named = {"distractors": self.distractors, "whitening": self.whitening_images, "protocol": self.protocol}
        return {name: value for name, value in named.items() if value is not None}

    def geometry(self) -> tuple[Any, ...]:
        """Protocols differ in it."""
        return (self.task, self.protocol, self.image_size)


class RetrievalTask(Task):
    """Retrieval of places (official, dino) or of classes (class)."""

    task: Literal["retrieval"]
    protocol: str = "official"
    tokens: Tokens | None = Field(None, description=_TOKENS)
    multiscale: bool | None = Field(None, description="descriptors of three scales; official and dino only")
    crop_queries: bool | None = Field(None, description="queries are cut to their boxes; official and dino only")
    distractors: str | None = Field(None, description="a folder of further images, or NAME; official and dino only")

    def how(self) -> dict[str, str]:
        """Distractors, and whether queries are cut to their boxes."""
        crop = {} if self.crop_queries is None else {"crop_queries": "yes" if self.crop_queries else "no"}
        beside = {} if self.distractors is None else {"distractors": self.distractors}
        return {"protocol": self.protocol, **crop, **beside}

    def geometry(self) -> tuple[Any, ...]:
        """Protocols differ in it."""
        return (self.task, self.protocol, self.image_size, self.multiscale)


class CorrespondenceTask(Task):
    """Patches of one view of an image found again in another."""

    task: Literal["correspondence"]
    protocol: str = "warps"
    views: Count | None = Field(None, description="pairs of views of each image and kind of warp")
    kinds: tuple[str, ...] | None = Field(None, description="of warps; null: all")
    max_images: Count | None = Field(None, description="use as many at most, drawn by the seed")
    noise: Annotated[float, Field(ge=0, le=1)] | None = Field(None, description="added to every view by itself")

    def geometry(self) -> tuple[Any, ...]:
        """Nothing is shared with other tasks: views are cut anew."""
        return (self.task, self.image_size)


AnyTask = KnnTask | LinearTask | CopyDetectTask | RetrievalTask | CorrespondenceTask


class Builtin(Section):
    """The images that `builtin` stands for, as `patchssl data synth` draws them."""

    num_images: Annotated[int, Field(ge=24)] = 2000
    image_size: Annotated[int, Field(ge=32, le=2048)] = Field(64, description="side of an image, px")
    seed: Annotated[int, Field(ge=0)] = 0


class SuiteConfig(Section):
    """A list of tasks, and what holds for all of them."""

    data: str | None = Field(None, description="of tasks that name none")
    image_size: Count | None = Field(None, description="of tasks that name none, px; null: each model's own")
    crop_fraction: CropFraction | None = Field(
        None, description="side of the crop over the resized side, for all tasks; null: each model's own"
    )
    builtin: Builtin = Builtin()
    tasks: tuple[Annotated[AnyTask, Field(discriminator="task")], ...]

    @model_validator(mode="after")
    def _whole(self) -> "SuiteConfig":
        if not self.tasks:
            raise ValueError("tasks is empty; give at least one")
        without = [task.task for task in self.tasks if (task.data or self.data) is None]
        if without:
            raise ValueError(f"{len(without)} tasks ({', '.join(without)}) name no data, nor does the suite; give data")
        counts = Counter(task.name for task in self.resolved())
        repeated = [name for name, count in counts.items() if count > 1]
        if repeated:
            raise ValueError(f"several tasks are called {', '.join(map(repr, repeated))}; give each a name of its own")
        return self

    def resolved(self) -> tuple[AnyTask, ...]:
        """The tasks, with data, image size and name filled in."""
        return tuple(
            task.model_copy(
                update={
                    "data": task.data or self.data,
                    "image_size": task.image_size or self.image_size,
                    "name": task.name or f"{task.task} ({task.protocol}) on {task.data or self.data}",
                }
            )
            for task in self.tasks
        )

    def at_size(self, image_px: int) -> "SuiteConfig":
        """The same with one image size for all tasks."""
        tasks = tuple(task.model_copy(update={"image_size": None}) for task in self.tasks)
        return self.model_copy(update={"image_size": image_px, "tasks": tasks})


def suite_names() -> list[str]:
    """The names of the suites that come with the package."""
    return config_names(SUITES)


def load_suite(source: str) -> SuiteConfig:
    """Read a suite.

    Args:
        source: a YAML file, or the name of a suite of the package.

    Raises:
        ConfigError: the file is missing or no YAML mapping, a key is unknown or a value not allowed.
    """
    return validate(SuiteConfig, read_yaml(source, SUITES), origin=source)


def suite_name(source: str) -> str:
    """What a suite is called in result rows: its name, or that of its file."""
    return Path(source).stem
