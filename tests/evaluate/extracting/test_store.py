import errno
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from patchssl.evaluate.extracting.store import FeatureStore, Shard, Shelf, StoreError

KEY = {"model": "a", "size": 224}


def a_shard(start: int = 0, num: int = 4, seed: int = 0, bad: tuple[int, ...] = ()) -> Shard:
    indices = np.array([index for index in range(start, start + num) if index not in bad], dtype=np.int64)
    features = np.random.default_rng(seed).normal(size=(len(indices), 3)).astype(np.float32)
    return Shard(features, indices, tuple((index, f"{index}.jpg", "is truncated") for index in bad))


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return FeatureStore(tmp_path, shard_images=4).shelf(KEY)


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_shard_comes_back_as_it_was(shelf: Shelf) -> None:
    shard = a_shard(start=8, bad=(9,))
    shelf.write("cls-1", 2, shard)
    found = shelf.read("cls-1", range(8, 12))
    assert found is not None
    np.testing.assert_array_equal(found.features, shard.features)
    np.testing.assert_array_equal(found.indices, [8, 10, 11])
    assert found.unreadable == ((9, "9.jpg", "is truncated"),)
    assert not found.features.flags.writeable
    assert files(shelf.folder) == ["cls-1/000002.safetensors", "origin.json"]
    told = json.loads((shelf.folder / "origin.json").read_text())
    assert told == {"format": 1, "shard_images": 4, **KEY}


def test_patches_and_a_shard_without_readable_images_keep_their_shape(shelf: Shelf) -> None:
    patches = Shard(np.ones((4, 2, 3, 5), np.float32), np.arange(4), ())
    shelf.write("patches-1", 0, patches)
    nothing = Shard(np.empty((0, 0), np.float32), np.empty(0, np.int64), a_shard(bad=(0, 1, 2, 3)).unreadable)
    shelf.write("cls-1", 0, nothing)
    found = [shelf.read(part, range(4)) for part in ("patches-1", "cls-1")]
    assert [shard.features.shape for shard in found if shard is not None] == [(4, 2, 3, 5), (0, 0)]


def test_what_is_not_there_is_none_and_reading_makes_no_folder(shelf: Shelf, tmp_path: Path) -> None:
    assert shelf.read("cls-1", range(4)) is None
    assert list(tmp_path.iterdir()) == []


def test_every_key_part_and_size_of_shards_has_a_place_of_its_own(tmp_path: Path) -> None:
    places = {
        FeatureStore(tmp_path, shard_images=size).shelf(key).folder
        for size in (4, 8)
        for key in (KEY, {**KEY, "size": 225}, {**KEY, "more": None})
    }
    assert len(places) == 6
    shelf = FeatureStore(tmp_path, shard_images=4).shelf(KEY)
    shelf.write("cls-1", 0, a_shard())
    assert shelf.read("cls-2", range(4)) is None
    # The same key in another order of its entries is the same key.
    again = FeatureStore(tmp_path, shard_images=4).shelf(dict(reversed(KEY.items())))
    assert again.read("cls-1", range(4)) is not None


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def replace(path: Path) -> None:
    path.write_bytes(b"something else")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def change_the_list(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"is truncated", b"is turncated"))


@pytest.mark.parametrize("damage", [flip_a_bit, cut, replace, empty, change_the_list])
def test_damage_is_told_and_counts_as_missing(
    damage: Callable[[Path], None], shelf: Shelf, caplog: pytest.LogCaptureFixture
) -> None:
    shelf.write("cls-1", 0, a_shard(bad=(2,)))
    path = shelf.folder / "cls-1" / "000000.safetensors"
    before = path.read_bytes()
    damage(path)
    assert path.read_bytes() != before
    assert shelf.read("cls-1", range(4)) is None
    assert f"damaged and computed again: {path}" in caplog.text
    shelf.write("cls-1", 0, a_shard(bad=(2,)))
    assert shelf.read("cls-1", range(4)) is not None


def test_a_shard_of_other_images_is_damage(shelf: Shelf, caplog: pytest.LogCaptureFixture) -> None:
    shelf.write("cls-1", 0, a_shard(start=4))
    assert shelf.read("cls-1", range(4)) is None
    assert "not the 4 from 0 on" in caplog.text


def test_a_full_disk_leaves_what_was_there_and_no_half_file(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf.write("cls-1", 0, a_shard())

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=r"cannot be kept in .*cls-1: No space left on device; free some space.*--no-"):
        shelf.write("cls-1", 0, a_shard(seed=1))
    assert files(shelf.folder) == ["cls-1/000000.safetensors", "origin.json"]
    found = shelf.read("cls-1", range(4))
    assert found is not None
    np.testing.assert_array_equal(found.features, a_shard().features)


def test_a_place_that_cannot_be_a_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(StoreError, match="Not a directory"):
        FeatureStore(tmp_path / "file").shelf(KEY).write("cls-1", 0, a_shard())


def test_writers_at_once_leave_one_whole_shard_and_readers_see_only_whole_ones(tmp_path: Path) -> None:
    wrong: list[object] = []
    stop = threading.Event()

    def write(seed: int) -> None:
        shelf = FeatureStore(tmp_path, shard_images=4).shelf(KEY)
        for _ in range(15):
            shelf.write("cls-1", 0, a_shard(seed=seed))

    def read() -> None:
        shelf = FeatureStore(tmp_path, shard_images=4).shelf(KEY)
        seen = False
        while not stop.is_set():
            shard = shelf.read("cls-1", range(4))
            if shard is None and seen:
                wrong.append("a shard has vanished or is damaged")
            seen = seen or shard is not None

    reader = threading.Thread(target=read)
    writers = [threading.Thread(target=write, args=(seed,)) for seed in range(3)]
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    reader.join()
    assert wrong == []
    shelf = FeatureStore(tmp_path, shard_images=4).shelf(KEY)
    found = shelf.read("cls-1", range(4))
    assert found is not None
    assert any(np.array_equal(found.features, a_shard(seed=seed).features) for seed in range(3))
    assert files(shelf.folder) == ["cls-1/000000.safetensors", "origin.json"]


def test_only_old_left_overs_are_swept(shelf: Shelf) -> None:
    shelf.write("cls-1", 0, a_shard())
    old, new = (shelf.folder / "cls-1" / f".000001.safetensors.{name}.part" for name in ("old", "new"))
    for path in (old, new):
        path.write_bytes(b"half")
    two_days_ago = time.time() - 2 * 24 * 3600
    os.utime(old, (two_days_ago, two_days_ago))
    shelf.sweep()
    assert not old.exists()
    assert new.exists()
    assert shelf.read("cls-1", range(4)) is not None
