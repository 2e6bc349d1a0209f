"""Cached images: what is kept and how small, under which key, and what is made again."""

import hashlib
import json
import logging
import math
import os
import pickle
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader

from patchssl.config import ViewsConfig
from patchssl.cutting import ViewsByWorkers
from patchssl.data.cache import CachedImages, ShrunkImages, find_image_cache, open_image_cache
from patchssl.data.cache.contents import fitting_shard
from patchssl.data.cache.shrinking import reduction_for, shrunk, shrunk_size
from patchssl.data.decode import UnreadableImage, open_image
from patchssl.data.images import ArraySource, FileSource, Stored, StoredSource
from patchssl.data.loader import TrainingBatches, iterate
from patchssl.data.sources import open_unlabelled
from patchssl.errors import DataError
from patchssl.views import MultiCrop

SIDE = 24
NUM = 11
ODD_NAMES = ("a b.png", 'it\'s "x".png', "new\nline.png", os.fsdecode(b"caf\xe9.png"), "ü.png")


def pixels_of(number: int) -> NDArray[np.uint8]:
    shape = (16 + 5 * (number % 4), 70 - 9 * (number % 5), 3)
    return np.random.default_rng(number).integers(256, size=shape, dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images of several sizes and kinds, some below and some above the side, with odd names."""
    folder = tmp_path / "im ages"
    folder.mkdir()
    for number in range(NUM):
        name = ODD_NAMES[number] if number < len(ODD_NAMES) else f"{number}.{'jpg' if number % 2 else 'png'}"
        Image.fromarray(pixels_of(number)).save(folder / name)
    return folder


@pytest.fixture
def source(folder: Path) -> FileSource:
    found = open_unlabelled(folder)
    assert isinstance(found, FileSource)
    return found


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / os.fsdecode(b"ca'che \xe9\n")


def opened(source: StoredSource, root: Path, side: int = SIDE, *, workers: int = 0) -> CachedImages:
    return open_image_cache(source, root, side, workers=workers, shard_images=4)


def assert_equal(cached: CachedImages, source: StoredSource, side: int = SIDE) -> None:
    shrunk_images = ShrunkImages(source, side)
    assert len(cached) == len(source)
    for index in range(len(source)):
        np.testing.assert_array_equal(cached.fetch(index), shrunk_images.fetch(index))


def files(folder: Path) -> dict[str, tuple[int, int]]:
    """What tells whether a file is still the one that it was."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("size", "side", "expected"),
    [
        ((100, 50), 60, (100, 50)),
        ((60, 60), 60, (60, 60)),
        ((480, 640), 256, (256, 341)),  # 341.33
        ((640, 480), 256, (341, 256)),
        ((375, 500), 256, (256, 341)),
        ((3, 1000), 1, (1, 333)),
        ((5, 8), 4, (4, 6)),  # 6.4
        ((2, 3), 1, (1, 2)),  # 1.5
        ((1, 9), 1, (1, 9)),
    ],
)
def test_sizes_by_hand(size: tuple[int, int], side: int, expected: tuple[int, int]) -> None:
    assert shrunk_size(size, side) == expected


@given(st.integers(1, 20_000), st.integers(1, 20_000), st.integers(1, 1000))
def test_sizes_keep_the_proportion(height: int, width: int, side: int) -> None:
    found = shrunk_size((height, width), side)
    shorter = min(height, width)
    assert min(found) == min(shorter, side)
    assert shrunk_size(found, side) == found
    scale = min(1.0, side / shorter)
    assert np.abs(np.array(found) - np.array([height, width]) * scale).max() <= 0.5 + 1e-9


@pytest.mark.parametrize(
    ("size", "side", "expected"),
    [((800, 1000), 100, 4), ((1600, 1700), 100, 8), ((399, 9999), 100, 1), ((400, 400), 100, 2), ((9, 9), 100, 1)],
)
def test_reductions_by_hand(size: tuple[int, int], side: int, expected: int) -> None:
    assert reduction_for(size, side) == expected


def bicubic(values: NDArray[np.float64], num: int) -> NDArray[np.float64]:
    """The first axis resampled to a length, by Keys' kernel (a = -1/2) widened to the pixels of the result."""
    scale = len(values) / num
    result = np.empty((num, *values.shape[1:]))
    for place in range(num):
        weights = np.zeros(len(values))
        for pixel in range(len(values)):
            x = abs((pixel + 0.5 - (place + 0.5) * scale) / scale)
            if x < 1:
                weights[pixel] = 1.5 * x**3 - 2.5 * x**2 + 1
            elif x < 2:
                weights[pixel] = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
        result[place] = np.tensordot(weights / weights.sum(), values, 1)
    return result


