import pytest

from patchssl.stage_clock import HostLaps, StageClock
from patchssl.step_clock import Interval, StepClock


class Now:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.s = 100.0

    def __call__(self) -> float:
        return self.s


def clocks() -> tuple[Now, StageClock, StepClock]:
    now = Now()
    stages = StageClock(HostLaps(now))
    now.s += 1000  # before the training
    return now, stages, StepClock(stages)


def test_waiting_computing_and_the_rest_by_hand() -> None:
    now, stages, clock = clocks()
    for waited, forward, update, saving in ((2.0, 0.75, 0.25, 0.0), (0.5, 1.0, 0.5, 4.0)):
        with stages.stage("waiting"):
            now.s += waited
        with stages.stage("forward"):
            now.s += forward
        with stages.stage("update"):
            now.s += update
        clock.stepped(8, {"reading": 0.5, "decoding": 1.0, "other": 0.0})
        with stages.stage("saving"):
            now.s += saving
    interval = clock.read()
    assert interval == Interval(
        16,
        {"waiting": 2.5, "forward": 1.75, "update": 0.75, "saving": 4.0, "other": 0.0},
        {"reading": 1.0, "decoding": 2.0, "other": 0.0},
    )
    assert (interval.length_s, interval.seconds, interval.waited_s, interval.computed_s) == (9.0, 9.0, 2.5, 2.5)
    assert interval.images_per_computed_s == 6.4
    line = interval.line()
    assert {name: value for name, value in line.items() if value} == {
        **{"images_per_s": 16 / 9, "data_wait_fraction": 2.5 / 9},
        **{"seconds_waiting": 2.5, "seconds_forward": 1.75, "seconds_update": 0.75, "seconds_saving": 4.0},
        **{"seconds_loader_reading": 1.0, "seconds_loader_decoding": 2.0},
    }
    # What was read is in no later interval.
    now.s += 1.0
    assert clock.read() == Interval(stages={"other": 1.0})


COMPUTING = ["moving", "augmenting", "forward", "loss", "backward", "update"]


def test_every_line_has_the_same_keys() -> None:
    stages = ["waiting", *COMPUTING, "logging", "measuring", "saving", "other"]
    loader = ["reading", "decoding", "augmenting", "other"]
    wanted = ["images_per_s", "data_wait_fraction", *(f"seconds_{name}" for name in stages)]
    wanted += [f"seconds_loader_{name}" for name in loader]
    assert list(Interval().line()) == wanted
    assert list(Interval(3, {"forward": 1.0}, {"reading": 2.0}).line()) == wanted
    assert set(Interval().line().values()) == {0.0}


def test_measuring_the_teacher_is_no_part_of_the_pace() -> None:
    now, stages, clock = clocks()
    with stages.stage("logging"):
        clock.read()
        now.s += 1
        with stages.stage("measuring"):
            now.s += 50
    with stages.stage("backward"):
        now.s += 3
    clock.stepped(4, {})
    interval = clock.read()
    assert (interval.length_s, interval.seconds, interval.images_per_s) == (54.0, 4.0, 1.0)
    assert interval.line()["seconds_measuring"] == 50.0


def test_the_whole_may_be_asked_for_at_any_time() -> None:
    now, stages, clock = clocks()
    with stages.stage("forward"):
        now.s += 2
    clock.stepped(4, {"reading": 1.0})
    clock.read()
    with stages.stage("forward"):
        now.s += 3
    clock.stepped(4, {"decoding": 5.0})
    assert clock.whole() == Interval(8, {"forward": 5.0, "other": 0.0}, {"reading": 1.0, "decoding": 5.0})
    now.s += 1
    assert clock.read() == Interval(4, {"forward": 3.0, "other": 1.0}, {"decoding": 5.0})
    assert clock.whole().length_s == 6.0


def test_no_time_has_no_speed() -> None:
    assert Interval().images_per_s == Interval().wait_fraction == Interval().images_per_computed_s == 0.0


def test_intervals_add_up() -> None:
    one = Interval(3, {"waiting": 0.5, "loss": 0.5}, {"reading": 1.0})
    together = one + Interval(1, {"waiting": 0.5, "forward": 1.5})
    assert together == Interval(4, {"waiting": 1.0, "loss": 0.5, "forward": 1.5}, {"reading": 1.0})
    assert together.wait_fraction == pytest.approx(1 / 3)
    assert one + Interval() == Interval() + one == one
