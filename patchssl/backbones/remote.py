"""Fetching weights by name without long waits where there is no network."""

import contextlib
import socket
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator

import huggingface_hub.constants as hub

_CONNECT_S = 4.0
_READ_S = 20.0


@contextlib.contextmanager
def impatient(url: str) -> Iterator[None]:
    """While a library fetches from a server, let it fail within seconds where the server cannot be reached.

    Libraries retry for a minute, or wait without end. What is in their caches is still found.

    Args:
        url: of the server.
    """
    offline, timeout = hub.HF_HUB_OFFLINE, socket.getdefaulttimeout()
    hub.HF_HUB_OFFLINE = offline or not is_reachable(url)
    socket.setdefaulttimeout(_CONNECT_S if hub.HF_HUB_OFFLINE else _READ_S)
    try:
        yield
    finally:
        hub.HF_HUB_OFFLINE = offline
        socket.setdefaulttimeout(timeout)


def is_reachable(url: str, timeout_s: float = _CONNECT_S) -> bool:
    """Whether a connection to a server, or to the proxy before it, comes about in time."""
    target = urllib.parse.urlsplit(url)
    proxy = urllib.request.getproxies().get(target.scheme)
    if proxy and not urllib.request.proxy_bypass(target.hostname or ""):
        target = urllib.parse.urlsplit(proxy if "//" in proxy else f"//{proxy}")
    address = (target.hostname or "", target.port or (80 if target.scheme == "http" else 443))
    connected = threading.Event()

    def connect() -> None:
        with contextlib.suppress(OSError), socket.create_connection(address, timeout_s):
            connected.set()

    # In a thread, since looking up a name has no time limit.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(timeout_s)
    return connected.is_set()
