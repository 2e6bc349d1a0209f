"""The evaluations that a suite may name: which protocols and options they have, what they need, how they are called."""

import difflib
import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from patchssl.backbones import Backbone
from patchssl.data.images import ImageSource
from patchssl.errors import ConfigError
from patchssl.evaluate import few_shot, knn, leave_one_out, linear
from patchssl.evaluate.features import Features
from patchssl.evaluate.results import Scored
from patchssl.evaluate.suite_config import KnnTask, LinearTask, Task

TRAIN, TEST, LABELLED = "train", "test", "labelled"

# Protocols of k-NN that have a module of their own; all others are those of `patchssl.evaluate.knn`.
_OWN_MODULES = {"few-shot": few_shot, "leave-one-out": leave_one_out}
_RENAMED = {"k": "ks"}

AnyTask = KnnTask | LinearTask
Needs = Mapping[str, tuple[str, ...]]
Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


def _silent(what: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
    return nullcontext(lambda num: None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Compute:
    """How features are computed.

    Attributes:
        device: resolved.
        precision: of the forward pass.
        num_workers: processes that read images.
        batch_size: images in a forward pass.
        max_bad_fraction: unreadable images above this fraction are an error.
        seed: of everything random.
        progress: what is gone through and how many images → what is to be called with the number of images done.
    """

    device: str
    precision: str
    num_workers: int
    batch_size: int
    max_bad_fraction: float
    seed: int
    progress: Progress = _silent


@dataclass(frozen=True, kw_only=True, slots=True)
class Material:
    """What a task is scored from.

    Attributes:
        backbone: at the task's image size.
        sources: the images of each part.
        features: part → tokens → features.
        features_s: how long computing them took, for all tasks that share them.
    """

    backbone: Backbone
    sources: Mapping[str, ImageSource]
    features: Mapping[str, Mapping[str, Features]] = field(default_factory=dict)
    features_s: float = 0.0


def check_task(task: AnyTask) -> None:
    """Refuse a protocol or an option that an evaluation does not have.

    Raises:
        ConfigError: it has none of that name.
    """
    protocols = _protocols(task)
    if task.protocol not in protocols:
        near = difflib.get_close_matches(task.protocol, protocols, n=1)
        raise ConfigError(
            f"{task.name}: {task.task} has no protocol {task.protocol!r}; "
            f"{f'did you mean {near[0]}? ' if near else ''}allowed: {', '.join(protocols)}"
        )
    taken = _options_of(task)
    wrong = [name for name in _choices(task) if name not in taken]
    if wrong:
        raise ConfigError(
            f"{task.name}: {task.task} with the protocol {task.protocol} takes no {', '.join(wrong)}; "
            f"allowed: {', '.join(taken) or 'nothing'}"
        )


def has_parts(task: AnyTask) -> bool:
    """Whether the data have a training and a test part; of one part, each image is tested by the others."""
    return task.protocol != "leave-one-out"


def trains_on_images(task: AnyTask) -> bool:
    """Whether the training images are gone through again in every epoch, each time cropped anew."""
    return isinstance(task, LinearTask) and linear.PROTOCOLS[task.protocol].needs_images


def needs_of(task: AnyTask, backbone: Backbone) -> Needs:
    """Which tokens of which part a task is scored from.

    Raises:
        ConfigError: the backbone cannot give them.
    """
    if isinstance(task, KnnTask):
        return dict.fromkeys((TRAIN, TEST) if has_parts(task) else (LABELLED,), (task.tokens,))
    chosen = {name: value for name, value in task.options().items() if name in ("blocks", "avgpool")}
    tokens = tuple(linear.needed_tokens(task.protocol, num_blocks=backbone.num_blocks, dim=backbone.dim, **chosen))
    return {TEST: tokens} if trains_on_images(task) else {TRAIN: tokens, TEST: tokens}


def score_task(task: AnyTask, material: Material, compute: Compute) -> Scored:
    """Run one evaluation.

    Args:
        task: which; `check_task` has passed.
        material: holds what `needs_of` asks for.
        compute: how.

    Raises:
        PatchsslError: as the evaluation does.
    """
    if isinstance(task, KnnTask):
        return _score_knn(task, material, compute)
    return (_score_on_images if trains_on_images(task) else _score_linear)(task, material, compute)


def _score_knn(task: KnnTask, material: Material, compute: Compute) -> Scored:
    options = {_RENAMED.get(name, name): value for name, value in _choices(task).items()}
    if task.protocol not in _OWN_MODULES:
        options["protocol"] = task.protocol
    scored: Scored = _module(task).score(
        *(features[task.tokens] for features in _features(task, material).values()),
        features_s=material.features_s,
        device=compute.device,
        seed=compute.seed,
        **options,
    )
    return scored


def _score_linear(task: LinearTask, material: Material, compute: Compute) -> Scored:
    features = _features(task, material)
    return linear.score(
        features[TRAIN],
        features[TEST],
        protocol=task.protocol,
        features_s=material.features_s,
        device=compute.device,
        seed=compute.seed,
        **_choices(task),
    )


def _score_on_images(task: LinearTask, material: Material, compute: Compute) -> Scored:
    choices = _choices(task)
    num_epochs = choices.get("epochs", linear.PROTOCOLS[task.protocol].defaults["epochs"])
    told = f"training images in {num_epochs} epochs"
    with compute.progress(told, num_epochs * len(material.sources[TRAIN])) as progress:
        return linear.score_images(
            material.backbone,
            material.sources,
            _features(task, material)[TEST],
            protocol=task.protocol,
            batch_size=compute.batch_size,
            num_workers=compute.num_workers,
            precision=compute.precision,
            max_bad_fraction=compute.max_bad_fraction,
            features_s=material.features_s,
            seed=compute.seed,
            progress=progress,
            **choices,
        )


def _features(task: AnyTask, material: Material) -> dict[str, dict[str, Features]]:
    """Of all that was computed, what this task is scored from: part → tokens → features."""
    return {
        part: {name: material.features[part][name] for name in tokens}
        for part, tokens in needs_of(task, material.backbone).items()
    }


def _choices(task: AnyTask) -> dict[str, Any]:
    """The options that go to the evaluation; tokens have done their part when features are computed."""
    return {name: value for name, value in task.options().items() if name != "tokens"}


def _protocols(task: AnyTask) -> list[str]:
    return list(linear.PROTOCOLS) if isinstance(task, LinearTask) else [*knn.PROTOCOLS, *_OWN_MODULES]


def _options_of(task: AnyTask) -> list[str]:
    """What may be set besides a protocol's defaults, as a suite calls it."""
    if isinstance(task, LinearTask):
        return list(linear.PROTOCOLS[task.protocol].options)
    parameters = inspect.signature(_module(task).score).parameters
    own = [name for name in type(task).model_fields if name not in Task.model_fields]
    return [name for name in own if name == "tokens" or _RENAMED.get(name, name) in parameters]


def _module(task: AnyTask) -> ModuleType:
    if isinstance(task, LinearTask):
        return linear
    return _OWN_MODULES.get(task.protocol, knn)
