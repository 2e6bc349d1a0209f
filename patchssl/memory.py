"""How much memory a training takes at most, in parts."""

from collections.abc import Callable
from dataclasses import asdict, dataclass

from torch import Tensor

from patchssl.config import Config
from patchssl.decoded_images import LAID_OUT_BYTES
from patchssl.memory_trace import HEAP_BYTES, Trace, network_without_memory, trace
from patchssl.network import Network
from patchssl.resampling import workspace_bytes

_FLOAT32 = 4
_CHANNELS = 3
# The loader hands four batches of each worker on ahead; one is in use, and the one before is let go of after it.
_AHEAD, _IN_USE = 4, 2
# Of what lies on the heap at the peak: 0.2 to 0.5 in the processes of tests/benchmarks/bench_memory.py, by mallinfo2(3)
# and beside the same ones under a small M_MMAP_THRESHOLD, which has no holes. Bytes that are alive are right to 4 %.
_HOLES = 0.35
# Of libraries that are loaded and set themselves up between the estimate and the end of the first steps: a network of
# 1 M weights and a batch of 2 take so much more than their tensors.
_FIRST_STEPS_BYTES = 110 << 20
# What a forked worker writes to of the pages that it shares with the main process, and what reading images takes.
_WORKER_BYTES = 48 << 20

#: A part of an estimate and what it is.
PARTS = {
    "process": "interpreter and libraries",
    "student": "weights of the student",
    "teacher": "weights of the teacher",
    "optimizer": "two moments of AdamW for every trained weight",
    "gradients": "of the student's weights",
    "exchange": "copies of gradients that processes exchange; with fsdp, weights that are gathered and their gradients",
    "activations": "kept for the backward pass by the images in flight",
    "backward": "more at the peak of the backward pass; below 0: activations that are gone by then",
    "loss": "logits of a chunk, the gradient of the prototypes, the teacher's answer and that of the step before",
    "views": "pixels of all views",
    "images": "decoded images on the device, of a batch or of all the data, and what cutting their views out takes",
    "allocator": "holes in the C library's heap, into which nothing of the right size fits",
    "loader": "batches decoded ahead, and the processes that do it",
}
#: Those of the machine's own memory even where networks are elsewhere.
HOST_PARTS = ("process", "allocator", "loader")


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What memory depends on besides the configuration.

    Attributes:
        device: cpu, cuda or mps.
        precision: fp32 or bf16.
        workers: loader processes of each training process.
        num_processes: that share a batch.
        image_bytes: of an image of the source when it is decoded, in the mean.
        division: who cuts views out, as in data.division, settled.
        num_images: of the source.
        process_bytes: of the process before anything is built.
    """

    device: str
    precision: str
    workers: int
    num_processes: int = 1
    image_bytes: int = 0
    division: str = "views"
    num_images: int = 0
    process_bytes: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """Bytes of one training process at its peak, in parts that PARTS explains.

    Attributes:
        setting: of the process.
        num_images: that go through the student at a time.
    """

    setting: Setting
    num_images: int
    process: int
    student: int
    teacher: int
    optimizer: int
    gradients: int
    exchange: int
    activations: int
    backward: int
    loss: int
    views: int
    images: int
    allocator: int
    loader: int

    def parts(self) -> dict[str, int]:
        """By name, in the order of PARTS."""
        values = asdict(self)
        return {name: values[name] for name in PARTS}

    @property
    def on_device(self) -> int:
        """Bytes where networks are computed; on the CPU this is all."""
        parts = self.parts()
        return sum(num for name, num in parts.items() if self.setting.device != "cuda" or name not in HOST_PARTS)

    @property
    def on_host(self) -> int:
        """Bytes of the machine's own memory."""
        return self.process + self.allocator + self.loader if self.setting.device == "cuda" else self.on_device


Tracer = Callable[..., Trace]


