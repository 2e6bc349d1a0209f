"""The python versions of CIFAR-10 and CIFAR-100 (Krizhevsky, 2009)."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from patchssl.data.images import ArraySource
from patchssl.errors import DataError


def is_cifar(folder: Path) -> bool:
    """Whether a folder is the python version of CIFAR-10 or CIFAR-100."""
    return (folder / "data_batch_1").is_file() or ((folder / "train").is_file() and (folder / "meta").is_file())


class _ArraysOnly(pickle.Unpickler):
    """Reads the pickles of CIFAR's python version and nothing that could run code."""

    _ALLOWED = frozenset(
        {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is refused")
        return super().find_class(module, name)


def _unpickle(path: Path) -> dict[bytes, Any]:
    try:
        with path.open("rb") as file:
            content = _ArraysOnly(file, encoding="bytes").load()
    # What a damaged pickle raises is as varied as what it might hold.
    except Exception as error:
        raise DataError(f"{path} is not a readable CIFAR file: {error or type(error).__name__}") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} is not a CIFAR file: it holds a {type(content).__name__}")
    return content


def open_cifar(folder: Path, *, train: bool) -> ArraySource:
    """Read CIFAR-10 (data_batch_1 … 5, test_batch) or CIFAR-100 (train, test; fine labels).

    Raises:
        DataError: a file is missing, damaged, or holds something else than these images and their labels.
    """
    ten = (folder / "data_batch_1").is_file()
    if ten:
        names = sorted(file.name for file in folder.glob("data_batch_*")) if train else ["test_batch"]
    else:
        names = ["train" if train else "test"]
    parts = [_unpickle(folder / name) for name in names]
    label_key, names_key, meta = (
        (b"labels", b"label_names", "batches.meta") if ten else (b"fine_labels", b"fine_label_names", "meta")
    )
    try:
        flat = np.concatenate([np.asarray(part[b"data"], dtype=np.uint8) for part in parts])
        labels = np.concatenate([np.asarray(part[label_key], dtype=np.int64) for part in parts])
    except KeyError as error:
        raise DataError(f"{folder} is not a CIFAR python folder: {error} is missing in {', '.join(names)}") from None
    if flat.shape[1:] != (3 * 32 * 32,) or labels.shape != flat.shape[:1]:
        raise DataError(
            f"{folder} holds data of shape {flat.shape} and labels of shape {labels.shape} in {', '.join(names)}; "
            "needed are (M, 3072) and (M,)"
        )
    # Stored as (M, 3072): red, green and blue planes of 32 x 32, row by row.
    pixels = np.ascontiguousarray(flat.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    classes = tuple(name.decode() for name in _unpickle(folder / meta).get(names_key, []))
    if not classes:
        classes = tuple(str(number) for number in range(int(labels.max(initial=0)) + 1))
    if len(labels) == 0 or not 0 <= labels.min() <= labels.max() < len(classes):
        raise DataError(f"{folder}: labels of {', '.join(names)} must be numbers below {len(classes)}, and some")
    part_name = "train" if train else "test"
    ids = tuple(f"{part_name}/{number:05d}" for number in range(len(pixels)))
    return ArraySource(pixels, ids, labels, classes, folder.resolve().name, str(folder))
