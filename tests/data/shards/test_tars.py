"""Tar files as a list of images: which, in what order, and what is said of bad ones."""

import logging
import os
import pickle
import re
import shutil
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from patchssl.data.decode import UnreadableImage
from patchssl.data.images import StoredSource
from patchssl.data.loader import Loaded, TrainingBatches, iterate
from patchssl.data.samples import Share
from patchssl.data.shards import kept_index, positioned
from patchssl.data.sources import open_unlabelled
from patchssl.errors import DataError
from patchssl.structs import CropPlan, SampleKeys
from patchssl.user_cache import user_cache


class Whole:
    """Instead of views: the images themselves."""

    def plan(self, sizes: torch.Tensor, keys: SampleKeys, reducible: torch.Tensor) -> CropPlan:
        return CropPlan((), (), torch.ones(len(keys), dtype=torch.int64))

    def make(self, images: list[NDArray[np.uint8]], plan: CropPlan) -> list[NDArray[np.uint8]]:
        return images


Images = Loaded[list[NDArray[np.uint8]]]


def batches(
    source: StoredSource,
    *,
    num_steps: int = 30,
    batch_size: int = 8,
    share: Share | None = None,
    buffer: int | None = 20,
) -> TrainingBatches[list[NDArray[np.uint8]]]:
    return TrainingBatches(
        source,
        Whole(),
        batch_size=batch_size,
        num_steps=num_steps,
        seed=1,
        share=share or Share(),
        shuffle_buffer=buffer,
    )


@pytest.fixture
def shards(tmp_path: Path, write_tar: Callable[..., Path]) -> Path:
    """Five tar files with 12, 13, … pictures, 70 in all."""
    start = 0
    for shard in range(5):
        write_tar(tmp_path / "shards" / f"s-{shard:03}.tar", range(start, start + 12 + shard))
        start += 12 + shard
    return tmp_path / "shards"


def numbers(loaded: Images, number_of: Callable[[Any], int]) -> list[int]:
    return [number_of(image) for image in loaded.made]


def test_a_folder_of_shards_is_a_list_of_images(shards: Path, number_of: Callable[[Any], int]) -> None:
    source = open_unlabelled(shards)
    assert len(source) == 70
    assert [number_of(source.read(index)) for index in range(70)] == list(range(70))
    assert source.ids[12] == "s-001.tar/000012.png"
    assert list(source.ids) == [source.ids[index] for index in range(70)]
    assert source.ids[-1] == source.ids[69]
    assert source.ids[1:3] == [source.ids[1], source.ids[2]]
    assert source.where(12) == f"{shards}/s-001.tar: 000012.png"
    assert (source.name, source.location, source.labels, source.classes) == ("shards", str(shards), None, ())


def test_files_folders_and_patterns_name_the_same_images(shards: Path) -> None:
    ids = list(open_unlabelled(shards).ids)
    for pattern in ("s-{000..004}.tar", "*.tar", "s-00?.tar", "{s-000,s-[0]0[1-4]}.tar"):
        assert list(open_unlabelled(f"{shards}/{pattern}").ids) == ids
    assert list(open_unlabelled(f"file://{shards}").ids) == ids
    assert list(open_unlabelled(f"file://{shards}/s-{{000..004}}.tar").ids) == ids
    assert list(open_unlabelled(shards / "s-001.tar").ids) == ids[12:25]
    assert list(open_unlabelled(f"{shards}/s-{{001,000}}.tar").ids) == [*ids[12:25], *ids[:12]]


def test_every_image_comes_once_per_epoch(shards: Path, number_of: Callable[[Any], int]) -> None:
    made = batches(open_unlabelled(shards), num_steps=35, batch_size=4)
    seen = [number for step in range(35) for number in numbers(made[step], number_of)]
    assert sorted(seen[:70]) == sorted(seen[70:]) == list(range(70))
    assert seen[:70] != seen[70:]


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3")
@pytest.mark.parametrize(("workers", "first_step"), [(0, 9), (1, 0), (3, 5)])
def test_workers_and_resuming_change_nothing(
    shards: Path, number_of: Callable[[Any], int], workers: int, first_step: int
) -> None:
    expected = [numbers(batches(open_unlabelled(shards))[step], number_of) for step in range(30)]
    made = iterate(batches(open_unlabelled(shards)), first_step=first_step, workers=workers, pin_memory=False)
    assert [numbers(each, number_of) for each in made] == expected[first_step:]


