"""Where what can be made again is kept for a user."""

import os
import sys
from pathlib import Path

#: The environment variable that names the folder.
CACHE_VARIABLE = "PATCHSSL_CACHE"


def default_cache() -> Path:
    """The folder of this package: $PATCHSSL_CACHE, or `patchssl` in the user's cache folder.

    Raises:
        RuntimeError: the user has no home.
    """
    if os.environ.get(CACHE_VARIABLE):
        return Path(os.environ[CACHE_VARIABLE])
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "patchssl"
    # By the XDG specification a relative path counts as none.
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (given if given.is_absolute() else Path.home() / ".cache") / "patchssl"
