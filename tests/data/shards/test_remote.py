"""Shards elsewhere: copied once, whole or not at all, and what is said when that cannot be."""

import http.server
import multiprocessing
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import pytest

from patchssl.data.shards import copying, storage
from patchssl.data.shards.finding import find_remote
from patchssl.data.sources import open_unlabelled
from patchssl.errors import ConfigError, DataError
from patchssl.user_cache import user_cache


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves files, without parts of them; fails as it is told."""

    fail: Callable[[str, "Handler"], bool]
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if not self.fail(self.path, self):
            super().do_GET()

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Server:
    """A web server for a folder."""

    def __init__(self, folder: Path) -> None:
        self.asked: list[str] = []
        self.fail: Callable[[str, Handler], bool] = lambda path, handler: False
        made = type("Own", (Handler,), {"asked": self.asked, "fail": lambda _, path, handler: self.fail(path, handler)})
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(made, directory=str(folder)))
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def folder(tmp_path: Path, write_tar: Callable[..., Path], write_parquet: Callable[..., Path]) -> Path:
    """Three tar files of ten pictures each, and two parquet files."""
    for shard in range(3):
        write_tar(tmp_path / "web" / f"s-{shard}.tar", range(10 * shard, 10 * shard + 10))
    for shard in range(2):
        write_parquet(tmp_path / "web" / f"p-{shard}.parquet", range(10 * shard, 10 * shard + 10))
    return tmp_path / "web"


@pytest.fixture
def web(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(storage, "PAUSES_S", (0.01, 0.01))
    server = Server(folder)
    yield server
    server.close()


@pytest.fixture
def memory(folder: Path) -> Iterator[Any]:
    """The same files in fsspec's file system in memory."""
    system = fsspec.filesystem("memory")
    for path in folder.iterdir():
        system.pipe(f"/bucket/data/{path.name}", path.read_bytes())
    yield system
    system.rm("/bucket", recursive=True)


def copies() -> list[str]:
    return sorted(
        path.suffix for path in (user_cache() / "shards").iterdir() if path.is_file() and path.suffix != ".lock"
    )


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_remote_shards_are_those_of_the_folder(
    folder: Path, memory: Any, web: Server, kind: str, number_of: Callable[[Any], int]
) -> None:
    local = open_unlabelled(f"{folder}/*.{kind}")
    num = {"tar": 3, "parquet": 2}[kind]
    start = {"tar": "s", "parquet": "p"}[kind]
    for url in (
        f"memory://bucket/data/*.{kind}",
        f"memory://bucket/data/{start}-{{0..{num - 1}}}.{kind}",
        f"{web.url}/{start}-{{0..{num - 1}}}.{kind}",
        f"{web.url}/{start}-{{0..{num - 1}}}.{kind}?token=secret",
    ):
        source = open_unlabelled(url)
        assert list(source.ids) == list(local.ids)
        assert source.fingerprint() == local.fingerprint()
        assert source.state() != local.state()
        assert [number_of(source.read(index)) for index in range(len(source))] == list(range(10 * num))
        assert "secret" not in source.where(0) + source.location
        assert pickle.loads(pickle.dumps(source)).fetch(3) == local.fetch(3)


def test_footers_are_read_without_copying_and_tars_are_copied_once(memory: Any, web: Server) -> None:
    source = open_unlabelled("memory://bucket/data/*.parquet")
    assert not (user_cache() / "shards").exists()
    source.fetch(12)
    assert copies() == [".parquet"]
    open_unlabelled(f"{web.url}/s-{{0..2}}.tar")
    assert sorted(web.asked) == ["/s-0.tar", "/s-1.tar", "/s-2.tar"]
    again = open_unlabelled(f"{web.url}/s-{{0..2}}.tar")
    assert len(web.asked) == 3
    for copy in (user_cache() / "shards").glob("*.tar"):
        copy.unlink()
    again.fetch(0)  # only this one comes again, and no headers are gone through
    assert web.asked[3:] == ["/s-0.tar"]


def test_a_folder_of_a_bucket(memory: Any) -> None:
    for name in ("p-0.parquet", "p-1.parquet"):
        memory.rm(f"/bucket/data/{name}")
    for url in ("memory://bucket/data", "memory://bucket/data/", "memory://bucket"):
        assert len(open_unlabelled(url)) == 30


