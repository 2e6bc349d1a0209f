"""The evaluations that a suite may name: which protocols and options they have, what they need, how they are run."""

import difflib
from typing import Any, Protocol

from patchssl.backbones import Backbone
from patchssl.errors import ConfigError
from patchssl.evaluate.outcomes import Scored
from patchssl.evaluate.suites.classification import Knn, Linear
from patchssl.evaluate.suites.config import (
    AnyTask,
    CopyDetectTask,
    CorrespondenceTask,
    KnnTask,
    LinearTask,
    RetrievalTask,
)
from patchssl.evaluate.suites.search import CopyDetect, Correspondence, Retrieval
from patchssl.evaluate.suites.structs import Compute, DataKey, Material, Needs, at_size


class Evaluation(Protocol):
    """How one kind of task is run."""

    def protocols(self) -> list[str]:
        """The names of its protocols."""
        ...

    def options(self, task: Any) -> list[str]:
        """What may be set besides the defaults of the task's protocol, as a suite calls it."""
        ...

    def layout(self, task: Any) -> str:
        """What its data are opened as."""
        ...

    def prepare(self, task: Any, backbone: Backbone) -> Backbone:
        """The backbone for images as the task takes them; raises ConfigError where it cannot be."""
        ...

    def needs(self, task: Any, backbone: Backbone, parts: tuple[str, ...]) -> Needs:
        """Which tokens of which part of the data; raises ConfigError where the backbone cannot give them."""
        ...

    def score(self, task: Any, material: Material, compute: Compute) -> Scored:
        """Run it; raises PatchsslError as the evaluation does."""
        ...


_EVALUATIONS: dict[type[Any], Evaluation] = {
    KnnTask: Knn(),
    LinearTask: Linear(),
    CopyDetectTask: CopyDetect(),
    RetrievalTask: Retrieval(),
    CorrespondenceTask: Correspondence(),
}


def check_task(task: AnyTask) -> None:
    """Refuse a protocol or an option that an evaluation does not have.

    Raises:
        ConfigError: it has none of that name.
    """
    protocols = _of(task).protocols()
    if task.protocol not in protocols:
        near = difflib.get_close_matches(task.protocol, protocols, n=1)
        raise ConfigError(
            f"{task.name}: {task.task} has no protocol {task.protocol!r}; "
            f"{f'did you mean {near[0]}? ' if near else ''}allowed: {', '.join(protocols)}"
        )
    taken = _of(task).options(task)
    wrong = [name for name in task.options() if name not in (*taken, "tokens")]
    if wrong:
        raise ConfigError(
            f"{task.name}: {task.task} with the protocol {task.protocol} takes no {', '.join(wrong)}; "
            f"allowed: {', '.join(taken) or 'nothing'}"
        )


def data_key_of(task: AnyTask) -> DataKey:
    """Which data the task runs on, opened in which way."""
    assert task.data is not None
    return DataKey(task.data, _of(task).layout(task), tuple(task.how().items()))


def prepare(task: AnyTask, backbone: Backbone, *, own_geometry: bool = False) -> Backbone:
    """The backbone for images as the task takes them.

    Args:
        task: which.
        backbone: as it was loaded.
        own_geometry: keep its crops, at the task's image size.

    Raises:
        ConfigError: it does not take such images, or the task asks for scales that its own crops have not.
    """
    if not own_geometry:
        return _of(task).prepare(task, backbone)
    if task.options().get("multiscale"):
        raise ConfigError(f"{task.name}: a model's own crops have one scale; leave multiscale out, or their geometry")
    return at_size(task, backbone)


def needs_of(task: AnyTask, backbone: Backbone, parts: tuple[str, ...]) -> Needs:
    """Which tokens of which part a task is scored from.

    Args:
        task: which.
        backbone: prepared for it.
        parts: of the data.

    Raises:
        ConfigError: the backbone cannot give them.
    """
    return _of(task).needs(task, backbone, parts)


def score_task(task: AnyTask, material: Material, compute: Compute) -> Scored:
    """Run one evaluation.

    Args:
        task: which; `check_task` has passed.
        material: holds what `needs_of` asks for.
        compute: how.

    Raises:
        PatchsslError: as the evaluation does.
    """
    return _of(task).score(task, material, compute)


def _of(task: AnyTask) -> Evaluation:
    return _EVALUATIONS[type(task)]
