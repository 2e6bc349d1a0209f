"""Files elsewhere, as fsspec reaches them."""

import logging
import os
import re
import time
from collections.abc import Callable
from typing import Any, TypeVar

from patchssl.errors import DataError

logger = logging.getLogger(__name__)

Value = TypeVar("Value")


class MissingError(DataError):
    """There is no such file."""


#: How long to wait before each further try, seconds.
PAUSES_S = (1.0, 4.0, 15.0)

_URL = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*)(://|::)")
_USUAL = ("file", "https", "s3", "gs", "az", "hf", "ftp", "sftp", "hdfs", "webdav")
# No data is sent for so long: the connection is lost. There is no limit for a whole file.
_SILENCE_S = 60.0


def is_url(text: str) -> bool:
    """Whether DATA names something through a protocol."""
    return _URL.match(text) is not None and "://" in text


def on_this_machine(text: str) -> str:
    """DATA, or of a URL of this machine (file://) the path that it names."""
    if text.startswith(("file://", "local://")) and not os.path.lexists(text):
        return file_system(text)[1]
    return text


def shown(url: str) -> str:
    """A URL for messages, without what may be a key to it; anything else as it is."""
    if not is_url(url):
        return url
    without = re.sub(r"(?<=://)[^/@]*@", "", url)
    return without.partition("?")[0] if without.startswith(("http://", "https://")) else without


def file_system(url: str) -> tuple[Any, str]:
    """The file system of a URL, of this process, and the path in it.

    Raises:
        DataError: fsspec does not know the protocol, or lacks a package for it.
    """
    import fsspec

    protocol = _URL.match(url)
    options: dict[str, Any] = {}
    try:
        if protocol is not None and protocol[1] in ("http", "https"):
            import aiohttp

            limit = aiohttp.ClientTimeout(total=None, sock_connect=_SILENCE_S, sock_read=_SILENCE_S)
            options = {"client_kwargs": {"timeout": limit}}
        system, path = fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        where = "; pip install 'patchssl[shards]'" if "aiohttp" in str(error) else ""
        raise DataError(f"{shown(url)} needs a package that is not installed: {_line(error)}{where}") from None
    except Exception as error:  # each file system has errors of its own
        known = set(fsspec.available_protocols())
        usual = ", ".join(name for name in _USUAL if name in known)
        more = f"; known are {usual} and {len(known)} in all" if "rotocol not known" in str(error) else ""
        raise DataError(f"{shown(url)} cannot be opened: {_line(error)}{more}") from None
    return system, str(path)


def trying(
    what: str, call: Callable[[], Value], *, advice: str = "", wait: Callable[[float], object] = time.sleep
) -> Value:
    """Call what talks to a server, again after a while where that may help.

    Args:
        what: is named in messages.
        call: may raise anything.
        advice: what to do when it is in vain.
        wait: lets so many seconds pass.

    Raises:
        MissingError: there is no such file.
        DataError: it fails for good, or again and again.
    """
    for pause in (*PAUSES_S, None):
        try:
            return call()
        except DataError:
            raise
        except Exception as error:
            cause = error.__cause__ or error
            told = "no such file" if _is_missing(error) else _line(cause)
            if _is_missing(error):
                raise MissingError(f"{what}: {told}{advice}") from None
            if _is_final(cause):
                raise DataError(f"{what}: {told}{advice}") from None
            if pause is None:
                raise DataError(f"{what}: {told}, {len(PAUSES_S) + 1} times in a row{advice}") from None
            logger.warning("%s: %s; trying again in %.0f s", what, told, pause)
        wait(pause)
    raise AssertionError("the last try returns or raises")


def _is_missing(error: BaseException) -> bool:
    # Of a server that does not answer, too, fsspec says that it has no such file; why stands in the cause.
    return _status(error.__cause__) == 404 or (isinstance(error, FileNotFoundError) and error.__cause__ is None)


def _is_final(error: BaseException) -> bool:
    status = _status(error)
    # 408 and 429 ask to come again.
    refused = status is not None and 400 <= status < 500 and status not in (408, 429)
    return refused or isinstance(error, PermissionError | NotImplementedError | ImportError)


def _status(error: BaseException | None) -> int | None:
    status = getattr(error, "status", None)
    return status if isinstance(status, int) else None


def _line(error: BaseException) -> str:
    """An error in one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__
