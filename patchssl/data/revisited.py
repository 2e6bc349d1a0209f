"""A folder of revisited Oxford or Paris: `gnd_NAME.pkl` or `.json`, and the images in `jpg/`."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from patchssl.data.boxed import BoxedSource
from patchssl.data.images import FileSource, ImageSource
from patchssl.data.revisited_truth import SUFFIXES, RevisitedTruth, load_truth
from patchssl.data.sources import open_unlabelled
from patchssl.errors import DataError

DATABASE, DISTRACTORS, QUERIES = "database", "distractors", "queries"

_IMAGES = "jpg"
_NUM_NAMED = 5
_HOME = (
    "The ground truth gnd_roxford5k.pkl and gnd_rparis6k.pkl, and the distractors R1M, are at "
    "http://cmp.felk.cvut.cz/revisitop/ ; the images at https://www.robots.ox.ac.uk/~vgg/data/oxbuildings/ and "
    "https://www.robots.ox.ac.uk/~vgg/data/parisbuildings/ , all of them to be laid into jpg/ without folders"
)


@dataclass(frozen=True, eq=False, slots=True)
class RevisitedData:
    """Images to search in, images to search with, and what should be found.

    Attributes:
        sources: "database", perhaps "distractors", and "queries"; the ids of the first and last are file names.
        truth: the ground truth.
    """

    sources: Mapping[str, ImageSource]
    truth: RevisitedTruth


def is_revisited(data: Path) -> bool:
    """Whether a path is meant as such a folder: it holds a ground truth, or `jpg/` and no other folder."""
    if not data.is_dir():
        return False
    folders = [entry.name for entry in data.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    return bool(_truths(data)) or folders == [_IMAGES]


def open_revisited(
    path: str | os.PathLike[str], *, crop_queries: bool, distractors: Path | None = None, apply_exif: bool = False
) -> RevisitedData:
    """Open DATA of `eval retrieval`.

    Args:
        path: the folder.
        crop_queries: cut each query to its box before anything else, as the official protocol does.
        distractors: a folder of further images, at any depth, of which none is right.
        apply_exif: turn pictures upright; no reference evaluation does.

    Raises:
        DataError: the folder lacks a part; or the ground truth is as `load_truth` refuses it, or has no boxes to cut;
            or images that it names are missing.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder; needed: {_needed()}. {_HOME}")
    truth = load_truth(_truth_file(folder))
    _check_images(folder, truth)
    database, queries = (
        FileSource(
            folder / _IMAGES,
            tuple(f"{name}.jpg" for name in names),
            None,
            (),
            folder.resolve().name,
            str(path),
            apply_exif,
        )
        for names in (truth.database, truth.queries)
    )
    sources: dict[str, ImageSource] = {DATABASE: database}
    if distractors is not None:
        sources[DISTRACTORS] = open_unlabelled(distractors, apply_exif=apply_exif)
    sources[QUERIES] = BoxedSource(queries, _boxes(truth)) if crop_queries else queries
    return RevisitedData(sources, truth)


def _boxes(truth: RevisitedTruth) -> tuple[tuple[float, float, float, float], ...]:
    boxes = tuple(box for box in truth.boxes if box is not None)
    if len(boxes) < len(truth.boxes):
        without = [name for name, box in zip(truth.queries, truth.boxes, strict=True) if box is None]
        raise DataError(
            f"{len(without)} of {len(truth.queries)} queries of {truth.name} have no bbx "
            f"({', '.join(without[:_NUM_NAMED])}{', …' if len(without) > _NUM_NAMED else ''}), and the protocol cuts "
            "each query to its box; take --no-crop-queries, or --protocol dino, which cuts none"
        )
    return boxes


def _truths(folder: Path) -> list[Path]:
    return sorted(file for suffix in SUFFIXES for file in folder.glob(f"gnd_*{suffix}") if file.is_file())


def _truth_file(folder: Path) -> Path:
    found = _truths(folder)
    if len(found) > 1:
        raise DataError(f"{folder} holds {len(found)} ground truths: {_listed(found)}; keep the one that is meant")
    missing = [] if found else [" or ".join(f"gnd_NAME{suffix}" for suffix in SUFFIXES)]
    missing += [] if (folder / _IMAGES).is_dir() else [f"{_IMAGES}/"]
    if missing:
        raise DataError(
            f"{folder} lacks {' and '.join(missing)}; found: {_listed(sorted(folder.iterdir()))}; needed: {_needed()}. "
            f"{_HOME}"
        )
    return found[0]


def _check_images(folder: Path, truth: RevisitedTruth) -> None:
    with os.scandir(folder / _IMAGES) as entries:
        present = {entry.name for entry in entries}
    named = dict.fromkeys([*truth.queries, *truth.database])
    # A name with a slash lies in a folder below.
    missing = [
        name for name in named if f"{name}.jpg" not in present and not (folder / _IMAGES / f"{name}.jpg").is_file()
    ]
    if missing:
        first = ", ".join(f"{name}.jpg" for name in missing[:_NUM_NAMED])
        raise DataError(
            f"{len(missing)} of the {len(named)} images that {truth.name} names are missing in {folder / _IMAGES} "
            f"({first}{', …' if len(missing) > _NUM_NAMED else ''}); it holds {len(present)} files. {_HOME}"
        )


def _needed() -> str:
    return f"gnd_NAME{SUFFIXES[0]} or gnd_NAME{SUFFIXES[1]}, and {_IMAGES}/ with every image that it names as NAME.jpg"


def _listed(files: list[Path]) -> str:
    names = [f"{file.name}/" if file.is_dir() else file.name for file in files]
    return ", ".join(names[:_NUM_NAMED]) + (", …" if len(names) > _NUM_NAMED else "") or "nothing"
