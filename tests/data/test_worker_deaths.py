"""A process that reads images dies, or fails as nobody foresaw: one error that names the image, and nobody waits."""

import faulthandler
import multiprocessing
import os
import signal
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from patchssl.config import ViewsConfig
from patchssl.cutting import ViewsByWorkers
from patchssl.data.at_work import Notes, note
from patchssl.data.copies.processes import in_order
from patchssl.data.crops import read_crops
from patchssl.data.images import ArraySource
from patchssl.data.loader import TrainingBatches, iterate
from patchssl.data.made_ahead import made_ahead
from patchssl.errors import DataError, LoaderError, UnforeseenError
from patchssl.views import MultiCrop

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
NAMES = tuple(f"{number}.png" for number in range(12))


@pytest.fixture(autouse=True)
def _soon() -> Iterator[None]:
    """Nothing may hang: a test that does is ended."""

    def stop(number: int, frame: object) -> None:
        raise TimeoutError("it hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(40)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@dataclass(frozen=True)
class Deadly(ArraySource):
    """Images in memory, one of which does something to the process that fetches it."""

    act: Callable[[], object] = lambda: None
    place: int = 7

    def fetch(self, index: int) -> NDArray[np.uint8]:
        if index == self.place:
            self.act()
        pixels: NDArray[np.uint8] = self.pixels[index]
        return pixels

    def read(self, index: int) -> Image.Image:
        return Image.fromarray(self.fetch(index))


def deadly(act: Callable[[], object]) -> Deadly:
    return Deadly(PIXELS, NAMES, None, (), "deadly", "memory", act=act)


def batches(source: ArraySource, num_steps: int = 40) -> TrainingBatches[Any]:
    views = ViewsConfig(global_size=8, local_size=8, num_local=0)
    return TrainingBatches(source, ViewsByWorkers(MultiCrop(views, 0)), batch_size=3, num_steps=num_steps, seed=0)


def kill(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def abort() -> None:
    faulthandler.disable()  # pytest's
    os.abort()


def loader_of_this_worker() -> dict[str, Any]:
    """What torch's loop in this process works with."""
    frame = sys._getframe()
    while "data_queue" not in frame.f_locals:
        assert frame.f_back is not None
        frame = frame.f_back
    return dict(frame.f_locals)


def die_with_the_lock_of_the_queue() -> None:
    loader_of_this_worker()["data_queue"]._wlock.acquire()
    os.kill(os.getpid(), signal.SIGKILL)


def die_in_the_middle_of_a_message() -> None:
    queue = loader_of_this_worker()["data_queue"]
    queue._wlock.acquire()
    os.write(queue._writer.fileno(), struct.pack("!i", 1_000_000) + b"begun")
    os.kill(os.getpid(), signal.SIGKILL)


def die_with_the_lock_of_the_end() -> None:
    loader_of_this_worker()["done_event"]._cond.acquire()
    os.kill(os.getpid(), signal.SIGKILL)


DEATHS: dict[str, tuple[Callable[[], object], str]] = {
    "SIGKILL": (kill(signal.SIGKILL), "was killed by SIGKILL while it read memory: 7.png; so a system ends processes "),
    "SIGSEGV": (kill(signal.SIGSEGV), "was killed by SIGSEGV while it read memory: 7.png; if it happens there again, "),
    "SIGBUS": (kill(signal.SIGBUS), "was killed by SIGBUS while it read memory: 7.png; shared memory "),
    "SIGABRT": (abort, "was killed by SIGABRT while it read memory: 7.png; if it happens there again, put another "),
    "exit": (lambda: os._exit(3), "ended with exit code 3 while it read memory: 7.png; if it happens there again, "),
    "exit as if well": (lambda: os._exit(0), "ended with exit code 0 while it read memory: 7.png; if it happens "),
    "a lock": (die_with_the_lock_of_the_queue, "was killed by SIGKILL while it read memory: 7.png"),
    "half a message": (die_in_the_middle_of_a_message, "was killed by SIGKILL while it read memory: 7.png"),
    "the lock of the end": (die_with_the_lock_of_the_end, "was killed by SIGKILL while it read memory: 7.png"),
}


def alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


@pytest.mark.parametrize(("act", "told"), DEATHS.values(), ids=DEATHS)
@pytest.mark.parametrize("workers", [1, 2])
def test_a_death_is_told_at_once_with_the_image(
    workers: int, act: Callable[[], object], told: str, capfd: pytest.CaptureFixture[str]
) -> None:
    begun, before = time.monotonic(), signal.getsignal(signal.SIGCHLD)
    loaded = iterate(batches(deadly(act)), first_step=0, workers=workers, pin_memory=False)
    with pytest.raises(LoaderError) as caught:
        list(loaded)
    assert time.monotonic() - begun < 10
    assert str(caught.value).startswith("a loader process (pid ")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert signal.getsignal(signal.SIGCHLD) == before
    assert capfd.readouterr().err == ""
    del caught, loaded


def test_those_that_live_are_ended_and_another_loader_works() -> None:
    for _ in range(2):
        begun = children()
        with pytest.raises(LoaderError):
            list(iterate(batches(deadly(kill(signal.SIGKILL))), first_step=0, workers=2, pin_memory=False))
        assert children() == begun
    source = ArraySource(PIXELS, NAMES, None, (), "whole", "memory")
    assert len(list(iterate(batches(source, 6), first_step=0, workers=2, pin_memory=False))) == 6


def children() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def test_a_death_during_a_step_is_told_when_the_next_images_are_waited_for() -> None:
    """Not in the middle of the step, whose state would be half of one and half of another."""
    source = ArraySource(PIXELS, NAMES, None, (), "whole", "memory")
    begun = children()
    loaded = iterate(batches(source), first_step=0, workers=1, pin_memory=False)
    next(loaded)
    (pid,) = children() - begun
    os.kill(int(pid), signal.SIGKILL)
    time.sleep(0.3)
    assert sum(range(10_000)) == 49_995_000
    with pytest.raises(LoaderError, match=rf"^a loader process \(pid {pid}\) was killed by SIGKILL while it "):
        next(loaded)


def test_the_ends_of_other_children_are_left_to_who_cared_before() -> None:
    seen = list[int]()
    before = signal.signal(signal.SIGCHLD, lambda number, frame: seen.append(number))
    try:
        source = ArraySource(PIXELS, NAMES, None, (), "whole", "memory")
        loaded = iterate(batches(source, 3), first_step=0, workers=1, pin_memory=False)
        next(loaded)
        subprocess.run(["true"], check=True)
        assert seen
        assert len(list(loaded)) == 2
        handler = signal.getsignal(signal.SIGCHLD)
        assert callable(handler)
        seen.clear()
        handler(signal.SIGCHLD, None)
        assert seen == [signal.SIGCHLD]
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_without_signals_a_death_is_noticed_as_well() -> None:
    """As in a thread, to which no signals come."""
    failed = list[BaseException]()

    def run() -> None:
        try:
            list(iterate(batches(deadly(kill(signal.SIGSEGV))), first_step=0, workers=2, pin_memory=False))
        except LoaderError as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(30)
    (error,) = failed
    assert "was killed by SIGSEGV while it read memory: 7.png" in str(error)


def test_a_file_that_is_being_decoded_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from patchssl.data.sources import open_unlabelled

    for number in range(3):
        Image.fromarray(PIXELS[number]).save(tmp_path / f"a b\n{number}é.png")
    monkeypatch.setattr("patchssl.data.decode._is_plain_rgb", lambda image: os.kill(os.getpid(), signal.SIGSEGV))
    with pytest.raises(LoaderError) as caught:
        list(iterate(batches(open_unlabelled(tmp_path)), first_step=0, workers=1, pin_memory=False))  # type: ignore[arg-type]
    assert f"was killed by SIGSEGV while it decoded {tmp_path}/a b\n" in str(caught.value)


def test_evaluations_and_copies_tell_the_same() -> None:
    def crop(image: Image.Image) -> Tensor:
        os.kill(os.getpid(), signal.SIGSEGV)
        raise AssertionError

    source = ArraySource(PIXELS, NAMES, None, (), "whole", "memory")
    with pytest.raises(LoaderError, match=r"was killed by SIGSEGV while it read memory: 0\.png; "):
        list(read_crops(source, crop, [[0], [1]], num_workers=1, pin_memory=False))
    with pytest.raises(LoaderError, match="ended with exit code 3 while it "):
        list(in_order(lambda number: os._exit(3), 4, workers=1))


def divide() -> None:
    raise ZeroDivisionError("by\nnothing")


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_that_nobody_foresaw_is_one_line_with_the_image(workers: int) -> None:
    with pytest.raises(UnforeseenError) as caught:
        list(iterate(batches(deadly(divide)), first_step=0, workers=workers, pin_memory=False))
    assert str(caught.value) == "ZeroDivisionError: by\nnothing (while it read memory: 7.png)"
    trace = "".join(traceback.format_exception(caught.value))
    assert 'raise ZeroDivisionError("by\\nnothing")' in trace
    assert "in divide" in trace


class Hungry:
    def __getitem__(self, place: int) -> int:
        raise MemoryError("no more")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_lack_of_memory_stays_one(workers: int) -> None:
    with pytest.raises(MemoryError, match="no more"):
        list(made_ahead(Hungry(), range(2), workers=workers))


class Foreseen:
    def __getitem__(self, place: int) -> int:
        if place == 2:
            raise DataError("no such image")
        return place


@pytest.mark.parametrize("workers", [0, 2])
def test_errors_of_ours_stay_as_they_are(workers: int) -> None:
    made = made_ahead(Foreseen(), [0, 1, 2], workers=workers)
    assert [next(made), next(made)] == [0, 1]
    with pytest.raises(DataError, match=r"^no such image$") as caught:
        next(made)
    assert caught.value.__cause__ is None


def test_notes_by_hand() -> None:
    notes = Notes(2)
    note("nobody cares")
    with notes.taken(1, 77):
        note("read a.jpg")
        assert (notes.of(77), notes.of(78)) == ("read a.jpg", "")
        note("decoded é\n\udcff.jpg")
        assert notes.of(77) == "decoded é\n\udcff.jpg"
        note("x" * 5000)
        assert notes.of(77) == "x" * 4500
        with notes.taken(0, 78):
            note("read b.jpg")
            assert (notes.of(77), notes.of(78)) == ("x" * 4500, "read b.jpg")
        note("read c.jpg")
    note("nobody cares")
    assert (notes.of(77), notes.of(78)) == ("", "")


def test_notes_reach_processes_that_are_started_anew() -> None:
    """As on systems without fork."""
    notes = Notes(1)
    process = multiprocessing.get_context("spawn").Process(target=notes.write, args=(8, "read a.jpg"))
    process.start()
    process.join(30)
    assert process.exitcode == 0
    assert notes.of(0) == "read a.jpg"  # it never took a number