def test_shrinking_against_the_definition() -> None:
    image = np.random.default_rng(0).integers(256, size=(40, 61, 3), dtype=np.uint8)
    found = shrunk(image, 16)
    assert found.shape == (16, 24, 3)
    columns = np.clip(np.round(bicubic(image.transpose(1, 0, 2).astype(float), 24)), 0, 255)
    expected = np.clip(bicubic(columns.transpose(1, 0, 2), 16), 0, 255)
    assert np.abs(found - expected).max() <= 1.0


def test_what_is_small_enough_stays_and_a_plain_image_stays_plain() -> None:
    image = np.random.default_rng(0).integers(256, size=(30, 40, 3), dtype=np.uint8)
    assert shrunk(image, 30) is image
    plain = np.full((90, 50, 3), 77, dtype=np.uint8)
    assert (shrunk(plain, 20) == 77).all()


def test_jpegs_are_decoded_smaller_and_look_the_same(tmp_path: Path) -> None:
    rows, columns = np.mgrid[0:401, 0:603]
    waves = np.stack([np.sin(rows / 31), np.cos(columns / 47), np.sin((rows + columns) / 59)], -1)
    Image.fromarray((127 + 100 * waves).astype(np.uint8)).save(tmp_path / "a.jpg", quality=95)
    content = (tmp_path / "a.jpg").read_bytes()
    small = shrunk(open_image(content, "a", apply_exif=True), 50)
    whole = shrunk(open_image(content, "a", apply_exif=True).pixels(), 50)
    assert small.shape == whole.shape == (50, 75, 3)
    assert np.abs(small.astype(int) - whole).max() <= 6
    assert np.abs(small.astype(int) - whole).mean() < 1


@pytest.mark.parametrize("workers", [0, 2])
def test_what_comes_out_is_what_shrinking_makes_in_the_order_of_the_ids(
    source: FileSource, root: Path, workers: int
) -> None:
    cached = opened(source, root, workers=workers)
    assert_equal(cached, source)
    assert cached.ids == source.ids
    assert (cached.name, cached.location, cached.labels, cached.classes) == (source.name, source.location, None, ())
    assert cached.fingerprint() == source.fingerprint()
    assert cached.where(3) == source.where(3)
    assert cached.apply_exif
    assert cached.read(2).size == cached.fetch(2).shape[1::-1]
    assert cached.state() == opened(source, root).state()
    assert cached.state() not in (source.state(), ShrunkImages(source, SIDE).state())
    with pytest.raises(IndexError):
        cached.fetch(NUM)


def test_pixels_are_a_part_of_the_file_that_cannot_be_written(source: FileSource, root: Path) -> None:
    cached = opened(source, root)
    pixels = cached.fetch(5)
    assert not pixels.flags.writeable
    assert not pixels.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        pixels[:] = 0
    data = cached.shards.data(1).read_bytes()
    place = int(cached.offsets[5])
    assert data[place : place + pixels.nbytes] == pixels.tobytes()
    assert cached.offsets[4] == 0


def test_small_images_are_kept_to_the_last_bit(source: FileSource, root: Path) -> None:
    cached = opened(source, root, 1000)
    for index in range(NUM):
        np.testing.assert_array_equal(cached.fetch(index), np.asarray(source.read(index)))


def test_arrays_in_memory(root: Path) -> None:
    pixels = np.random.default_rng(0).integers(256, size=(9, 32, 40, 3), dtype=np.uint8)
    arrays = ArraySource(pixels, tuple(map(str, range(9))), np.arange(9), tuple("abcdefghi"), "n", "l")
    cached = opened(arrays, root)
    assert cached.fetch(0).shape == (24, 30, 3)
    assert_equal(cached, arrays)
    np.testing.assert_array_equal(cached.labels, arrays.labels)
    assert opened(replace(arrays, pixels=255 - pixels), root).shards.folder != cached.shards.folder


def test_pictures_are_turned_once(tmp_path: Path, root: Path) -> None:
    image, exif = Image.fromarray(pixels_of(0)), Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "turned").mkdir()
    image.save(tmp_path / "turned" / "a.jpg", exif=exif, quality=95)
    upright, lying = (opened(open_unlabelled(tmp_path / "turned", apply_exif=way), root, 99) for way in (True, False))
    assert upright.fetch(0).shape == (70, 16, 3)
    assert lying.fetch(0).shape == (16, 70, 3)
    assert upright.shards.folder != lying.shards.folder


