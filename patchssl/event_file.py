"""The metrics of a run as TensorBoard reads them."""

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from patchssl.errors import CheckpointError, ConfigError

_FOLDER, _NAME = "tensorboard", "events.out.tfevents"
EVENT_FILES = f"{_FOLDER}/{_NAME}.*"

_GROUPS = {
    **dict.fromkeys(("lr", "weight_decay", "momentum", "teacher_temperature", "patch_weight"), "schedule"),
    **dict.fromkeys(("images_per_s", "data_wait_fraction"), "speed"),
    **dict.fromkeys(("epoch", "images"), "progress"),
    **dict.fromkeys(("gradient_norm", "patch_pairs"), "step"),
}
_BEGINNINGS = {"kl_": "loss", "below_uniform_": "loss"}


def tag(name: str) -> str:
    """The name of a metric on TensorBoard's page, which puts what stands before the stroke under one heading.

    Names of several words stand under their first, `loss_cls` as `loss/cls`, unless they are known to belong elsewhere.
    """
    known = _GROUPS.get(name) or next((_BEGINNINGS[start] for start in _BEGINNINGS if name.startswith(start)), None)
    if known:
        return f"{known}/{name}"
    group, _, rest = name.partition("_")
    return f"{group}/{rest or 'total'}"


def check_tensorboard() -> None:
    """See whether TensorBoard is there.

    Raises:
        ConfigError: it is not installed, or damaged.
    """
    try:
        import tensorboard.compat.proto.event_pb2
        import tensorboard.summary.writer.record_writer  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"log.tensorboard needs the package tensorboard, which cannot be imported ({error}); "
            "pip install 'patchssl[log]', or leave --tensorboard out"
        ) from None


class EventFile:
    """One file of events, a record for each line of `metrics.jsonl`; written at once, without threads.

    PyTorch's `SummaryWriter` leaves writing to a thread, whose errors come late and beside the run's own.
    """

    def __init__(self, run: Path, *, first_step: int) -> None:
        """Begin a file in `RUN/tensorboard`.

        Args:
            run: the run folder.
            first_step: what older files say of it and of later steps is shown no more.

        Raises:
            CheckpointError: it cannot be written.
        """
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        # Files are read in the order of their names.
        name = f"{_NAME}.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{first_step:08d}"
        self._path = run / _FOLDER / name
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = RecordWriter(self._path.open("ab"))
        except OSError as error:
            raise self._failed(error) from None
        self._append(Event(wall_time=time.time(), file_version="brain.Event:2"))
        start = SessionLog(status=SessionLog.START)
        self._append(Event(wall_time=time.time(), step=first_step, session_log=start))

    def write(self, values: Mapping[str, float | int]) -> None:
        """Add a line of `metrics.jsonl`; its `step` is the place on the axis.

        Raises:
            CheckpointError: the disk is full.
        """
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        scalars = [Summary.Value(tag=tag(name), simple_value=value) for name, value in values.items() if name != "step"]
        self._append(Event(wall_time=time.time(), step=int(values["step"]), summary=Summary(value=scalars)))

    def close(self) -> None:
        """Close the file.

        Raises:
            CheckpointError: the disk is full.
        """
        try:
            self._file.close()
        # What could not be written before is tried once more.
        except OSError as error:
            raise self._failed(error) from None

    def _append(self, event: Any) -> None:
        try:
            self._file.write(event.SerializeToString())
            self._file.flush()
        except OSError as error:
            raise self._failed(error) from None

    def _failed(self, error: OSError) -> CheckpointError:
        return CheckpointError(f"cannot write {self._path}: {error.strerror}; free some space and go on with --resume")
