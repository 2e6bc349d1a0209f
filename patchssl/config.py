"""The pretraining configuration: every setting, its default, its limits and what it means."""

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from patchssl.data_settings import DataConfig
from patchssl.setting_types import Count, Fraction, PerGlobal, PerKind, Positive, Range, Section

_TEACHER_TEMPERATURE = 0.04


class ViewsConfig(Section):
    """Multi-crop."""

    global_size: Count = Field(224, description="side of a global view, px; a multiple of the patch")
    local_size: Count = Field(96, description="side of a local view, px; a multiple of the patch")
    num_global: int = Field(2, ge=2, description="global views of an image; the teacher sees these")
    num_local: int = Field(8, ge=0, description="local views of an image; 0 turns multi-crop off")
    global_scale: Range = Field((0.4, 1.0), description="area of a global view, as a fraction of the image's")
    local_scale: Range = Field((0.05, 0.4), description="area of a local view, as a fraction of the image's")
    ratio: Range = Field((3 / 4, 4 / 3), description="width / height of a view's box")
    flip_probability: Fraction = Field(0.5, description="probability that a view is mirrored")
    shared_geometry: bool = Field(False, description="one set of boxes and flips for a whole batch (PW-Self's release)")

    @model_validator(mode="after")
    def _ordered(self) -> "ViewsConfig":
        for name in ("global_scale", "local_scale", "ratio"):
            low, high = getattr(self, name)
            if low > high or (name != "ratio" and high > 1):
                limit = "" if name == "ratio" else ", at most 1"
                raise ValueError(f"{name} is [{low}, {high}]; give [low, high] with low <= high{limit}")
        return self


class PhotometricConfig(Section):
    """Colour, blur and solarisation; lists of three are for the first global, other global and local views.

    Where a list is meant, a single number stands for equal ones.
    """

    brightness: Fraction = 0.4
    contrast: Fraction = 0.4
    saturation: Fraction = 0.2
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    jitter_probability: Fraction = 0.8
    greyscale_probability: Fraction = 0.2
    blur_probability: PerKind = (1.0, 0.1, 0.5)
    blur_sigma: Range = Field((0.1, 2.0), description="standard deviation of the blur, px of the view")
    solarise_probability: PerKind = (0.0, 0.2, 0.0)
    solarise_threshold: Fraction = 128 / 255
    patch_probability: PerKind = Field((0.0, 0.0, 0.0), description="probability that a view is augmented cell by cell")
    teacher_patch_probability: PerGlobal | None = Field(
        None,
        description="the same for the teacher's copies of the first and the other global views; "
        "null: the teacher sees the very pixels that the student sees",
    )
    cell_size: Count | None = Field(None, description="side of a cell, px; a multiple of the patch; null: one patch")


class ModelConfig(Section):
    """Backbone and projection heads."""

    arch: str = Field("vit_small_patch16_224", description="a timm ViT")
    patch_size: Count | None = Field(None, description="px; null: as in the arch's name")
    width: Count | None = Field(None, description="null: the arch's")
    depth: Count | None = Field(None, description="null: the arch's")
    num_heads: Count | None = Field(None, description="null: the arch's")
    pooling: Literal["cls", "mean"] = Field(
        "cls", description="what stands for the image: a class token, or without one the mean of the patches"
    )
    drop_path: Annotated[float, Field(ge=0, lt=1)] = Field(0.1, description="stochastic depth of the student")
    crop_fraction: Annotated[float, Field(gt=0, le=1)] = Field(
        0.875, description="evaluation crops this fraction of the resized shorter side; 0.875 is 224 of 256"
    )
    head_hidden: Count = 2048
    head_bottleneck: Count = 256
    cls_prototypes: Annotated[int, Field(ge=2)] = 65536
    patch_prototypes: Annotated[int, Field(ge=2)] = 8192
    shared_head: bool = Field(False, description="patches use the head of the class token")
    norm_last_layer: bool = Field(True, description="keep the norm of every prototype at 1")
    init: str | None = Field(None, description="a model to start from, any --model SPEC of this architecture (--init)")
    init_heads: bool = Field(False, description="take the projection heads of init as well; else they start fresh")

    @property
    def patch_px(self) -> int:
        """The side of a patch in px."""
        if self.patch_size is not None:
            return self.patch_size
        found = re.search(r"_patch(\d+)", self.arch)
        if found is None:
            raise ValueError(f"the name {self.arch!r} does not tell the patch size; set model.patch_size")
        return int(found[1])

    @model_validator(mode="after")
    def _consistent(self) -> "ModelConfig":
        _ = self.patch_px
        if self.shared_head and self.patch_prototypes != self.cls_prototypes:
            raise ValueError(
                f"shared_head needs patch_prototypes ({self.patch_prototypes}) equal to "
                f"cls_prototypes ({self.cls_prototypes})"
            )
        if self.init_heads and self.init is None:
            raise ValueError(
                "init_heads is true and init names no model to take heads from; give init or init_heads: false"
            )
        return self


