"""Configurations of the measured steps, and our step behind the same face as the plain one."""

from typing import Any
from unittest import mock

import torch
from plain_form import PlainForm
from step_views import batch_views, sample_keys

from patchssl.config import Config
from patchssl.derived import derive
from patchssl.pretrain import default_precision
from patchssl.recipes import parse_config
from patchssl.step_values import StepValues, scheduled
from patchssl.structs import BatchViews
from patchssl.student_teacher import StudentTeacher
from patchssl.trainer import LossTerms, Trainer

TINY, SMALL = "vit_tiny_patch16_224", "vit_small_patch16_224"
_NUM_STEPS = 1000


def configuration(sections: dict[str, dict[str, Any]]) -> Config:
    """The package's defaults with these changes, and no open values."""
    return derive(
        parse_config(sections | {"train": {"steps": _NUM_STEPS} | sections.get("train", {})}), num_images=100_000
    ).config


def shared_head(arch: str, num_prototypes: int) -> Config:
    """Views 2 x 224 + 8 x 96 and one head for class token and patches, as PW-Self has it."""
    model = {"arch": arch, "shared_head": True, "cls_prototypes": num_prototypes, "patch_prototypes": num_prototypes}
    return configuration({"model": model})


def middle_of(config: Config) -> StepValues:
    """The scheduled values halfway, where nothing is frozen or warming up."""
    return scheduled(config, _NUM_STEPS // 2, _NUM_STEPS)


def networks_of(config: Config) -> StudentTeacher:
    """Equal weights at every call."""
    torch.manual_seed(0)
    return StudentTeacher(config)


class OurForm:
    """The step of patchssl without loading and augmentation."""

    def __init__(
        self, networks: StudentTeacher, views: BatchViews, values: StepValues, *, device: str, precision: str
    ) -> None:
        """Train these networks, on the same views in every step."""
        self.networks, self.views, self.values = networks, views, values
        self.trainer = Trainer(networks, device=device, precision=precision)
        self._keys = sample_keys(views.teacher.pixels.shape[0])

    def step(self) -> float:
        """Train for one step and return its loss."""
        return self.trainer.update(self.losses(), self.values).loss

    def losses(self) -> LossTerms:
        """The loss on views that are prepared already; its gradients are with the student."""
        with mock.patch("patchssl.trainer.prepare_views", return_value=self.views):
            return self.trainer.losses(self.views.student, self._keys, self.values)


def ours(config: Config, batch_size: int, *, device: str = "cpu", precision: str = "auto") -> OurForm:
    """Our step from fresh weights."""
    precision = default_precision(device) if precision == "auto" else precision
    views = batch_views(config, batch_size, device)
    return OurForm(networks_of(config), views, middle_of(config), device=device, precision=precision)


def plain(config: Config, batch_size: int, *, device: str = "cpu") -> PlainForm:
    """The plain step from the same fresh weights."""
    networks = networks_of(config)
    networks.student.to(device)
    networks.to(torch.device(device))
    return PlainForm(networks, batch_views(config, batch_size, device), middle_of(config))
