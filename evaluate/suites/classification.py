"""The classifications that a suite may name: k-NN and linear."""

import inspect
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from patchssl.backbones import Backbone
from patchssl.evaluate import few_shot, knn, leave_one_out, linear
from patchssl.evaluate.features import Features
from patchssl.evaluate.outcomes import Scored
from patchssl.evaluate.suites.config import KnnTask, LinearTask, Task
from patchssl.evaluate.suites.structs import (
    LABELLED,
    PARTS,
    TEST,
    TRAIN,
    Compute,
    Material,
    Needs,
    at_size,
    own_options,
)

# Protocols of k-NN that have a module of their own; all others are those of `patchssl.evaluate.knn`.
_OWN_MODULES = {"few-shot": few_shot, "leave-one-out": leave_one_out}
_RENAMED = {"k": "ks"}


class Knn:
    """k-NN by any of its protocols."""

    def protocols(self) -> list[str]:
        """Their names."""
        return [*knn.PROTOCOLS, *_OWN_MODULES]

    def options(self, task: KnnTask) -> list[str]:
        """What the task's protocol takes."""
        parameters = inspect.signature(self._module(task).score).parameters
        return [name for name in own_options(task) if name == "tokens" or _RENAMED.get(name, name) in parameters]

    def layout(self, task: KnnTask) -> str:
        """Of one part, each image is tested by the others."""
        return LABELLED if task.protocol == "leave-one-out" else PARTS

    def prepare(self, task: KnnTask, backbone: Backbone) -> Backbone:
        """At the task's image size."""
        return at_size(task, backbone)

    def needs(self, task: KnnTask, backbone: Backbone, parts: tuple[str, ...]) -> Needs:
        """The same tokens of all parts."""
        return dict.fromkeys((LABELLED,) if self.layout(task) == LABELLED else (TRAIN, TEST), (task.tokens,))

    def score(self, task: KnnTask, material: Material, compute: Compute) -> Scored:
        """Run it."""
        options = {_RENAMED.get(name, name): value for name, value in choices_of(task).items()}
        if task.protocol not in _OWN_MODULES:
            options["protocol"] = task.protocol
        needed = self.needs(task, material.backbone, tuple(material.sources))
        scored: Scored = self._module(task).score(
            *(material.features[part][task.tokens] for part in needed),
            features_s=material.features_s,
            device=compute.device,
            seed=compute.seed,
            **options,
        )
        return scored

    def _module(self, task: KnnTask) -> ModuleType:
        return _OWN_MODULES.get(task.protocol, knn)


class Linear:
    """Linear probes by any of their protocols."""

    def protocols(self) -> list[str]:
        """Their names."""
        return list(linear.PROTOCOLS)

    def options(self, task: LinearTask) -> list[str]:
        """What the task's protocol takes."""
        return list(linear.PROTOCOLS[task.protocol].options)

    def layout(self, task: LinearTask) -> str:
        """A training and a test part."""
        return PARTS

    def prepare(self, task: LinearTask, backbone: Backbone) -> Backbone:
        """At the task's image size."""
        return at_size(task, backbone)

    def needs(self, task: LinearTask, backbone: Backbone, parts: tuple[str, ...]) -> Needs:
        """Where the training images are gone through again in every epoch, features of the test images alone."""
        chosen = {name: value for name, value in task.options().items() if name in ("blocks", "avgpool")}
        tokens = tuple(linear.needed_tokens(task.protocol, num_blocks=backbone.num_blocks, dim=backbone.dim, **chosen))
        return {TEST: tokens} if self._trains_on_images(task) else {TRAIN: tokens, TEST: tokens}

    def score(self, task: LinearTask, material: Material, compute: Compute) -> Scored:
        """Run it."""
        needed = self.needs(task, material.backbone, tuple(material.sources))
        features = {part: {name: material.features[part][name] for name in tokens} for part, tokens in needed.items()}
        if self._trains_on_images(task):
            return self._score_on_images(task, material, features[TEST], compute)
        return linear.score(
            features[TRAIN],
            features[TEST],
            protocol=task.protocol,
            features_s=material.features_s,
            device=compute.device,
            seed=compute.seed,
            **choices_of(task),
        )

    def _score_on_images(
        self, task: LinearTask, material: Material, test: Mapping[str, Features], compute: Compute
    ) -> Scored:
        choices = choices_of(task)
        num_epochs = choices.get("epochs", linear.PROTOCOLS[task.protocol].defaults["epochs"])
        told = f"training images in {num_epochs} epochs"
        with compute.progress(told, num_epochs * len(material.sources[TRAIN])) as progress:
            return linear.score_images(
                material.backbone,
                material.sources,
                test,
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

    def _trains_on_images(self, task: LinearTask) -> bool:
        return linear.PROTOCOLS[task.protocol].needs_images


def choices_of(task: Task) -> dict[str, Any]:
    """The options that go to the evaluation; tokens have done their part when features are computed."""
    return {name: value for name, value in task.options().items() if name != "tokens"}