def test_nothing_is_made_twice(source: FileSource, root: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = opened(source, root)
    before = files(first.shards.folder)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        again = opened(source, root)
    assert files(again.shards.folder) == before
    assert "making" not in caplog.text
    names = {f"shard-0000{number}{end}" for number in range(3) for end in (".bin", ".bin.sha256", ".json")}
    assert set(before) == {"index.json", *names}
    assert {path.name for path in root.iterdir()} == {"image-cache.json", first.shards.folder.name}


def test_checksums_are_those_of_sha256sum(source: FileSource, root: Path) -> None:
    shards = opened(source, root).shards
    command = "sha256sum -c shard-*.sha256"
    done = subprocess.run(command, shell=True, cwd=shards.folder, capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.count(": OK") == 3
    digest = hashlib.sha256(shards.data(2).read_bytes()).hexdigest()
    assert (shards.folder / "shard-00002.bin.sha256").read_text().startswith(digest)


def test_a_file_replaced_by_one_of_equal_size_and_time_is_not_served(
    source: FileSource, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = source.root / "z.bmp"
    Image.fromarray(pixels_of(4)).save(path)
    before, source = path.stat(), replace(source, ids=(*source.ids, "z.bmp"))
    first = opened(source, root)
    Image.fromarray(255 - pixels_of(4)).save(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_ino, after.st_size, after.st_mtime_ns) == (before.st_ino, before.st_size, before.st_mtime_ns)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        again = opened(source, root)
    assert again.shards.folder != first.shards.folder
    np.testing.assert_array_equal(again.fetch(NUM), shrunk(255 - pixels_of(4), SIDE))
    assert f"holds another cache: {NUM + 1} images of {source.location}, shorter side at most 24 px, " in caplog.text


def test_other_settings_stand_beside_each_other(
    source: FileSource, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    opened(source, root)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        other = opened(source, root, 20)
    assert_equal(other, source, 20)
    assert_equal(opened(source, root), source)
    first, second = [record.message for record in caplog.records if record.name.endswith("contents")]
    assert first.startswith(
        f"{root} holds another cache: {NUM} images of {source.location}, shorter side at most 24 px, "
    )
    assert first.endswith(" KiB")
    assert "shorter side at most 20 px; 3 of 3 shards are missing, about " in second


def test_a_moved_folder_of_images_is_the_same(source: FileSource, root: Path) -> None:
    first = opened(source, root)
    moved = source.root.rename(source.root.with_name("moved"))
    assert not find_image_cache(open_unlabelled(moved), root, SIDE).missing
    assert opened(open_unlabelled(moved), root).shards.folder == first.shards.folder


def test_unreadable_images_keep_their_reasons(source: FileSource, root: Path) -> None:
    names = source.ids
    (source.root / names[1]).write_bytes(b"no image")
    content = (source.root / names[6]).read_bytes()
    (source.root / names[6]).write_bytes(content[: len(content) // 2])
    cached = opened(source, root)
    for index in (1, 6):
        with pytest.raises(UnreadableImage) as from_cache:
            cached.fetch(index)
        with pytest.raises(UnreadableImage) as directly:
            source.read(index)
        assert str(from_cache.value) == str(directly.value)
    assert sorted(cached.reasons) == [1, 6]
    np.testing.assert_array_equal(cached.fetch(7), ShrunkImages(source, SIDE).fetch(7))
    assert "; 2 cannot be read)" in cached.told()
    before = files(cached.shards.folder)
    assert files(opened(source, root).shards.folder) == before


def test_none_that_can_be_read(tmp_path: Path, root: Path) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"")
    cached = opened(open_unlabelled(tmp_path / "bad"), root)
    with pytest.raises(UnreadableImage, match="is empty"):
        cached.fetch(0)
    assert cached.shards.data(0).stat().st_size == 0


@dataclass(frozen=True)
class Unreachable(FileSource):
    """Some files cannot be had, as on a server that is down; nothing tells when they can."""

    lost: frozenset[int] = frozenset()

    def fetch(self, index: int) -> Stored:
        if index in self.lost:
            raise UnreadableImage(self.where(index), "Input/output error")
        return super().fetch(index)


def test_what_could_not_be_fetched_is_tried_again(
    source: FileSource, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lost = Unreachable(**vars(source), lost=frozenset({5, 9}))
    first = opened(lost, root)
    assert sorted(first.reasons) == [5, 9]
    with pytest.raises(UnreadableImage, match="Input/output error"):
        first.fetch(5)
    before = files(first.shards.folder)
    assert files(opened(lost, root).shards.folder) == before
    caplog.clear()
    with caplog.at_level(logging.INFO):
        again = opened(replace(lost, lost=frozenset({9})), root)
    after = files(again.shards.folder)
    assert {name for name in after if after[name] != before[name]} == {
        "shard-00001.bin",
        "shard-00001.bin.sha256",
        "shard-00001.json",
    }
    np.testing.assert_array_equal(again.fetch(5), ShrunkImages(source, SIDE).fetch(5))
    assert sorted(again.reasons) == [9]
    assert f"{source.where(5)} can be read by now: its shard is made again" in caplog.text


def shorten(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def change_number(path: Path) -> None:
    content = json.loads(path.read_text())
    content["sizes"][1][0] += 1
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("shard-00001.bin", shorten, "bytes where there should be"),
        ("shard-00001.bin", lambda path: path.write_bytes(path.read_bytes() + b"x"), "bytes where there should be"),
        ("shard-00001.bin", Path.unlink, "is gone"),
        ("shard-00001.json", lambda path: path.write_bytes(path.read_bytes()[:50]), "is damaged"),
        ("shard-00001.json", lambda path: path.write_bytes(b""), "is damaged"),
        ("shard-00001.json", lambda path: path.write_bytes(b"[1]"), "is damaged"),
        ("shard-00001.json", lambda path: path.write_bytes(b'{"sizes": 7}'), "is damaged"),
        ("shard-00001.json", change_number, "its numbers contradict each other"),
        ("shard-00001.json", lambda path: shutil.copy(path.with_name("shard-00000.json"), path), "from 0 on, not of 4"),
    ],
)
def test_a_damaged_shard_is_told_and_made_again(
    source: FileSource,
    root: Path,
    caplog: pytest.LogCaptureFixture,
    name: str,
    damage: Callable[[Path], object],
    words: str,
) -> None:
    shards = opened(source, root).shards
    before = files(shards.folder)
    damage(shards.folder / name)
    again = opened(source, root)
    assert_equal(again, source)
    after = files(shards.folder)
    assert {kept for kept in before if after[kept] == before[kept]} == {
        kept for kept in before if not kept.startswith("shard-00001")
    }
    (told,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert told.startswith("a shard of the cache of images is made again: ")
    assert words in told


@pytest.mark.parametrize("damage", [b"", b"{}", b"[]", b'{"location": "x"'])
def test_a_damaged_index_is_written_anew(source: FileSource, root: Path, damage: bytes) -> None:
    folder = opened(source, root).shards.folder
    before = files(folder)
    whole = (folder / "index.json").read_bytes()
    (folder / "index.json").write_bytes(damage)
    (folder / "shard-00002.json").unlink()
    assert_equal(opened(source, root), source)
    after = files(folder)
    assert (folder / "index.json").read_bytes() == whole
    assert after["shard-00000.bin"] == before["shard-00000.bin"]


def test_a_cache_that_goes_away_while_it_is_used(source: FileSource, root: Path) -> None:
    cached = opened(source, root)
    kept = cached.fetch(0)
    before = kept.copy()
    shorten(cached.shards.data(1))
    with pytest.raises(DataError, match=r"shard-00001.bin of the cache .* it has [\d,]+ bytes where there were"):
        cached.fetch(4)
    shutil.rmtree(root)
    with pytest.raises(DataError, match=r"cannot be read any more: No such file or directory; start again with --res"):
        cached.fetch(8)
    np.testing.assert_array_equal(kept, before)


def entries(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*")}


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda root: root.write_bytes(b""), "is a file; give --cache-images a new or empty folder"),
        (lambda root: (root / "a.png").write_bytes(b""), "is no cache of images, it holds a.png; give"),
        (lambda root: [(root / n).mkdir() for n in "abcde"], "it holds a, b, c, d …; give"),
        (
            lambda root: (root / "image-cache.json").write_text(
                '{"kind": "patchssl-image-cache", "format": 2, "patchssl": "9.1"}'
            ),
            "and format 2, made by patchssl 9.1; this version uses format 1: give --cache-images a new or empty folder",
        ),
        (lambda root: (root / "image-cache.json").write_text("{"), "is damaged (Expecting"),
        (lambda root: (root / "image-cache.json").write_text("[]"), "is damaged (it holds a list)"),
    ],
)
def test_a_folder_of_something_else_is_refused_and_left(
    source: FileSource, tmp_path: Path, made: Callable[[Path], object], words: str
) -> None:
    root = tmp_path / "cache"
    if "is a file" not in words:
        root.mkdir()
    made(root)
    before = entries(tmp_path)
    with pytest.raises(DataError) as caught:
        opened(source, root)
    assert words in str(caught.value)
    assert entries(tmp_path) == before


def test_folders_that_may_hold_a_cache(source: FileSource, tmp_path: Path) -> None:
    fresh_disk = tmp_path / "disk"
    (fresh_disk / "lost+found").mkdir(parents=True)
    (fresh_disk / ".hidden").touch()
    assert_equal(opened(source, fresh_disk), source)
    (fresh_disk / "image-cache.json").unlink()
    (fresh_disk / "lost+found").rmdir()
    assert_equal(opened(source, fresh_disk), source)
    (fresh_disk / "notes.txt").touch()
    (fresh_disk / "image-cache.json").write_text('{"kind": "patchssl-image-cache", "format": 1}')
    assert_equal(opened(source, fresh_disk, 20), source, 20)


def test_a_folder_below_a_file(source: FileSource, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"Not a directory"):
        opened(source, tmp_path / "file" / "cache")


def test_a_disk_that_is_too_small_is_refused_with_numbers_and_nothing_made(
    source: FileSource, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = 3 * sum(math.prod(ShrunkImages(source, SIDE).size_px(index)) for index in range(NUM))
    usage = shutil.disk_usage(root.parent)
    free = needed - 2 * NUM

    def told(path: Path) -> object:
        assert root.is_relative_to(path)
        return usage._replace(free=free)

    monkeypatch.setattr(shutil, "disk_usage", told)
    with pytest.raises(DataError) as caught:
        opened(source, root)
    assert f"takes about {needed / 1024:.1f} KiB more (11 images of " in str(caught.value)
    assert (
        f"and {free / 1024:.1f} KiB are free there; free some space, or take another --cache-images DIR or a "
        in str(caught.value)
    )
    assert not root.exists()
    free = needed + 2 * NUM
    assert_equal(opened(source, root), source)


def test_looking_makes_nothing(source: FileSource, root: Path) -> None:
    found = find_image_cache(source, root, SIDE)
    assert found.missing == [0]
    assert found.missing_bytes == pytest.approx(
        3 * sum(math.prod(ShrunkImages(source, SIDE).size_px(index)) for index in range(NUM)), abs=NUM
    )
    assert not root.exists()


@pytest.mark.parametrize(
    ("num_images", "image_bytes", "expected"),
    [
        (10_000_000, 256_000, 1048),  # 256 MiB
        (10_000_000, 3072, 4096),
        (50_000, 3072, 1563),  # a 32nd
        (500, 3072, 64),
        (500, 300_000_000, 1),
        (500, 0, 64),
    ],
)
def test_how_many_images_a_shard_takes(num_images: int, image_bytes: int, expected: int) -> None:
    assert fitting_shard(num_images, image_bytes) == expected


class Sums(torch.utils.data.Dataset[int]):
    def __init__(self, images: CachedImages) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> int:
        return int(self.images.fetch(index).sum())


def test_loader_processes_read_the_same(source: FileSource, root: Path) -> None:
    cached = opened(source, root)
    expected = [int(ShrunkImages(source, SIDE).fetch(index).sum()) for index in range(NUM)]
    assert int(cached.fetch(0).sum()) == expected[0]  # a shard is mapped before they are forked
    assert list(DataLoader(Sums(cached), batch_size=None, num_workers=2)) == expected
    copy = pickle.loads(pickle.dumps(cached))
    assert [int(copy.fetch(index).sum()) for index in range(NUM)] == expected


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_the_stored_arrays(source: FileSource, root: Path, workers: int) -> None:
    cached = opened(source, root)
    views = ViewsConfig(global_size=16, local_size=8, num_local=2)

    def views_of(images: StoredSource, workers: int) -> list[torch.Tensor]:
        batches = TrainingBatches(images, ViewsByWorkers(MultiCrop(views, 3)), batch_size=4, num_steps=6, seed=3)
        made = [batch.made for batch in iterate(batches, first_step=0, workers=workers, pin_memory=False)]
        return [group.pixels for groups in made for group in groups]

    torch.testing.assert_close(views_of(cached, workers), views_of(ShrunkImages(source, SIDE), 0), rtol=0, atol=0)
