from patchssl.step_clock import Interval
from patchssl.time_report import describe_time, describe_whole, describe_work

STAGES = {
    "forward": 38.0,
    "other": 0.0,
    "waiting": 3.0,
    "backward": 42.0,
    "loss": 12.4,
    "moving": 0.1,
    "measuring": 4.5,
}
LOADER = {"augmenting": 20.0, "reading": 0.456, "decoding": 60.4, "other": 0.0}
WHOLE = Interval(1000, STAGES, LOADER)


def test_a_line_by_hand() -> None:
    shares = "waiting for data 3%, moving 0%, forward 38%, loss 12%, backward 42%, measuring the teacher 4%"
    work = "reading 0.46 s, decoding 60 s, augmenting 20 s"
    assert describe_whole(WHOLE, num_workers=2) == (
        f"1000 images in 100 s, 10.0 a second; where the time went: {shares}; beside that in 2 loader processes: {work}"
    )
    assert describe_whole(WHOLE, num_workers=1, num_processes=4, first_step=40) == (
        "since step 40, where this start went on: 1000 images in 100 s, 10.0 a second; "
        f"where the time of the main process went: {shares}; beside that in 1 loader process: {work}"
    )
    # Without loader processes it is the same time, not another.
    assert describe_time(WHOLE, num_workers=0) == (
        f"where the time went: {shares}; of the waiting, since no loader processes were asked for: {work}"
    )


def test_what_is_not_known_is_left_out() -> None:
    assert describe_time(Interval(1, {"forward": 1.0}), num_workers=2) == "where the time went: forward 100%"
    assert describe_work({}) == describe_work({"reading": 0.0}) == ""
    assert describe_work({"other": 12.0, "reading": 9.96}) == "reading 10 s, other 12 s"


def test_no_time_at_all() -> None:
    assert describe_whole(Interval(), num_workers=0) == "0 images in 0 s, 0.0 a second; where the time went: "