def test_processes_together_have_the_batches_of_one(shards: Path, number_of: Callable[[Any], int]) -> None:
    whole = batches(open_unlabelled(shards))
    for num in (2, 4):
        parts = [batches(open_unlabelled(shards), share=Share(rank, num)) for rank in range(num)]
        for step in (0, 8, 9, 29):
            together = [number for part in parts for number in numbers(part[step], number_of)]
            assert together == numbers(whole[step], number_of)


def test_it_travels_to_processes_that_are_forked_or_started_anew(shards: Path) -> None:
    source = open_unlabelled(shards)
    expected = source.fetch(40)  # opens a file, which does not travel
    assert pickle.loads(pickle.dumps(source)).fetch(40) == expected
    child = os.fork()
    if child == 0:
        os._exit(0 if source.fetch(40) == expected and source.fetch(0) != expected else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_a_lock_held_while_forking_does_not_hold_up_the_child(shards: Path) -> None:
    source = open_unlabelled(shards)
    source.fetch(0)
    with source._reads._lock:  # type: ignore[attr-defined]
        child = os.fork()
        if child == 0:
            os._exit(0 if source.fetch(1) else 1)
        assert os.waitpid(child, 0)[1] == 0


def test_few_files_are_open_and_threads_may_read_at_once(
    shards: Path, monkeypatch: pytest.MonkeyPatch, number_of: Callable[[Any], int]
) -> None:
    monkeypatch.setattr(positioned, "MAX_OPEN", 2)
    source = open_unlabelled(shards)
    before = len(list(Path("/proc/self/fd").iterdir()))
    failed: list[int] = []

    def read(seed: int) -> None:
        order = np.random.default_rng(seed).permutation(70).tolist()
        failed.extend(index for index in order if number_of(source.read(index)) != index)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert len(list(Path("/proc/self/fd").iterdir())) - before <= 2


def test_the_fingerprint_is_that_of_names_and_sizes(shards: Path, tmp_path: Path) -> None:
    shutil.copytree(shards, tmp_path / "elsewhere")
    here, there = open_unlabelled(shards), open_unlabelled(tmp_path / "elsewhere")
    assert here.fingerprint() == there.fingerprint()
    assert here.state() != there.state()
    assert here.state() == open_unlabelled(shards).state() != open_unlabelled(shards, apply_exif=False).state()
    os.utime(shards / "s-000.tar", (1, 1))
    assert open_unlabelled(shards).state() != here.state()
    assert open_unlabelled(shards).fingerprint() == here.fingerprint()
    (shards / "s-000.tar").rename(shards / "other.tar")
    assert open_unlabelled(shards).fingerprint() != here.fingerprint()


def test_indexes_are_kept_and_made_anew_when_damaged(
    shards: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    ids = list(open_unlabelled(shards).ids)
    assert "finding out what 5 of 5 tar files hold" in caplog.text
    caplog.clear()
    assert list(open_unlabelled(shards).ids) == ids
    assert not caplog.records
    kept = sorted((user_cache() / "shards" / "indexes").iterdir())
    assert len(kept) == 5
    whole = kept[0].read_bytes()
    for damaged in (
        b"",
        whole[:-40],
        whole[:200],
        b"x" + whole[1:],
        whole.replace(b"000", b"001"),
        kept[1].read_bytes(),
    ):
        kept[0].write_bytes(damaged)
        caplog.clear()
        assert list(open_unlabelled(shards).ids) == ids
        assert "is damaged" in caplog.text
        assert "finding out what 1 of 5" in caplog.text
        assert kept[0].read_bytes() == whole


def test_a_shard_that_is_written_anew_is_gone_through_again(shards: Path, write_tar: Callable[..., Path]) -> None:
    assert len(open_unlabelled(shards)) == 70
    write_tar(shards / "s-000.tar", range(500, 512))
    os.utime(shards / "s-000.tar", ns=(10**18, 10**18))
    assert open_unlabelled(shards).ids[0] == "s-000.tar/000500.png"


def test_a_cache_folder_that_cannot_be_written_is_told_once(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PATCHSSL_CACHE", str(tmp_path / "file"))
    assert len(open_unlabelled(shards)) == 70
    assert len([record for record in caplog.records if "cannot be kept" in record.getMessage()]) == 1
    assert {record.levelname for record in caplog.records} == {"INFO"}

    def fails(path: Path) -> Iterator[Path]:
        raise OSError(28, "No space left on device")

    monkeypatch.setenv("PATCHSSL_CACHE", str(tmp_path / "new"))
    monkeypatch.setattr(kept_index, "replacing", fails)
    assert len(open_unlabelled(shards)) == 70
    assert "No space left on device" in caplog.text


def test_names_with_odd_letters(
    tmp_path: Path, write_tar: Callable[..., Path], picture: Callable[[int], bytes]
) -> None:
    folder = tmp_path / "with space [x] 'é'\n"
    folder.mkdir()
    names = ["a b.png", "new\nline.png", "日本.png", "\udcff.png", "../up.png"]
    shard = folder / "\udcfe{1..2}.tar"
    write_tar(shard, [(name, picture(number)) for number, name in enumerate(names)], errors="surrogateescape")
    for place in (folder, shard):
        for _ in range(2):  # the second time from what is kept
            source = open_unlabelled(place)
            assert list(source.ids) == [f"{shard.name}/{name}" for name in names]
            assert [source.fetch(number) for number in range(5)] == [picture(number) for number in range(5)]
            assert source.fingerprint()
            assert source.state()


def test_cut_and_damaged_shards_lose_nothing_in_silence(
    shards: Path, number_of: Callable[[Any], int], caplog: pytest.LogCaptureFixture
) -> None:
    """Samples before the cut are used; the one that is cut, and what may follow, are counted as unreadable."""
    path = shards / "s-002.tar"
    with tarfile.open(path) as archive:
        cut = archive.getmember("000029.png").offset_data + 20
    os.truncate(path, cut)
    source = open_unlabelled(shards)
    assert len(source) == 70 - 14 + 5
    assert (
        f"{path} is cut off: it ends at byte {cut:,}, in the middle of a member; what can be read before" in caplog.text
    )
    with pytest.raises(UnreadableImage, match=r"s-002\.tar: 000029\.png: .*s-002\.tar is cut off: it ends at byte"):
        source.fetch(29)
    made = batches(source, num_steps=1, batch_size=61)[0]
    assert [error.path for error in made.bad] == [source.where(29)]
    assert sorted(numbers(made, number_of)) == sorted([*range(29), 39, *range(39, 70)])


def test_a_damaged_image_is_left_out_and_told(
    tmp_path: Path, write_tar: Callable[..., Path], picture: Callable[[int], bytes], number_of: Callable[[Any], int]
) -> None:
    members = [("0.png", picture(0)), ("1.png", picture(1)[:50]), ("2.png", b""), ("3.png", picture(3))]
    made = batches(open_unlabelled(write_tar(tmp_path / "x.tar", members)), num_steps=1, batch_size=4)[0]
    assert {error.path.split(": ")[1]: error.reason.split(":")[0] for error in made.bad} == {
        "1.png": "cannot be decoded",
        "2.png": "is empty (0 bytes)",
    }
    assert sorted(numbers(made, number_of)) == [0, 3, 3, 3]


def test_links_and_what_is_too_large_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_tar: Callable[..., Path], picture: Callable[[int], bytes]
) -> None:
    from patchssl.data.shards import tar_source

    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        about = tarfile.TarInfo("a.png")
        about.type, about.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(about)
    with pytest.raises(UnreadableImage, match=r"x\.tar: a\.png: is a link, a device or a sparse file"):
        open_unlabelled(tmp_path / "x.tar").fetch(0)
    monkeypatch.setattr(tar_source, "MAX_IMAGE_BYTES", 50)
    source = open_unlabelled(write_tar(tmp_path / "y.tar", [("b.png", picture(1))]))
    with pytest.raises(UnreadableImage, match=r"has \d+ bytes; at most 50 are read"):
        source.fetch(0)


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        (
            "s-{000..005}.tar",
            r"^1 of the 6 shards cannot be found: .*s-005\.tar \(no such file or directory\); fetch them",
        ),
        ("s-009.tar", r"s-009\.tar does not exist; give a folder of images, .*\.tar or \.parquet files or a CSV"),
        (
            "t-*.tar",
            r"t-\*\.tar names no \.tar or \.parquet file that is there; is it right, and a pattern in quotes\?",
        ),
        ("t-{0..2}", r"names no \.tar or \.parquet file that is there; it names .*t-0"),
        ("{", r"names no \.tar"),
    ],
)
def test_shards_that_are_not_there(shards: Path, pattern: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        open_unlabelled(f"{shards}/{pattern}")


def test_files_that_are_no_shards_are_left_out_of_a_pattern(shards: Path, caplog: pytest.LogCaptureFixture) -> None:
    (shards / "README.md").write_text("about")
    assert len(open_unlabelled(f"{shards}/*")) == 70
    assert "1 files that are no .tar or .parquet are left out, such as" in caplog.text
    assert len(open_unlabelled(shards)) == 70


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda path: path.write_bytes(b""), r"s-001\.tar is empty \(0 bytes\); fetch it again, or leave it out$"),
        (lambda path: path.write_bytes(b"<html>" * 200), r"s-001\.tar is not a tar file"),
        (lambda path: os.truncate(path, 540), r"s-001\.tar is cut off: .* and no whole image comes before; fetch"),
        (lambda path: (path.unlink(), path.symlink_to("nowhere")), r"s-001\.tar.*no such file"),
    ],
)
def test_a_shard_that_is_no_good(shards: Path, write: Callable[[Path], object], words: str) -> None:
    write(shards / "s-001.tar")
    with pytest.raises(DataError, match=words):
        open_unlabelled(shards)
    shutil.copy(shards / "s-000.tar", shards / "s-001.tar", follow_symlinks=False)


