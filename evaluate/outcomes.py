"""What came of every test image, beside the row that sums it up."""

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchssl.atomic import replacing
from patchssl.errors import DataError
from patchssl.evaluate.results import Row, append_row


@dataclass(frozen=True, eq=False, slots=True)
class Outcomes:
    """What came of each test image, kept so that two models can be compared image by image.

    Attributes:
        ids: (Q,) str, or None where the images have no names.
        values: (Q,) for each metric of a row; NaN where an image does not count.
    """

    ids: NDArray[np.str_] | None
    values: Mapping[str, NDArray[Any]]


@dataclass(frozen=True, eq=False, slots=True)
class Scored:
    """A result row and the outcomes that it summarises."""

    row: Row
    outcomes: Outcomes


def record(directory: Path, scored: Scored) -> Path:
    """Append a row to DIR/TASK.jsonl, after its outcomes went to DIR/outcomes/ID.npz.

    Returns:
        The file of rows.

    Raises:
        DataError: one of them cannot be written; then there is no row.
    """
    _write_outcomes(directory / "outcomes" / f"{scored.row.id}.npz", scored.outcomes)
    return append_row(directory, scored.row)


def _write_outcomes(path: Path, outcomes: Outcomes) -> None:
    arrays: dict[str, NDArray[Any]] = {f"values/{name}": values for name, values in outcomes.values.items()}
    if outcomes.ids is not None:
        arrays["ids"] = outcomes.ids
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
    except OSError as error:
        raise DataError(f"outcomes cannot be written to {path}: {error.strerror}; choose another folder") from None


def read_outcomes(directory: Path, row: Row) -> Outcomes | None:
    """The outcomes of a row; None where none were kept.

    Raises:
        DataError: the file is damaged.
    """
    path = directory / "outcomes" / f"{row.id}.npz"
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            values = {name.removeprefix("values/"): file[name] for name in file.files if name.startswith("values/")}
            return Outcomes(file["ids"] if "ids" in file.files else None, values)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} is damaged: {error}; evaluate again") from None
