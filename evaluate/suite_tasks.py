"""The evaluations that a suite may name: which protocols and options they have, what they need, how they are called."""

import difflib
import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from patchssl.backbones import Backbone
from patchssl.data.images import ImageSource
from patchssl.errors import ConfigError
from patchssl.evaluate.features import Features
from patchssl.evaluate.results import Scored
from patchssl.evaluate.suite_config import KnnTask, LinearTask

TRAIN, TEST, LABELLED = "train", "test", "labelled"

# Protocols of k-NN that have a module of their own; all others are those of `patchssl.evaluate.knn`.
_OWN_MODULES = {"few-shot": "few_shot", "leave-one-out": "leave_one_out"}
_RENAMED = {"k": "ks"}
# Passed by the suite, never by a task.
_GIVEN = {"protocol", "features_s", "device", "seed", "batch_size", "num_workers", "precision"}

AnyTask = KnnTask | LinearTask
Needs = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Compute:
    """How features are computed.

    Attributes:
        device: resolved.
        precision: of the forward pass.
        num_workers: processes that read images.
        batch_size: images in a forward pass.
        seed: of everything random.
    """

    device: str
    precision: str
    num_workers: int
    batch_size: int
    seed: int


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
    parameters = inspect.signature(_function(task)).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    taken = {parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY} - _GIVEN
    wrong = [name for name in _choices(task) if _RENAMED.get(name, name) not in taken]
    if wrong:
        named = [name for name in type(task).model_fields if _RENAMED.get(name, name) in taken]
        raise ConfigError(
            f"{task.name}: {task.task} with the protocol {task.protocol} takes no {', '.join(wrong)}; "
            f"allowed: {', '.join(named) or 'nothing'}"
        )


def has_parts(task: AnyTask) -> bool:
    """Whether the data have a training and a test part; of one part, each image is tested by the others."""
    return task.protocol != "leave-one-out"


def trains_on_images(task: AnyTask) -> bool:
    """Whether the training images are gone through again in every epoch, each time cropped anew."""
    return isinstance(task, LinearTask) and task.protocol == "dino"


def needs_of(task: AnyTask, backbone: Backbone) -> Needs:
    """Which tokens of which part a task is scored from.

    Raises:
        ConfigError: the backbone cannot give them.
    """
    if isinstance(task, KnnTask):
        return dict.fromkeys((TRAIN, TEST) if has_parts(task) else (LABELLED,), (task.tokens,))
    chosen = {name: value for name, value in task.options().items() if name in ("blocks", "avgpool")}
    tokens = tuple(
        _module(task).needed_tokens(task.protocol, num_blocks=backbone.num_blocks, dim=backbone.dim, **chosen)
    )
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
    how = {"features_s": material.features_s, "device": compute.device, "seed": compute.seed}
    return _score_knn(task, material, how) if isinstance(task, KnnTask) else _score_linear(task, material, compute, how)


def _score_knn(task: KnnTask, material: Material, how: dict[str, Any]) -> Scored:
    options = {_RENAMED.get(name, name): value for name, value in _choices(task).items()}
    if task.protocol not in _OWN_MODULES:
        options["protocol"] = task.protocol
    parts = [material.features[part][tokens] for part, (tokens,) in needs_of(task, material.backbone).items()]
    scored: Scored = _function(task)(*parts, **options, **how)
    return scored


def _score_linear(task: LinearTask, material: Material, compute: Compute, how: dict[str, Any]) -> Scored:
    function, options = _function(task), _choices(task)
    features = {
        part: {name: material.features[part][name] for name in tokens}
        for part, tokens in needs_of(task, material.backbone).items()
    }
    if trains_on_images(task):
        scored: Scored = function(
            material.backbone,
            material.sources,
            features[TEST],
            protocol=task.protocol,
            batch_size=compute.batch_size,
            num_workers=compute.num_workers,
            precision=compute.precision,
            **options,
            **how,
        )
    else:
        scored = function(features[TRAIN], features[TEST], protocol=task.protocol, **options, **how)
    return scored


def _choices(task: AnyTask) -> dict[str, Any]:
    """The options that go to the evaluation; tokens have done their part when features are computed."""
    return {name: value for name, value in task.options().items() if name != "tokens"}


def _protocols(task: AnyTask) -> list[str]:
    names = list(_module(task, of_protocol=False).PROTOCOLS)
    if isinstance(task, KnnTask):
        names += [name for name, module in _OWN_MODULES.items() if _find(module) is not None]
    return names


def _function(task: AnyTask) -> Callable[..., Scored]:
    function: Callable[..., Scored] = getattr(_module(task), "score_images" if trains_on_images(task) else "score")
    return function


def _module(task: AnyTask, *, of_protocol: bool = True) -> ModuleType:
    own = _OWN_MODULES.get(task.protocol) if isinstance(task, KnnTask) and of_protocol else None
    module = _find(own or task.task)
    if module is None:
        raise ConfigError(f"{task.name}: this version of patchssl has no evaluation {task.task!r}; leave the task out")
    return module


def _find(name: str) -> ModuleType | None:
    """An evaluation by the name of its file; None where this version does not have it."""
    full = f"patchssl.evaluate.{name}"
    try:
        return importlib.import_module(full)
    except ModuleNotFoundError as error:
        if error.name != full:
            raise
        return None
