"""What a part of a batch needs on its way forward and back, found by going it with tensors that have no memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes

from patchssl.backbones.vit import recompute_activations, recompute_blocks, use_plain_attention
from patchssl.config import Config
from patchssl.live_bytes import LiveBytes
from patchssl.loss import chunked_cross_entropy, num_chunk_rows
from patchssl.network import Network, Projected
from patchssl.part_rows import PartRows, part_rows
from patchssl.structs import Projections
from patchssl.workspace import MIB, Workspace

# The C library of Linux hands out blocks below this from its heap, others by themselves (mallopt(3), M_MMAP_THRESHOLD).
_HEAP_BYTES = 32 * MIB
_TEMPERATURE = 1.0  # of no meaning: no number is computed


@dataclass(frozen=True, slots=True)
class Trace:
    """Bytes that a part of a batch takes besides weights and pixels.

    Attributes:
        activations: kept for the backward pass when the forward pass is done.
        workspace: of the loss.
        gradients: of the weights, when the backward pass is done.
        peak: the most that is alive at a time, all of the above in it; where gradients of earlier parts are there
            from the beginning, they are in it as well.
        on_heap: what of that is in blocks that a C library takes from its heap.
    """

    activations: int
    workspace: int
    gradients: int
    peak: int
    on_heap: int


def network_without_memory(config: Config) -> Network:
    """A network on the meta device, whose weights have shapes and no numbers."""
    with torch.device("meta"):
        return Network(config, drop_path=config.model.drop_path)


def trace(config: Config, num_images: int, *, device: str, precision: str) -> Trace:
    """Send a part of a batch forward and back through the student, allocating nothing.

    The network is that of training, with its switches; FakeTensorMode runs every operation, those of our own backward
    passes and of checkpointing included, on shapes alone. The loss is cut as that of boxes drawn for such images. The
    teacher takes less than that at any time, since it keeps nothing for a backward pass. What an operation takes for
    itself while it runs, outside PyTorch's tensors, is not seen. Tensors pretend to be on the CPU whatever the device,
    because others would have to be there: what autocast keeps in float32 is nearly the same on all.

    Args:
        config: of the run.
        num_images: of the part.
        device: cpu, cuda or mps.
        precision: fp32 or bf16.
    """
    student = network_without_memory(config)
    with FakeTensorMode(allow_non_fake_inputs=True):
        student.to_empty(device="cpu").train()
        if device == "cpu" and precision == "bf16":
            use_plain_attention(student.backbone)
        recompute_activations(student.backbone)
        if config.train.checkpoint_activations:
            recompute_blocks(student.backbone)
        views = config.views
        sizes = ((views.num_global, views.global_size), (views.num_local, views.local_size))
        pixels = [torch.empty(num_images * num, 3, side, side) for num, side in sizes if num]
        return _go(config, num_images, student, pixels, precision)


def _go(config: Config, num_images: int, student: Network, pixels: list[Tensor], precision: str) -> Trace:
    trained = [weight for weight in student.parameters() if weight.requires_grad]
    if config.train.accumulate > 1:
        for weight in trained:
            weight.grad = torch.empty_like(weight)
    before = [weight.grad for weight in trained if weight.grad is not None]
    answer = _answer(config, num_images, precision)
    theirs = [part for kind in answer.kinds().values() for part in (kind.rows, kind.prototypes)]
    workspace = Workspace(config.loss.chunk_mib * MIB)
    rows = _rows(config, num_images, answer, workspace)
    with LiveBytes([*student.parameters(), *before, *theirs, *pixels], small_bytes=_HEAP_BYTES) as live:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            kept = None if rows.kept is None else [torch.empty(num, dtype=torch.int64) for num in rows.kept]
            projected = Projected.of(student(pixels, kept))
            activations = live.now
            loss = _loss(config, projected, answer, rows, workspace)
        del projected, kept
        loss.backward()
    gradients = sum(weight.grad.nbytes for weight in trained if weight.grad is not None)
    peak = live.peak + sum(gradient.nbytes for gradient in before)
    return Trace(activations, workspace.held_bytes, gradients, peak, live.small_at_peak)


def _answer(config: Config, num_images: int, precision: str) -> Projected:
    """What the teacher says of the global views, in shape."""
    model, num_views = config.model, num_images * config.views.num_global
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32

    def projections(num_rows: int, num_prototypes: int) -> Projections:
        width = model.head_bottleneck
        return Projections(torch.empty(num_rows, width), torch.empty(num_prototypes, width, dtype=dtype))

    patches = projections(num_views * _num_patches(config), model.patch_prototypes)
    return Projected(
        torch.empty(0),
        projections(num_views, model.cls_prototypes),
        patches if config.loss.patch_weight > 0 else None,
    )


def _rows(config: Config, num_images: int, answer: Projected, workspace: Workspace) -> PartRows:
    max_rows = {kind: num_chunk_rows(theirs.prototypes, workspace) for kind, theirs in answer.kinds().items()}
    # Boxes are drawn and paired in earnest: what is kept depends on them.
    with _in_earnest():
        return part_rows(config, num_images, max_rows)


def _loss(config: Config, student: Projected, teacher: Projected, rows: PartRows, workspace: Workspace) -> Tensor:
    num_positions = _num_patches(config) if config.loss.center == "position" else 1
    sums = [
        chunked_cross_entropy(
            ours,
            teacher.kinds()[kind],
            rows.chunks[kind].chunks(),
            center=torch.empty(num_positions if kind == "patch" else 1, len(ours.prototypes)),
            student_temperature=_TEMPERATURE,
            teacher_temperature=_TEMPERATURE,
            workspace=workspace,
        )
        for kind, ours in student.kinds().items()
    ]
    return torch.stack(sums).sum()


def _num_patches(config: Config) -> int:
    side: int = config.views.global_size // config.model.patch_px
    return side * side


@contextmanager
def _in_earnest() -> Iterator[None]:
    """Leave the mode that pretends for the block."""
    with _disable_current_modes():
        yield
