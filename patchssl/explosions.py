"""Numbers that explode: where they are, by looking, why that is likely, and what to do."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from patchssl.checkpoint_folder import checkpoints, step_of
from patchssl.config import TrainConfig
from patchssl.shards import local
from patchssl.structs import SampleKeys, ViewGroup
from patchssl.student_teacher import StudentTeacher

_CLIP_GRADIENT = TrainConfig().clip_gradient
_MOST_NAMED = 3


@dataclass(frozen=True)
class Findings:
    """What is not finite: in words, which are empty where everything is.

    Attributes:
        student: the student's weights.
        teacher: the teacher's weights.
        centers: the centres.
        pixels: the views.
        loss_is_finite: whether the loss is.
        largest_weight: of the student.
    """

    student: str
    teacher: str
    centers: str
    pixels: str
    loss_is_finite: bool
    largest_weight: float


@dataclass(frozen=True)
class Circumstances:
    """What numbers may have exploded for.

    Attributes:
        learning_rate: at its peak.
        derived_rate: what it would be if it were left open.
        clip_gradient: None where gradients are not clipped.
        precision: fp32 or bf16.
    """

    learning_rate: float
    derived_rate: float
    clip_gradient: float | None
    precision: str

    @property
    def lower_rate(self) -> float:
        """The derived learning rate, or half of what is no larger."""
        is_larger = self.learning_rate > self.derived_rate
        return self.derived_rate if is_larger else float(f"{self.learning_rate / 2:.3g}")


def examine(
    networks: StudentTeacher, views: Sequence[ViewGroup], keys: SampleKeys, ids: Sequence[str], *, loss_is_finite: bool
) -> Findings:
    """Look where numbers are not finite.

    Args:
        networks: as they are.
        views: of the samples, as the student sees them.
        keys: of the samples.
        ids: the name of each image of the data.
        loss_is_finite: whether the loss of these samples is.
    """
    return Findings(
        student=_not_finite(dict(networks.student.named_parameters())),
        teacher=_not_finite(dict(networks.teacher.named_parameters())),
        centers=_not_finite(networks.centers),
        pixels=_broken_images(views, keys, ids),
        loss_is_finite=loss_is_finite,
        largest_weight=_largest(networks.student),
    )


def cause(findings: Findings, precision: str) -> str:
    """The likely cause, in words: what lies before everything else that is not finite."""
    if findings.student:
        return f"the student's weights are not finite ({findings.student}), so that an update was too large"
    if findings.teacher:
        return f"the teacher's weights are not finite ({findings.teacher}), while the student's are"
    if findings.centers:
        return f"the centres are not finite ({findings.centers}), so that the teacher's logits overflowed"
    if findings.pixels:
        return f"pixels are not finite ({findings.pixels}): look at these images and at the settings of photometric"
    found = "the loss is as well, and its gradient overflows" if findings.loss_is_finite else "the networks overflow"
    return (
        f"weights, centres and pixels are finite, {found} in {precision}; the largest weight of the student is "
        f"{findings.largest_weight:.3g}"
    )


def circumstances_told(around: Circumstances) -> str:
    """Learning rate, clipping and precision, in words."""
    told = [f"train.learning_rate is {around.learning_rate:g}, where null would give {around.derived_rate:g}"]
    told += ["train.clip_gradient is null"] if around.clip_gradient is None else []
    return ", ".join([*told, f"precision is {around.precision}"])


def changes(findings: Findings, around: Circumstances) -> list[str]:
    """What to add to the command line."""
    if findings.pixels and not (findings.student or findings.teacher or findings.centers):
        return []
    found = [f"--set train.learning_rate={around.lower_rate:g}"]
    if around.clip_gradient is None:
        found.append(f"--set train.clip_gradient={_CLIP_GRADIENT:g}")
    return found + (["--precision fp32"] if around.precision != "fp32" else [])


def way_on(folder: Path, bad_step: int, options: Sequence[str]) -> str:
    """How to go on from a run, or to start it anew, under these options of the command line.

    Another learning rate makes another training, which a run is not resumed with; a new one begins with its weights.

    Args:
        folder: `checkpoints` of the run.
        bad_step: after so many steps the run was what nothing finite comes of. A checkpoint of that step is as bad; one
            of before was followed by a finite step.
        options: to be added; none where the run may go on as it is.
    """
    if not options:
        return f"the checkpoint {checkpoints(folder)[-1].name} is kept: go on with --resume"
    good = [path for path in checkpoints(folder) if 0 < step_of(path) < bad_step]
    if not good:
        return (
            f"no trained weights were saved before step {bad_step}; start anew with "
            f"{' '.join(['--overwrite', *options])}"
        )
    begun = " ".join(["--init", shlex.quote(str(good[-1])), "--init-heads", *options])
    return f"the last good checkpoint is {good[-1].name}: begin a new run with its weights by {begun}"


def weights_are_finite(networks: StudentTeacher) -> bool:
    """Whether all weights of student and teacher are."""
    return all_finite([*networks.student.parameters(), *networks.teacher.parameters()])


@torch.no_grad()
def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether all numbers are finite; of none, they are. The tensors' device is waited for once."""
    flags = [local(tensor).isfinite().all() for tensor in tensors]
    return not flags or bool(torch.stack(flags).all())


@torch.no_grad()
def _not_finite(tensors: Mapping[str, Tensor]) -> str:
    """How many tensors hold a number that is not finite, and the first of them."""
    names = [name for name, tensor in tensors.items() if not local(tensor).isfinite().all()]
    return f"{len(names)} of {len(tensors)} tensors, first {names[0]}" if names else ""


def _broken_images(views: Sequence[ViewGroup], keys: SampleKeys, ids: Sequence[str]) -> str:
    finite = [group.pixels.isfinite().flatten(2).all(-1).cpu() for group in views]  # (B, V) for each group
    num_broken, num = sum(int((~group).sum()) for group in finite), sum(group.numel() for group in finite)
    if not num_broken:
        return ""
    images = torch.stack([~group.all(-1) for group in finite]).any(0)  # (B,)
    names = list(dict.fromkeys(ids[index] for index in keys.index[images].tolist()))
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return f"{num_broken} of {num} views, of {', '.join(names[:_MOST_NAMED])}{more}"


@torch.no_grad()
def _largest(network: nn.Module) -> float:
    shares = [local(parameter) for parameter in network.parameters()]
    return max(float(share.abs().max()) for share in shares if share.numel())
