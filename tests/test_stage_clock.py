"""The clock on times that are moved by hand, and on a GPU that is made up."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from patchssl import stage_clock
from patchssl.stage_clock import UNTIMED, EventLaps, HostLaps, Stage, StageClock, clock_of

STAGES: list[Stage] = ["forward", "loss", "backward"]


class Now:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.s = 100.0

    def __call__(self) -> float:
        return self.s


def host() -> tuple[Now, StageClock]:
    now = Now()
    return now, StageClock(HostLaps(now))


def test_a_stage_is_counted_without_those_inside() -> None:
    now, clock = host()
    now.s += 1
    with clock.stage("loss"):
        now.s += 2
        with clock.stage("forward"):
            now.s += 4
            with clock.stage("moving"):
                now.s += 8
            now.s += 16
        now.s += 32
    now.s += 64
    with clock.stage("loss"):
        now.s += 128
    assert clock.read() == {"other": 65.0, "loss": 162.0, "forward": 20.0, "moving": 8.0}


def test_a_stage_within_itself_is_counted_once() -> None:
    now, clock = host()
    with clock.stage("forward"):
        now.s += 1
        with clock.stage("forward"):
            now.s += 2
    assert clock.read() == {"other": 0.0, "forward": 3.0}


def test_what_was_read_is_not_read_again_also_in_the_middle_of_a_stage() -> None:
    now, clock = host()
    with clock.stage("logging"):
        now.s += 1
        assert clock.read() == {"other": 0.0, "logging": 1.0}
        now.s += 2
        with clock.stage("measuring"):
            now.s += 4
    now.s += 8
    assert clock.read() == {"logging": 2.0, "measuring": 4.0, "other": 8.0}
    assert clock.read() == {"other": 0.0}


def test_an_error_ends_the_stages_that_it_leaves() -> None:
    now, clock = host()

    def decode() -> None:
        now.s += 1
        raise ValueError("damaged")

    with clock.stage("loss"):
        with pytest.raises(ValueError, match="damaged"), clock.stage("reading"), clock.stage("decoding"):
            decode()
        now.s += 2
    now.s += 4
    assert clock.read() == {"loss": 2.0, "reading": 0.0, "decoding": 1.0, "other": 4.0}


def test_the_end_of_an_iterator_passes_through() -> None:
    _, clock = host()
    with pytest.raises(StopIteration), clock.stage("waiting"):
        next(iter(()))
    with UNTIMED.stage("waiting"):
        pass


# A step down into a stage, or up out of it, or time that passes.
MOVES = st.lists(st.one_of(st.sampled_from(STAGES), st.just("up"), st.integers(0, 1000)), max_size=40)


@given(MOVES)
def test_stages_are_those_of_the_definition_and_sum_to_the_whole(moves: list[Any]) -> None:
    now, clock = host()
    start, wanted = now.s, {"other": 0.0}
    opened: list[tuple[str, Any]] = []
    for move in moves:
        if move == "up":
            if opened:
                opened.pop()[1].__exit__(None, None, None)
        elif isinstance(move, str):
            opened.append((move, clock.stage(move)))  # type: ignore[arg-type]
            opened[-1][1].__enter__()
        else:
            now.s += move
            name = opened[-1][0] if opened else "other"
            wanted[name] = wanted.get(name, 0.0) + move
    found = clock.read()
    assert {name: s for name, s in found.items() if s} == {name: s for name, s in wanted.items() if s}
    assert sum(found.values()) == now.s - start


class Gpu:
    """Works one thing after another, behind a processor that hands it over in no time; milliseconds."""

    def __init__(self) -> None:
        self.now_ms = self.free_ms = 0.0
        self.num_events = self.num_waits = 0

    def work(self, ms: float) -> None:
        self.free_ms = max(self.free_ms, self.now_ms) + ms

    def event(self) -> "FakeEvent":
        self.num_events += 1
        return FakeEvent(self)


class FakeEvent:
    def __init__(self, gpu: Gpu) -> None:
        self.gpu, self.at_ms = gpu, float("nan")

    def record(self, stream: Any = None) -> None:
        assert stream is None
        self.at_ms = max(self.gpu.free_ms, self.gpu.now_ms)

    def query(self) -> bool:
        return self.gpu.now_ms >= self.at_ms

    def synchronize(self) -> None:
        self.gpu.num_waits += not self.query()
        self.gpu.now_ms = max(self.gpu.now_ms, self.at_ms)

    def elapsed_time(self, end_event: "FakeEvent") -> float:
        assert self.query()
        assert end_event.query()
        return end_event.at_ms - self.at_ms


def test_a_gpu_is_not_waited_for_before_times_are_read() -> None:
    gpu = Gpu()
    clock = StageClock(EventLaps(gpu.event))
    gpu.now_ms += 5  # idle
    with clock.stage("loss"):
        with clock.stage("forward"):
            gpu.work(100)
        gpu.work(20)
        with clock.stage("backward"):
            gpu.work(200)
    with clock.stage("update"):
        gpu.work(30)
    # Batches that take 500 ms to come: for 350 of these there is work enough.
    with clock.stage("waiting"):
        gpu.now_ms += 500
    assert gpu.num_waits == 0
    with clock.stage("moving"):
        gpu.work(40)
    assert gpu.now_ms == 505
    found = clock.read()
    assert found == pytest.approx(
        {
            **{"other": 0.005, "loss": 0.02, "forward": 0.1, "backward": 0.2, "update": 0.03},
            **{"waiting": 0.15, "moving": 0.04},
        }
    )
    assert gpu.now_ms == 545
    assert sum(found.values()) == pytest.approx(0.545)
    # Where the processor is the slow one, a stage lasts as long as it is in it.
    with clock.stage("forward"):
        gpu.now_ms += 7
        gpu.work(1)
    assert clock.read() == pytest.approx({"other": 0.0, "forward": 0.008})


def test_events_are_used_again() -> None:
    gpu = Gpu()
    clock = StageClock(EventLaps(gpu.event))
    for _ in range(5):
        for _ in range(10):
            with clock.stage("forward"):
                gpu.work(1)
        assert clock.read()["forward"] == pytest.approx(0.01)
    assert gpu.num_events == 22


def test_events_do_not_grow_without_bounds_between_readings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_clock, "_MOST_EVENTS", 8)
    gpu = Gpu()
    clock = StageClock(EventLaps(gpu.event))
    for _ in range(100):
        with clock.stage("forward"):
            gpu.work(1)
        gpu.now_ms += 2
    assert gpu.num_waits == 0
    assert gpu.num_events <= 12
    assert clock.read() == pytest.approx({"forward": 0.1, "other": 0.1})
    # A GPU that stays behind is not waited for.
    for _ in range(100):
        with clock.stage("backward"):
            gpu.work(1)
    assert gpu.num_waits == 0
    assert clock.read() == pytest.approx({"backward": 0.1, "other": 0.0})


def test_a_gpu_that_has_failed_is_asked_nothing() -> None:
    gpu = Gpu()
    clock = StageClock(EventLaps(gpu.event))
    num_events = []

    def fail() -> None:
        gpu.work(3)
        num_events.append(gpu.num_events)
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"), clock.stage("loss"), clock.stage("forward"):
        fail()
    assert num_events == [gpu.num_events]
    assert clock.read() == pytest.approx({"other": 0.003, "loss": 0.0})


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_processors_have_their_own_clock(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", lambda **_: pytest.fail("no GPU was asked for"))
    assert clock_of(device).read().keys() == {"other"}


def test_events_go_to_the_stream_of_the_gpu_that_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = []

    class Recorded(FakeEvent):
        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing
            super().__init__(Gpu())

        def record(self, stream: Any = None) -> None:
            recorded.append(stream)
            super().record()

    monkeypatch.setattr(torch.cuda, "Event", Recorded)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    assert clock_of("cuda:3").read() == {"other": 0.0}
    assert recorded == ["stream of cuda:3"] * 2
