"""How `pretrain` keeps decoded images: where, how small, and made with what progress."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from patchssl.cli.image_progress import image_progress
from patchssl.cli.options import usable_workers

if TYPE_CHECKING:
    from patchssl.config import Config
    from patchssl.data.cache import CachedImages
    from patchssl.data.images import StoredSource


def check_cache_place(config: "Config", output: Path) -> None:
    """Make sure, before anything is computed, that images may be kept where the configuration says.

    Args:
        config: complete.
        output: the run folder.

    Raises:
        ConfigError: that is inside the run folder.
        DataError: there is something else.
    """
    from patchssl.data.cache.folder import check_root
    from patchssl.errors import ConfigError

    root = _root(config)
    if root is None:
        return
    if root.resolve().is_relative_to(output.resolve()):
        raise ConfigError(
            f"--cache-images {root} lies in the run folder {output}; give a folder elsewhere, which many runs may share"
        )
    check_root(root)


def as_cached(config: "Config", images: "StoredSource") -> "StoredSource":
    """The images as they would be kept, without anything being made, for estimates; or those that are not to be.

    Raises:
        ConfigError: a size is given for images that are to be kept nowhere.
    """
    if config.data.cache_images is None:
        if config.data.cache_side is not None:
            from patchssl.errors import ConfigError

            raise ConfigError(
                f"data.cache_side is {config.data.cache_side} px, and data.cache_images names no folder in which "
                "images of that size are kept; give --cache-images DIR, or leave data.cache_side out"
            )
        return images
    from patchssl.data.cache import ShrunkImages

    assert config.data.cache_side is not None  # derived
    return ShrunkImages(images, config.data.cache_side)


def cache_facts(config: "Config", images: "StoredSource") -> dict[str, str | int]:
    """What the cache of images would take, for a plan: nothing where there is to be none.

    Raises:
        DataError: its folder holds something else.
    """
    root = _root(config)
    if root is None:
        return {}
    from patchssl.data.cache import find_image_cache

    assert config.data.cache_side is not None  # derived
    found = find_image_cache(images, root, config.data.cache_side)
    return {
        "cache_images": str(found.shards.folder),
        "cache_side": found.index.side,
        "cache_missing_images": found.shards.num_of(found.missing),
        "cache_missing_bytes": found.missing_bytes,
    }


def cached(config: "Config", images: "StoredSource", *, quiet: bool) -> "CachedImages | None":
    """The images from the cache that the configuration names, made as far as it is missing; None if it names none.

    Args:
        config: complete.
        images: the originals.
        quiet: show no progress.

    Raises:
        PatchsslError: as open_image_cache.
    """
    from patchssl.data.cache import open_image_cache
    from patchssl.ranks import is_main

    root = _root(config)
    if root is None:
        return None
    assert config.data.cache_side is not None  # derived
    # Nothing else is computed meanwhile.
    workers = usable_workers(shared=True) if config.data.workers is None else config.data.workers
    progress = partial(image_progress, "images into the cache", quiet=quiet or not is_main())
    return open_image_cache(images, root, config.data.cache_side, workers=workers, progress=progress)


def _root(config: "Config") -> Path | None:
    from patchssl.errors import ConfigError

    name = config.data.cache_images
    if name is None:
        return None
    if "\0" in name or name != name.encode(errors="replace").decode():
        raise ConfigError(
            f"data.cache_images is {name!r}, and bytes that are no UTF-8, or zero, cannot be kept in config.yaml; take "
            "another name"
        )
    return Path(name)