def test_several_that_are_no_good_are_counted(shards: Path) -> None:
    for number in (1, 3):
        (shards / f"s-00{number}.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"s-001\.tar is empty .* \(1 more of the 5 cannot be used either\)$"):
        open_unlabelled(shards)


def test_an_archive_without_images_is_told_and_one_alone_is_an_error(
    shards: Path, tmp_path: Path, write_tar: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    write_tar(shards / "s-005.tar", [("a.txt", b"text")])
    assert len(open_unlabelled(shards)) == 70
    assert "1 tar files hold no images (for instance" in caplog.text
    for content, words in (([("a.txt", b"text")], "1 .txt"), ([], "nothing")):
        with pytest.raises(DataError, match=rf"holds no image files in 1 tar files .*{words}"):
            open_unlabelled(write_tar(tmp_path / "only.tar", content))


def test_folders_with_several_kinds(
    shards: Path, tmp_path: Path, write_parquet: Callable[..., Path], picture: Callable[[int], bytes]
) -> None:
    write_parquet(shards / "p.parquet", [1, 2])
    with pytest.raises(DataError, match=r"holds 5 \.tar and 1 \.parquet files; give one kind"):
        open_unlabelled(shards)
    assert len(open_unlabelled(f"{shards}/*.tar")) == 70
    (shards / "p.parquet").unlink()
    (shards / "image.png").write_bytes(picture(1))
    with pytest.raises(DataError, match=r"holds 1 image files and 5 \.tar files, such as s-000\.tar; give one of both"):
        open_unlabelled(shards)
    for path in shards.glob("*.tar"):
        path.unlink()
    write_parquet(shards / "metadata.parquet", [1, 2])
    assert len(open_unlabelled(shards)) == 1


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("x.tar.gz", "gunzip"),
        ("x.TGZ", "gunzip"),
        ("x.tar.bz2", "bunzip2"),
        ("x.tar.xz", "unxz"),
        ("x.tar.zst", "unzstd --rm"),
    ],
)
def test_compressed_files_are_to_be_unpacked(tmp_path: Path, name: str, command: str) -> None:
    (tmp_path / name).write_bytes(b"anything")
    words = "is compressed (KIND), which allows no random access, and hardly makes images smaller; unpack it: "
    for data in (tmp_path, tmp_path / name, f"{tmp_path}/x.*", f"memory://{name}"):
        with pytest.raises(DataError) as caught:
            open_unlabelled(data)
        told = re.sub(r"\(.*\)", "(KIND)", str(caught.value))
        file = name if str(data).startswith("memory") else str(tmp_path / name)
        assert told.endswith(f"{name} {words}{command} {file}")


