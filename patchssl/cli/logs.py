"""Where the log lines of the package go: stderr, and a file if asked for."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from patchssl.appending import AppendedLines
from patchssl.cli.one_line import one_line

_LINE = "%(asctime)s %(levelname)s %(message)s"
_STDERR = "patchssl.stderr"


def configure_logging(*, quiet: bool = False) -> None:
    """Send the package's log lines to stderr: coloured on a terminal, plain lines elsewhere.

    May be called again; the last call counts.

    Args:
        quiet: only warnings and errors.
    """
    logger = logging.getLogger("patchssl")
    for handler in list(logger.handlers):
        if handler.get_name() == _STDERR:
            logger.removeHandler(handler)
    handler = _terminal_handler() if sys.stderr.isatty() else _plain_handler()
    handler.set_name(_STDERR)
    handler.setLevel(logging.WARNING if quiet else logging.INFO)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    # It announces on stderr, past any handler of ours, what our own lines say already.
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)


@contextmanager
def log_file(path: Path) -> Iterator[None]:
    """Append the package's log lines to a file as well, whatever `quiet` says, until the block ends.

    A line that cannot be written, as on a full disk, is left out; that this happened is said once on stderr.
    """
    logger = logging.getLogger("patchssl")
    handler = _LogFile(path)
    handler.setFormatter(_OneLine(_LINE))
    handler.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()


class _OneLine(logging.Formatter):
    """A message is one line, whatever names of files are in it."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        record.message = one_line(record.message)
        return super().formatMessage(record)


class _LogFile(logging.Handler):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path, self._has_failed = path, False
        self._lines: AppendedLines | None = None
        try:
            self._lines = AppendedLines(path)
        except OSError as error:
            self._fail(error)

    def emit(self, record: logging.LogRecord) -> None:
        if self._lines is None:
            return
        try:
            self._lines.write(self.format(record))
        except OSError as error:
            self._fail(error)

    def close(self) -> None:
        if self._lines is not None:
            self._lines.close()
        super().close()

    def _fail(self, error: OSError) -> None:
        if not self._has_failed:
            self._has_failed = True
            print(f"cannot write {self._path}: {error.strerror}; log lines are missing there", file=sys.stderr)


def _plain_handler() -> logging.Handler:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine(_LINE))
    return handler


def _terminal_handler() -> logging.Handler:
    from rich.console import Console
    from rich.logging import RichHandler

    # No markup: paths and shapes hold square brackets.
    handler = RichHandler(console=Console(stderr=True), show_path=False, markup=False, log_time_format="%X")
    handler.setFormatter(_OneLine("%(message)s"))
    return handler
