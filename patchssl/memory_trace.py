"""What a part of a batch needs on its way forward and back, found by going it with tensors that have no memory."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from patchssl.backbones.vit import recompute_activations, recompute_blocks, use_plain_attention
from patchssl.config import Config
from patchssl.live_bytes import LiveBytes
from patchssl.loss import chunked_cross_entropy, num_chunk_rows
from patchssl.network import Network, Projected
from patchssl.part_rows import PartRows, part_rows
from patchssl.stochastic_depth import dropped_branches
from patchssl.structs import Projections
from patchssl.workspace import MIB, Workspace

#: The C library of Linux hands out blocks below this from its heap, others by themselves (mallopt(3)).
HEAP_BYTES = 32 * MIB
_DEEP, _SHALLOW = 3, 2
_FILLING = {"uniform_", "normal_", "erfinv_", "mul_", "add_", "clamp_", "fill_", "zero_"}
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
    with torch.device("meta"), _Unfilled():
        return Network(config, drop_path=config.model.drop_path)


def trace(config: Config, num_images: int, *, device: str, precision: str) -> Trace:
    """Send a part of a batch forward and back through the student, allocating nothing.

    The network is that of training, with its switches; FakeTensorMode runs every operation, those of our own backward
    passes and of checkpointing included, on shapes alone. The loss is cut as that of boxes drawn for such images. The
    teacher takes less than that at any time, since it keeps nothing for a backward pass. What an operation takes for
    itself while it runs, outside PyTorch's tensors, is not seen. Tensors pretend to be on the CPU whatever the device,
    because others would have to be there: what autocast keeps in float32 is nearly the same on all.

    All blocks being alike, networks of two and of three of them are traced, and deeper ones lie on the straight line
    through these. While the backward pass goes through the blocks, each takes its activations away and leaves its
    gradients behind: the most is alive in the last block or in the first one, each of which has a line of its own.

    Args:
        config: of the run.
        num_images: of the part.
        device: cpu, cuda or mps.
        precision: fp32 or bf16.
    """
    depth = len(network_without_memory(config).backbone.blocks)
    rows = _rows(config, num_images, precision)
    deep = _go(_cut_to(config, min(depth, _DEEP)), num_images, rows, device, precision)
    # Networks that are traced as they are need no line.
    shallow = _go(_cut_to(config, _SHALLOW), num_images, rows, device, precision) if depth > _DEEP else deep

    def at_depth(of_deep: int, of_shallow: int) -> int:
        return of_deep + max(0, depth - _DEEP) * (of_deep - of_shallow)

    peak, on_heap = max(
        (at_depth(one[0], other[0]), at_depth(one[1], other[1]))
        for one, other in zip(deep.windows, shallow.windows, strict=True)
    )
    return Trace(
        activations=at_depth(deep.activations, shallow.activations),
        workspace=deep.workspace,
        gradients=at_depth(deep.gradients, shallow.gradients),
        peak=peak,
        on_heap=on_heap,
    )


@dataclass(frozen=True, slots=True)
class _Gone:
    """What was found on the way through a shallow network.

    Attributes:
        activations: as in Trace.
        workspace: as in Trace.
        gradients: as in Trace.
        windows: the most that is alive, and what of it is on the heap: before the backward pass comes to a block, and
            for each group of views in the last block and in the first one.
    """

    activations: int
    workspace: int
    gradients: int
    windows: tuple[tuple[int, int], ...]


def _cut_to(config: Config, depth: int) -> Config:
    return config.model_copy(update={"model": config.model.model_copy(update={"depth": depth})})


def _go(config: Config, num_images: int, rows: PartRows, device: str, precision: str) -> _Gone:
    student = network_without_memory(config)
    # PyTorch starts a thread for each GPU with its first backward pass, and FakeTensorMode pretends that there is one.
    torch.zeros((), requires_grad=True).backward()
    with FakeTensorMode(allow_non_fake_inputs=True):
        student.to_empty(device="cpu").train()
        if device == "cpu" and precision == "bf16":
            use_plain_attention(student.backbone)
        recompute_activations(student.backbone)
        if config.train.checkpoint_activations:
            recompute_blocks(student.backbone)
        return _forward_and_back(config, num_images, rows, student, precision)


def _forward_and_back(config: Config, num_images: int, rows: PartRows, student: Network, precision: str) -> _Gone:
    views = config.views
    sizes = ((views.num_global, views.global_size), (views.num_local, views.local_size))
    pixels = [torch.empty(num_images * num, 3, side, side) for num, side in sizes if num]
    trained = [weight for weight in student.parameters() if weight.requires_grad]
    if config.train.accumulate > 1:
        for weight in trained:
            weight.grad = torch.empty_like(weight)
    before = [weight.grad for weight in trained if weight.grad is not None]
    answer = _answer(config, num_images, precision)
    theirs = [part for kind in answer.kinds().values() for part in (kind.rows, kind.prototypes)]
    workspace = Workspace(config.loss.chunk_mib * MIB)
    windows: list[tuple[int, int]] = []
    with LiveBytes([*student.parameters(), *before, *theirs, *pixels], small_bytes=HEAP_BYTES) as live:
        _tell_blocks(student, lambda: windows.append(live.restart()))
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            kept = None if rows.kept is None else [torch.empty(num, dtype=torch.int64) for num in rows.kept]
            projected = Projected.of(student(pixels, kept, _factors(student, pixels)))
            activations = live.now
            loss = _loss(config, projected, answer, rows, workspace)
        del projected, kept
        loss.backward()
        windows.append(live.restart())
    there = sum(gradient.nbytes for gradient in before)
    gradients = sum(weight.grad.nbytes for weight in trained if weight.grad is not None)
    found = _ends(windows, len(student.backbone.blocks))
    return _Gone(activations, workspace.held_bytes, gradients, tuple((peak + there, small) for peak, small in found))


def _factors(student: Network, pixels: Sequence[Tensor]) -> list[Tensor] | None:
    """Of the residual branches that are dropped at times, in shape."""
    num_branches = len(dropped_branches(student))
    return [torch.empty(len(images), num_branches) for images in pixels] if num_branches else None


def _tell_blocks(student: Network, tell: Callable[[], None]) -> None:
    """Call a function whenever the backward pass comes to a block."""

    def passed(block: nn.Module, inputs: object, output: Tensor) -> None:
        output.register_hook(lambda gradient: tell())

    for block in student.backbone.blocks:
        block.register_forward_hook(passed)


def _ends(windows: Sequence[tuple[int, int]], depth: int) -> list[tuple[int, int]]:
    """The window before the first block, and of each pass through the blocks the first and the last one."""
    first, *blocks = windows
    ends = [blocks[start + place] for start in range(0, len(blocks), depth) for place in (0, depth - 1)]
    return [first, *ends]


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
        torch.empty(0),
        projections(num_views, model.cls_prototypes),
        patches if config.loss.patch_weight > 0 else None,
    )


def _rows(config: Config, num_images: int, precision: str) -> PartRows:
    """Boxes are drawn and paired in earnest: what is kept depends on them."""
    workspace = Workspace(config.loss.chunk_mib * MIB)
    with torch.device("meta"):
        kinds = _answer(config, num_images, precision).kinds()
    return part_rows(
        config, num_images, {kind: num_chunk_rows(theirs.prototypes, workspace) for kind, theirs in kinds.items()}
    )


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


class _Unfilled(TorchFunctionMode):
    """Leaves weights on the meta device as they are: drawing no numbers takes time, too."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run all but operations that fill."""
        named = kwargs or {}
        # Functions of torch.nn.init hand themselves on by the names of their arguments.
        filled = args[0] if args else named.get("tensor")
        if getattr(func, "__name__", "") in _FILLING and isinstance(filled, Tensor) and filled.is_meta:
            return filled
        return func(*args, **named)