def check_whole(loaded: Images) -> None:
    assert loaded.bad == []


def removed(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    os.truncate(path, 5000)


def grown(path: Path) -> None:
    with path.open("ab") as file:
        file.write(bytes(512))


def replaced(path: Path) -> None:
    shutil.copy(path, path.with_suffix(".new"))
    path.with_suffix(".new").rename(path)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (removed, "is no longer there"),
        (cut, r"has changed: it had [\d,]+ bytes when it was opened, and has 5,000"),
        (grown, r"has changed: it had [\d,]+ bytes when it was opened, and has [\d,]+"),
        (replaced, "has been written anew since it was opened"),
    ],
)
def test_a_shard_that_changes_in_the_middle_of_an_epoch_ends_the_run(
    shards: Path, workers: int, change: Callable[[Path], None], words: str
) -> None:
    """Though its file is still open; and it is not a series of unreadable images."""
    source = open_unlabelled(shards)
    made = iterate(batches(source, num_steps=300), first_step=0, workers=workers, pin_memory=False)
    for _ in range(9):  # an epoch, after which every file has been opened
        assert next(made).bad == []
    change(shards / "s-002.tar")
    with pytest.raises(
        DataError, match=rf"s-002\.tar {words}; put it back as it was, then go on \(pretrain: with --res"
    ):
        list(map(check_whole, made))


