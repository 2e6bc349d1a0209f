"""The folder in which things are kept that can be made again."""

import os
import sys
from pathlib import Path

CACHE_VARIABLE = "PATCHSSL_CACHE"


def user_cache() -> Path:
    """$PATCHSSL_CACHE, or `patchssl` in the user's cache folder."""
    if os.environ.get(CACHE_VARIABLE):
        return Path(os.environ[CACHE_VARIABLE])
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "patchssl"
    # By the XDG specification a relative path counts as none.
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (given if given.is_absolute() else Path.home() / ".cache") / "patchssl"