class LossConfig(Section):
    """Distillation of class token and patches."""

    patch_weight: Annotated[float, Field(ge=0)] = Field(1.0, description="0 is DINO: the patch term is not computed")
    patch_weight_start: Annotated[float, Field(ge=0)] = Field(0.0, description="of the patch weight's warm-up")
    patch_weight_warmup_fraction: Fraction = Field(0.0, description="of all steps, linear from start")
    koleo_weight: Annotated[float, Field(ge=0)] = Field(
        0.0, description="of the KoLeo term, which spreads the class tokens of a batch apart; DINOv2 takes 0.1"
    )
    average: Literal["terms", "flat"] = Field(
        "terms",
        description="terms: CLS mean + patch_weight * patch mean; flat: one mean over CLS and patches (authors)",
    )
    matching: Literal["nearest", "authors"] = "nearest"
    center: Literal["kind", "position", "sinkhorn"] = Field(
        "kind",
        description="moving means, kind: one for CLS, one for patches; position: one per teacher token (authors); "
        "sinkhorn: from every batch, so that it uses all prototypes alike",
    )
    sinkhorn_iterations: Count = 3
    center_momentum: Fraction = 0.9
    student_temperature: Positive = 0.1
    teacher_temperature: Positive = _TEACHER_TEMPERATURE
    teacher_temperature_start: Positive = _TEACHER_TEMPERATURE
    teacher_temperature_warmup_fraction: Fraction = Field(0.0, description="of all steps, linear from start")
    chunk_mib: Count = Field(256, description="memory for the logits that exist at a time, MiB; changes rounding only")

    @model_validator(mode="after")
    def _consistent(self) -> "LossConfig":
        if self.average == "flat" and (self.patch_weight != 1 or self.patch_weight_warmup_fraction):
            raise ValueError(
                f"average: flat has no patch_weight of its own; set it to 1 (it is {self.patch_weight}) and "
                f"patch_weight_warmup_fraction to 0 (it is {self.patch_weight_warmup_fraction})"
            )
        if self.patch_weight == 0 and self.patch_weight_warmup_fraction:
            raise ValueError(
                "patch_weight is 0, so that there is no patch term to warm up over patch_weight_warmup_fraction "
                f"({self.patch_weight_warmup_fraction}) of the steps; raise the former or set the latter to 0"
            )
        for name, unset in (("patch_weight", 0.0), ("teacher_temperature", _TEACHER_TEMPERATURE)):
            start, warmup = (getattr(self, f"{name}_{part}") for part in ("start", "warmup_fraction"))
            # A complete configuration holds the default as well, so the default cannot mean a wish.
            if not warmup and start not in (unset, getattr(self, name)):
                raise ValueError(
                    f"{name}_start is {start} and {name}_warmup_fraction 0, so that {name} is {getattr(self, name)} "
                    f"from the first step; give {name}_warmup_fraction above 0, or leave {name}_start at {unset}"
                )
        return self


