"""What the command line says of a training's memory: before it starts, and when it runs out."""

import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from patchssl.cli.failures import is_out_of_memory

if TYPE_CHECKING:
    from patchssl.available_memory import Available
    from patchssl.config import Config
    from patchssl.data.images import StoredSource
    from patchssl.memory import Estimate, Setting
    from patchssl.memory_advice import Advice, Advisor
    from patchssl.resumable import Hardware

_NUM_READ = 4
_NUM_TOLD = 3
# Where training ran out although it should have fitted, so much of the estimate is aimed at.
_LOWER = 0.75
_GIB = 1 << 30

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MemoryReport:
    """An estimate beside what there is.

    Attributes:
        config: of the run.
        estimate: of each process.
        num_local: processes that share this machine.
        device: memory where networks are computed; None where the system does not tell.
        host: the machine's own.
    """

    config: "Config"
    estimate: "Estimate"
    num_local: int
    device: "Available | None"
    host: "Available | None"

    @property
    def needed(self) -> int:
        """Bytes where networks are computed, of all processes that share them."""
        return self.estimate.on_device * (1 if self.estimate.setting.device == "cuda" else self.num_local)

    @property
    def fits(self) -> bool:
        """Whether both memories hold what they have to, as far as is known."""
        return self._fits(self.needed, self.device) and self._fits(self.estimate.on_host * self.num_local, self.host)

    @staticmethod
    def _fits(needed: int, available: "Available | None") -> bool:
        return available is None or needed <= available.num_bytes

    def log(self) -> None:
        """A line; and a warning where it does not fit."""
        logger.info("memory: %s", self.told())
        if not self.fits:
            logger.warning("this may not fit into memory: %s", self.told(num_advice=1))

    def told(self, *, num_advice: int = 0, most_bytes: int | None = None) -> str:
        """Estimate, what there is, and what to change, in one line."""
        parts = sorted(self.estimate.parts().items(), key=lambda part: -part[1])
        shown = ", ".join(f"{name} {gib(num)}" for name, num in parts if num >= self.needed / 50)
        where = self.estimate.setting.device
        of_all = f" in {self.num_local} processes" if self.num_local > 1 else ""
        line = f"about {gib(self.needed)} GiB on {where}{of_all} ({shown})"
        if self.device is not None:
            line += f" of {gib(self.device.num_bytes)} GiB ({self.device.limit})"
        if where == "cuda" and self.host is not None:
            line += f", and {gib(self.estimate.on_host * self.num_local)} of {gib(self.host.num_bytes)} GiB on the host"
        found = [
            f"{each.change} takes {gib(each.estimate.on_device)} GiB" for each in self.advice(num_advice, most_bytes)
        ]
        return f"{line}; {', '.join(found)}" if found else line

    def advice(self, num: int | None = None, most_bytes: int | None = None) -> "list[Advice]":
        """The first so many changes that make it fit, or where none does those that save most."""
        if num == 0:
            return []
        advisor = self._advisor(most_bytes)
        if num is None:
            return list(advisor.advice())
        fitting = list(islice((each for each in advisor.advice() if each.fits), num))
        return fitting or sorted(advisor.advice(), key=lambda each: each.estimate.on_device)[:num]

    def _advisor(self, most_bytes: int | None) -> "Advisor":
        from patchssl.memory_advice import Advisor

        if most_bytes is None:
            most_bytes = self.estimate.on_device if self.device is None else self.device.num_bytes
        share = 1 if self.estimate.setting.device == "cuda" else self.num_local
        return Advisor(self.config, self.estimate.setting, most_bytes // share)

    @contextmanager
    def explaining(self, run: Path) -> Iterator[None]:
        """Say of networks or a training that memory does not hold how much they take, and what to change.

        Raises:
            TrainingError: in place of what torch or Python say.
        """
        from patchssl.errors import TrainingError

        try:
            yield
            return
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            message = " ".join(str(error).split()) or type(error).__name__
            # What was being computed is still there, in the frames that the error came through; advice needs memory.
            traceback.clear_frames(error.__traceback__)
        raise TrainingError(f"out of memory ({_shortened(message)}): {self._after()}; {_kept(run)}")

    def _after(self) -> str:
        most = round(_LOWER * self.estimate.on_device)
        if self.device is not None and not self._fits(self.needed, self.device):
            most = self.device.num_bytes
        return self.told(num_advice=_NUM_TOLD, most_bytes=most)


def report_memory(config: "Config", setting: "Setting", *, num_local: int = 1) -> MemoryReport:
    """Estimate, before anything large is built.

    Args:
        config: of the run.
        setting: where it runs.
        num_local: processes that share this machine.
    """
    from patchssl.available_memory import device_memory, host_memory
    from patchssl.data.worker_signals import signals_held
    from patchssl.memory import estimate

    with signals_held():  # an exception raised by a signal while torch hands an operation over ends the process
        found = estimate(config, setting)
    return MemoryReport(config, found, num_local, device_memory(setting.device), host_memory())


def setting_of(config: "Config", images: "StoredSource", hardware: "Hardware", *, workers: int) -> "Setting":
    """What memory depends on besides the configuration, from this process and a few of the images."""
    from patchssl.available_memory import resident_bytes
    from patchssl.feeding import settle_division
    from patchssl.memory import Setting

    return Setting(
        device=hardware.device,
        precision=hardware.precision,
        workers=workers,
        num_processes=hardware.num_processes,
        image_bytes=_image_bytes(images),
        division=settle_division(config, images, hardware.device),
        num_images=len(images),
        process_bytes=resident_bytes(),
    )


def gib(num_bytes: int) -> str:
    """As a number of GiB."""
    return f"{num_bytes / _GIB:.2f}"


def _image_bytes(images: "StoredSource") -> int:
    """The mean size of some images when they are decoded; 0 if none can be read."""
    from patchssl.data.decode import UnreadableImage
    from patchssl.data.probing import some_of

    sizes = []
    for index in some_of(images, _NUM_READ):
        try:
            image = images.read(index)
        except UnreadableImage:
            continue
        sizes.append(3 * image.width * image.height)
    return round(sum(sizes) / max(1, len(sizes)))


def _shortened(message: str) -> str:
    return message if len(message) <= 200 else f"{message[:200]} …"


def _kept(run: Path) -> str:
    latest = run / "checkpoints" / "latest"
    if not latest.exists():
        return "no checkpoint had been saved yet"
    return f"the checkpoint {latest.resolve().name} is kept: go on with --resume"
