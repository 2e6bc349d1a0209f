"""Where the time of a training went, in a line."""

from collections.abc import Mapping

from patchssl.step_clock import LOADING, TRAINING, Interval

_CALLED = {"waiting": "waiting for data", "measuring": "measuring the teacher"}


def describe_whole(whole: Interval, *, num_workers: int, num_processes: int = 1, first_step: int = 0) -> str:
    """How many images were trained on, how fast, and where the time went.

    Args:
        whole: the time since this process began to train.
        num_workers: its loader processes; 0 where it makes its batches itself.
        num_processes: that train together; this is one of them.
        first_step: that it began with.
    """
    seconds = whole.length_s
    since = f"since step {first_step}, where this start went on: " if first_step else ""
    pace = whole.num_images / seconds if seconds else 0.0
    return (
        f"{since}{whole.num_images} images in {seconds:.0f} s, {pace:.1f} a second; "
        f"{describe_time(whole, num_workers=num_workers, num_processes=num_processes)}"
    )


def describe_time(interval: Interval, *, num_workers: int, num_processes: int = 1) -> str:
    """The share of each stage, and what it took to make the batches; arguments as of describe_whole."""
    whose = "the time of the main process" if num_processes > 1 else "the time"
    shares = ", ".join(
        f"{_CALLED.get(name, name)} {interval.stages[name] / interval.length_s:.0%}"
        for name in TRAINING
        if interval.stages.get(name)
    )
    work = describe_work(interval.loader)
    if not work:
        return f"where {whose} went: {shares}"
    if not num_workers:
        return f"where {whose} went: {shares}; of the waiting, since no loader processes were asked for: {work}"
    beside = "beside that in 1 loader process" if num_workers == 1 else f"beside that in {num_workers} loader processes"
    return f"where {whose} went: {shares}; {beside}: {work}"


def describe_work(loader: Mapping[str, float]) -> str:
    """Seconds by stage of making batches; empty where none are known."""
    return ", ".join(f"{name} {_seconds(loader[name])} s" for name in LOADING if loader.get(name))


def _seconds(seconds: float) -> str:
    """With two digits at least where there are less than ten."""
    return f"{seconds:.2g}" if seconds < 10 else f"{seconds:.0f}"