def estimate(config: Config, setting: Setting, *, tracer: Tracer = trace) -> Estimate:
    """Add up what a training process holds when it holds most.

    Weights, gradients, moments, pixels and what the loss keeps are counted; activations and the peak of the backward
    pass are traced. The peak stands at the end of a part's forward pass or in its backward pass: there are no
    activations at any other time, and what augmentation, optimizer and checkpoints take besides is less.

    Args:
        config: of the run.
        setting: where it runs.
        tracer: as `trace`; one that remembers saves time.
    """
    network = network_without_memory(config)
    weights = sum(weight.nbytes for weight in network.parameters())
    trained = sum(weight.nbytes for weight in network.parameters() if weight.requires_grad)
    num_images = -(-config.train.batch_size // setting.num_processes)
    num_in_flight = -(-num_images // config.train.accumulate)
    found: Trace = tracer(config, num_in_flight, device=setting.device, precision=setting.precision)
    held = found.workspace + _prototype_gradients(network, setting)
    share = setting.num_processes if config.train.strategy == "fsdp" else 1
    return Estimate(
        setting=setting,
        num_images=num_in_flight,
        process=setting.process_bytes + _FIRST_STEPS_BYTES,
        student=-(-weights // share),
        teacher=-(-weights // share),
        optimizer=-(-2 * trained // share),
        gradients=-(-trained // share),
        exchange=_exchange(config, network, setting, trained),
        activations=found.activations,
        backward=found.peak - found.activations - held - found.gradients,
        loss=held + 2 * _answer(config, network, num_images, setting) + _centers(config),
        views=views_bytes(config, num_images),
        images=_images(config, num_images, setting),
        allocator=_holes(network, found, setting),
        loader=_loader(config, num_images, setting),
    )


def _holes(network: Network, found: Trace, setting: Setting) -> int:
    if setting.device != "cpu":
        return 0
    small = [weight for weight in network.parameters() if weight.nbytes < HEAP_BYTES]
    # Student, teacher, two moments.
    weights = 2 * sum(weight.nbytes * (1 + weight.requires_grad) for weight in small)
    return round(_HOLES * (found.on_heap + weights))


def _exchange(config: Config, network: Network, setting: Setting, trained: int) -> int:
    """DDP sums up gradients in buckets of their own; FSDP gathers a block at a time, and what is outside of blocks."""
    if setting.num_processes == 1:
        return 0
    if config.train.strategy != "fsdp":
        return trained
    blocks = [sum(weight.nbytes for weight in block.parameters()) for block in network.backbone.blocks]
    outside = sum(weight.nbytes for weight in network.parameters()) - sum(blocks)
    return 2 * (outside + max(blocks))


def views_bytes(config: Config, num_images: int) -> int:
    """Pixels of all views of a batch as the networks take them, in float32; the teacher's apart where they differ."""
    copies = num_images * config.views.num_global if config.photometric.teacher_patch_probability is not None else 0
    return _FLOAT32 * (decoded_bytes(config, num_images) + copies * _CHANNELS * config.views.global_size**2)


def decoded_bytes(config: Config, num_images: int) -> int:
    """Pixels of all views of a batch as they are decoded, in uint8."""
    views = config.views
    num_pixels = views.num_global * views.global_size**2 + views.num_local * views.local_size**2
    return num_images * _CHANNELS * num_pixels


def _prototypes(network: Network) -> list[Tensor]:
    heads = [network.cls_head] if network.patch_head is None else [network.cls_head, network.patch_head]
    return [head.last_layer.weight_v for head in heads]


def _element_bytes(setting: Setting) -> int:
    return 2 if setting.precision == "bf16" else _FLOAT32


def _prototype_gradients(network: Network, setting: Setting) -> int:
    """Those that are formed with the loss and wait for the backward pass."""
    return sum(weight.numel() for weight in _prototypes(network)) * _element_bytes(setting)


def _answer(config: Config, network: Network, num_images: int, setting: Setting) -> int:
    """Rows and prototypes of the teacher for the whole batch."""
    num_patches = (config.views.global_size // config.model.patch_px) ** 2 if config.loss.patch_weight > 0 else 0
    num_rows = num_images * config.views.num_global * (1 + num_patches)
    prototypes = sum(weight.numel() for weight in _prototypes(network)) * _element_bytes(setting)
    return num_rows * config.model.head_bottleneck * _FLOAT32 + prototypes


def _centers(config: Config) -> int:
    num_positions = (config.views.global_size // config.model.patch_px) ** 2 if config.loss.center == "position" else 1
    patches = num_positions * config.model.patch_prototypes if config.loss.patch_weight > 0 else 0
    return _FLOAT32 * (config.model.cls_prototypes + patches)


def _images(config: Config, num_images: int, setting: Setting) -> int:
    """Where the device cuts: images of a batch as they come and laid out, or all of the source; and views."""
    if setting.division == "views":
        return 0
    views = workspace_bytes(setting.device) + decoded_bytes(config, num_images)
    if setting.division == "resident":
        return setting.num_images * setting.image_bytes + views
    batch = num_images * setting.image_bytes
    return batch + min(batch, max(LAID_OUT_BYTES, setting.image_bytes)) + views


def _loader(config: Config, num_images: int, setting: Setting) -> int:
    """Batches in memory that processes share, and what each worker has for itself: images of a batch, and its views."""
    if setting.division == "resident":
        return 0
    views, images = decoded_bytes(config, num_images), num_images * setting.image_bytes
    batch = views if setting.division == "views" else images
    making = images + batch
    if not setting.workers:
        return batch + making
    return (setting.workers * _AHEAD + _IN_USE) * batch + setting.workers * (_WORKER_BYTES + making)
