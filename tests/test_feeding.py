"""Who cuts views out changes nothing of what is drawn: batches of all divisions of labour beside each other."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from patchssl.available_memory import Available
from patchssl.config import Config
from patchssl.data.decode import open_image
from patchssl.data.images import ArraySource, StoredSource
from patchssl.data.samples import ALONE, Share
from patchssl.data.sources import open_unlabelled
from patchssl.decoded_images import cut_decoded, pack, together
from patchssl.errors import DataError
from patchssl.feeding import Feed, feed, settle_division
from patchssl.recipes import parse_config
from patchssl.structs import CropPlan, SampleKeys, ViewGroup
from patchssl.views import MultiCrop

DIVISIONS = ("views", "images", "resident")


def smooth(height: int, width: int, seed: int) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files of several kinds and sizes; every fourth photograph lies on its side, large ones can be reduced."""
    for number in range(12):
        image = smooth(40 + 9 * number, 150 - 6 * number, number)
        exif = image.getexif()
        exif[0x0112] = 6 if number % 4 == 0 else 1
        kind = "jpg" if number % 3 else "png"
        image.save(tmp_path / f"{number:02}.{kind}", exif=exif)
    for number in (2, 5):
        smooth(400, 500, number).save(tmp_path / f"large{number}.jpg", quality=95)
    return tmp_path


def config(division: str, **train: Any) -> Config:
    return parse_config(
        {
            "data": {"division": division},
            "views": {"global_size": 32, "local_size": 16, "num_local": 3},
            "model": {"arch": "vit_tiny_patch16_224", "patch_size": 8},
            "train": {"batch_size": 6, "steps": 8, "seed": 3, "device": "cpu", **train},
        }
    )


def fed(division: str, source: StoredSource, *, share: Share = ALONE, workers: int = 0) -> Feed:
    return feed(config(division), source, device=torch.device("cpu"), num_steps=8, share=share, workers=workers)


def batches(of: Feed, first_step: int = 0) -> list[tuple[SampleKeys, list[ViewGroup]]]:
    return [(loaded.keys, of.cut(of.move(loaded.made))) for loaded in of.iterate(first_step=first_step)]


@pytest.mark.parametrize("workers", [0, 2])
def test_all_divisions_draw_the_same_and_show_the_same(folder: Path, workers: int) -> None:
    source = open_unlabelled(folder)
    found = {division: batches(fed(division, source, workers=workers)) for division in DIVISIONS}
    assert [len(made) for made in found.values()] == [8, 8, 8]
    for division in ("images", "resident"):
        differences = []
        for (keys, groups), (other_keys, others) in zip(found["views"], found[division], strict=True):
            assert torch.equal(keys.index, other_keys.index)
            assert torch.equal(keys.epoch, other_keys.epoch)
            for group, other in zip(groups, others, strict=True):
                assert group.pixels.shape == other.pixels.shape
                assert other.pixels.dtype == torch.uint8
                assert torch.equal(group.boxes.flipped, other.boxes.flipped)
                assert torch.equal(group.boxes.corners, other.boxes.corners)
                # Resident images are decoded in full.
                same = torch.tensor([division == "images" or "large" not in source.ids[row] for row in keys.index])
                differences.append((group.pixels[same].int() - other.pixels[same].int()).abs().flatten())
        of_pixels = torch.cat(differences).float()
        assert of_pixels.max() <= 3
        assert (of_pixels > 1).float().mean() < 0.001


@pytest.mark.parametrize("division", DIVISIONS)
def test_a_step_is_the_same_from_wherever_it_is_reached(folder: Path, division: str) -> None:
    """With any number of workers, from the middle of a run, and in shares of processes."""
    source = open_unlabelled(folder)
    whole = batches(fed(division, source))
    for first_step, workers in ((3, 0), (5, 2)):
        for (keys, groups), (_, expected) in zip(
            batches(fed(division, source, workers=workers), first_step), whole[first_step:], strict=True
        ):
            assert len(keys) == 6
            for group, other in zip(groups, expected, strict=True):
                assert torch.equal(group.pixels, other.pixels)
    parts = [batches(fed(division, source, share=Share(rank, 2, 1))) for rank in range(2)]
    for (_, expected), *shares in zip(whole, *parts, strict=True):
        for number, group in enumerate(expected):
            assert torch.equal(group.pixels, torch.cat([groups[number].pixels for _, groups in shares]))