def test_a_shard_that_is_put_back_as_it_was_is_read_on(shards: Path) -> None:
    source = open_unlabelled(shards)
    before = source.fetch(0)
    shutil.copy2(shards / "s-000.tar", shards / "new")
    (shards / "new").rename(shards / "s-000.tar")
    assert source.fetch(0) == before


def test_a_file_system_that_counts_no_links(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, plain = open_unlabelled(shards), os.fstat

    def without_links(handle: int) -> os.stat_result:
        values = list(plain(handle))
        values[3] = 0
        return os.stat_result(values, {"st_mtime_ns": plain(handle).st_mtime_ns})

    expected = [source.fetch(index) for index in (0, 1)]
    monkeypatch.setattr(os, "fstat", without_links)
    assert [source.fetch(index) for index in (0, 1)] == expected


def test_folders_of_images_and_of_links_by_other_names(
    shards: Path, tmp_path: Path, picture: Callable[[int], bytes]
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(picture(1))
    assert list(open_unlabelled(f"file://{tmp_path}/photos").ids) == ["a.png"]
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "there").symlink_to(shards)
    (shards / "up").symlink_to(linked)
    assert len(open_unlabelled(linked)) == 70


def test_a_user_without_a_home_folder(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("PATCHSSL_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert len(open_unlabelled(shards)) == 70
    with pytest.raises(OSError, match="there is no home folder; set PATCHSSL_CACHE"):
        user_cache()


def test_a_part_of_a_disk_that_cannot_be_read_is_an_unreadable_image(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(handle: int, size: int, offset: int) -> bytes:
        raise OSError(5, "Input/output error")

    source = open_unlabelled(shards)
    monkeypatch.setattr(os, "pread", fails)
    with pytest.raises(UnreadableImage, match=r"cannot be read: Input/output error"):
        source.fetch(0)


def test_other_commands_that_take_folders_of_files_refuse_shards(shards: Path) -> None:
    from patchssl.data.copy_folders import open_part

    with pytest.raises(DataError, match="holds images, but not as files of their own"):
        open_part(shards, shards)
