import pytest

from patchssl.step_clock import Interval, StepClock


class Now:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.s = 100.0

    def __call__(self) -> float:
        return self.s


def test_waiting_computing_and_the_rest_by_hand() -> None:
    now = Now()
    clock = StepClock(now)
    for waited, computed, saving in ((2.0, 1.0, 0.0), (0.5, 1.5, 4.0)):
        now.s += waited
        clock.waited()
        now.s += computed
        clock.stepped(8)
        now.s += saving
        clock.waits()
    interval = clock.read()
    assert interval == Interval(seconds=9.0, waited_s=2.5, computed_s=2.5, num_images=16)
    assert interval.line() == {"images_per_s": 16 / 9, "data_wait_fraction": 2.5 / 9}
    assert interval.images_per_computed_s == 6.4
    # What was read is in no later interval.
    now.s += 1.0
    assert clock.read() == Interval(seconds=1.0)


def test_what_is_left_out_is_in_no_interval_but_in_the_whole() -> None:
    now = Now()
    clock = StepClock(now)
    now.s += 1
    clock.waited()
    now.s += 2
    clock.stepped(4)
    clock.read()
    now.s += 50
    clock.leave_out()
    clock.waits()
    now.s += 3
    clock.waited()
    now.s += 1
    clock.stepped(4)
    assert clock.read() == Interval(seconds=4.0, waited_s=3.0, computed_s=1.0, num_images=4)
    clock.waited()
    now.s += 1
    clock.stepped(4)
    assert clock.whole() == Interval(seconds=58.0, waited_s=4.0, computed_s=4.0, num_images=12)


def test_no_time_has_no_speed() -> None:
    assert Interval().line() == {"images_per_s": 0.0, "data_wait_fraction": 0.0}
    assert Interval().images_per_computed_s == 0.0


def test_intervals_add_up() -> None:
    together = Interval(1.0, 0.5, 0.25, 3) + Interval(2.0, 0.5, 1.0, 1)
    assert together == Interval(3.0, 1.0, 1.25, 4)
    assert together.wait_fraction == pytest.approx(1 / 3)
