"""The folder in which things are kept that can be made again."""

import errno
import os
import sys
from pathlib import Path

CACHE_VARIABLE = "PATCHSSL_CACHE"


def user_cache() -> Path:
    """$PATCHSSL_CACHE, or `patchssl` in the user's cache folder.

    Raises:
        OSError: the user has no home folder, as in some containers.
    """
    if os.environ.get(CACHE_VARIABLE):
        return Path(os.environ[CACHE_VARIABLE])
    # By the XDG specification a relative path counts as none.
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if given.is_absolute() and sys.platform != "darwin":
        return given / "patchssl"
    try:
        home = Path.home()
    except RuntimeError:
        raise OSError(errno.ENOENT, f"there is no home folder; set {CACHE_VARIABLE}") from None
    return home / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "patchssl"
