"""Networks and optimizer on a device, and one training step."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.precision import MixedPrecision, Precision

from patchssl.augmentation import prepare_views, view_settings
from patchssl.backbones.vit import recompute_activations, use_plain_attention
from patchssl.step_values import StepValues
from patchssl.structs import SampleKeys, ViewGroup
from patchssl.student_teacher import LossTerms, StudentTeacher
from patchssl.updates import clip_gradients, weight_decay_groups


class _MixedPrecision(MixedPrecision):
    """Leaves what a network returns as it is: the copy in float32 of a large matrix of prototypes is not wanted."""

    def convert_output(self, data: Any) -> Any:
        """Do nothing."""
        return data


class Trainer:
    """Networks and optimizer on their device, and the training step."""

    def __init__(self, networks: StudentTeacher, *, device: str, precision: str) -> None:
        """Move the networks to the device and set up AdamW.

        Args:
            networks: with the configuration that they were built from.
            device: cpu, cuda or mps.
            precision: fp32 or bf16.
        """
        self.networks, self.config = networks, networks.config
        self.fabric = Fabric(
            accelerator=device,
            devices=1,
            plugins=_MixedPrecision("bf16-mixed", device) if precision == "bf16" else Precision(),
        )
        if device == "cpu" and precision == "bf16":
            for network in (networks.student, networks.teacher):
                use_plain_attention(network.backbone)
        recompute_activations(networks.student.backbone)
        decayed, free = weight_decay_groups(networks.student)
        groups: list[dict[str, Any]] = [{"params": decayed}, {"params": free, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, fused=device != "mps")
        networks.to(self.fabric.device)
        self._student, self._fabric_optimizer = self.fabric.setup(networks.student, self.optimizer)
        self._student.train()
        self._settings = view_settings(self.config.photometric, self.config.model.patch_px)

    def losses(self, decoded: Sequence[ViewGroup], keys: SampleKeys, values: StepValues) -> LossTerms:
        """Augment the views of a batch and compute their loss."""
        seed = self.config.train.seed
        views = prepare_views(
            decoded,
            keys,
            self._settings,
            seed=seed,
            device=self.fabric.device,
            teacher_patch_probability=self.config.photometric.teacher_patch_probability,
        )
        with self.fabric.autocast():
            return self.networks.losses(
                views,
                self._student,
                teacher_temperature=values.teacher_temperature,
                patch_weight=values.patch_weight,
            )

    def update(self, terms: LossTerms, values: StepValues) -> None:
        """Move student, centres and teacher by one step."""
        train, networks = self.config.train, self.networks
        decayed, free = self.optimizer.param_groups
        decayed.update(lr=values.learning_rate, weight_decay=values.weight_decay)
        free.update(lr=values.learning_rate)
        self.fabric.backward(terms.total)
        if values.prototypes_frozen:
            for parameter in networks.student.prototype_parameters():
                parameter.grad = None
        if train.clip_gradient is not None:
            clip_gradients(networks.student, train.clip_gradient, mode=train.clip_mode)
        self._fabric_optimizer.step()
        self._fabric_optimizer.zero_grad(set_to_none=True)
        networks.update_centers(terms)
        networks.ema_step(values.momentum)

    def state(self) -> dict[str, Any]:
        """All that the next step depends on, besides the data."""
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return {
            "config": self.config.model_dump(mode="json"),
            "student": self.networks.student.state_dict(),
            "teacher": self.networks.teacher.state_dict(),
            "centers": self.networks.centers,
            "optimizer": self.optimizer.state_dict(),
            "generator": {"cpu": torch.get_rng_state(), "cuda": cuda},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state` returned.

        Raises:
            RuntimeError, ValueError, KeyError: it is of other networks.
        """
        self.networks.student.load_state_dict(state["student"])
        self.networks.teacher.load_state_dict(state["teacher"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.networks.centers = {
            name: state["centers"][name].to(center.device) for name, center in self.networks.centers.items()
        }
        torch.set_rng_state(state["generator"]["cpu"])
        if torch.cuda.is_available() and state["generator"]["cuda"]:
            torch.cuda.set_rng_state_all(state["generator"]["cuda"])
