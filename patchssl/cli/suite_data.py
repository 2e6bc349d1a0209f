"""The data sets that a suite names → opened images and what is right."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchssl.errors import PatchsslError
from patchssl.user_cache import user_cache

if TYPE_CHECKING:
    from patchssl.evaluate.suites.config import Builtin
    from patchssl.evaluate.suites.structs import DataKey, Opened


def open_suite_data(key: "DataKey", builtin: "Builtin", places: Mapping[str, str]) -> "Opened":
    """Open a data set as a suite's task asks for it.

    Args:
        key: its name, and what it is opened as.
        builtin: what the built-in images are.
        places: name → path, of data sets that do not lie under their name.

    Raises:
        PatchsslError: it cannot be opened.
    """
    from patchssl.data.synth.cache import cached_dataset
    from patchssl.evaluate.suites.config import BUILTIN

    how = {name: value if name in _NO_DATA else places.get(value, value) for name, value in key.how}
    if key.name != BUILTIN:
        path = places.get(key.name, key.name)
        try:
            opened = _OPENERS[key.layout](Path(path), how)
            # Rows call data what the suite calls them, not by a folder's name such as `val`.
            return _named(opened, key.name) if key.name in places else opened
        except PatchsslError as error:
            hint = "" if key.name in places else f" (or say where it lies: --data {key.name}=PATH)"
            raise type(error)(f"{error}{hint}") from None
    folder = cached_dataset(
        user_cache(), num_images=builtin.num_images, image_size_px=builtin.image_size, seed=builtin.seed
    )
    opened = _OPENERS[key.layout](folder / _BUILTIN_PARTS[key.layout], how)
    told = f"{BUILTIN}: {builtin.num_images} images of {builtin.image_size} px, seed {builtin.seed}"
    return _named(opened, BUILTIN, told)


def _named(opened: "Opened", name: str, location: str | None = None) -> "Opened":
    sources = {part: _source_named(source, name, location) for part, source in opened.sources.items()}
    return replace(opened, sources=sources)


def _source_named(source: Any, name: str, location: str | None) -> Any:
    if hasattr(source, "source"):  # what shows a part of another source goes by its name
        return replace(source, source=_source_named(source.source, name, location))
    return replace(source, name=name, location=location or source.location)


# As for the single evaluations: the reference protocols ignore EXIF orientation.


def _parts(path: Path, how: Mapping[str, str]) -> "Opened":
    from patchssl.data.sources import open_labelled
    from patchssl.evaluate.suites.structs import Opened

    return Opened(open_labelled(path, apply_exif=False))


def _labelled(path: Path, how: Mapping[str, str]) -> "Opened":
    from patchssl.data.sources import open_classes
    from patchssl.evaluate.suites.structs import LABELLED, Opened

    return Opened({LABELLED: open_classes(path, apply_exif=False)})


def _classes(path: Path, how: Mapping[str, str]) -> "Opened":
    from patchssl.data.query_gallery import open_query_gallery
    from patchssl.evaluate.suites.structs import Opened

    return Opened(open_query_gallery(path, apply_exif=False).sources)


def _copies(path: Path, how: Mapping[str, str]) -> "Opened":
    from patchssl.data.copy_data import open_copies
    from patchssl.evaluate.suites.structs import Opened

    distractors, whitening = (Path(how[name]) if name in how else None for name in ("distractors", "whitening"))
    # DINO's script takes the images of these two folders themselves.
    data = open_copies(path, distractors=distractors, whitening=whitening, recursive=how["protocol"] != "dino")
    return Opened(data.sources, data.truth)


def _revisited(path: Path, how: Mapping[str, str]) -> "Opened":
    from patchssl.data.revisited import open_revisited
    from patchssl.evaluate.retrieval import PROTOCOLS
    from patchssl.evaluate.suites.structs import Opened

    crop = how["crop_queries"] == "yes" if "crop_queries" in how else PROTOCOLS[how["protocol"]].crop_queries
    distractors = Path(how["distractors"]) if "distractors" in how else None
    data = open_revisited(path, crop_queries=crop, distractors=distractors)
    return Opened(data.sources, data.truth)


def _pictures(path: Path, how: Mapping[str, str]) -> "Opened":
    from patchssl.data.sources import open_unlabelled
    from patchssl.evaluate.suites.structs import Opened

    return Opened({"pictures": open_unlabelled(path)})


_OPENERS: dict[str, Callable[[Path, Mapping[str, str]], "Opened"]] = {
    "parts": _parts,
    "labelled": _labelled,
    "classes": _classes,
    "copies": _copies,
    "revisited": _revisited,
    "pictures": _pictures,
}
_BUILTIN_PARTS = {
    "parts": "folder",
    "labelled": "folder/val",
    "classes": "folder/val",
    "copies": "copydays",
    "revisited": "revisited",
    "pictures": "folder/val",
}
# What a task says about opening that is no name of a data set.
_NO_DATA = ("crop_queries", "protocol")
