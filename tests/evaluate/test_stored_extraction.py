"""Features that are kept: what is read, what is computed again, and what is never mixed up."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from patchssl import ranks
from patchssl.backbones import Backbone, Preprocess, load_backbone
from patchssl.data.decode import UnreadableImage
from patchssl.data.images import ArraySource, FileSource
from patchssl.data.synth.classes import class_images, draw_class_image
from patchssl.errors import ConfigError, DataError, UnforeseenError
from patchssl.evaluate.extracting import store as store_module
from patchssl.evaluate.extracting.store import FeatureStore
from patchssl.evaluate.extraction import Extraction, extract
from patchssl.evaluate.knn import evaluate


@dataclass
class Noise:
    """Images of noise that remember which of them were read; at one place reading may fail in any way."""

    num: int = 10
    bad: frozenset[int] = frozenset()
    fail_at: int | None = None
    failure: type[BaseException] = KeyboardInterrupt
    told_state: str = "now"
    classes: tuple[str, ...] = ("a", "b")
    name: str = "noise"
    location: str = "somewhere/noise"
    ids: Sequence[str] = field(init=False)
    labels: np.ndarray | None = field(init=False)
    read_indices: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ids = [f"{index}.png" for index in range(self.num)]
        self.labels = np.arange(self.num) % 2

    def __len__(self) -> int:
        return self.num

    def read(self, index: int) -> Image.Image:
        if index == self.fail_at:
            raise self.failure
        self.read_indices.append(index)
        if index in self.bad:
            raise UnreadableImage(self.ids[index], "is truncated")
        return Image.fromarray(np.random.default_rng(index).integers(0, 256, (40, 48, 3), dtype=np.uint8))

    def fingerprint(self) -> str:
        return "print"

    def state(self) -> str:
        return self.told_state


@pytest.fixture(scope="module")
def vit() -> Backbone:
    backbone = load_backbone("timm:vit_tiny_patch16_224@random").at_size(32)
    return replace(backbone, preprocess=Preprocess(image_px=32, resize_px=36))


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore(tmp_path / "cache", shard_images=4)


def run(
    backbone: Backbone,
    source: Any,
    store: FeatureStore | None,
    tokens: Sequence[str] = ("cls",),
    **more: Any,
) -> Extraction:
    options: dict[str, Any] = {"batch_size": 4, "precision": "fp32", "store": store} | more
    return extract(backbone, source, tokens=tokens, **options)


def assert_same(first: Extraction, second: Extraction) -> None:
    assert first.features.keys() == second.features.keys()
    assert first.unreadable == second.unreadable
    for name, features in first.features.items():
        np.testing.assert_array_equal(features.features, second.features[name].features)
        assert features.ids is not None
        np.testing.assert_array_equal(features.ids, second.features[name].ids)
        np.testing.assert_array_equal(features.labels, second.features[name].labels)
        told, expected = (dict(part.features[name].meta) for part in (first, second))
        assert told.pop("num_stored") == first.num_stored
        assert expected.pop("num_stored") == second.num_stored
        assert told == expected


def test_a_second_evaluation_reads_no_image(vit: Backbone, store: FeatureStore) -> None:
    tokens = ("cls", "cls:4+mean", "gem")
    alone = run(vit, Noise(), None, tokens)
    first, second = Noise(), Noise()
    computed, stored = run(vit, first, store, tokens), run(vit, second, store, tokens)
    assert first.read_indices == list(range(10))
    assert second.read_indices == []
    assert (alone.num_stored, computed.num_stored, stored.num_stored) == (0, 0, 10)
    assert_same(computed, alone)
    assert_same(stored, alone)
    assert alone.features["cls:4+mean"].features.shape == (10, 5 * 192)


def test_parts_that_are_there_are_free_and_others_do_not_compute_them_again(vit: Backbone, store: FeatureStore) -> None:
    run(vit, Noise(), store, ("cls:4+mean",))
    source = Noise()
    last = run(vit, source, store, ("cls", "mean", "cls:2"))
    assert source.read_indices == []
    np.testing.assert_array_equal(last.features["cls"].features, run(vit, Noise(), None).features["cls"].features)
    kept = {path: path.stat().st_mtime_ns for path in (store.root).rglob("*.safetensors")}
    both = run(vit, source, store, ("cls+gem",))
    assert source.read_indices == list(range(10))
    np.testing.assert_array_equal(both.features["cls+gem"].features[:, :192], last.features["cls"].features)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert len(list(store.root.rglob("*.safetensors"))) == len(kept) + 3


@pytest.mark.parametrize(("num_workers", "failure"), [(0, KeyboardInterrupt), (1, RuntimeError)])
def test_an_interrupted_extraction_goes_on_with_the_missing_shards(
    num_workers: int, failure: type[BaseException], vit: Backbone, store: FeatureStore
) -> None:
    with pytest.raises(UnforeseenError if num_workers else failure):
        run(vit, Noise(fail_at=9, failure=failure), store, ("cls", "mean"), num_workers=num_workers)
    assert len(list(store.root.rglob("*.safetensors"))) == 4
    source = Noise()
    continued = run(vit, source, store, ("cls", "mean"))
    assert source.read_indices == [8, 9]
    assert continued.num_stored == 8
    assert_same(continued, run(vit, Noise(), None, ("cls", "mean")))


def a_norm_of_another_epsilon(vit: Backbone) -> Backbone:
    other = load_backbone("timm:vit_tiny_patch16_224@random").at_size(32)
    other = replace(other, preprocess=vit.preprocess)
    network: Any = other.network
    network.norm.eps = 0.5
    assert other.weights_sha256 == vit.weights_sha256
    return other


@pytest.mark.parametrize(
    "change",
    [
        lambda vit: load_backbone("timm:vit_tiny_patch16_224@random", seed=1).at_size(32),
        a_norm_of_another_epsilon,
        lambda vit: vit.at_size(48),
        lambda vit: replace(vit, preprocess=replace(vit.preprocess, resize_px=40)),
        lambda vit: replace(vit, preprocess=replace(vit.preprocess, mean=(0.5, 0.5, 0.5))),
        lambda vit: replace(vit, preprocess=replace(vit.preprocess, std=(0.5, 0.5, 0.5))),
    ],
    ids=["checkpoint", "structure", "image size", "resize", "mean", "std"],
)
def test_another_model_or_preprocessing_never_reads_old_features(
    change: Callable[[Backbone], Backbone], vit: Backbone, store: FeatureStore
) -> None:
    run(vit, Noise(), store)
    other, source = change(vit), Noise()
    found = run(other, source, store)
    assert source.read_indices == list(range(10))
    assert_same(found, run(other, Noise(), None))
    old = run(vit, Noise(), store)
    assert old.num_stored == 10
    assert np.abs(found.features["cls"].features - old.features["cls"].features).max() > 1e-3


def test_another_state_of_the_data_or_precision_never_reads_old_features(vit: Backbone, store: FeatureStore) -> None:
    run(vit, Noise(), store)
    assert run(vit, Noise(told_state="later"), store).num_stored == 0
    assert run(vit, Noise(), store, precision="bf16").num_stored == 0
    assert run(vit, Noise(), store, batch_size=3).num_stored == 10


def a_file_source(folder: Path, *, apply_exif: bool = False) -> FileSource:
    return FileSource(folder, ("0.jpg", "1.jpg"), None, (), "files", str(folder), apply_exif)


def test_a_changed_file_and_other_read_options_are_read_anew(
    vit: Backbone, store: FeatureStore, tmp_path: Path
) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    for index in range(2):
        Noise().read(index).save(tmp_path / f"{index}.jpg", exif=turned, quality=95)
    before = run(vit, a_file_source(tmp_path), store)
    assert run(vit, a_file_source(tmp_path), store).num_stored == 2
    upright = run(vit, a_file_source(tmp_path, apply_exif=True), store)
    assert upright.num_stored == 0
    assert_same(upright, run(vit, a_file_source(tmp_path, apply_exif=True), None))
    Noise().read(7).save(tmp_path / "1.jpg", exif=turned, quality=95)
    after = run(vit, a_file_source(tmp_path), store)
    assert after.num_stored == 0
    assert_same(after, run(vit, a_file_source(tmp_path), None))
    difference = np.abs(after.features["cls"].features - before.features["cls"].features).max(axis=1)
    assert difference[0] == 0
    assert difference[1] > 1e-3


def test_damaged_shards_are_told_and_computed_again(
    vit: Backbone, store: FeatureStore, caplog: pytest.LogCaptureFixture
) -> None:
    run(vit, Noise(), store)
    (path,) = store.root.rglob("000001.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    source = Noise()
    again = run(vit, source, store)
    assert "stored features are damaged" in caplog.text
    assert source.read_indices == [4, 5, 6, 7]
    assert_same(again, run(vit, Noise(), None))
    assert run(vit, Noise(), store).num_stored == 10


def test_unreadable_images_are_reported_again_from_the_store(
    vit: Backbone, store: FeatureStore, caplog: pytest.LogCaptureFixture
) -> None:
    bad = frozenset({1, 4, 5, 6, 7})  # the second shard has no readable image
    first = run(vit, Noise(bad=bad), store, max_bad_fraction=0.5)
    caplog.clear()
    source = Noise(bad=bad)
    second = run(vit, source, store, max_bad_fraction=0.5)
    assert source.read_indices == []
    assert_same(second, first)
    assert [path for path, _ in second.unreadable] == [f"{index}.png" for index in sorted(bad)]
    assert caplog.text.count("left out") == 5
    assert second.features["cls"].ids is not None
    assert second.features["cls"].ids.tolist() == ["0.png", "2.png", "3.png", "8.png", "9.png"]
    with pytest.raises(DataError, match="5 of the first 10 images of somewhere/noise"):
        run(vit, Noise(bad=bad), store, max_bad_fraction=0.4)


def test_a_store_that_cannot_be_written_is_told_once_and_done_without(
    vit: Backbone, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    store = FeatureStore(tmp_path / "file", shard_images=4)
    assert_same(run(vit, Noise(), store, ("cls", "mean")), run(vit, Noise(), None, ("cls", "mean")))
    assert caplog.text.count("going on without keeping features") == 1
    assert "Not a directory" in caplog.text


def test_a_disk_that_fills_up_keeps_what_went_before(
    vit: Backbone, store: FeatureStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real, calls = store_module._write, []

    def write(path: Path, shard: Any) -> None:
        calls.append(path)
        if len(calls) > 2:
            raise OSError(28, "No space left on device")
        real(path, shard)

    monkeypatch.setattr(store_module, "_write", write)
    assert_same(run(vit, Noise(num=20), store), run(vit, Noise(num=20), None))
    assert len(calls) == 3
    assert "No space left on device" in caplog.text
    monkeypatch.undo()
    assert run(vit, Noise(num=20), store).num_stored == 8


@pytest.mark.parametrize("has_store", [True, False])
def test_patch_tokens_stay_on_disk_in_pieces(has_store: bool, vit: Backbone, store: FeatureStore) -> None:
    source = Noise(bad=frozenset({2}))
    found = run(vit, source, store if has_store else None, ("patches", "mean", "cls"), max_bad_fraction=0.1)
    patches = found.patches
    assert patches is not None
    assert set(found.features) == {"mean", "cls"}
    assert (len(patches), patches.grid, patches.dim) == (9, (2, 2), 192)
    assert [len(piece) for piece in patches.pieces] == ([3, 4, 2] if has_store else [9])
    assert all(not piece.flags.owndata for piece in patches.pieces)
    assert patches.ids.tolist() == [f"{index}.png" for index in (0, 1, 3, 4, 5, 6, 7, 8, 9)]
    for row in range(9):
        np.testing.assert_allclose(patches[row].mean((0, 1)), found.features["mean"].features[row], rtol=0, atol=2e-5)
    with pytest.raises(IndexError, match="image 9 of 9"):
        patches[9]
    with torch.inference_mode():
        crops = torch.stack([vit.preprocess.crop(Noise().read(index)) for index in (4, 5, 6, 7)])
        expected = vit.forward(vit.preprocess.normalise(crops)).patches.unflatten(1, (2, 2))
    np.testing.assert_allclose([patches[row] for row in (3, 4, 5, 6)], expected.numpy(), rtol=0, atol=2e-5)


def test_features_do_not_depend_on_the_batch_they_were_in(vit: Backbone, tmp_path: Path) -> None:
    expected = run(vit, Noise(num=13), None, batch_size=1).features["cls"].features
    for batch_size, shard_images in ((3, 4), (4, 4), (5, 2), (64, 4), (13, 256)):
        store = FeatureStore(tmp_path / f"{batch_size}-{shard_images}", shard_images=shard_images)
        found = run(vit, Noise(num=13), store, batch_size=batch_size).features["cls"].features
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)
        assert (found @ found.T - 1e9 * np.eye(13)).argmax(1).tolist() == (
            (expected @ expected.T - 1e9 * np.eye(13)).argmax(1).tolist()
        )


def test_a_crop_is_applied_once_and_sizes_do_not_compound(vit: Backbone) -> None:
    # A dot in the middle of 64 x 64 px; resized by 36/64 and cropped to 32 it keeps its place, cropped twice it moves.
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:8, :8], pixels[28:36, 28:36] = 255, 200

    class Marked(Noise):
        def read(self, index: int) -> Image.Image:
            return Image.fromarray(pixels)

    crop = vit.preprocess.crop(Image.fromarray(pixels))
    once = np.asarray(Image.fromarray(pixels).resize((36, 36), Image.Resampling.BICUBIC))[2:34, 2:34]
    np.testing.assert_array_equal(np.moveaxis(crop.numpy(), 0, 2), once)
    with torch.inference_mode():
        expected = vit.forward(vit.preprocess.normalise(crop[None])).cls.numpy()
        twice = vit.preprocess.crop(Image.fromarray(once))
        other = vit.forward(vit.preprocess.normalise(twice[None])).cls.numpy()
    found = run(vit, Marked(num=1), None).features["cls"].features
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)
    assert np.abs(found - other).max() > 1e-3
    assert vit.at_size(32).at_size(32).preprocess == vit.preprocess
    assert vit.at_size(64).at_size(32).preprocess.image_px == 32
    assert vit.preprocess.image_px == 32


def test_bf16_changes_features_and_metrics_by_little(vit: Backbone) -> None:
    drawn = list(class_images(360))
    pixels = np.stack([draw_class_image(image, 32, 0) for image in drawn])
    classes = tuple(sorted({image.pattern for image in drawn}))
    labels = np.array([classes.index(image.pattern) for image in drawn])
    found = {}
    for split in ("train", "val"):
        chosen = [index for index, image in enumerate(drawn) if image.split == split]
        ids = tuple(str(index) for index in chosen)
        source = ArraySource(pixels[chosen], ids, labels[chosen], classes, "drawn", "drawn")
        for precision in ("fp32", "bf16"):
            found[split, precision] = run(vit, source, None, precision=precision, batch_size=64).features["cls"]
    top1 = {}
    for precision in ("fp32", "bf16"):
        result = evaluate(found["train", precision], found["val", precision], ks=[5], temperature=0.07)
        top1[precision] = float(result.hits[5].top1.mean())
    assert (len(classes), len(found["val", "fp32"])) == (3, 72)
    assert top1["fp32"] > 0.5
    # At most two of 72 test images more or less.
    assert abs(top1["bf16"] - top1["fp32"]) <= 2 / 72 + 1e-9
    exact, coarse = (found["val", precision].features for precision in ("fp32", "bf16"))
    exact, coarse = (values / np.linalg.norm(values, axis=1, keepdims=True) for values in (exact, coarse))
    assert (exact * coarse).sum(1).min() > 0.999
    assert np.abs(exact - coarse).max() > 0


def test_several_processes_need_a_store(vit: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "world_size", lambda: 2)
    with pytest.raises(ConfigError, match=r"2 processes share their features through a store.*--cache DIR"):
        run(vit, Noise(), None)


def test_progress_counts_every_image_once(vit: Backbone, store: FeatureStore) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(vit, Noise(fail_at=9), store)
    done: list[int] = []
    run(vit, Noise(), store, progress=done.append)
    assert done == [8, 2]
