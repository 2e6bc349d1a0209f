"""What a suite hands from one step to the next."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from patchssl.backbones import Backbone
from patchssl.data.images import ImageSource
from patchssl.evaluate.features import Features
from patchssl.evaluate.suites.config import Task

TRAIN, TEST = "train", "test"

# What data are opened as.
PARTS, LABELLED, COPIES, REVISITED, CLASSES, PICTURES = (
    "parts",
    "labelled",
    "copies",
    "revisited",
    "classes",
    "pictures",
)

Sources = Mapping[str, ImageSource]
Needs = Mapping[str, tuple[str, ...]]
Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


class DataKey(NamedTuple):
    """Which data, opened in which way.

    Attributes:
        name: of the data set.
        layout: what it is opened as.
        how: what else decides how it is opened, names of further data sets among it, by name.
    """

    name: str
    layout: str = PARTS
    how: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Opened:
    """Data of a suite.

    Attributes:
        sources: the images of each part.
        truth: what is right, where labels of the images do not tell it.
    """

    sources: Sources
    truth: Any = None


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
        backbone: prepared for the task.
        sources: the images of each part.
        truth: of `Opened`.
        features: part → tokens → features.
        features_s: how long computing them took, for all tasks that share them.
    """

    backbone: Backbone
    sources: Sources
    truth: Any = None
    features: Mapping[str, Mapping[str, Features]] = field(default_factory=dict)
    features_s: float = 0.0


def own_options(task: Task) -> list[str]:
    """The fields that a kind of task has besides those of all tasks."""
    return [name for name in type(task).model_fields if name not in Task.model_fields]


def at_size(task: Task, backbone: Backbone) -> Backbone:
    """The backbone at the task's image size, or its own."""
    return backbone if task.image_size is None else backbone.at_size(task.image_size)