def test_a_forked_process_copies_for_itself(web: Server) -> None:
    source = open_unlabelled(f"{web.url}/p-{{0..1}}.parquet")
    child = os.fork()
    if child == 0:
        os._exit(0 if len(source.fetch(3)) > 20 else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert copies() == [".parquet"]


def test_several_processes_copy_once(web: Server) -> None:
    """And a copy is there only when it is whole."""
    slow = threading.Event()

    def wait(path: str, handler: Handler) -> bool:
        slow.wait(0.3)
        return False

    web.fail = wait
    shard = find_remote(f"{web.url}/s-0.tar")[0]
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=copying.local_copy, args=(shard,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert web.asked == ["/s-0.tar"]
    assert copies() == [".tar"]


def test_a_server_that_fails_for_a_while_is_asked_again(web: Server, caplog: pytest.LogCaptureFixture) -> None:
    """Whether it refuses, sends half of a file, or nothing."""
    ways = iter(["busy", "half"])

    def fail(path: str, handler: Handler) -> bool:
        way = next(ways, None)
        if way == "busy":
            handler.send_error(503, "Service Unavailable")
        if way == "half":
            handler.send_response(200)
            handler.send_header("Content-Length", "30720")
            handler.end_headers()
            handler.wfile.write(bytes(1000))
            handler.close_connection = True
        return way is not None

    web.fail = fail
    assert len(open_unlabelled(f"{web.url}/s-0.tar")) == 10
    assert caplog.text.count("trying again in") == 2
    assert "503" in caplog.text
    assert len(web.asked) == 3
    assert [path for path in (user_cache() / "shards").iterdir() if path.suffix == ".part"] == []


def test_a_server_that_goes_on_failing_ends_it_with_the_reason(web: Server) -> None:
    def fail(path: str, handler: Handler) -> bool:
        handler.send_error(500, "Broken")
        return True

    web.fail = fail
    with pytest.raises(
        DataError, match=r"/s-0\.tar cannot be copied: 500.*, 3 times in a row; what has been copied is"
    ):
        open_unlabelled(f"{web.url}/s-0.tar")
    assert len(web.asked) == 3
    assert copies() == []


def test_a_refusal_is_not_asked_again(web: Server) -> None:
    def fail(path: str, handler: Handler) -> bool:
        handler.send_error(403, "Forbidden")
        return True

    web.fail = fail
    with pytest.raises(DataError, match=r"/s-0\.tar cannot be copied: 403, message='Forbidden'"):
        open_unlabelled(f"{web.url}/s-0.tar")
    assert len(web.asked) == 1


def test_a_server_that_is_not_there(web: Server) -> None:
    web.close()
    with pytest.raises(DataError, match=r"/s-0\.tar cannot be opened: .*Cannot connect.*, 3 times in a row"):
        open_unlabelled(f"{web.url}/s-0.tar")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (
            "WEB/s-{0..4}.tar",
            r"^2 of the 5 shards cannot be found: http://.*/s-3\.tar, http://.*/s-4\.tar \(no such file\)",
        ),
        ("WEB/none.tar", r"^http://.*/none\.tar: no such file$"),
        ("WEB/none.tar?key=secret", r"^http://[\d.:]*/none\.tar: no such file$"),
        ("memory://bucket/none-*.tar", r"^memory://bucket/none-\*\.tar names no \.tar or \.parquet file that is there"),
        ("memory://bucket/none", r"names no \.tar or \.parquet file that is there; it names /bucket/none"),
        ("memory://bucket/data", r"holds 3 \.tar and 2 \.parquet files; give one kind"),
        ("memory://bucket/data/x.zip", r"names no \.tar or \.parquet file that is there; it names"),
        (
            "nonsense://x/y.tar",
            r"^nonsense://x/y\.tar cannot be opened: Protocol not known: nonsense; known are file, https, .* in all",
        ),
    ],
)
def test_urls_that_lead_nowhere(web: Server, memory: Any, data: str, words: str) -> None:
    with pytest.raises((DataError, ConfigError), match=words):
        open_unlabelled(data.replace("WEB", web.url))


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec.core

    def lacks(url: str, **options: Any) -> Any:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", lacks)
    with pytest.raises(
        DataError, match=r"^s3://b/x\.tar needs a package that is not installed: Install s3fs to access S3$"
    ):
        open_unlabelled("s3://b/x.tar")


