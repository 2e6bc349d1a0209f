"""Features as a matrix with labels, names and origin, kept in `.npz` files without pickles."""

import hashlib
import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchssl.atomic import replacing
from patchssl.errors import DataError
from patchssl.evaluate.results import canonical_hash
from patchssl.evaluate.search.mapped import map_array


@dataclass(frozen=True, eq=False, slots=True)
class Features:
    """A feature vector for each of M images.

    Attributes:
        features: (M, D) float32.
        labels: (M,) int64, or None.
        ids: (M,) str, or None.
        meta: where they come from; `model`, `dataset` and `settings` as in a result row, where known.
    """

    features: NDArray[np.float32]
    labels: NDArray[np.int64] | None = None
    ids: NDArray[np.str_] | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.features.ndim != 2:
            raise DataError(f"features have the shape {self.features.shape}; needed: (images, dimensions)")
        for name, values in (("labels", self.labels), ("ids", self.ids)):
            if values is not None and values.shape != (len(self),):
                raise DataError(f"{name} have the shape {values.shape}; {len(self)} features need ({len(self)},)")

    def __len__(self) -> int:
        return len(self.features)

    @property
    def dim(self) -> int:
        """D, the width."""
        return int(self.features.shape[1])


@dataclass(frozen=True, eq=False, slots=True)
class PatchFeatures:
    """The patch tokens of M images, in pieces that stay on disk until they are looked at.

    Attributes:
        pieces: (m, H, W, D) float32 each, together M images in order.
        labels: (M,) int64, or None.
        ids: (M,) str.
        meta: as of `Features`.
    """

    pieces: tuple[NDArray[np.float32], ...]
    labels: NDArray[np.int64] | None
    ids: NDArray[np.str_]
    meta: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def grid(self) -> tuple[int, int]:
        """(H, W)."""
        return self.pieces[0].shape[1], self.pieces[0].shape[2]

    @property
    def dim(self) -> int:
        """D, the width of a patch."""
        return int(self.pieces[0].shape[3])

    def __getitem__(self, index: int) -> NDArray[np.float32]:
        """The patches (H, W, D) of one image."""
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        ends = np.cumsum([len(piece) for piece in self.pieces])
        number = int(np.searchsorted(ends, index, side="right"))
        from_end = index - int(ends[number])
        patches: NDArray[np.float32] = self.pieces[number][from_end]
        return patches


def save_features(path: Path, features: Features) -> None:
    """Write a feature file; it appears whole or not at all.

    Raises:
        DataError: it cannot be written.
    """
    # Behind a meta, whatever its length, the features begin at a multiple of four bytes, as mapping likes it.
    arrays: dict[str, NDArray[Any]] = {
        "meta": np.array(json.dumps(dict(features.meta), sort_keys=True)),
        "features": features.features.astype(np.float32, copy=False),
    }
    if features.labels is not None:
        arrays["labels"] = features.labels.astype(np.int64)
    if features.ids is not None:
        arrays["ids"] = features.ids.astype(np.str_)
    try:
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
    except OSError as error:
        raise DataError(f"features cannot be written to {path}: {error.strerror or error}") from None


def load_features(path: Path) -> Features:
    """Read a feature file: `features (M, D)`, optional `labels (M,)`, `ids (M,)` and `meta`.

    The features of a file that is not compressed stay on disk and are read where they are looked at; they cannot be
    changed. The name of the file is added to the meta as `file`.

    Raises:
        DataError: it is missing, damaged, holds pickles, or its arrays are of other kinds or lengths.
    """
    try:
        opened = np.load(path, allow_pickle=False)
        if isinstance(opened, np.ndarray):
            raise DataError(f"{path} is a single array; a feature file is an .npz with at least `features`")
        with opened as file:
            arrays = {name: file[name] for name in ("labels", "ids", "meta") if name in file.files}
            if "features" in file.files:
                mapped = map_array(path, file.zip, "features")
                arrays["features"] = file["features"] if mapped is None else mapped
            names = ", ".join(file.files)
    except FileNotFoundError:
        raise DataError(f"there is no feature file {path}") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} is no feature file (an .npz without pickles), or damaged: {error}") from None
    if "features" not in arrays:
        raise DataError(f"{path} holds no array `features`; it holds: {names or 'nothing'}")
    try:
        return Features(
            _of_kind(arrays["features"], "features", "f", "floating point").astype(np.float32, copy=False),
            _of_kind(arrays["labels"], "labels", "iu", "integer").astype(np.int64) if "labels" in arrays else None,
            _of_kind(arrays["ids"], "ids", "U", "text") if "ids" in arrays else None,
            {**(_parse_meta(arrays["meta"]) if "meta" in arrays else {}), "file": path.name},
        )
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def _of_kind(array: NDArray[Any], name: str, kinds: str, told: str) -> NDArray[Any]:
    kind = getattr(array, "dtype", np.dtype(object))  # what is no .npy in the archive is read as bytes
    if kind.kind not in kinds:
        raise DataError(f"{name} are of type {kind}; needed: {told}")
    return array


