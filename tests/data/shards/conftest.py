"""Tar and parquet files of small pictures whose colour tells their number."""

import io
import tarfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

Members = Iterable[tuple[str, bytes]]
WriteTar = Callable[..., Path]
WriteParquet = Callable[..., Path]


def png(number: int) -> bytes:
    """A picture of 8 x 6 px whose pixels tell a number below 65,536."""
    file = io.BytesIO()
    Image.new("RGB", (8, 6), (number // 256, number % 256, 7)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="session")
def picture() -> Callable[[int], bytes]:
    """Make the content of a numbered picture."""
    return png


@pytest.fixture(scope="session")
def number_of() -> Callable[[Any], int]:
    """Tell the number of a numbered picture."""

    def tell(image: Any) -> int:
        red, green, _ = np.asarray(image)[0, 0]
        return int(red) * 256 + int(green)

    return tell


@pytest.fixture(scope="session")
def write_tar() -> WriteTar:
    """Write members, or the pictures of some numbers with a class beside each, into a tar file."""

    def write(path: Path, content: Sequence[int] | Members, **options: Any) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w", **options) as archive:
            for each in content:
                members = [(f"{each:06}.png", png(each)), (f"{each:06}.cls", b"3")] if isinstance(each, int) else [each]
                for name, member in members:
                    about = tarfile.TarInfo(name)
                    about.size = len(member)
                    archive.addfile(about, io.BytesIO(member))
        return path

    return write


@pytest.fixture(scope="session")
def write_parquet() -> WriteParquet:
    """Write the pictures of some numbers into a parquet file as Hugging Face's datasets do, or other columns."""
    import pyarrow
    import pyarrow.parquet

    def write(path: Path, numbers: Sequence[int] = (), /, *, group: int = 4, **columns: Any) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not columns:
            rows = [{"bytes": png(number), "path": f"{number}.png"} for number in numbers]
            columns = {"image": rows, "label": [0] * len(rows)}
        pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=group)
        return path

    return write
