"""The evaluations by search that a suite may name: copy detection, retrieval of places and classes, correspondence."""

from types import ModuleType
from typing import Any

from patchssl.backbones import Backbone
from patchssl.evaluate import class_retrieval, copydetect, correspondence, retrieval
from patchssl.evaluate.features import Features
from patchssl.evaluate.outcomes import Scored
from patchssl.evaluate.suites.config import CopyDetectTask, CorrespondenceTask, RetrievalTask
from patchssl.evaluate.suites.structs import (
    CLASSES,
    COPIES,
    PICTURES,
    REVISITED,
    Compute,
    Material,
    Needs,
    at_size,
    own_options,
)

_OF_PLACES = ("tokens", "multiscale", "crop_queries", "distractors")


class CopyDetect:
    """Copy detection by any of its protocols."""

    def protocols(self) -> list[str]:
        """Their names."""
        return list(copydetect.PROTOCOLS)

    def options(self, task: CopyDetectTask) -> list[str]:
        """All of its own."""
        return own_options(task)

    def layout(self, task: CopyDetectTask) -> str:
        """Queries, references, and what belongs to them."""
        return COPIES

    def prepare(self, task: CopyDetectTask, backbone: Backbone) -> Backbone:
        """With the protocol's geometry."""
        return copydetect.prepare(backbone, task.protocol, image_size=task.image_size)

    def needs(self, task: CopyDetectTask, backbone: Backbone, parts: tuple[str, ...]) -> Needs:
        """One descriptor of every part."""
        return dict.fromkeys(parts, (task.tokens or copydetect.PROTOCOLS[task.protocol].tokens,))

    def score(self, task: CopyDetectTask, material: Material, compute: Compute) -> Scored:
        """Run it."""
        return copydetect.score(
            _only_tokens(material, task.tokens or copydetect.PROTOCOLS[task.protocol].tokens),
            material.truth,
            protocol=task.protocol,
            **_facts(material, compute),
            **{name: value for name, value in task.options().items() if name in ("k", "whitening")},
        )


class Retrieval:
    """Retrieval by any of its protocols."""

    def protocols(self) -> list[str]:
        """Their names."""
        return [*retrieval.PROTOCOLS, *class_retrieval.PROTOCOLS]

    def options(self, task: RetrievalTask) -> list[str]:
        """What the task's protocol takes."""
        return list(_OF_PLACES) if self._of_places(task) else ["tokens"]

    def layout(self, task: RetrievalTask) -> str:
        """A revisited folder, or labelled images."""
        return REVISITED if self._of_places(task) else CLASSES

    def prepare(self, task: RetrievalTask, backbone: Backbone) -> Backbone:
        """With the protocol's geometry."""
        if not self._of_places(task):
            # As for the other classifications: the suite has chosen the crop.
            return at_size(task, backbone)
        return retrieval.prepare(backbone, task.protocol, image_size=task.image_size, multiscale=task.multiscale)

    def needs(self, task: RetrievalTask, backbone: Backbone, parts: tuple[str, ...]) -> Needs:
        """One descriptor of every part."""
        return dict.fromkeys(parts, (self._tokens(task),))

    def score(self, task: RetrievalTask, material: Material, compute: Compute) -> Scored:
        """Run it."""
        crop = {"crop_queries": self._crops(task)} if self._of_places(task) else {}
        scored: Scored = self._module(task).score(
            _only_tokens(material, self._tokens(task)),
            material.truth,
            protocol=task.protocol,
            **_facts(material, compute),
            **crop,
        )
        return scored

    def _crops(self, task: RetrievalTask) -> bool:
        default = retrieval.PROTOCOLS[task.protocol].crop_queries
        return default if task.crop_queries is None else task.crop_queries

    def _tokens(self, task: RetrievalTask) -> str:
        return task.tokens or str(self._module(task).PROTOCOLS[task.protocol].tokens)

    def _module(self, task: RetrievalTask) -> ModuleType:
        return retrieval if self._of_places(task) else class_retrieval

    def _of_places(self, task: RetrievalTask) -> bool:
        return task.protocol in retrieval.PROTOCOLS


class Correspondence:
    """Patches found again in another view."""

    def protocols(self) -> list[str]:
        """Their names."""
        return list(correspondence.PROTOCOLS)

    def options(self, task: CorrespondenceTask) -> list[str]:
        """All of its own."""
        return own_options(task)

    def layout(self, task: CorrespondenceTask) -> str:
        """Any images."""
        return PICTURES

    def prepare(self, task: CorrespondenceTask, backbone: Backbone) -> Backbone:
        """At the side of the views."""
        return correspondence.prepare(backbone, task.protocol, image_size=task.image_size)

    def needs(self, task: CorrespondenceTask, backbone: Backbone, parts: tuple[str, ...]) -> Needs:
        """No features: views are cut and matched batch by batch."""
        return {}

    def score(self, task: CorrespondenceTask, material: Material, compute: Compute) -> Scored:
        """Run it."""
        (source,) = material.sources.values()
        choices = task.options()
        num_images = min(len(source), choices.get("max_images", len(source)))
        views = choices.get("views", correspondence.PROTOCOLS[task.protocol].views)
        with compute.progress("views", views * num_images) as progress:
            return correspondence.score_images(
                material.backbone,
                source,
                protocol=task.protocol,
                batch_size=compute.batch_size,
                num_workers=compute.num_workers,
                precision=compute.precision,
                max_bad_fraction=compute.max_bad_fraction,
                seed=compute.seed,
                progress=progress,
                **choices,
            )


def _only_tokens(material: Material, tokens: str) -> dict[str, Features]:
    """Part → features of these tokens, in the order of the data."""
    return {part: material.features[part][tokens] for part in material.sources}


def _facts(material: Material, compute: Compute) -> dict[str, Any]:
    return {"features_s": material.features_s, "device": compute.device, "seed": compute.seed}
