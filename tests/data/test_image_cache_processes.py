"""Processes that fill a cache of images: together, one killed in the middle, stopped, on a full disk."""

import errno
import fcntl
import logging
import multiprocessing
import os
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from patchssl import ranks
from patchssl.data.cache import ShrunkImages, contents, find_image_cache, open_image_cache, opening, processes
from patchssl.data.cache.locks import Held, trying_lock
from patchssl.data.cache.processes import Crew, write_all
from patchssl.data.cache.shard import Shards
from patchssl.data.images import FileSource, Stored
from patchssl.errors import DataError, PatchsslError

NUM, SHARD_IMAGES, SIDE, NUM_SAMPLED = 24, 4, 12, 2
FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Slow(FileSource):
    """Files that take a while."""

    seconds: float = 0.03

    def fetch(self, index: int) -> Stored:
        time.sleep(self.seconds)
        return super().fetch(index)


@pytest.fixture(autouse=True)
def _small_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "_NUM_SAMPLED", NUM_SAMPLED)


@pytest.fixture
def source(tmp_path: Path) -> Slow:
    folder = tmp_path / "images"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(NUM):
        pixels = generator.integers(256, size=(20, 24 + number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    ids = tuple(sorted(path.name for path in folder.iterdir()))
    return Slow(folder, ids, None, (), "images", str(folder), apply_exif=True)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def quick(source: Slow) -> Slow:
    return Slow(**{**vars(source), "seconds": 0.0})


def begun(source: Slow, root: Path) -> Shards:
    """The shards of a cache whose folder is there and empty."""
    return find_image_cache(quick(source), root, SIDE, shard_images=SHARD_IMAGES).prepared().shards


def fill(source: Slow, root: Path, workers: int = 0) -> None:
    open_image_cache(source, root, SIDE, workers=workers, shard_images=SHARD_IMAGES)


def assert_whole(source: Slow, root: Path) -> None:
    found = find_image_cache(source, root, SIDE)
    assert not found.missing
    cached, shrunk = found.images(), ShrunkImages(quick(source), SIDE)
    for index in range(NUM):
        np.testing.assert_array_equal(cached.fetch(index), shrunk.fetch(index))
    assert not leftovers(found.shards)


def leftovers(shards: Shards) -> list[str]:
    return [path.name for path in shards.folder.iterdir() if path.suffix in (".part", ".lock")]


def tables(shards: Shards) -> dict[str, int]:
    """The shards that are whole, and what tells whether a file is still the one that it was."""
    return {path.name: path.stat().st_ino for path in shards.folder.glob("shard-*.json")}


def parts(shards: Shards) -> list[Path]:
    return list(shards.folder.glob(".shard-*.part"))


def until(happened: Callable[[], object], within_s: float = 30) -> None:
    end = time.monotonic() + within_s
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.002)


@pytest.fixture
def start() -> Iterator[Callable[..., multiprocessing.Process]]:
    """Run a function in a process of a group of its own."""
    started: list[multiprocessing.Process] = []

    def begin(function: Callable[..., object], *arguments: object) -> multiprocessing.Process:
        def run() -> None:
            os.setsid()
            function(*arguments)

        process = FORK.Process(target=run)
        process.start()
        started.append(process)  # type: ignore[arg-type]
        return process  # type: ignore[return-value]

    yield begin
    for process in started:
        if process.is_alive():
            process.kill()
        process.join()


def ended(process: multiprocessing.Process, within_s: float = 30) -> int | None:
    process.join(within_s)
    return process.exitcode


def group_is_empty(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize("workers", [0, 2])
def test_after_kill_9_only_what_is_missing_is_made(
    source: Slow, root: Path, start: Callable[..., multiprocessing.Process], workers: int
) -> None:
    shards = begun(source, root)
    killed = start(fill, source, root, workers)
    until(lambda: len(tables(shards)) >= 2 and parts(shards))
    assert killed.pid is not None
    os.kill(killed.pid, signal.SIGKILL)
    assert ended(killed) == -signal.SIGKILL
    # Its workers notice within a second, and go on before that.
    until(lambda: group_is_empty(killed.pid or 0), within_s=5)
    before = tables(shards)
    assert len(before) >= 2
    if workers == 0:
        assert len(before) < len(shards)
        assert leftovers(shards)
    fill(quick(source), root)
    assert before.items() <= tables(shards).items()
    assert_whole(source, root)


def test_when_one_of_two_is_killed_in_the_middle_of_a_shard_the_other_makes_all_of_it(
    source: Slow, root: Path, start: Callable[..., multiprocessing.Process]
) -> None:
    shards = begun(source, root)
    killed, other = (start(fill, source, root) for _ in range(2))
    until(lambda: len(parts(shards)) == 2)
    assert killed.pid is not None
    os.kill(killed.pid, signal.SIGKILL)
    assert ended(killed) == -signal.SIGKILL
    assert len(tables(shards)) < len(shards)
    assert ended(other) == 0
    assert_whole(source, root)


def test_two_share_the_work_and_wait_for_each_other(
    source: Slow, root: Path, start: Callable[..., multiprocessing.Process], tmp_path: Path
) -> None:
    counted = tmp_path / "counted"
    counted.mkdir()

    def count(number: int) -> None:
        done: list[int] = []

        @contextmanager
        def progress(total: int) -> Iterator[Callable[[int], None]]:
            (counted / f"total-{number}").write_text(str(total))
            yield done.append

        fetched = Counting(**vars(source), told=str(counted / f"fetched-{number}"))
        open_image_cache(fetched, root, SIDE, workers=0, shard_images=SHARD_IMAGES, progress=progress)
        (counted / f"done-{number}").write_text(str(sum(done)))

    begun(source, root)
    both = [start(count, number) for number in range(2)]
    assert [ended(process) for process in both] == [0, 0]
    assert_whole(source, root)
    num_fetched = [len((counted / f"fetched-{number}").read_bytes()) for number in range(2)]
    assert sum(num_fetched) == 2 * NUM_SAMPLED + NUM
    assert min(num_fetched) >= NUM_SAMPLED + 2 * SHARD_IMAGES
    for number in range(2):
        assert (counted / f"done-{number}").read_text() == (counted / f"total-{number}").read_text() == str(NUM)


@dataclass(frozen=True)
class Counting(Slow):
    told: str = ""

    def fetch(self, index: int) -> Stored:
        with Path(self.told).open("ab") as file:
            file.write(b".")
        return super().fetch(index)


def test_a_shard_that_another_process_holds_is_waited_for(
    source: Slow, root: Path, start: Callable[..., multiprocessing.Process], tmp_path: Path
) -> None:
    shards = begun(source, root)
    told = tmp_path / "told.txt"

    def wait() -> None:
        logging.basicConfig(filename=told, level=logging.INFO, force=True)
        fill(quick(source), root)

    with trying_lock(shards.lock(2)) as held:
        assert held is Held.YES
        waiting = start(wait)
        until(lambda: len(tables(shards)) == len(shards) - 1)
        until(lambda: told.exists() and "waiting for 1 shards of " in told.read_text())
        time.sleep(0.3)
        assert waiting.is_alive()
        assert shards.missing_of(range(len(shards))) == [2]
    assert ended(waiting) == 0
    assert_whole(source, root)


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_broken_off_leaves_no_half_shard(source: Slow, root: Path, workers: int) -> None:
    shards = begun(source, root)
    slow = Slow(**{**vars(source), "seconds": 0.1})
    work = write_all(shards, ShrunkImages(slow, SIDE), range(len(shards)), Crew(workers))
    until(lambda: next(work) >= 0 and tables(shards) and parts(shards))
    work.close()
    assert not leftovers(shards)
    assert not multiprocessing.active_children()
    before = tables(shards)
    assert 1 <= len(before) < len(shards)
    fill(quick(source), root)
    assert before.items() <= tables(shards).items()
    assert_whole(source, root)


def test_a_worker_that_does_not_answer_is_ended(source: Slow, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_LET_END_S", 0.2)
    shards = begun(source, root)
    stuck = Slow(**{**vars(source), "seconds": 60.0})
    work = write_all(shards, ShrunkImages(stuck, SIDE), range(len(shards)), Crew(2))
    until(lambda: next(work) >= 0 and len(parts(shards)) == 2)
    begin = time.monotonic()
    work.close()
    assert time.monotonic() - begin < 10
    assert not multiprocessing.active_children()
    assert not leftovers(shards)


def test_a_worker_that_is_killed_is_told_and_nothing_hangs(source: Slow, root: Path) -> None:
    shards = begun(source, root)
    work = write_all(shards, ShrunkImages(source, SIDE), range(len(shards)), Crew(2))
    until(lambda: next(work) >= 0 and len(parts(shards)) == 2)
    os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)
    with pytest.raises(DataError, match=r"a process that writes the cache of images was killed by signal 9, perhaps"):
        list(work)
    assert not multiprocessing.active_children()
    assert not leftovers(shards)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_full_disk_is_told_in_words_and_what_is_whole_stays(
    source: Slow, root: Path, start: Callable[..., multiprocessing.Process], tmp_path: Path, workers: int
) -> None:
    # No file may grow beyond the limit: writes fail as they do on a full disk.
    shards, told = begun(source, root), tmp_path / "told"
    sizes_px = [ShrunkImages(quick(source), SIDE).size_px(index) for index in range(NUM)]
    sizes = [3 * sum(h * w for h, w in sizes_px[first : first + SHARD_IMAGES]) for first in range(0, NUM, SHARD_IMAGES)]
    limit = sorted(sizes)[3]

    def write() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        with pytest.raises(DataError) as caught:
            fill(quick(source), root, workers)
        told.write_text(str(caught.value)[:limit])

    assert ended(start(write)) == 0
    assert told.read_text().startswith(f"images cannot be kept in {shards.folder}: File too large; what is whole stays")
    assert not leftovers(shards)
    assert all(sizes[int(name[6:11])] <= limit for name in tables(shards))
    before = tables(shards)
    fill(quick(source), root)
    assert before.items() <= tables(shards).items()
    assert_whole(source, root)


def test_a_folder_that_is_a_file_by_now(source: Slow, root: Path) -> None:
    shards = begun(source, root)
    shards.lock(0).mkdir()
    with pytest.raises(DataError, match=r"images cannot be kept in .*: Is a directory \(.*shard-00000.lock\)"):
        fill(quick(source), root)


def test_old_leftovers_are_removed_though_nothing_else_of_their_shard_is_done(source: Slow, root: Path) -> None:
    fill(quick(source), root)
    shards = find_image_cache(source, root, SIDE).shards
    shards.table(1).unlink()
    for name in (".shard-00001.bin.abc.part", ".shard-00004.json.abc.part", ".shard-00004.bin.sha256.x.part"):
        (shards.folder / name).touch()
    shards.lock(4).touch()
    fill(quick(source), root)
    assert_whole(source, root)


def test_locks(tmp_path: Path, start: Callable[..., multiprocessing.Process]) -> None:
    path = tmp_path / "a.lock"
    with trying_lock(path) as first, trying_lock(path) as second:
        assert (first, second) == (Held.YES, Held.BUSY)
    assert not path.exists()

    def hold() -> None:
        with trying_lock(path):
            (tmp_path / "held").touch()
            time.sleep(60)

    holding = start(hold)
    until((tmp_path / "held").exists)
    with trying_lock(path) as held:
        assert held is Held.BUSY
    holding.kill()
    ended(holding)
    assert path.exists()
    with trying_lock(path) as held:
        assert held is Held.YES
    assert not path.exists()


def test_a_lock_on_a_file_that_is_no_longer_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the one who held it lets go between the other's opening and locking."""
    path, lock = tmp_path / "a.lock", fcntl.flock

    def late(handle: int, how: int) -> None:
        path.unlink()
        lock(handle, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with trying_lock(path) as held:
        assert held is Held.BUSY


def test_where_the_file_system_knows_no_locks_everything_is_made_all_the_same(
    source: Slow, root: Path, monkeypatch: pytest.MonkeyPatch, start: Callable[..., multiprocessing.Process]
) -> None:
    def unknown(handle: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unknown)
    shards = begun(source, root)
    (shards.folder / ".shard-00000.bin.other.part").touch()  # may be another process's
    both = [start(fill, source, root) for _ in range(2)]
    fill(source, root, 2)
    assert [ended(process) for process in both] == [0, 0]
    assert [path.name for path in parts(shards)] == [".shard-00000.bin.other.part"]
    parts(shards)[0].unlink()
    for left in shards.folder.glob("*.lock"):
        left.unlink()
    assert_whole(source, root)


def test_processes_of_one_training_share_the_work(
    source: Slow, root: Path, in_two_processes: Callable[..., list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "_BEAT_S", 0.02)

    def run() -> None:
        cached = open_image_cache(source, root, SIDE, workers=ranks.rank(), shard_images=SHARD_IMAGES)
        np.testing.assert_array_equal(cached.fetch(23), ShrunkImages(quick(source), SIDE).fetch(23))

    assert in_two_processes(run) == [0, 0]
    assert_whole(source, root)


def test_when_one_process_of_a_training_fails_all_say_so_at_once(
    source: Slow, root: Path, in_two_processes: Callable[..., list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "_BEAT_S", 0.02)

    def run() -> None:
        if ranks.rank() == 1:
            monkeypatch.setattr(Shards, "write_table", full)
        slow = Slow(**{**vars(source), "seconds": 0.05})
        expected = DataError if ranks.rank() == 1 else ranks.FailedElsewhereError
        with pytest.raises(expected):
            open_image_cache(slow, root, SIDE, workers=0, shard_images=SHARD_IMAGES)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    assert in_two_processes(run) == [0, 0]
    shards = find_image_cache(source, root, SIDE).shards
    assert not leftovers(shards)
    assert len(tables(shards)) < len(shards)


def test_copies_of_the_images_get_caches_of_their_own_with_a_warning(
    source: Slow, root: Path, tmp_path: Path, in_two_processes: Callable[..., list[int]]
) -> None:
    shutil.copytree(source.root, tmp_path / "copy")
    told = tmp_path / "told.txt"

    def run() -> None:
        own = quick(source)
        if ranks.rank() == 1:
            own = Slow(**{**vars(own), "root": tmp_path / "copy"})
        else:
            logging.basicConfig(filename=told, level=logging.WARNING, force=True)
        cached = open_image_cache(own, root, SIDE, workers=0, shard_images=SHARD_IMAGES)
        np.testing.assert_array_equal(cached.fetch(5), ShrunkImages(own, SIDE).fetch(5))

    assert in_two_processes(run) == [0, 0]
    assert len(list(root.glob("*/index.json"))) == 2
    assert "in 2 states, as copies on several hosts are" in told.read_text()


def test_an_error_of_the_source_is_handed_on(source: Slow, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = begun(source, root)

    def broken(self: Slow, index: int) -> Stored:
        raise PatchsslError(f"shard of images {index} is gone")

    monkeypatch.setattr(Slow, "fetch", broken)
    for workers in (0, 2):
        with pytest.raises(PatchsslError, match=r"shard of images \d+ is gone"):
            list(write_all(shards, ShrunkImages(source, SIDE), range(len(shards)), Crew(workers)))
        assert not leftovers(shards)
