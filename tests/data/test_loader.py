"""Training batches: everything follows from seed and step, and bad images are left out, counted and told."""

import os
import pickle
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from patchssl.config import ViewsConfig
from patchssl.cutting import ViewsByWorkers
from patchssl.data import made_ahead, worker_signals
from patchssl.data.decode import UnreadableImage
from patchssl.data.images import ArraySource
from patchssl.data.loader import BadImages, Loaded, TrainingBatches, iterate
from patchssl.data.samples import Share
from patchssl.data.sources import open_unlabelled
from patchssl.data.worker_signals import tell_unless_broken_off
from patchssl.errors import DataError
from patchssl.structs import CropPlan, SampleKeys, ViewGroup
from patchssl.views import MultiCrop

Batch = Loaded[list[ViewGroup]]
VIEWS = ViewsConfig(global_size=16, local_size=8, num_local=2)


def numbered(num: int) -> ArraySource:
    """Images of 4 x 6 px whose pixels all hold the image's number."""
    pixels = np.broadcast_to(np.arange(num, dtype=np.uint8)[:, None, None, None], (num, 4, 6, 3))
    return ArraySource(pixels, tuple(map(str, range(num))), None, (), "numbered", "memory")


class Whole:
    """Instead of views: the images themselves."""

    def plan(self, sizes: torch.Tensor, keys: SampleKeys, reducible: torch.Tensor) -> CropPlan:
        assert len(sizes) == len(keys) == len(reducible)
        return CropPlan((), (), torch.ones(len(keys), dtype=torch.int64))

    def make(self, images: list[NDArray[np.uint8]], plan: CropPlan) -> list[NDArray[np.uint8]]:
        return images


def numbers(loaded: Loaded[list[NDArray[np.uint8]]]) -> list[int]:
    """That the images hold."""
    assert len(loaded.made) == len(loaded.keys)
    return [int(image[0, 0, 0]) for image in loaded.made]


def multicrop(num: int, *, seed: int = 3, num_steps: int = 6) -> TrainingBatches[list[ViewGroup]]:
    pixels = np.random.default_rng(0).integers(0, 256, (num, 12, 20, 3), dtype=np.uint8)
    source = ArraySource(pixels, tuple(map(str, range(num))), None, (), "noise", "memory")
    return TrainingBatches(source, ViewsByWorkers(MultiCrop(VIEWS, seed)), batch_size=4, num_steps=num_steps, seed=seed)


def same(one: Batch, other: Batch) -> bool:
    """Bit by bit."""
    return (
        torch.equal(one.keys.epoch, other.keys.epoch)
        and torch.equal(one.keys.index, other.keys.index)
        and len(one.made) == len(other.made) == 2
        and all(
            torch.equal(ours.pixels, theirs.pixels)
            and torch.equal(ours.boxes.corners, theirs.boxes.corners)
            and torch.equal(ours.boxes.flipped, theirs.boxes.flipped)
            for ours, theirs in zip(one.made, other.made, strict=True)
        )
    )


@pytest.mark.parametrize(("num_images", "batch_size"), [(10, 4), (7, 7), (3, 8), (1, 5), (9, 1)])
def test_every_image_comes_once_per_epoch(num_images: int, batch_size: int) -> None:
    """Batches span epochs, and may be larger than the source."""
    batches = TrainingBatches(
        numbered(num_images), Whole(), batch_size=batch_size, num_steps=3 * num_images, seed=0
    )  # as many samples as fill 3 * batch_size epochs
    assert len(batches) == 3 * num_images
    seen: list[tuple[int, int]] = []
    for step in range(len(batches)):
        loaded = batches[step]
        keys = loaded.keys
        assert numbers(loaded) == keys.index.tolist()
        assert keys.epoch.tolist() == [
            number // num_images for number in range(step * batch_size, (step + 1) * batch_size)
        ]
        assert loaded.bad == []
        seen += zip(keys.epoch.tolist(), keys.index.tolist(), strict=True)
    expected = {(epoch, index) for epoch in range(3 * batch_size) for index in range(num_images)}
    assert Counter(seen) == Counter(expected)


