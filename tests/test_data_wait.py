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
from patchssl.data_wait import DataWait, Loading, describe_wait, wanted_workers
from patchssl.derived import derive
from patchssl.monitor import read_metrics
from patchssl.pretrain import pretrain
from patchssl.recipes import parse_config
from patchssl.run_folder import prepare_run
from patchssl.step_clock import Interval
from patchssl.student_teacher import StudentTeacher


def of(seconds: float, share: float) -> Interval:
    return Interval(10, {"waiting": seconds * share, "forward": seconds * (1 - share)})


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
    assert window == Interval(30, {"waiting": 10.0, "forward": 20.0})


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


def window(num_images: int, **loader: float) -> Interval:
    return Interval(num_images, {"waiting": 24.0, "loss": 6.0, "backward": 10.0}, loader)


def test_what_is_said() -> None:
    assert describe_wait(window(8000), Loading(2, 16, 224, 8)) == (
        "the loader holds the training up: of the last 40 s, 60% went into waiting for data; 2 loader processes make "
        "200.0 images/s on 16 usable cores, the computation alone would reach 500.0. Try --workers 5, images stored "
        "smaller where they are much larger than a view of 224 px, or fewer local views (views.num_local is 8)"
    )
    alone = describe_wait(window(800), Loading(0, 1, 64, 0))
    assert "the main process alone makes 20.0 images/s on 1 usable cores" in alone
    assert "Try --workers 1, or images" in alone
    assert "local views" not in alone
    full = describe_wait(window(800), Loading(2, 2, 64, 0))
    assert "Try a machine with more cores" in full


READING, DECODING = {"reading": 50.0, "decoding": 20.0}, {"reading": 2.0, "decoding": 60.0, "other": 0.4}
AUGMENTING = {"reading": 2.0, "decoding": 20.0, "augmenting": 40.0}


@pytest.mark.parametrize(
    ("loader", "loading", "words"),
    [
        (
            READING,
            Loading(2, 16, 224, 8),
            "; most of this work is reading (reading 50 s, decoding 20 s). Try --cache-images DIR, tar or parquet "
            "shards in place of single files, a faster disk, or --workers 5",
        ),
        # Cores read nothing: a machine with more of them is no help.
        (
            READING,
            Loading(2, 2, 224, 8, has_cache=True),
            ". Try tar or parquet shards in place of single files, or a faster disk for the images that are kept",
        ),
        (
            DECODING,
            Loading(2, 16, 224, 8),
            "; most of this work is decoding (reading 2 s, decoding 60 s, other 0.4 s). Try --workers 5, "
            "--cache-images DIR, or images stored smaller where they are much larger than a view of 224 px",
        ),
        (
            DECODING,
            Loading(2, 2, 224, 8, has_cache=True, has_gpu=True),
            ". Try a machine with more cores, since more processes would only share these, or images stored smaller "
            "where they are much larger than a view of 224 px",
        ),
        (
            AUGMENTING,
            Loading(2, 16, 224, 8, has_gpu=True),
            "; most of this work is augmenting (reading 2 s, decoding 20 s, augmenting 40 s). Try --set "
            "data.division=images, with which the GPU cuts the views out, --workers 5, or fewer local views "
            "(views.num_local is 8)",
        ),
        (
            AUGMENTING,
            Loading(2, 16, 64, 0),
            ". Try --workers 5, or images stored smaller where they are much larger than a view of 64 px",
        ),
        (
            {"other": 9.0, "reading": 1.0},
            Loading(2, 16, 64, 0),
            "reach 500.0. Try --workers 5, or images stored smaller where they are much larger than a view of 64 px",
        ),
    ],
)
def test_advice_is_against_what_the_loader_works_at_most(
    loader: dict[str, float], loading: Loading, words: str
) -> None:
    assert describe_wait(window(8000, **loader), loading).endswith(words)


def test_what_is_known_of_a_run() -> None:
    config = parse_config({"data": {"cache_images": "kept"}, "views": {"num_local": 3}})
    found = Loading.of(config, num_workers=2, device="cuda", launch=None)
    assert (found.num_workers, found.num_local, found.has_cache, found.has_gpu) == (2, 3, True, True)
    plain = Loading.of(parse_config({}), num_workers=0, device="cpu", launch=None)
    assert (plain.has_cache, plain.has_gpu) == (False, False)


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
    # Said with the first warning, and at the end.
    early = [line for line in lines if line.startswith("in these ") and "where the time went: waiting for data" in line]
    assert len(early) == times
    (whole,) = [line for line in lines if line.startswith("40 images in ")]
    assert "where the time went: waiting for data" in whole
    assert "; of the waiting, since no loader processes were asked for: reading" in whole
    assert ("most of this work is reading (reading" in " ".join(warned)) == bool(times)
    found = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert len(found) == 6
    for line in found:
        parts = sum(value for name, value in line.items() if name.startswith("seconds_loader_"))
        # The main process makes the batches: their time is within its waiting.
        assert parts <= line["seconds_waiting"]
        # Two steps of four images between lines; one before the first and the last.
        num_images = 4 if line["step"] in (0, 9) else 8
        assert line["seconds_loader_reading"] >= num_images * seconds