def test_reduced_decoding_keeps_what_a_view_shows(folder: Path) -> None:
    """Large photographs are decoded smaller; views of them stay near those of the full decoding."""
    source = open_unlabelled(folder)
    index = list(source.ids).index("large2.jpg")
    image = np.asarray(source.read(index))
    crop = MultiCrop(config("views").views, 3)
    keys = SampleKeys(torch.tensor([0, 1, 2]), torch.tensor([index] * 3))
    sizes = torch.tensor([image.shape[:2]] * 3)
    plan = crop.plan(sizes, keys, torch.ones(3, dtype=torch.bool))
    assert (plan.reductions > 1).all()
    for boxes, side in zip(plan.boxes, plan.sides, strict=True):
        # Two decoded pixels for each of the view, before edges moved by half a decoded one.
        assert (boxes.corners[..., 2:] / plan.reductions[:, None, None] >= 2 * side - 1).all()
        assert (boxes.corners[..., :2] >= 0).all()
        assert (boxes.corners[..., :2] + boxes.corners[..., 2:] <= sizes[:, None]).all()
    whole = cut_decoded(pack([image] * 3, unreduced(plan)))
    reduced_images = []
    for reduction in plan.reductions.tolist():
        stored = source.fetch(index)
        assert isinstance(stored, bytes)
        opened = open_image(stored, "large2.jpg", apply_exif=True)
        assert opened.is_reducible
        reduced_images.append(opened.pixels(reduction))
        assert reduced_images[-1].shape == (-(-400 // reduction), -(-500 // reduction), 3)
    for full, small in zip(whole, cut_decoded(pack(reduced_images, plan)), strict=True):
        assert (full.pixels.int() - small.pixels.int()).abs().float().mean() < 2


def unreduced(plan: CropPlan) -> CropPlan:
    return replace(plan, reductions=torch.ones_like(plan.reductions))


def test_images_are_laid_out_few_at_a_time_and_large_ones_alone() -> None:
    """64 MiB are 22.4 million pixels of three bytes."""
    large, small = (4000, 5000), (10, 10)
    assert list(together([])) == []
    assert list(together([large])) == [slice(0, 1)]
    assert list(together([small, small, large, large, small])) == [slice(0, 2), slice(2, 3), slice(3, 4), slice(4, 5)]
    assert list(together([(3000, 10), (10, 3000), (10, 10)])) == [slice(0, 2), slice(2, 3)]
    assert [rows.stop - rows.start for rows in together([small] * 70)] == [32, 32, 6]


def grey(num: int, side: int) -> ArraySource:
    pixels = np.full((num, side, side, 3), 100, dtype=np.uint8)
    return ArraySource(pixels, tuple(map(str, range(num))), None, (), "grey", "memory")


def test_auto_keeps_small_images_and_lets_a_gpu_cut_large_ones(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Views of 2 x 32 and 3 x 16 px have 2,816 pixels; four times that is a square of 106 px."""
    auto = config("auto")
    assert settle_division(auto, grey(3, 96), "cpu") == "resident"
    assert settle_division(auto, grey(3, 97), "cpu") == "views"
    assert settle_division(auto, grey(3, 97), "cuda:1") == "images"
    assert settle_division(auto, grey(3, 106), "mps") == "images"
    assert settle_division(auto, grey(3, 107), "cuda") == "views"
    for wished in DIVISIONS:
        assert settle_division(config(wished), grey(3, 96), "cuda") == wished
    monkeypatch.setattr("patchssl.data.resident.MOST_BYTES", 3 * 3 * 96 * 96 - 1)
    assert settle_division(auto, grey(3, 96), "cpu") == "views"


def test_photographs_that_can_be_decoded_small_are_handed_on(tmp_path: Path) -> None:
    """As JPEG it is reduced by 4 at least, as PNG it is not."""
    for kind, expected in (("jpg", "images"), ("png", "views")):
        (tmp_path / kind).mkdir()
        smooth(300, 300, 0).save(tmp_path / kind / f"a.{kind}")
        views = {"global_size": 24, "local_size": 8, "global_scale": [0.9, 1.0], "local_scale": [0.3, 0.4]}
        settings = parse_config({**config("auto").model_dump(mode="json"), "views": {**views, "num_local": 8}})
        assert settle_division(settings, open_unlabelled(tmp_path / kind), "cuda") == expected


def test_nothing_can_be_said_of_images_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    assert settle_division(config("auto"), open_unlabelled(tmp_path), "cuda") == "views"


def test_a_source_that_turns_out_larger_is_read_by_workers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Every third image is looked at and is small; one between them is not."""
    for number in range(65):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number:02}.png")
    smooth(2500, 2500, 0).save(tmp_path / "31.png", compress_level=1)
    source = open_unlabelled(tmp_path)
    caplog.set_level("INFO", logger="patchssl")
    assert settle_division(config("auto"), source, "cpu") == "resident"
    assert fed("auto", source).division == "views"
    told = caplog.records[-1].getMessage()
    assert re.search(r"65 images of up to 2500 x 2500 px would take 1\.14 GiB decoded, and 1\.00 GiB are", told)


def test_what_does_not_fit_is_refused_where_it_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("patchssl.feeding.device_memory", lambda device: Available(1000, "a test"))
    with pytest.raises(DataError, match=r"3 images of up to 20 x 20 px would take .* are allowed; take data\.division"):
        fed("resident", grey(3, 20))


@pytest.mark.parametrize("workers", [0, 1])
def test_images_that_cannot_be_read_give_way_to_the_next(tmp_path: Path, workers: int) -> None:
    for number in range(6):
        Image.new("RGB", (8, 8), (10 * number, 0, 0)).save(tmp_path / f"{number}.png")
    for number in (1, 2, 5):
        (tmp_path / f"{number}.png").write_bytes(b"")
    source = open_unlabelled(tmp_path)
    of = fed("resident", source, workers=workers)
    told = []
    for loaded in of.iterate(first_step=2):
        told += [Path(error.path).name for error in loaded.bad]
        red = of.cut(loaded.made)[0].pixels[:, 0, 0, 0, 0]
        shown = [{1: 3, 2: 3, 5: 0}.get(index, index) for index in loaded.keys.index.tolist()]
        assert red.tolist() == [10 * number for number in shown]
    assert told == ["1.png", "2.png", "5.png"]


@pytest.mark.parametrize("division", DIVISIONS)
def test_no_image_can_be_read(tmp_path: Path, division: str) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "b.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"none of the 2 images of .* can be read; the first: "):
        batches(fed(division, open_unlabelled(tmp_path)))


def test_sizes_that_differ_lie_in_one_tensor() -> None:
    images = [np.asarray(smooth(height, width, 1)) for height, width in ((10, 30), (30, 10), (4, 4))]

    class Mixed:
        ids: tuple[str, ...] = ("a", "b", "c")
        labels, classes, name, location, apply_exif = None, (), "mixed", "memory", False
        read: Callable[[int], Image.Image]

        def __len__(self) -> int:
            return 3

        def where(self, index: int) -> str:
            return self.ids[index]

        def fetch(self, index: int) -> Any:
            return images[index]

    source: Any = Mixed()
    views, resident = batches(fed("views", source)), batches(fed("resident", source))
    for (_, groups), (_, others) in zip(views, resident, strict=True):
        for group, other in zip(groups, others, strict=True):
            assert torch.equal(group.boxes.corners, other.boxes.corners)
            assert (group.pixels.int() - other.pixels.int()).abs().max() <= 3