def order(seed: int, batch_size: int) -> list[int]:
    batches = TrainingBatches(numbered(40), Whole(), batch_size=batch_size, num_steps=80 // batch_size, seed=seed)
    return [index for step in range(len(batches)) for index in batches[step].keys.index.tolist()]


def test_the_order_follows_from_seed_and_epoch_alone() -> None:
    one = order(0, 10)
    assert one == order(0, 10) == order(0, 1) == order(0, 16)
    assert one[:40] != one[40:]  # the second epoch
    assert one != order(1, 10)
    assert one[:40] != sorted(one[:40])


def test_a_step_gives_the_same_batch_however_it_is_reached() -> None:
    straight = multicrop(10)
    forward = [straight[step] for step in range(6)]
    backward = multicrop(10)
    for step in reversed(range(6)):
        assert same(backward[step], forward[step])
    assert not same(forward[0], multicrop(10, seed=4)[0])


def test_workers_and_the_first_step_change_nothing() -> None:
    """Nor does the loader draw from the global generator, on which stochastic depth depends."""
    torch.rand(3)
    before = torch.get_rng_state()
    expected = list(iterate(multicrop(10), first_step=0, workers=0, pin_memory=False))
    assert len(expected) == 6
    assert torch.equal(torch.get_rng_state(), before)
    for workers, first_step in ((0, 2), (2, 0), (2, 4), (0, 6)):
        got = list(iterate(multicrop(10), first_step=first_step, workers=workers, pin_memory=False))
        assert len(got) == 6 - first_step
        assert all(same(ours, theirs) for ours, theirs in zip(got, expected[first_step:], strict=True))
        assert torch.equal(torch.get_rng_state(), before)


class Pinned:
    """Says whether it was asked for page-locked memory."""

    def __init__(self, *, is_pinned: bool = False) -> None:
        self.is_pinned = is_pinned

    def pin_memory(self) -> "Pinned":
        return Pinned(is_pinned=True)


def test_what_was_made_is_pinned_alone_or_in_a_list() -> None:
    keys = SampleKeys(torch.tensor([0]), torch.tensor([1]))
    one = Loaded(Pinned(), keys, [], {"reading": 1.0}).pin_memory()
    assert one.made.is_pinned
    assert (one.keys, one.seconds) == (keys, {"reading": 1.0})
    several = Loaded([Pinned(), Pinned()], keys, [], {}).pin_memory()
    assert [part.is_pinned for part in several.made] == [True, True]


@pytest.mark.parametrize(
    ("share", "batch_size", "expected"),
    [
        (Share(), 4, [0, 1, 2, 3]),
        (Share(0, 2), 4, [0, 1]),
        (Share(1, 2), 4, [2, 3]),
        (Share(0, 1, 2), 4, [0, 1, 2, 3]),
        (Share(0, 2, 2), 8, [0, 1, 4, 5]),
        (Share(1, 2, 2), 8, [2, 3, 6, 7]),
        (Share(2, 3, 1), 3, [2]),
    ],
)
def test_shares_by_hand(share: Share, batch_size: int, expected: list[int]) -> None:
    assert share.of(batch_size) == expected


@pytest.mark.parametrize("num_parts", [1, 2, 3])
@pytest.mark.parametrize("num", [1, 2, 4])
def test_shares_of_all_processes_make_the_parts_of_a_batch(num: int, num_parts: int) -> None:
    shares = [np.reshape(Share(rank, num, num_parts).of(24), (num_parts, -1)) for rank in range(num)]
    assert np.concatenate(shares, axis=1).ravel().tolist() == list(range(24))


def test_processes_together_have_the_batches_of_one() -> None:
    """Across epochs, and with boxes that a whole batch shares."""
    views = VIEWS.model_copy(update={"shared_geometry": True})
    source, crop = numbered(10), ViewsByWorkers(MultiCrop(views, 3))

    def batches(share: Share) -> TrainingBatches[list[ViewGroup]]:
        return TrainingBatches(source, crop, batch_size=8, num_steps=4, seed=3, share=share)

    for step in range(4):
        whole = batches(Share())[step]
        keys = whole.keys
        parts = [batches(Share(rank, 2, 2))[step] for rank in range(2)]
        places = torch.tensor([place for rank in range(2) for place in Share(rank, 2, 2).of(8)])
        assert torch.cat([part.keys.index for part in parts]).tolist() == keys.index[places].tolist()
        assert torch.cat([part.keys.epoch for part in parts]).tolist() == keys.epoch[places].tolist()
        for group, theirs in enumerate(whole.made):
            assert torch.equal(torch.cat([part.made[group].pixels for part in parts]), theirs.pixels[places])
            assert torch.equal(
                torch.cat([part.made[group].boxes.corners for part in parts]), theirs.boxes.corners[places]
            )


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """100 JPEGs, of which the three numbers 7, 8 and 50 are cut off."""
    rng = np.random.default_rng(0)
    for number in range(100):
        path = tmp_path / f"{number:03}.jpg"
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
        if number in (7, 8, 50):
            path.write_bytes(path.read_bytes()[:-300])
    return tmp_path


@pytest.mark.parametrize("workers", [0, 2])
def test_truncated_images_give_way_to_the_next_readable_one(workers: int, damaged: Path) -> None:
    source = open_unlabelled(damaged)
    batches = TrainingBatches(source, Whole(), batch_size=10, num_steps=10, seed=0)
    bad_images = BadImages(len(source), 0.05)
    images: dict[int, bytes] = {}
    told = []
    for loaded in iterate(batches, first_step=0, workers=workers, pin_memory=False):
        made = [image.tobytes() for image in loaded.made]
        images.update(zip(loaded.keys.index.tolist(), made, strict=True))
        told += bad_images.add(loaded.bad)
    assert len(images) == 100
    for number, instead in ((7, 9), (8, 9), (50, 51)):
        assert images[number] == images[instead] == source.read(instead).tobytes()
    assert {Path(path).name for path in bad_images.reasons} == {"007.jpg", "008.jpg", "050.jpg"}
    assert all("truncated" in reason.lower() for reason in bad_images.reasons.values())
    assert sorted(error.path for error in told) == sorted(bad_images.reasons)  # 8 is met twice and told once


def test_the_last_image_gives_way_to_the_first(tmp_path: Path) -> None:
    Image.new("RGB", (2, 2), "red").save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"")
    loaded = TrainingBatches(open_unlabelled(tmp_path), Whole(), batch_size=2, num_steps=1, seed=0)[0]
    assert numbers(loaded) == [255, 255]
    assert sorted(loaded.keys.index.tolist()) == [0, 1]
    assert [error.reason for error in loaded.bad] == ["is empty (0 bytes)"]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_source_without_a_readable_image(workers: int, tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        (tmp_path / name).write_text("no image")
    batches = TrainingBatches(open_unlabelled(tmp_path), Whole(), batch_size=2, num_steps=1, seed=0)
    with pytest.raises(
        DataError, match=r"^none of the 3 images of .* can be read; the first: .*\.jpg: is not"
    ) as caught:
        list(iterate(batches, first_step=0, workers=workers, pin_memory=False))
    assert "\n" not in str(caught.value)  # a worker's traceback does not come along
    assert str(tmp_path) in str(caught.value)


def test_too_many_bad_images() -> None:
    """5 of 100 are allowed, a sixth is not; one that is met again does not count again."""
    bad_images = BadImages(100, 0.05)
    errors = [UnreadableImage(f"{number}.jpg", "is empty (0 bytes)") for number in range(6)]
    assert bad_images.add(errors[:5]) == errors[:5]
    assert bad_images.add(errors[:5]) == []
    assert [*BadImages(100, 0.05).add([errors[0], errors[0]])] == errors[:1]
    assert bad_images.reasons == {f"{number}.jpg": "is empty (0 bytes)" for number in range(5)}
    with pytest.raises(
        DataError,
        match=r"6 of 100 images are unreadable, more than the allowed 5\.0% \(--max-bad-fraction\); for instance "
        r"0\.jpg: is empty \(0 bytes\); 1\.jpg: .*; 2\.jpg: [^;]*$",
    ):
        bad_images.add(errors[5:])


def test_no_bad_image_is_allowed_where_the_fraction_is_0() -> None:
    bad_images = BadImages(3, 0.0)
    assert bad_images.add([]) == []
    with pytest.raises(DataError, match=r"1 of 3 images"):
        bad_images.add([UnreadableImage("a.jpg", "is empty (0 bytes)")])


def test_batches_travel_to_processes_that_are_started_anew() -> None:
    """As on systems without fork."""
    assert same(pickle.loads(pickle.dumps(multicrop(10)))[1], multicrop(10)[1])


LEFT_BEHIND = """
from torch.utils.data import DataLoader
from patchssl.data.worker_signals import leave_signals_to_the_main_process

batches = iter(DataLoader(list(range(9)), num_workers=1, worker_init_fn=leave_signals_to_the_main_process))
next(batches)
kept = [batches]
kept.append(kept)  # a cycle, as the frames of a traceback make one: nobody ends the worker before Python exits
print("done", flush=True)
"""


def test_a_worker_left_behind_by_an_error_does_not_keep_python_from_exiting() -> None:
    done = subprocess.run([sys.executable, "-c", LEFT_BEHIND], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "done\n")


@pytest.mark.skipif(not hasattr(signal, "sigtimedwait"), reason="workers there end by any SIGTERM")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_for_all_does_not_end_a_worker_that_is_just_starting(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_signals = worker_signals.leave_signals_to_the_main_process

    def late(worker: int) -> None:
        os.kill(os.getpid(), number)
        leave_signals(worker)

    monkeypatch.setattr(made_ahead, "leave_signals_to_the_main_process", late)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert list(iterate(range(5), first_step=0, workers=2, pin_memory=False)) == [0, 1, 2, 3, 4]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask


def test_a_batch_that_nobody_fetches_any_more_is_no_news() -> None:
    told: list[BaseException] = []

    def tell(kind: type[BaseException], error: BaseException, trace: object) -> None:
        told.append(error)

    other = ValueError("another")
    for error in (EOFError(), ConnectionResetError(), BrokenPipeError(), other):
        tell_unless_broken_off(tell, type(error), error, None)
    assert told == [other]