class TrainConfig(Section):
    """Optimisation, length, hardware."""

    epochs: Positive | None = Field(100.0, description="passes over the data; steps wins over it")
    steps: Count | None = Field(None, description="optimizer steps in all")
    batch_size: Count = Field(
        64, description="images in a step, of all processes together; a multiple of their number times accumulate"
    )
    accumulate: Count = Field(
        1,
        description="parts in which each process takes its share of a batch, one after another, to save memory; "
        "changes rounding only, but for koleo_weight, which then spreads the images of a part apart",
    )
    checkpoint_activations: bool = Field(
        False,
        description="keep the input of each block and compute the rest again: less memory, up to a third more time",
    )
    strategy: Literal["auto", "ddp", "fsdp"] = Field(
        "auto",
        description="with several processes, ddp: each holds the whole networks; fsdp: each holds a share of them "
        "and of the optimizer's state; auto: ddp",
    )
    learning_rate: Positive | None = Field(None, description="peak, as it is used; null: from batch size and width")
    final_learning_rate: Annotated[float, Field(ge=0)] = 1e-6
    warmup_fraction: Fraction | None = Field(
        None, description="of all steps, linear from 0; null: from the number of steps and their epochs"
    )
    weight_decay: Annotated[float, Field(ge=0)] = 0.04
    final_weight_decay: Annotated[float, Field(ge=0)] = 0.4
    ema_momentum: Fraction | None = Field(
        None, description="of the teacher at the first step; null: from the batch size and the number of steps"
    )
    final_ema_momentum: Fraction = 1.0
    clip_gradient: Positive | None = Field(3.0, description="largest norm of the gradient; null: not clipped")
    clip_mode: Literal["global", "tensor"] = Field("global", description="norm over all tensors, or each by itself")
    freeze_last_layer_fraction: Fraction = Field(0.01, description="of all steps during which prototypes stay")
    checkpoint_every_steps: Count = 1000
    keep_last: Count = Field(3, description="so many of the newest checkpoints are kept")
    keep_every: Count | None = Field(
        None, description="checkpoints of steps that this divides are kept as well; null: none besides the newest"
    )
    max_skipped_steps: Count = Field(
        10, description="so many steps in a row with a loss or gradient that is not finite stop the run"
    )
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"

    @model_validator(mode="after")
    def _length(self) -> "TrainConfig":
        if self.epochs is None and self.steps is None:
            raise ValueError("give train.epochs or train.steps")
        return self

    def num_steps(self, num_images: int) -> int:
        """The number of optimizer steps for a source of that many images."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return max(1, round(self.epochs * num_images / self.batch_size))


class LogConfig(Section):
    """Logging."""

    every_steps: Count = Field(10, description="a line in metrics.jsonl each so many steps")
    tensorboard: bool = Field(False, description="write the same for TensorBoard, into RUN/tensorboard")
    knn_data: str | None = Field(
        None, description="labelled DATA, as eval knn takes it, on whose images the teacher's k-NN is measured"
    )
    knn_every_steps: Count = Field(1000, description="steps from one such measurement to the next")
    knn_train_images: Count = Field(5000, description="labelled images that vote; so many of the training part")
    knn_test_images: Count = Field(1000, description="labelled images that are judged; so many of the test part")


class Config(Section):
    """Everything that a pretraining run depends on, apart from the data."""

    data: DataConfig = DataConfig()
    views: ViewsConfig = ViewsConfig()
    photometric: PhotometricConfig = PhotometricConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    train: TrainConfig = TrainConfig()
    log: LogConfig = LogConfig()

    @model_validator(mode="after")
    def _enough_images(self) -> "Config":
        if self.train.batch_size > 1:
            return self
        if self.loss.koleo_weight:
            raise ValueError(
                f"loss.koleo_weight is {self.loss.koleo_weight} and train.batch_size 1: KoLeo spreads the images of a "
                "batch apart; take train.batch_size of at least 2, or loss.koleo_weight 0"
            )
        if self.loss.center == "sinkhorn":
            raise ValueError(
                "loss.center is sinkhorn and train.batch_size 1: Sinkhorn-Knopp shares the prototypes out among the "
                "rows of a batch, which are views of the same image and would be told apart; take train.batch_size of "
                "at least 2, or loss.center kind"
            )
        return self

    @model_validator(mode="after")
    def _divisible(self) -> "Config":
        patch = self.model.patch_px
        sizes = {"views.global_size": self.views.global_size}
        if self.views.num_local:
            sizes["views.local_size"] = self.views.local_size
        for name, size in sizes.items():
            if size % patch:
                below, above = size // patch * patch, (size // patch + 1) * patch
                near = f"{below} or {above}" if below else str(above)
                raise ValueError(f"{name} is {size} px, which the patch of {patch} px does not divide; take {near}")
        cell = self.photometric.cell_size
        cellwise = (*self.photometric.patch_probability, *(self.photometric.teacher_patch_probability or ()))
        if any(cellwise) and cell is not None:
            if cell % patch:
                raise ValueError(f"photometric.cell_size is {cell} px, which is no multiple of the patch, {patch} px")
            for name, size in sizes.items():
                if size % cell:
                    raise ValueError(f"{name} is {size} px, which photometric.cell_size, {cell} px, does not divide")
        return self
