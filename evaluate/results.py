"""Result rows: one line of JSON per evaluation, appended and never edited."""

import hashlib
import json
import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from patchssl.errors import DataError

logger = logging.getLogger(__name__)

SCHEMA = 1
_LARGEST_FLOAT = sys.float_info.max

# Settings that change a number by rounding only, or belong to the model that is compared.
NOT_COMPARED = frozenset({"precision", "pooling", "mean", "std", "checkpoint_key"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """A metric's value.

    Attributes:
        value: a fraction in [0, 1].
        ci95_low: lower end of the 95 % bootstrap interval.
        ci95_high: its upper end.
        num: test images or queries it is a mean of.
    """

    value: float
    ci95_low: float
    ci95_high: float
    num: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One evaluation: what was measured, how, on what and with which outcome.

    Attributes:
        task: `knn`, `linear`, `copydetect`, `retrieval` …; names the file it is appended to.
        protocol: the named protocol.
        dataset: name, path_name, num_images, fingerprint, splits and how many images were unreadable.
        model: spec, family, arch, num_params, dim, weights_sha256.
        settings: everything that changes the number.
        metrics: by name.
        headline: the name of the metric to show first.
        seconds: `features` and `evaluate`.
        environment: versions and hardware.
        seed: of the bootstrap and of fresh weights.
        created: UTC, ISO 8601.
        comparability: rows may stand in one column only if this is equal.
        details: what else was found and is not compared: how a choice was made, the value of each draw, chance.
        schema: version of this layout.
    """

    task: str
    protocol: str
    dataset: Mapping[str, Any]
    model: Mapping[str, Any]
    settings: Mapping[str, Any]
    metrics: Mapping[str, Metric]
    headline: str
    seconds: Mapping[str, float]
    environment: Mapping[str, Any]
    seed: int
    created: str
    comparability: str
    details: Mapping[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA

    def to_json(self, *, indent: int | None = None) -> str:
        """The row as JSON, keys in the order of the layout; one line unless indented."""
        record = {"schema": self.schema, **asdict(self)}
        return json.dumps(record, indent=indent, allow_nan=False)

    @property
    def id(self) -> str:
        """A name of 12 hexadecimal digits that follows from everything in the row, and from no layout of its line.

        Empty parts that not every version of the layout has do not count, so that a row of an older version keeps its
        name, and with it its outcomes.
        """
        record = json.loads(self.to_json())
        optional = [field.name for field in fields(self) if field.default_factory is not MISSING]
        return canonical_hash({name: part for name, part in record.items() if part or name not in optional})[:12]


@dataclass(frozen=True, slots=True)
class BrokenLine:
    """A line of a row file that is no row.

    Attributes:
        path: the file.
        line: its number, from 1.
        reason: what is wrong with it.
    """

    path: Path
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.reason}"


def comparability(*, task: str, protocol: str, fingerprint: str, settings: Mapping[str, Any]) -> str:
    """Hash what two numbers must share to mean the same.

    Args:
        task: of the row.
        protocol: of the row.
        fingerprint: of the data set.
        settings: only those that change the meaning of the number, not its rounding.

    Returns:
        SHA-256, 64 hexadecimal digits.
    """
    return canonical_hash({"task": task, "protocol": protocol, "fingerprint": fingerprint, "settings": dict(settings)})


def canonical_hash(value: Any) -> str:
    """SHA-256 of a value's JSON with sorted keys and no spaces."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def now() -> str:
    """The time in UTC to the second, ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def append_row(directory: Path, row: Row) -> Path:
    """Append a row to DIR/TASK.jsonl in one write, and wait until it is on disk.

    Returns:
        The file.

    Raises:
        DataError: the folder or file cannot be written.
    """
    path = directory / f"{row.task}.jsonl"
    line = row.to_json().encode() + b"\n"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if not _ends_with_newline(path):
            # A line that was cut off must not swallow this one.
            line = b"\n" + line
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            written = os.write(descriptor, line)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise DataError(
            f"the result row cannot be written to {path}: {error.strerror}; choose another folder"
        ) from None
    if written != len(line):
        raise DataError(f"only {written} of {len(line)} bytes of the result row went to {path}: the disk may be full")
    return path


def _ends_with_newline(path: Path) -> bool:
    if not path.is_file() or path.stat().st_size == 0:
        return True
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def read_rows(directory: Path) -> tuple[list[Row], list[BrokenLine]]:
    """Read all rows of a folder's `*.jsonl` files, in the order of file names and lines.

    Returns:
        The rows, and the lines that are none, which are also logged as warnings.

    Raises:
        DataError: there is no such folder, or a file cannot be opened.
    """
    if not directory.is_dir():
        raise DataError(
            f"{directory} is no folder; evaluations write result rows to results/rows unless told otherwise"
        )
    rows: list[Row] = []
    broken: list[BrokenLine] = []
    for path in sorted(directory.glob("*.jsonl")):
        try:
            lines = path.read_bytes().split(b"\n")
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}; mend it or move it elsewhere") from None
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                rows.append(parse_row(line))
            except DataError as error:
                broken.append(BrokenLine(path, number, str(error)))
                logger.warning("%s", broken[-1])
    return rows, broken


def parse_row(line: bytes) -> Row:
    """Read one row; fields that this version does not know are left out.

    Raises:
        DataError: no JSON, a field that is missing or of another type, a metric without a finite value, or a newer
            layout.
    """
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"is not JSON: {error}") from None
    if not isinstance(record, dict):
        raise DataError(f"holds a {type(record).__name__}, not an object")
    schema = record.get("schema")
    if not isinstance(schema, int) or not 1 <= schema <= SCHEMA:
        raise DataError(f"has schema {schema!r}; this version reads 1 to {SCHEMA}")
    names = [field.name for field in fields(Row)]
    needed = [field.name for field in fields(Row) if field.default is MISSING and field.default_factory is MISSING]
    missing = [name for name in needed if name not in record]
    if missing:
        raise DataError(f"lacks {', '.join(missing)}")
    for name in ("dataset", "model", "settings", "metrics", "seconds", "environment", "details"):
        if not isinstance(record.get(name, {}), dict):
            raise DataError(f"has a {name} that is no object")
    names_and_dates = {name: record[name] for name in ("task", "protocol", "headline", "created", "comparability")}
    names_and_dates |= {"dataset name": record["dataset"].get("name"), "model spec": record["model"].get("spec")}
    for name, value in names_and_dates.items():
        if not isinstance(value, str):
            raise DataError(f"has a {name} that is no text")
    if record["headline"] not in record["metrics"]:
        raise DataError(f"has the headline {record['headline']!r}, which is not among its metrics")
    metrics = {name: _parse_metric(name, entry) for name, entry in record["metrics"].items()}
    return Row(**{name: record[name] for name in names if name in record and name != "metrics"}, metrics=metrics)


def _parse_metric(name: str, entry: Any) -> Metric:
    keys = [field.name for field in fields(Metric)]
    if not isinstance(entry, dict) or not all(_is_number(entry.get(key)) for key in keys):
        raise DataError(f"has a metric {name!r} without the finite numbers {', '.join(keys)}")
    return Metric(**{key: entry[key] for key in keys})


def _is_number(value: Any) -> bool:
    # bool is an int to Python, and an int may be too large for a float.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST_FLOAT
