"""The rule by hand, on made-up intervals; and a source that really is slow."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from patchssl import data_wait
from patchssl.data_wait import DataWait, Loading, describe_wait, describe_whole, wanted_workers
from patchssl.derived import derive
from patchssl.pretrain import pretrain
from patchssl.recipes import parse_config
from patchssl.run_folder import prepare_run
from patchssl.step_clock import Interval
from patchssl.student_teacher import StudentTeacher


def of(seconds: float, share: float) -> Interval:
    return Interval(seconds, seconds * share, seconds * (1 - share), num_images=10)


def told(intervals: list[Interval]) -> list[int]:
    """The numbers of the intervals after which the loader is said to hold the training up."""
    rule = DataWait()
    return [number for number, interval in enumerate(intervals) if rule.add(interval) is not None]


@pytest.mark.parametrize(
    ("intervals", "when"),
    [
        ([of(10, 0.9)] * 2, []),
        # The first counts for nothing, and three of ten seconds are wanted.
        ([of(10, 0.9)] * 5, [3]),
        # Thirty seconds are wanted: the third of fifteen comes too early only by the number.
        ([of(15, 0.9)] * 5, [3]),
        ([of(5, 0.9)] * 8, [6]),
        ([of(1, 0.9)] * 40, [30]),
        # A long one alone is too few.
        ([of(10, 0.0), of(100, 0.9), of(100, 0.9)], []),
        # A quarter is allowed.
        ([of(10, 0.25)] * 9, []),
        ([of(10, 0.26)] * 9, [3]),
        # The first interval never counts, however long its workers took to start.
        ([of(500, 1.0), *[of(10, 0.0)] * 5], []),
        # A slow batch among quick ones: 10 of 40 s.
        ([of(10, 0.0)] * 3 + [of(10, 0.7)] + [of(10, 0.0)] * 3, []),
        # Told once while it lasts, also where it lies between an eighth and a quarter for a while.
        ([of(10, 0.9)] * 6 + [of(10, 0.2)] * 6 + [of(10, 0.9)] * 6, [3]),
        # Again after it has ended: ten seconds of ninety per cent among thirty are thirty.
        ([of(10, 0.9)] * 6 + [of(10, 0.0)] * 3 + [of(10, 0.9)] * 3, [3, 9]),
        ([], []),
    ],
)
def test_when_it_is_told(intervals: list[Interval], when: list[int]) -> None:
    assert told(intervals) == when


def test_only_the_latest_intervals_are_judged() -> None:
    rule = DataWait()
    for _ in range(50):
        assert rule.add(of(10, 0.0)) is None
    assert rule.add(of(10, 0.5)) is None
    window = rule.add(of(10, 0.5))
    assert window == Interval(30.0, 10.0, 20.0, 30)


@pytest.mark.parametrize(
    ("window", "workers", "cores", "wanted"),
    [
        # Half the time spent waiting: twice as many keep pace.
        (of(40, 0.5), 2, 16, 4),
        (of(40, 0.75), 1, 16, 4),
        (of(40, 0.6), 3, 16, 8),
        (of(40, 0.9), 4, 8, 8),
        # The main process reads for 30 s what takes 10 s to compute.
        (of(40, 0.75), 0, 16, 3),
        (of(40, 0.3), 0, 16, 1),
        (of(40, 1.0), 2, 6, 6),
    ],
)
def test_how_many_workers_are_advised(window: Interval, workers: int, cores: int, wanted: int) -> None:
    assert wanted_workers(window, Loading(workers, cores, 224, 8)) == wanted


def test_what_is_said() -> None:
    assert describe_wait(Interval(40.0, 24.0, 16.0, 8000), Loading(2, 16, 224, 8)) == (
        "the loader holds the training up: of the last 40 s, 60% went into waiting for data; 2 loader processes make "
        "200.0 images/s on 16 usable cores, the computation alone would reach 500.0. Try --workers 5, images stored "
        "smaller where they are much larger than a view of 224 px, or fewer local views (views.num_local is 8)"
    )
    alone = describe_wait(Interval(40.0, 24.0, 16.0, 800), Loading(0, 1, 64, 0))
    assert "the main process alone makes 20.0 images/s on 1 usable cores" in alone
    assert "Try --workers 1, images" in alone
    assert "local views" not in alone
    full = describe_wait(Interval(40.0, 24.0, 16.0, 800), Loading(2, 2, 64, 0))
    assert "Try a machine with more cores" in full
    assert describe_whole(Interval(50.0, 10.0, 30.0, 1000)) == (
        "1000 images in 50 s, 20.0 a second; 20% of the time waiting for data, 60% in steps"
    )


@dataclass
class Slow:
    """Drawn images, each of which takes a while to come."""

    seconds: float
    ids: tuple[str, ...] = ("a", "b", "c", "d")
    labels: NDArray[np.int64] | None = None
    classes: tuple[str, ...] = ()
    name: str = "slow"
    location: str = "slow"
    apply_exif: bool = False

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, index: int) -> Image.Image:
        return Image.fromarray(self.fetch(index))

    def where(self, index: int) -> str:
        return self.ids[index]

    def fetch(self, index: int) -> NDArray[np.uint8]:
        time.sleep(self.seconds)
        return np.random.default_rng(index).integers(256, size=(20, 24, 3), dtype=np.uint8)

    def fingerprint(self) -> str:
        return "slow"

    def state(self) -> str:
        return "slow"


@pytest.mark.parametrize(("seconds", "times"), [(0.05, 1), (0.0, 0)])
def test_a_slow_source_is_told_of_and_a_quick_one_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, seconds: float, times: int
) -> None:
    monkeypatch.setattr(data_wait, "LEAST_S", 0.2)
    model = {
        "arch": "vit_tiny_patch16_224",
        **{"patch_size": 8, "width": 64, "depth": 8, "num_heads": 2},
        **{"head_hidden": 64, "head_bottleneck": 16, "cls_prototypes": 16, "patch_prototypes": 16},
    }
    config = parse_config(
        {
            "data": {"division": "views"},
            "views": {"global_size": 32, "local_size": 16, "num_local": 4},
            "model": model,
            "train": {"steps": 10, "batch_size": 4, "device": "cpu"},
            "log": {"every_steps": 2},
        }
    )
    prepare_run(tmp_path / "run", config, device="cpu", resume=False, overwrite=False)
    caplog.set_level("INFO", logger="patchssl")
    with torch.random.fork_rng():
        networks = StudentTeacher(derive(config, 4).config)
        pretrain(networks, Slow(seconds), tmp_path / "run", device="cpu", precision="fp32", workers=0)
    lines = [record.getMessage() for record in caplog.records]
    warned = [line for line in lines if "the loader holds the training up" in line]
    assert len(warned) == times
    assert all("the main process alone makes" in line and "--workers" in line for line in warned)
    (whole,) = [line for line in lines if "of the time waiting for data" in line]
    assert whole.startswith("40 images in ")
