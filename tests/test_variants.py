"""Every setting of pretraining, changed alone on the command line: the run is finite, and another than without it."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from patchssl.cli.main import main
from patchssl.config import Config

# Every part is in use, so that a setting that does nothing is one that is ignored.
BASE = (
    "views.global_size=16 views.local_size=8 views.num_local=2 photometric.patch_probability=0.5 "
    "model.arch=vit_tiny_patch16_224 model.patch_size=8 model.width=16 model.depth=2 model.num_heads=2 "
    "model.drop_path=0.3 model.head_hidden=16 model.head_bottleneck=8 model.cls_prototypes=12 "
    "model.patch_prototypes=12 train.steps=4 train.batch_size=4 train.learning_rate=0.01 train.warmup_fraction=0 "
    "train.ema_momentum=0.9 train.precision=fp32 train.device=cpu log.every_steps=1 data.workers=0"
)

# What is changed (RUN is a run, CACHE a folder for images), and after a bar what it needs besides; that is compared
# with a run with the latter alone.
VARIANTS = [
    "data.cache_side=12 | data.cache_images=CACHE",
    "views.global_size=24",
    "views.local_size=16",
    "views.num_global=3",
    "views.num_local=0",
    "views.global_scale=[0.8, 1.0]",
    "views.local_scale=[0.05, 0.2]",
    "views.ratio=[1.0, 1.0]",
    "views.flip_probability=0",
    "views.shared_geometry=true",
    "photometric.brightness=0",
    "photometric.contrast=0",
    "photometric.saturation=0",
    "photometric.hue=0",
    "photometric.jitter_probability=0",
    "photometric.greyscale_probability=1",
    "photometric.blur_probability=0",
    "photometric.blur_probability=[1.0, 0.1, 1.0]",
    "photometric.blur_sigma=[2.0, 3.0]",
    "photometric.solarise_probability=1",
    "photometric.solarise_probability=[0.0, 0.2, 1.0]",
    "photometric.solarise_threshold=0.1 | photometric.solarise_probability=1",
    "photometric.patch_probability=0",
    "photometric.patch_probability=[1.0, 0.5, 0.5]",
    "photometric.patch_probability=[0.5, 1.0, 0.5]",
    "photometric.patch_probability=[0.5, 0.5, 1.0]",
    "photometric.teacher_patch_probability=1",
    "photometric.teacher_patch_probability=[1.0, 0.0] | photometric.teacher_patch_probability=0",
    "photometric.teacher_patch_probability=[0.0, 1.0] | photometric.teacher_patch_probability=0",
    "photometric.cell_size=16 | views.local_size=16 photometric.patch_probability=1",
    "model.arch=vit_base_patch16_clip_224",
    "model.patch_size=4",
    "model.width=24",
    "model.depth=1",
    "model.num_heads=4",
    "model.pooling=mean",
    "model.drop_path=0",
    "model.head_hidden=24",
    "model.head_bottleneck=6",
    "model.cls_prototypes=20",
    "model.patch_prototypes=20",
    "model.shared_head=true",
    "model.norm_last_layer=false",
    "model.init=RUN",
    "model.init_heads=true | model.init=RUN",
    "loss.patch_weight=0",
    "loss.patch_weight=0.5",
    "loss.patch_weight_start=0.5 | loss.patch_weight_warmup_fraction=0.8",
    "loss.patch_weight_warmup_fraction=0.8",
    "loss.koleo_weight=0.1",
    "loss.average=flat",
    "loss.matching=authors",
    "loss.center=position",
    "loss.center=sinkhorn",
    "loss.sinkhorn_iterations=1 | loss.center=sinkhorn",
    "loss.center_momentum=0.5",
    "loss.student_temperature=0.2",
    "loss.teacher_temperature=0.07",
    "loss.teacher_temperature_start=0.02 | loss.teacher_temperature_warmup_fraction=0.8",
    "loss.teacher_temperature_warmup_fraction=0.8 | loss.teacher_temperature=0.07",
    "train.epochs=2 | train.steps=null train.epochs=1",
    "train.steps=5",
    "train.batch_size=6",
    "train.learning_rate=0.02",
    "train.learning_rate=null",
    "train.final_learning_rate=0.02",
    "train.warmup_fraction=0.75",
    "train.warmup_fraction=null | train.steps=20",
    "train.weight_decay=1",
    "train.final_weight_decay=100",
    "train.ema_momentum=0.5",
    "train.ema_momentum=null | train.ema_momentum=0.5",
    "train.final_ema_momentum=0",
    "train.clip_gradient=0.01",
    "train.clip_gradient=null | train.clip_gradient=0.01",
    "train.clip_mode=tensor | train.clip_gradient=0.01",
    "train.freeze_last_layer_fraction=0 | model.norm_last_layer=false train.freeze_last_layer_fraction=1",
    "train.seed=1",
    "train.precision=bf16",
]

# What changes no loss: how a run is watched, saved and computed, and how its network is evaluated.
LEFT_OUT = {
    *("loss.chunk_mib", "model.crop_fraction", "train.device", "train.checkpoint_every_steps", "train.keep_last"),
    *("train.accumulate", "train.checkpoint_activations", "train.strategy", "train.keep_every"),
    *("train.max_skipped_steps", "data.workers", "data.max_bad_fraction", "data.exif_orientation"),
    *("data.division", "data.cache_images", "data.shuffle_buffer", "data.image_column"),
    *("log.every_steps", "log.tensorboard", "log.knn_data", "log.knn_every_steps"),
    *("log.knn_train_images", "log.knn_test_images"),
}

Train = Callable[[str], list[float]]


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Train with changes to the base, once for each; gives the losses of all steps."""
    images, cache = tmp_path_factory.mktemp("images"), tmp_path_factory.mktemp("cache")
    generator = np.random.default_rng(0)
    for number in range(10):
        pixels = generator.integers(256, size=(20 + number, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{number}.png")
    runs: dict[str, Path] = {}

    def run(changes: str) -> list[float]:
        if changes not in runs:
            folder = runs[changes] = tmp_path_factory.mktemp("run")
            if "RUN" in changes:
                run("train.seed=1")
            settings = f"{BASE} {changes}".replace("RUN", str(runs.get("train.seed=1"))).replace(", ", ",").split()
            settings = [setting.replace("CACHE", str(cache)) for setting in settings]
            arguments = [part for setting in settings for part in ("--set", setting)]
            assert main(["pretrain", str(images), "--output", str(folder), "--quiet", *arguments]) == 0
        return [json.loads(line)["loss"] for line in (runs[changes] / "metrics.jsonl").read_text().splitlines()]

    return run


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_is_one_line_and_trains_another_network(train: Train, variant: str) -> None:
    change, _, needed = variant.partition(" | ")
    losses = train(f"{needed} {change}".strip())
    assert len(losses) >= 2
    assert np.isfinite(losses).all()
    assert losses != train(needed)


def test_equal_settings_train_the_same_network(train: Train) -> None:
    """Else what is above could not fail."""
    assert train("") == train("model.patch_prototypes=12")


def test_no_setting_is_left_out() -> None:
    keys = {f"{section}.{key}" for section, values in Config().model_dump().items() for key in values}
    changed = {variant.partition("=")[0] for variant in VARIANTS}
    assert changed | LEFT_OUT == keys
    assert not changed & LEFT_OUT
