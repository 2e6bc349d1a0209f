"""The Copydays layout: `original/`, and its copies in `strong/`, `jpegqual/Q/` and `crops/P/`.

Jégou, Douze, Schmid: "Hamming embedding and weak geometric consistency for large scale image search", ECCV 2008. As in
DINO's evaluation (arXiv 2104.14294 §4.2, eval_copy_detection.py) files are sorted, the i-th image of a block is a copy
of the i-th original, and a strong copy shares the first four characters of its name with its original. There the order
alone is trusted; here the names must agree as well.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from patchssl.data.copy_truth import CopyData, CopyTruth
from patchssl.data.images import FileSource
from patchssl.data.listing import images_in, named
from patchssl.errors import DataError

logger = logging.getLogger(__name__)

HOME = "https://lear.inrialpes.fr/~jegou/data.php#copydays"
QUALITIES = (3, 5, 8, 10, 15, 20, 30, 50, 75)
PERCENTS = (10, 15, 20, 30, 40, 50, 60, 70, 80)
OFFICIAL_SIZES = {"original": 157, "strong": 229}
_OFFICIAL_BLOCK = 157
ORIGINAL, STRONG = "original", "strong"
_FAMILIES = {"jpegqual": QUALITIES, "crops": PERCENTS}
_PREFIX = 4
_SHARED = "first four characters"
_UNPACKING = "its archives of originals and strong copies unpack flat and belong in original/ and strong/"


def is_copydays(folder: Path) -> bool:
    """Whether a folder has this layout, be it in part."""
    return any((folder / name).is_dir() for name in (ORIGINAL, STRONG, *_FAMILIES))


def open_copydays(path: Path) -> CopyData:
    """Open a Copydays folder, or one of this shape of any size.

    The originals are a block of queries as well, as in DINO's evaluation. Whole blocks may be missing, images may not.

    Raises:
        DataError: there are no originals or no copies, a block lacks an image or has one too many, or a strong copy
            has no original or several.
    """
    blocks = _blocks(path)
    originals = blocks[ORIGINAL]
    # Checked first: of two originals with one name it could not be told which one a copy belongs to.
    _check_originals(path, originals)
    positives = {f"{ORIGINAL}/{name}": (f"{ORIGINAL}/{name}",) for name in originals}
    problems: list[str] = []
    for block, names in blocks.items():
        matches, wrong = (_strong if block == STRONG else _in_order)(names, originals)
        positives |= {f"{block}/{name}": (f"{ORIGINAL}/{match}",) for name, match in matches.items()}
        problems += [f"{block}/ {text}" for text in wrong]
    if problems:
        raise DataError(
            f"{path} is no whole Copydays folder: {'; '.join(problems)}. Found: {_found(blocks)}. Copy the missing "
            f"files into place, or leave out a block altogether; the official data: {HOME} ({_UNPACKING})"
        )
    _note_differences(path, blocks)
    truth = CopyTruth({query: query.rpartition("/")[0].replace("/", "_") for query in positives}, positives)
    name = path.resolve().name
    references = tuple(f"{ORIGINAL}/{image}" for image in originals)
    return CopyData(
        "copydays",
        {
            part: FileSource(path, ids, None, (), name, str(path), False)
            for part, ids in (("references", references), ("queries", tuple(positives)))
        },
        truth,
        {},
    )


def _blocks(path: Path) -> dict[str, list[str]]:
    """Names of the images of each block, sorted; blocks in the official order, `original` first."""
    folders = [name for name in (ORIGINAL, STRONG) if (path / name).is_dir()]
    for family in _FAMILIES:
        folders += [f"{family}/{level}" for level in _levels(path / family)]
    blocks = {block: images_in(path / block) for block in folders}
    empty = [block for block, names in blocks.items() if not names]
    lacking = [f"{ORIGINAL}/ is missing"] if ORIGINAL not in blocks else []
    lacking += [f"{block}/ holds no images" for block in empty]
    if not set(blocks) - {ORIGINAL}:
        lacking.append("there is no block of copies (strong/, jpegqual/Q/ or crops/P/)")
    if lacking:
        raise DataError(
            f"{path} is no Copydays folder: {'; '.join(lacking)}. Found: {_found(blocks) or 'no block'}. The official "
            f"data: {HOME} ({_UNPACKING}); patchssl data copies makes such a folder of any photographs"
        )
    return blocks


def _levels(family: Path) -> list[str]:
    """The names of a family's blocks in the order of their numbers."""
    if not family.is_dir():
        return []
    folders = [entry.name for entry in family.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    wrong = sorted(name for name in folders if not (name.isascii() and name.isdigit()))
    if wrong or not folders:
        raise DataError(
            f"{family} holds {f'the folders {named(wrong)}' if wrong else 'no folders'}; each folder in it is named by "
            f"its number, such as {', '.join(map(str, _FAMILIES[family.name][:3]))}"
        )
    return sorted(folders, key=lambda name: (int(name), name))


def _check_originals(path: Path, originals: Sequence[str]) -> None:
    counts = Counter(Path(name).stem for name in originals)
    twice = [stem for stem, count in counts.items() if count > 1]
    if twice:
        raise DataError(
            f"{path / ORIGINAL} holds {len(twice)} names more than once, with other suffixes ({named(twice)}); copies "
            "are matched by name, so keep one of each"
        )


def _in_order(names: Sequence[str], originals: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The i-th copy is one of the i-th original, and has its name: image → original, and what is wrong."""
    by_stem = {Path(name).stem: name for name in originals}
    counts = Counter(Path(name).stem for name in names)
    missing = [name for stem, name in by_stem.items() if stem not in counts]
    foreign = [name for name in names if Path(name).stem not in by_stem]
    twice = [stem for stem, count in counts.items() if count > 1]
    wrong = []
    if missing:
        wrong.append(f"lacks {len(missing)} of {len(originals)} images ({named(missing)})")
    if foreign:
        wrong.append(f"has {len(foreign)} images without an original of that name ({named(foreign)})")
    if twice:
        wrong.append(f"has {len(twice)} names more than once ({named(twice)})")
    return {name: by_stem[Path(name).stem] for name in names if Path(name).stem in by_stem}, wrong


def _strong(names: Sequence[str], originals: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """A strong copy's original is the one with its first four characters: image → original, and what is wrong."""
    by_prefix: dict[str, list[str]] = {}
    for name in originals:
        by_prefix.setdefault(name[:_PREFIX], []).append(name)
    lost = [name for name in names if name[:_PREFIX] not in by_prefix]
    unclear = [name for name in names if len(by_prefix.get(name[:_PREFIX], ())) > 1]
    without = [found for prefix, found in by_prefix.items() if prefix not in {name[:_PREFIX] for name in names}]
    wrong = []
    if lost:
        wrong.append(f"has {len(lost)} images without an original of the same {_SHARED} ({named(lost)})")
    if unclear:
        wrong.append(f"has {len(unclear)} images with several originals of the same {_SHARED} ({named(unclear)})")
    if without and not wrong:
        told = named([name for found in without for name in found])
        logger.warning("strong/ has no copy of %d of %d originals (%s)", len(without), len(originals), told)
    return {name: by_prefix[name[:_PREFIX]][0] for name in names if name[:_PREFIX] in by_prefix}, wrong


def _found(blocks: Mapping[str, Sequence[str]]) -> str:
    return ", ".join(f"{block}/ ({len(names)})" for block, names in blocks.items())


def _note_differences(path: Path, blocks: Mapping[str, Sequence[str]]) -> None:
    """Say in what the folder differs from the official data, and from what DINO's script reads."""
    official = [*OFFICIAL_SIZES, *(f"{family}/{level}" for family, levels in _FAMILIES.items() for level in levels)]
    missing = [block for block in official if block not in blocks]
    sizes = [
        f"{block}/ {len(names)} for {OFFICIAL_SIZES.get(block, _OFFICIAL_BLOCK)}"
        for block, names in blocks.items()
        if len(names) != OFFICIAL_SIZES.get(block, _OFFICIAL_BLOCK)
    ]
    if missing:
        told = named(missing)
        logger.warning("%s lacks %d of the official blocks (%s); they are not reported", path, len(missing), told)
    if sizes:
        # With as many originals as officially, other numbers of copies mean that some are lost.
        level = logging.WARNING if len(blocks[ORIGINAL]) == OFFICIAL_SIZES[ORIGINAL] else logging.INFO
        logger.log(level, "%s has other sizes than the official data: %s", path, named(sizes))
    other = [f"{block}/{name}" for block, names in blocks.items() for name in names if not name.endswith(".jpg")]
    if other:
        logger.warning(
            "%d images of %s do not end in .jpg (%s); DINO's script leaves such files out, here they count",
            len(other),
            path,
            named(other),
        )