def test_bad_files_elsewhere_are_named(memory: Any) -> None:
    memory.pipe("/bucket/data/s-1.tar", b"<html>" * 200)
    with pytest.raises(DataError, match=r"memory://.*/s-1\.tar is not a tar file"):
        open_unlabelled("memory://bucket/data/*.tar")
    memory.pipe("/bucket/data/p-1.parquet", memory.cat("/bucket/data/p-1.parquet")[:-30])
    with pytest.raises(DataError, match=r"memory://.*/p-1\.parquet is not a whole parquet file"):
        open_unlabelled("memory://bucket/data/*.parquet")
    memory.pipe("/bucket/data/p-1.parquet", b"")
    with pytest.raises(DataError, match=r"/p-1\.parquet is empty \(0 bytes\)"):
        open_unlabelled("memory://bucket/data/*.parquet")


def test_what_vanishes_elsewhere_before_it_is_copied(memory: Any) -> None:
    source = open_unlabelled("memory://bucket/data/*.parquet")
    memory.rm("/bucket/data/p-1.parquet")
    assert source.fetch(3)
    with pytest.raises(DataError, match=r"p-1\.parquet cannot be copied: no such file"):
        source.fetch(13)


def test_what_grows_elsewhere_is_not_taken_for_the_same(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "PAUSES_S", (0.01,))
    source = open_unlabelled("memory://bucket/data/*.parquet")
    memory.pipe("/bucket/data/p-0.parquet", memory.cat("/bucket/data/p-0.parquet") + bytes(100))
    memory.pipe("/bucket/data/p-1.parquet", memory.cat("/bucket/data/p-1.parquet")[:-100])
    with pytest.raises(DataError, match=r"p-0\.parquet has changed: it had [\d,]+ bytes, and sends more"):
        source.fetch(3)
    with pytest.raises(
        DataError, match=r"p-1\.parquet cannot be copied: [\d,]+ of [\d,]+ bytes came, 2 times in a row"
    ):
        source.fetch(13)
    assert copies() == []


def test_no_room_for_copies(memory: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Usage:
        free = 10

    with monkeypatch.context() as patched:
        patched.setattr(copying.shutil, "disk_usage", lambda path: Usage)  # type: ignore[attr-defined]
        with pytest.raises(
            DataError,
            match=r"s-0\.tar has [\d,]+ bytes, and .*, where it is copied to, has 10 left; "
            r"make room, or set PATCHSSL_CACHE to a folder with more",
        ):
            open_unlabelled("memory://bucket/data/s-0.tar")
    with monkeypatch.context() as patched:

        def full(*args: Any, **options: Any) -> None:
            raise OSError(28, "No space left on device")

        patched.setattr(type(memory), "get_file", full)
        with pytest.raises(DataError, match=r"has no room for a copy of .*s-0\.tar; make room, or set PATCHSSL_CACHE"):
            open_unlabelled("memory://bucket/data/s-0.tar")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PATCHSSL_CACHE", str(tmp_path / "file"))
    with pytest.raises(
        DataError, match=r"no copy of .*s-0\.tar can be made: .*Not a directory.*; make room, or set PATCHSSL_CACHE"
    ):
        open_unlabelled("memory://bucket/data/s-0.tar")


def test_what_a_killed_process_left_is_not_used(memory: Any) -> None:
    shard = find_remote("memory://bucket/data/s-0.tar")[0]
    path = copying.local_copy(shard)
    content = path.read_bytes()
    path.write_bytes(content[:100])  # as of a file system that lost its end
    left = path.parent / f".{path.name}.abc.part"
    left.write_bytes(content[:50])
    assert copying.local_copy(shard).read_bytes() == content
    assert not left.exists()


def test_copying_several_is_given_up_at_once(web: Server) -> None:
    """When one fails, or someone presses Ctrl-C, the others do not go on in the background."""

    def fail(path: str, handler: Handler) -> bool:
        if path == "/s-0.tar":
            handler.send_error(403, "Forbidden")
            return True
        handler.send_response(200)
        handler.send_header("Content-Length", "30720")
        handler.end_headers()
        for _ in range(200):  # twenty seconds
            try:
                handler.wfile.write(bytes(150))
            except OSError:
                break
            time.sleep(0.1)
        return True

    web.fail = fail
    started = time.monotonic()
    with pytest.raises(DataError, match="403"):
        open_unlabelled(f"{web.url}/s-{{0..2}}.tar")
    assert time.monotonic() - started < 10


def test_what_a_url_may_hide_is_not_shown() -> None:
    assert storage.shown("https://user:key@host/x.tar?signature=abc") == "https://host/x.tar"
    assert storage.shown("s3://bucket/x?.tar") == "s3://bucket/x?.tar"
    assert storage.shown("a?b@c.tar") == "a?b@c.tar"
