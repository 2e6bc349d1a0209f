"""Arrays of `.npz` files that stay on disk."""

import math
import mmap
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_LOCAL_HEADER = struct.Struct("<4s22xHH")
_SIGNATURE = b"PK\x03\x04"
_CHUNK_BYTES = 2**22
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def map_array(path: Path, archive: zipfile.ZipFile, name: str) -> NDArray[Any] | None:
    """Map an array of an open `.npz` file into memory, read-only, instead of reading it.

    Its checksum is compared once, for which the file is gone through but not held.

    Args:
        path: of the file.
        archive: the same file, open.
        name: of the array.

    Returns:
        The array; None where it is absent, compressed, empty, or no C-contiguous array of little-endian float32.

    Raises:
        OSError, ValueError, zipfile.BadZipFile: the file is damaged.
    """
    member = archive.NameToInfo.get(f"{name}.npy")
    if member is None or member.compress_type != zipfile.ZIP_STORED:
        return None
    with archive.open(member) as opened:
        read_header = _HEADERS.get(np.lib.format.read_magic(opened))
        shape, is_fortran, dtype = read_header(opened) if read_header is not None else ((), False, np.dtype(object))
        if dtype != np.dtype("<f4") or is_fortran or not math.prod(shape) or not shape:
            return None
        start = opened.tell()
        if member.file_size - start != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{name} of shape {shape} has {member.file_size - start} bytes")
        while opened.read(_CHUNK_BYTES):  # at the end zipfile compares the checksum
            pass
    with path.open("rb") as file:
        file.seek(member.header_offset)
        signature, num_name, num_extra = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
        if signature != _SIGNATURE:
            raise zipfile.BadZipFile(f"{name} does not begin where the file says")
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    offset = member.header_offset + _LOCAL_HEADER.size + num_name + num_extra + start
    return np.frombuffer(mapped, dtype, math.prod(shape), offset).reshape(shape)