def _parse_meta(array: NDArray[Any]) -> dict[str, Any]:
    try:
        meta = json.loads(str(array))
    except ValueError:
        meta = None
    if array.shape != () or not isinstance(meta, dict):
        raise DataError("meta is no JSON object in a string")
    return meta


def model_of(parts: Sequence[Features]) -> dict[str, Any]:
    """The `model` part of a result row, from the features' `meta`; with how its file was loaded, where that is known.

    Features of an unknown model are told apart by a hash of all matrices in the place of the weights'.

    Args:
        parts: at least one; of all facts but the weights the last tells.

    Raises:
        DataError: they name different weights.
    """
    known, first = meta_part(parts[-1], "model"), meta_part(parts[0], "model")
    hashes = {str(found) for part in parts if (found := meta_part(part, "model").get("weights_sha256"))}
    if len(hashes) > 1:
        raise DataError(
            f"the features are of different weights ({', '.join(f'{found[:12]}…' for found in sorted(hashes))}); all "
            "must come from one model"
        )
    unknown = {
        "spec": parts[-1].meta.get("file", "features"),
        "family": "features",
        "arch": None,
        "num_params": None,
        "dim": parts[-1].dim,
        "weights_sha256": None,
    }
    facts = {name: known.get(name, value) for name, value in unknown.items()}
    if facts["weights_sha256"] is None:
        digest = hashlib.sha256()
        for part in parts:
            digest.update(np.ascontiguousarray(part.features).data)
        facts["weights_sha256"] = digest.hexdigest()
    return {**facts, **({"load": first["load"]} if "load" in first else {})}


def dataset_of(parts: Mapping[str, Features]) -> dict[str, Any]:
    """The `dataset` part of a result row, from the features' `meta`; labels and ids stand in for an unknown one.

    Args:
        parts: of the data by name, at least one; the first has the classes, the last names the data.
    """
    about = {name: meta_part(part, "dataset") for name, part in parts.items()}
    prints = {name: about[name].get("fingerprint") or _labels_hash(part) for name, part in parts.items()}
    names = list(parts)
    first, last = names[0], names[-1]
    unnamed = parts[last].meta.get("file", "features")
    return {
        "name": about[last].get("name", unnamed),
        "path_name": about[last].get("path_name", unnamed),
        "num_images": sum(map(len, parts.values())),
        "num_classes": about[first].get("num_classes", _num_classes(parts[first])),
        "fingerprint": canonical_hash(prints),
        "splits": {name: len(part) for name, part in parts.items()},
        "num_unreadable": sum(found.get("num_unreadable", 0) for found in about.values()),
    }


def _num_classes(part: Features) -> int:
    return 0 if part.labels is None else len(np.unique(part.labels))


def meta_part(features: Features, name: str) -> dict[str, Any]:
    """A part of `meta`, empty where whoever wrote the file left it out."""
    part = features.meta.get(name)
    return dict(part) if isinstance(part, Mapping) else {}


def _labels_hash(part: Features) -> str:
    labels = [] if part.labels is None else part.labels.tolist()
    return canonical_hash({"labels": labels, "ids": [] if part.ids is None else part.ids.tolist()})
