"""DATA of copy detection as named on the command line → references, distractors, training images, queries and truth."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePath

from patchssl.data.copy_folders import (
    DISC_HOME,
    DISTRACTORS,
    QUERIES,
    REFERENCES,
    TRAINING,
    is_disc,
    is_generic,
    open_disc,
    open_generic,
    open_part,
)
from patchssl.data.copy_truth import CopyData
from patchssl.data.copydays import HOME, is_copydays, open_copydays
from patchssl.data.duplicates import equal_files, paths_of
from patchssl.data.images import FileSource, ImageSource
from patchssl.data.listing import images_in, named
from patchssl.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

WHITENING = "whitening"
_ORDER = (REFERENCES, DISTRACTORS, TRAINING, WHITENING, QUERIES)
_LAYOUTS = (
    "a Copydays folder (original/ strong/ jpegqual/Q/ crops/P/), a DISC21 folder (references/, dev_queries/, "
    "dev_queries_groundtruth.csv), or queries/, references/ and groundtruth.csv"
)


def layout_of(path: Path) -> str:
    """Tell the layout of a folder: `copydays`, `disc` or `generic`.

    Raises:
        DataError: there is no such folder, or it has none of them.
    """
    if not path.is_dir():
        raise DataError(f"{path} is {'no folder' if path.exists() else 'not there'}; needed: {_LAYOUTS}")
    for layout, fits in (("copydays", is_copydays), ("disc", is_disc), ("generic", is_generic)):
        if fits(path):
            return layout
    found = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing"
    raise DataError(
        f"{path} has no layout of copy detection: needed is {_LAYOUTS}; found: {found}. The official data: {HOME} "
        f"(Copydays), {DISC_HOME} (DISC21); patchssl data copies makes a folder like Copydays of any photographs"
    )


def open_copies(
    path: Path,
    *,
    query_set: str | None = None,
    distractors: Path | None = None,
    whitening: Path | None = None,
    recursive: bool = True,
) -> CopyData:
    """Open DATA of `eval copydetect`.

    Args:
        path: a folder.
        query_set: `dev` or `final` of DISC21.
        distractors: a folder of further images for the database; added to those of DATA.
        whitening: a folder of images to learn the whitening from.
        recursive: whether images in folders below these two count; DINO's script takes those of the folder itself.

    Raises:
        ConfigError: there are no query sets to choose from.
        DataError: a part is missing or empty, the ground truth does not fit, or distractors hold a query or a
            reference.
    """
    layout = layout_of(path)
    if query_set is not None and layout != "disc":
        raise ConfigError(f"{path} has no query sets to choose from; only a DISC21 folder has dev and final")
    if layout == "copydays":
        data = open_copydays(path)
    else:
        data = open_disc(path, query_set=query_set) if layout == "disc" else open_generic(path)
    more: dict[str, ImageSource] = {}
    if distractors is not None:
        if DISTRACTORS in data.sources:
            raise DataError(f"{path} has distractors of its own; put all of them into one folder")
        more[DISTRACTORS] = _open_images(distractors, recursive=recursive)
    if whitening is not None:
        more[WHITENING] = _open_images(whitening, recursive=recursive)
    found = {**data.sources, **more}
    if DISTRACTORS in found:
        _check_distractors(found)
    return replace(data, sources={part: found[part] for part in _ORDER if part in found})


def _open_images(folder: Path, *, recursive: bool) -> FileSource:
    if not folder.is_dir():
        raise DataError(f"{folder} is {'no folder' if folder.exists() else 'not there'}; give a folder of images")
    if recursive:
        return open_part(folder, folder)
    names = images_in(folder)
    below = len(open_part(folder, folder)) - len(names)
    if not names:
        raise DataError(
            f"{folder} itself holds no images, folders below it {below}; this protocol takes those of the folder "
            "itself, as DINO's script does: move them up, or name the folder that holds them"
        )
    if below:
        logger.warning(
            "%s: %d images in folders below are left out, as DINO's script does; %d count", folder, below, len(names)
        )
    return FileSource(folder, tuple(names), None, (), folder.resolve().name, str(folder), False)


def _check_distractors(sources: Mapping[str, ImageSource]) -> None:
    """Refuse distractors that are a query or a reference: found again, they would stand before what is right.

    Raises:
        DataError: some have the same content.
    """
    distractors = sources[DISTRACTORS]
    assert isinstance(distractors, FileSource)
    for part in (QUERIES, REFERENCES):
        others = sources[part]
        assert isinstance(others, FileSource)
        equal = equal_files(paths_of(others), paths_of(distractors))
        if equal:
            told = [f"{theirs} is {ours}" for ours, theirs in equal]
            raise DataError(
                f"{len(equal)} of {len(distractors)} distractors are {part} as well, byte by byte ({named(told)}); "
                "they would count as wrong where they are right: remove them"
            )
        stems = {PurePath(image).stem for image in others.ids}
        alike = [image for image in distractors.ids if PurePath(image).stem in stems]
        if alike:
            logger.warning(
                "%d distractors have the names of %s (%s), with other content; if they show the same, remove them",
                len(alike),
                part,
                named(alike),
            )
