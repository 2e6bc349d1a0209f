"""Which column of parquet files holds images, and how their rows lie together."""

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchssl.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

#: A loader process keeps row groups whole; larger ones are refused.
MAX_GROUP_BYTES = 1 << 30

# Names by which a column is known to hold images, where several might.
_USUAL = ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "photo", "pixels")
_KEY = "data.image_column"


@dataclass(frozen=True)
class ParquetIndex:
    """The images of a parquet file.

    Attributes:
        column: that holds them.
        rows: (G,) int64 rows of each row group.
        num_bytes: (G,) int64 uncompressed bytes of the column in each.
    """

    column: str
    rows: NDArray[np.int64]
    num_bytes: NDArray[np.int64]

    def __len__(self) -> int:
        return int(self.rows.sum())


def index_parquet(file: Any, name: str, column: str | None) -> ParquetIndex:
    """Read the footer of a parquet file.

    Args:
        file: a path, or a file that can be read at any place.
        name: for messages.
        column: that holds images; None: the one that does.

    Raises:
        ConfigError: pyarrow is not installed.
        DataError: it is not a whole parquet file, no column or more than one may hold images, or row groups are too
            large to be kept.
    """
    with telling_damage(name):
        parquet = parquet_module()
        with parquet.ParquetFile(file, pre_buffer=False) as opened:
            schema, metadata = opened.schema_arrow, opened.metadata
            found = image_column(schema, name, column)
            leaves = [
                number
                for number in range(metadata.num_columns)
                if (path := metadata.schema.column(number).path) == found or path.startswith(f"{found}.")
            ]
            groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
            rows = np.array([group.num_rows for group in groups], dtype=np.int64)
            sizes = [sum(group.column(leaf).total_uncompressed_size for leaf in leaves) for group in groups]
    if (rows < 0).any():
        raise DataError(f"{name} is not a whole parquet file (a row group of {rows.min()} rows); fetch it again")
    _check_group_sizes(name, rows, sizes)
    return ParquetIndex(found, rows, np.array(sizes, dtype=np.int64))


def image_column(schema: Any, name: str, column: str | None) -> str:
    """The column that holds images.

    Args:
        schema: of pyarrow.
        name: of the file, for messages.
        column: that was asked for.

    Raises:
        DataError: there is none, or more than one and none of a usual name.
    """
    types = {field.name: field.type for field in schema}
    candidates = [name for name, kind in types.items() if _holds_bytes(kind)]
    if column is not None:
        if column not in types:
            raise DataError(f"{name} has no column {column!r} ({_KEY}), but {_told(types)}")
        if column not in candidates:
            raise DataError(f"{name}: the column {column!r} ({_KEY}) holds no bytes of images; columns: {_told(types)}")
        return column
    declared = [found for found in _declared(schema) if found in candidates]
    usual = [found for found in candidates if found.lower() in _USUAL]
    for choice in (declared, [found for found in usual if found == "image"], candidates, usual):
        if len(choice) == 1:
            return choice[0]
    why = "no column holds images" if not candidates else f"{', '.join(candidates)} may hold images"
    raise DataError(
        f"{name}: {why}; columns: {_told(types)}. Images are bytes of image files, as binary or as a struct with a "
        f"field bytes; say which column it is with --set {_KEY}=NAME"
    )


def parquet_module() -> Any:
    """pyarrow.parquet.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError(
            f"parquet files need the package pyarrow, which cannot be imported ({error}); "
            "pip install 'patchssl[shards]'"
        ) from None
    return pyarrow.parquet


@contextmanager
def telling_damage(name: str) -> Iterator[None]:
    """Say of a file that it is damaged.

    Raises:
        DataError: in place of what pyarrow says.
    """
    try:
        yield
    except (ConfigError, DataError):
        raise
    except FileNotFoundError:
        raise DataError(f"{name}: no such file") from None
    # What pyarrow raises on damaged files is as varied as what these might hold.
    except Exception as error:
        told = first_line(error)
        raise DataError(f"{name} is not a whole parquet file ({told}); fetch it again, or leave it out") from None


def first_line(error: BaseException) -> str:
    """The first line of what an error says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _declared(schema: Any) -> list[str]:
    """The columns that Hugging Face's datasets mark as images."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return [name for name, about in features.items() if about.get("_type") == "Image"]
    except (KeyError, TypeError, ValueError, AttributeError):
        return []


def _holds_bytes(kind: Any) -> bool:
    import pyarrow.types as types

    if types.is_struct(kind):
        return any(field.name == "bytes" and _holds_bytes(field.type) for field in kind)
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _told(types: dict[str, Any]) -> str:
    return ", ".join(f"{name} ({' '.join(str(kind).split())[:60]})" for name, kind in types.items()) or "none"


def _check_group_sizes(name: str, rows: NDArray[np.int64], sizes: Sequence[int]) -> None:
    largest = max(sizes, default=0)
    if largest <= MAX_GROUP_BYTES:
        return
    num = int(rows[int(np.argmax(sizes))])
    better = max(1, num * (MAX_GROUP_BYTES // 32) // largest)
    raise DataError(
        f"{name} has a row group of {num:,} rows and {largest / 2**30:.1f} GiB; a loader process keeps row groups "
        f"whole, and takes at most {MAX_GROUP_BYTES / 2**30:.0f} GiB: write it again with smaller ones, for instance "
        f"pyarrow.parquet.write_table(table, path, row_group_size={better})"
    )
