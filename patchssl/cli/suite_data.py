"""The data sets that a suite names → opened images and what is right."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchssl.cli.options import default_cache
from patchssl.errors import PatchsslError

if TYPE_CHECKING:
    from patchssl.evaluate.suite_config import Builtin
    from patchssl.evaluate.suite_structs import DataKey, Opened


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
    from patchssl.evaluate.suite_config import BUILTIN
    from patchssl.evaluate.suite_structs import Opened

    how = {name: value if name in _NO_DATA else places.get(value, value) for name, value in key.how}
    if key.name != BUILTIN:
        try:
            return _OPENERS[key.layout](Path(places.get(key.name, key.name)), how)
        except PatchsslError as error:
            hint = "" if key.name in places else f" (or say where it lies: --data {key.name}=PATH)"
            raise type(error)(f"{error}{hint}") from None
    folder = cached_dataset(
        default_cache(), num_images=builtin.num_images, image_size_px=builtin.image_size, seed=builtin.seed
    )
    opened = _OPENERS[key.layout](folder / _BUILTIN_PARTS[key.layout], how)
    told = f"{BUILTIN}: {builtin.num_images} images of {builtin.image_size} px, seed {builtin.seed}"
    sources: dict[str, Any] = dict(opened.sources)
    return Opened(
        {part: replace(source, name=BUILTIN, location=told) for part, source in sources.items()}, opened.truth
    )


# As for the single evaluations: the reference protocols ignore EXIF orientation.


def _parts(path: Path, how: Mapping[str, str]) -> "Opened":
    from patchssl.data.sources import open_labelled
    from patchssl.evaluate.suite_structs import Opened

    return Opened(open_labelled(path, apply_exif=False))


def _labelled(path: Path, how: Mapping[str, str]) -> "Opened":
    from patchssl.data.sources import open_classes
    from patchssl.evaluate.suite_structs import LABELLED, Opened

    return Opened({LABELLED: open_classes(path, apply_exif=False)})


_OPENERS: dict[str, Callable[[Path, Mapping[str, str]], "Opened"]] = {"parts": _parts, "labelled": _labelled}
_BUILTIN_PARTS = {"parts": "folder", "labelled": "folder/val"}
# What a task says about opening that is no name of a data set.
_NO_DATA = ("crop_queries",)
