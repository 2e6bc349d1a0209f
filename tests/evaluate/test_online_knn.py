"""What is measured during training equals what `eval knn` gives, and leaves no trace in the training."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from patchssl.backbones import load_backbone
from patchssl.backbones.protocol import fresh_weights
from patchssl.backbones.vit import build_vit
from patchssl.config import Config
from patchssl.data.sources import open_labelled, open_unlabelled
from patchssl.errors import ConfigError, DataError
from patchssl.evaluate import knn
from patchssl.evaluate.extraction import extract
from patchssl.evaluate.online_knn import BATCH_IMAGES, OnlineKnn
from patchssl.pretrain import pretrain
from patchssl.recipes import parse_config
from patchssl.run_folder import prepare_run
from patchssl.student_teacher import StudentTeacher

NUM_TRAIN, NUM_TEST = 75, 20
BAD = "train/c/03.png"


def config(data: Path, **log: Any) -> Config:
    return parse_config(
        {
            "data": {"max_bad_fraction": 0.1},
            "views": {"global_size": 16, "local_size": 8, "num_local": 1},
            "model": {
                "arch": "vit_tiny_patch16_224",
                **{"patch_size": 8, "width": 16, "depth": 2, "num_heads": 2, "drop_path": 0.3, "crop_fraction": 0.8},
                **{"head_hidden": 16, "head_bottleneck": 8, "cls_prototypes": 12, "patch_prototypes": 8},
            },
            "train": {"steps": 5, "batch_size": 4, "learning_rate": 0.01, "warmup_fraction": 0, "ema_momentum": 0.5},
            "log": {
                "every_steps": 4,
                "knn_data": str(data),
                "knn_every_steps": 2,
                "knn_train_images": NUM_TRAIN,
                "knn_test_images": NUM_TEST,
                **log,
            },
        }
    )


def with_changes(settings: Config, **sections: dict[str, Any]) -> Config:
    """The same with other values in some sections."""
    changed = {name: getattr(settings, name).model_copy(update=update) for name, update in sections.items()}
    return settings.model_copy(update=changed)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of unequal size and of unlike colours, one image of which is truncated."""
    root = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    for part, counts in (("train", {"a": 60, "b": 50, "c": 10}), ("val", {"a": 20, "b": 12, "c": 3})):
        for place, (name, count) in enumerate(counts.items()):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(256, size=(18 + number % 5, 21, 3))
                pixels[:, :, place] = pixels[:, :, place] * 0.9
                Image.fromarray(pixels.astype(np.uint8)).save(root / part / name / f"{number:02d}.png")
    whole = (root / BAD).read_bytes()
    (root / BAD).write_bytes(whole[: len(whole) // 2])
    return root


def train(
    settings: Config, data: Path, run: Path, measure: Callable[..., Any] | None, precision: str = "fp32"
) -> list[dict[str, Any]]:
    """Train; returns the lines of metrics.jsonl."""
    prepare_run(run, settings, device="cpu", resume=False, overwrite=False)
    source = open_unlabelled(data / "val")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        networks = StudentTeacher(settings)
        pretrain(networks, source, run, device="cpu", precision=precision, workers=0, measure=measure)
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def ready(settings: Config) -> OnlineKnn:
    measure = OnlineKnn(settings, device="cpu")
    measure.read(num_workers=0)
    return measure


def state(settings: Config, seed: int = 0) -> dict[str, Tensor]:
    with fresh_weights(seed):
        return build_vit(settings.model, settings.views.global_size).state_dict()


# In bf16 on the CPU the teacher that is trained computes its attention in another way than an evaluation does.
@pytest.mark.parametrize(("precision", "pooling"), [("fp32", "cls"), ("bf16", "mean")])
def test_it_is_what_eval_knn_gives_for_the_checkpoint_and_the_same_images(
    data: Path, tmp_path: Path, precision: str, pooling: str
) -> None:
    settings = with_changes(config(data), model={"pooling": pooling})
    measure = ready(settings)
    lines = train(settings, data, tmp_path / "run", measure, precision)
    with (tmp_path / "same.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label", "split"])
        for part, places in measure.subset.rows.items():
            folder = data / {"train": "train", "test": "val"}[part]
            for place in places:
                name = measure.subset.sources[part].ids[place]
                rows.writerow([folder / name, Path(name).parts[0], part])
    backbone = load_backbone(str(tmp_path / "run"))
    parts = open_labelled(tmp_path / "same.csv", apply_exif=False)
    features = {
        part: extract(backbone, source, batch_size=BATCH_IMAGES).features["cls"] for part, source in parts.items()
    }
    # All of the smallest class were chosen, and one of them could not be read.
    assert {part: len(found) for part, found in features.items()} == {"train": NUM_TRAIN - 1, "test": NUM_TEST}
    online = measure.features({name: value.clone() for name, value in backbone.network.state_dict().items()})
    assert online is not None
    for part, found in features.items():
        np.testing.assert_array_equal(online[part].features, found.features)
        np.testing.assert_array_equal(online[part].labels, found.labels)
    scored = knn.score(features["train"], features["test"], ks=(measure.k,), seed=settings.train.seed)
    metric = scored.row.metrics[f"top1@k{measure.k}"]
    names = ("knn_top1", "knn_ci95_low", "knn_ci95_high")
    assert [lines[-1][name] for name in names] == [metric.value, metric.ci95_low, metric.ci95_high]
    assert scored.row.details["chance"][f"top1@k{measure.k}"] == pytest.approx(1 / 3)
    assert 0 < metric.value < 1


def test_the_training_is_the_same_to_the_last_bit_with_it_and_without(data: Path, tmp_path: Path) -> None:
    settings = config(data, every_steps=1)
    plain = train(settings, data, tmp_path / "plain", None)
    watched = train(settings, data, tmp_path / "watched", ready(settings))
    assert [line["loss"] for line in watched] == [line["loss"] for line in plain]
    assert [line["gradient_norm"] for line in watched] == [line["gradient_norm"] for line in plain]
    assert [line["step"] for line in watched if "knn_top1" in line] == [1, 3, 4]
    ends = [torch.load(tmp_path / name / "checkpoints" / "latest") for name in ("plain", "watched")]
    for name in ("student", "teacher", "centers", "optimizer"):
        torch.testing.assert_close(ends[0][name], ends[1][name], rtol=0, atol=0)


def test_steps_without_a_line_of_their_own_get_one_where_it_is_due(data: Path, tmp_path: Path) -> None:
    asked = []

    def measure(state: dict[str, Tensor], step: int) -> dict[str, float]:
        asked.append((step, set(state)))
        return {"knn_top1": step / 10}

    settings = config(data)
    lines = train(settings, data, tmp_path / "run", measure)
    # Of every four steps, of every second that is done, and the last.
    assert [line["step"] for line in lines] == [0, 1, 3, 4]
    assert [line.get("knn_top1") for line in lines] == [None, 0.2, 0.4, 0.5]
    assert {"loss", "lr", "images_per_s", "epoch"} <= set(lines[1])
    assert [step for step, _ in asked] == [2, 4, 5]
    assert asked[0][1] == set(state(settings))


def test_the_network_that_is_trained_is_only_looked_at(data: Path) -> None:
    settings = config(data)
    networks = StudentTeacher(settings)
    backbone = networks.teacher.backbone
    backbone.train()
    for block in backbone.blocks:
        block.attn.fused_attn = False  # type: ignore[union-attr]
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    generators = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    needs = [parameter.requires_grad for parameter in backbone.parameters()]
    measure = ready(settings)
    first, second = measure(backbone.state_dict(), 1), measure(backbone.state_dict(), 2)
    assert first == second
    assert backbone.training
    assert not any(block.attn.fused_attn for block in backbone.blocks)  # type: ignore[union-attr]
    assert [parameter.requires_grad for parameter in backbone.parameters()] == needs
    torch.testing.assert_close(dict(backbone.state_dict()), before, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert np.array_equal(np.random.get_state()[1], generators[1])  # type: ignore[index]


def test_it_follows_the_weights(data: Path) -> None:
    settings = config(data)
    measure = ready(settings)
    found = [measure.features(state(settings, seed)) for seed in (0, 1, 0)]
    assert found[0] is not None
    assert found[1] is not None
    assert found[2] is not None
    np.testing.assert_array_equal(found[0]["test"].features, found[2]["test"].features)
    assert not np.allclose(found[0]["test"].features, found[1]["test"].features)


def test_classes_are_chosen_alike_and_an_unreadable_image_is_left_out_and_told_of(
    data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="patchssl")
    settings = config(data, knn_train_images=1000, knn_test_images=9)
    measure = ready(settings)
    source = measure.subset.sources["train"]
    assert BAD.removeprefix("train/") not in {source.ids[place] for place in measure.subset.rows["train"]}
    assert {part: len(rows) for part, rows in measure.subset.rows.items()} == {"train": 119, "test": 9}
    labels = measure.subset.sources["test"].labels
    assert labels is not None
    assert np.bincount(labels[measure.subset.rows["test"]]).tolist() == [3, 3, 3]
    told = [record.getMessage() for record in caplog.records]
    assert any(BAD in line and line.startswith("left out ") for line in told)
    mib = (119 + 9) * 3 * 16 * 16 / 2**20
    (line,) = [line for line in told if "pixels are kept in memory" in line]
    assert f"9 images of {data}, each by the 20 nearest of 119, of 3 classes; {mib:.1f} MiB" in line
    measure(state(settings), 7)
    assert "step 7: k-NN of the teacher " in caplog.records[-1].getMessage()
    assert "of 9 images, 95 % interval" in caplog.records[-1].getMessage()
    assert "chance 33.3" in caplog.records[-1].getMessage()


def test_a_wish_to_stop_is_answered_between_batches(data: Path) -> None:
    settings = config(data)
    measure = ready(settings)
    asked: list[bool] = []

    def stop() -> bool:
        asked.append(len(asked) == 1)
        return any(asked)

    assert measure(state(settings), 1, stop_requested=stop) == {}
    assert asked[:2] == [False, True]
    assert measure(state(settings), 1)


def test_fewer_voters_than_twenty_all_vote(data: Path) -> None:
    settings = config(data, knn_train_images=7)
    assert OnlineKnn(settings, device="cpu").k == 7
    measure = ready(settings)
    # One of the three of the smallest class may be the one that cannot be read.
    assert measure.k == len(measure.subset.rows["train"]) in (6, 7)
    assert 0 <= measure(state(settings), 1)["knn_top1"] <= 1


def test_two_processes_share_the_images_and_find_the_same(
    data: Path, tmp_path: Path, in_two_processes: Callable[[Callable[[], None]], list[int]]
) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    settings = config(data, knn_train_images=1000)
    alone = ready(settings)
    features = alone.features(state(settings))
    assert features is not None
    found = alone(state(settings), 1)

    def run() -> None:
        from patchssl.ranks import rank

        measure = ready(settings)
        held = {part: len(kept.rows) for part, kept in measure._kept.items()}
        assert held["train"] in (59, 60)
        assert held["test"] == 10
        together = measure.features(state(settings))
        assert together is not None
        for part in together:
            np.testing.assert_allclose(together[part].features, features[part].features, atol=1e-5)
            np.testing.assert_array_equal(together[part].ids, features[part].ids)
        assert measure(state(settings), 1) == found
        # Of weights of which each holds a share, too.
        mesh = init_device_mesh("cpu", (2,))
        shared = {
            name: distribute_tensor(value, mesh, [Shard(value.ndim - 1)]) for name, value in state(settings).items()
        }
        assert shared["blocks.0.mlp.fc1.weight"].to_local().shape == (64, 8)
        assert measure(shared, 1) == found
        # One is asked to stop: neither has a result, and neither waits.
        assert measure(state(settings), 1, stop_requested=lambda: rank() == 1) == {}

    assert in_two_processes(run) == [0, 0]


@pytest.mark.parametrize(
    ("kind", "error", "words"),
    [
        ("missing", DataError, "log.knn_data: .*none does not exist"),
        ("unlabelled", DataError, r"log.knn_data: .* must hold train/ and val/ \(or test/\) with a folder per class"),
        ("one class", DataError, "log.knn_data: the 2 training images of .* are of one class only, a; there must be"),
        ("strangers", DataError, "log.knn_data: none of the 2 test images of .* is of a class with training images"),
        ("few voters", ConfigError, "log.knn_train_images: 2 training images are to be taken of .* 3 classes; take at"),
    ],
)
def test_data_that_tell_nothing_are_refused(
    data: Path, tmp_path: Path, kind: str, error: type[Exception], words: str
) -> None:
    tables = {"one class": "aa|aa", "strangers": "ab|cc"}
    if kind in tables:
        place, rows = tmp_path / "table.csv", ["path,label,split"]
        for split, labels in zip(("train", "test"), tables[kind].split("|"), strict=True):
            rows += [f"{split}{number}.png,{label},{split}" for number, label in enumerate(labels)]
        place.write_text("\n".join(rows) + "\n")
    else:
        place = {"missing": tmp_path / "none", "unlabelled": data / "val", "few voters": data}[kind]
    with pytest.raises(error, match=words):
        OnlineKnn(config(place, knn_train_images=2), device="cpu")


def test_too_many_unreadable_images_are_refused(data: Path) -> None:
    strict = with_changes(config(data, knn_train_images=1000), data={"max_bad_fraction": 0.0})
    with pytest.raises(DataError, match=r"1 of 140 labelled images are unreadable, allowed are 0.0% .*03.png"):
        OnlineKnn(strict, device="cpu").read(num_workers=0)


def test_data_of_which_only_one_class_can_be_read_are_refused(tmp_path: Path) -> None:
    rows = ["path,label,split"]
    for name, label, split in (("a", "x", "train"), ("b", "y", "train"), ("c", "x", "test")):
        rows.append(f"{name}.png,{label},{split}")
        if name != "b":
            Image.new("RGB", (20, 20)).save(tmp_path / f"{name}.png")
    (tmp_path / "table.csv").write_text("\n".join(rows) + "\n")
    lenient = with_changes(config(tmp_path / "table.csv"), data={"max_bad_fraction": 1.0})
    with pytest.raises(DataError, match="1 classes of training images and 1 test images can be read"):
        OnlineKnn(lenient, device="cpu").read(num_workers=0)
