"""The listing that is kept of a large folder: as if the folder were listed anew, whatever has changed."""

import json
import logging
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from patchssl.data import folder_tree, listing_cache
from patchssl.data.folder_tree import find
from patchssl.data.listing_cache import image_files
from patchssl.data.sources import open_unlabelled

ODD = ["with space", 'quote"s', "it's", "new\nline", "日本", os.fsdecode(b"\xff\xfe"), "a.jpg", "tab\t", "x.y"]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep listings of few files, too."""
    monkeypatch.setattr(listing_cache, "LEAST_FILES", 1)


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders that are listed from now on."""
    seen = list[str]()
    scandir = os.scandir

    def noting(path: str) -> object:
        seen.append(str(path))
        return scandir(path)

    monkeypatch.setattr("os.scandir", noting)
    return seen


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    return path


def grow_old(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if what was written until now had been written long ago."""
    monkeypatch.setattr(folder_tree, "_STEP_NS", 0)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose listing has been kept."""
    grow_old(monkeypatch)
    root = tmp_path / "data"
    for name in ("a/deep/er/1.jpg", "a/deep/2.png", "a/3.jpg", "b/4.jpg", "5.jpg", "b/no.txt", "empty/no.txt"):
        touch(root / name)
    touch(tmp_path / "outside" / "6.jpg")
    touch(tmp_path / "other" / "7.jpg")
    (root / "link").symlink_to(tmp_path / "outside")
    (root / "dangling").symlink_to(tmp_path / "nowhere")
    (root / "b" / "up").symlink_to(root)
    expected = ["5.jpg", "a/3.jpg", "a/deep/2.png", "a/deep/er/1.jpg", "b/4.jpg", "link/6.jpg"]
    assert list(image_files(root)) == expected
    assert [file.suffix for file in kept().iterdir()] == [".npz"]
    return root


def kept() -> Path:
    return Path(os.environ["PATCHSSL_CACHE"]) / "listings"


def test_what_has_not_changed_is_not_listed_again(
    data: Path, listed: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    expected = find(data).files
    listed.clear()
    (written,) = kept().iterdir()
    before = written.stat().st_mtime_ns
    with caplog.at_level(logging.INFO, logger="patchssl"):
        found = image_files(data)
    assert found == expected
    assert listed == []
    assert written.stat().st_mtime_ns == before
    assert f"{data}: 6 image files, from the listing {written}; 0 of 8 folders had changed" in caplog.text
    # By another name of the same folder.
    (data.parent / "alias").symlink_to(data)
    assert image_files(data.parent / "alias") == expected
    assert listed == []


def test_what_a_file_holds_does_not_matter(data: Path, listed: list[str]) -> None:
    (data / "a" / "3.jpg").write_bytes(b"other")
    assert len(image_files(data)) == 6
    assert listed == []


def remove_root(root: Path) -> None:
    shutil.rmtree(root)
    touch(root / "9.jpg")


def replace_by_another(folder: Path) -> None:
    other = folder.with_name("made beside it")
    touch(other / "2.png")
    times = folder.stat()
    shutil.rmtree(folder)
    other.rename(folder)
    os.utime(folder, ns=(times.st_atime_ns, times.st_mtime_ns))


def retarget(link: Path, target: Path) -> None:
    link.unlink()
    link.symlink_to(target)


def empty(root: Path) -> None:
    shutil.rmtree(root)
    root.mkdir()


def put_a_file_in_place_of_a_folder(root: Path) -> None:
    shutil.rmtree(root / "a/deep")
    touch(root / "a/deep")


def put_a_folder_in_place_of_a_file(root: Path) -> None:
    (root / "5.jpg").unlink()
    touch(root / "5.jpg" / "in.jpg")


def put_a_folder_in_place_of_a_link(root: Path) -> None:
    (root / "link").unlink()
    (root.parent / "outside").rename(root / "link")


def put_a_link_in_place_of_a_folder(root: Path) -> None:
    (root / "a").rename(root.parent / "moved")
    (root / "a").symlink_to(root.parent / "moved")


def rename_with_old_times(root: Path) -> None:
    times = (root / "a").stat()
    (root / "a" / "3.jpg").rename(root / "a" / "8.jpg")
    os.utime(root / "a", ns=(times.st_atime_ns, times.st_mtime_ns))


def link_through_another(root: Path) -> None:
    """`way/on` led to b by a link elsewhere, which now leads to the folder that `way` lies in."""
    retarget(root.parent / "turn", root)


CHANGES: dict[str, Callable[[Path], object]] = {
    "a file deep down": lambda root: touch(root / "a/deep/er/new.jpg"),
    "a file at the root": lambda root: touch(root / "new.jpg"),
    "a file that is no image": lambda root: touch(root / "a/new.txt"),
    "a file removed": lambda root: (root / "a/deep/2.png").unlink(),
    "a file renamed": lambda root: (root / "a/deep/er/1.jpg").rename(root / "a/deep/er/9.jpg"),
    "a file renamed to be hidden": lambda root: (root / "a/3.jpg").rename(root / "a/.3.jpg"),
    "a file renamed, old times": rename_with_old_times,
    "a file moved": lambda root: (root / "a/3.jpg").rename(root / "b/3.jpg"),
    "a file in place of a folder": put_a_file_in_place_of_a_folder,
    "a folder in place of a file": put_a_folder_in_place_of_a_file,
    "a folder": lambda root: touch(root / "b/new/deep/9.jpg"),
    "an empty folder": lambda root: (root / "b/new").mkdir(),
    "a folder filled": lambda root: touch(root / "empty/9.jpg"),
    "a folder removed": lambda root: shutil.rmtree(root / "a/deep"),
    "a folder renamed": lambda root: (root / "a/deep").rename(root / "a/deeper"),
    "a folder renamed to be hidden": lambda root: (root / "a/deep").rename(root / "a/.deep"),
    "a folder moved": lambda root: (root / "a/deep").rename(root / "b/deep"),
    "another folder in its place": lambda root: replace_by_another(root / "a/deep"),
    "folders that change places": lambda root: (
        (root / "a").rename(root / "c"),
        (root / "b").rename(root / "a"),
        (root / "c").rename(root / "b"),
    ),
    "a link to another folder": lambda root: retarget(root / "link", root.parent / "other"),
    "a link to nothing": lambda root: retarget(root / "link", root.parent / "nowhere"),
    "a link back up": lambda root: retarget(root / "link", root),
    "a link back up to another": lambda root: retarget(root / "b/up", root / "a"),
    "a link that led to nothing": lambda root: touch(root.parent / "nowhere/9.jpg"),
    "a file behind a link": lambda root: touch(root.parent / "outside/9.jpg"),
    "a folder behind a link is gone": lambda root: shutil.rmtree(root.parent / "outside"),
    "a folder in place of a link": put_a_folder_in_place_of_a_link,
    "a link in place of a folder": put_a_link_in_place_of_a_folder,
    "a second link to a folder": lambda root: (root / "a/again").symlink_to(root.parent / "outside"),
    "a link through another": link_through_another,
    "another root": remove_root,
    "nothing left": empty,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_every_change_is_noticed(change: Callable[[Path], object], data: Path) -> None:
    (data.parent / "turn").symlink_to(data / "b")
    (data / "way").mkdir()
    (data / "way" / "on").symlink_to(data.parent / "turn")
    image_files(data)
    change(data)
    expected = find(data).files
    assert image_files(data) == expected
    # And is kept: the next time as well.
    assert image_files(data) == expected


def test_only_what_has_changed_is_listed(data: Path, listed: list[str]) -> None:
    touch(data / "a" / "deep" / "new" / "1.jpg")
    listed.clear()
    image_files(data)
    assert sorted(listed) == [str(data / "a/deep"), str(data / "a/deep/new")]
    listed.clear()
    image_files(data)
    assert listed == []


def test_a_folder_changed_a_moment_ago_is_listed_again(
    tmp_path: Path, listed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within the steps of a file system's clock two changes have the same time."""
    monkeypatch.setattr(folder_tree, "_STEP_NS", 300_000_000)
    touch(tmp_path / "data/old/1.jpg")
    time.sleep(0.35)
    touch(tmp_path / "data/young/2.jpg")
    image_files(tmp_path / "data")
    listed.clear()
    assert list(image_files(tmp_path / "data")) == ["old/1.jpg", "young/2.jpg"]
    assert sorted(listed) == [str(tmp_path / "data"), str(tmp_path / "data/young")]
    time.sleep(0.35)
    image_files(tmp_path / "data")
    listed.clear()
    image_files(tmp_path / "data")
    assert listed == []


def test_folders_whose_times_tell_nothing_are_never_kept(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(kept())
    monkeypatch.setattr(folder_tree, "untold_devices", lambda: frozenset({data.stat().st_dev}))
    assert len(image_files(data)) == 6
    assert not list(kept().iterdir()) if kept().exists() else True


def test_folders_that_cannot_be_listed(
    data: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each time it is told; as soon as it can be listed, it is."""
    scandir, locked = os.scandir, data / "a" / "deep"

    def refuse(path: str) -> object:
        if str(path) == str(locked):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    touch(locked / "more.jpg")
    with monkeypatch.context() as patched:
        patched.setattr("os.scandir", refuse)
        for _ in range(3):
            caplog.clear()
            with caplog.at_level(logging.INFO, logger="patchssl"):
                assert list(image_files(data)) == ["5.jpg", "a/3.jpg", "b/4.jpg", "link/6.jpg"]
            assert caplog.text.count(f"folder left out: {locked}: Permission denied") == 1
    assert image_files(data) == find(data).files
    assert "a/deep/er/1.jpg" in image_files(data)


def test_few_files_are_not_kept(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing_cache, "LEAST_FILES", 6)
    touch(data / "new.jpg")
    assert len(image_files(data)) == 7
    assert list(kept().iterdir())
    (data / "new.jpg").unlink()
    (data / "5.jpg").unlink()
    assert len(image_files(data)) == 5
    assert list(kept().iterdir()) == []


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif how == "bits":
        for place in range(100, len(content), 97):
            content[place] ^= 4
        path.write_bytes(content)
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "array":
        np.save(path.open("wb"), np.arange(3))
    elif how == "lengths":
        with np.load(path) as arrays:
            changed = {**arrays, "states": arrays["states"][1:]}
        np.savez(path, **changed)
    elif how == "ends":
        with np.load(path) as arrays:
            changed = {**arrays, "files_ends": arrays["files_ends"][::-1]}
        np.savez(path, **changed)
    elif how == "kinds":
        with np.load(path) as arrays:
            changed = {**arrays, "files_ends": arrays["files_ends"].astype(float)}
        np.savez(path, **changed)
    elif how == "lacking":
        with np.load(path) as arrays:
            changed = {name: arrays[name] for name in arrays if name != "links"}
        np.savez(path, **changed)
    elif how == "of another":
        with np.load(path) as arrays:
            changed = {**arrays, "about": json.dumps({"format": 1, "folder": "/another"})}
        np.savez(path, **changed)


@pytest.mark.parametrize("how", ["cut", "bits", "empty", "array", "lengths", "ends", "kinds", "lacking", "of another"])
def test_a_damaged_listing_is_made_anew(how: str, data: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = find(data).files
    (path,) = kept().iterdir()
    damage(path, how)
    with caplog.at_level(logging.INFO, logger="patchssl"):
        assert image_files(data) == expected
    assert caplog.text.count("cannot be used and is made anew") == 1
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="patchssl"):
        assert image_files(data) == expected
    assert "0 of 8 folders had changed" in caplog.text


@pytest.mark.parametrize("obstacle", ["file", "disk", "home"])
def test_a_cache_that_cannot_be_written_is_none(
    obstacle: str, data: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = find(data).files
    shutil.rmtree(kept())
    if obstacle == "file":
        kept().write_text("in the way")
    elif obstacle == "disk":

        def full(*arguments: object, **arrays: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("numpy.savez", full)
    else:
        monkeypatch.delenv("PATCHSSL_CACHE")
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

        def homeless() -> Path:
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.setattr(Path, "home", homeless)
    with caplog.at_level(logging.INFO, logger="patchssl"):
        assert image_files(data) == expected
    assert caplog.text.count("not kept") == 1
    if obstacle == "disk":
        assert list(kept().iterdir()) == []


def test_listings_do_not_pile_up(data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(listing_cache, "MOST_LISTINGS", 3)
    (first,) = kept().iterdir()
    os.utime(first, (1, 1))
    killed = kept() / ".x.npz.abc.part"
    killed.write_bytes(b"")
    os.utime(killed, (1, 1))
    for number in range(3):
        touch(tmp_path / str(number) / "1.jpg")
        image_files(tmp_path / str(number))
    assert len(list(kept().iterdir())) == 3
    assert not first.exists()


def list_often(root: Path) -> None:
    for _ in range(30):
        names = list(image_files(root))
        assert "5.jpg" in names
        assert names == sorted(names)


def test_several_processes_at_once(data: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=list_often, args=(data,)) for _ in range(2)]
    for process in processes:
        process.start()
    for number in range(40):
        touch(data / "a" / f"{number}.jpg")
        time.sleep(0.005)
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    time.sleep(0.02)
    assert image_files(data) == find(data).files
    assert [file.suffix for file in kept().iterdir()] == [".npz"]


def oddly_named(draw: random.Random, root: Path, folders: list[Path]) -> Path:
    name = draw.choice(ODD) + str(draw.randrange(4))
    return draw.choice([root, *folders]) / (name + draw.choice(["", "", ".jpg", ".PNG", ".txt"]))


def disturb(draw: random.Random, root: Path, outside: Path) -> None:
    """Change one thing in the tree or outside of it."""
    folders = [folder for top in (root, outside) for folder in top.rglob("*") if folder.is_dir()][:60]
    path = oddly_named(draw, draw.choice([root, root, outside]), folders)
    kind = draw.choice(["file", "file", "folder", "link", "link", "loop", "remove", "rename", "move"])
    try:
        if kind == "file":
            touch(path)
        elif kind == "folder":
            touch(path / "in.jpg")
        elif kind == "link":
            path.symlink_to(draw.choice([*folders, root, outside, path.parent / "nothing", path]))
        elif kind == "loop":
            path.symlink_to(path.parent)
        else:
            every = sorted([*root.rglob("*"), *outside.rglob("*")])
            old = draw.choice(every)
            if kind == "remove":
                shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink()
            elif kind == "rename":
                old.rename(old.with_name(path.name))
            else:
                old.rename(path)
    except (OSError, IndexError, ValueError):
        return  # what cannot be is not done


def listed_slowly(root: Path) -> list[str]:
    """The slow way: the real path of every folder."""
    found, stack = list[str](), [("", frozenset[str]())]
    while stack:
        path, above = stack.pop()
        real = os.path.realpath(root / path)
        if real in above:
            continue
        for entry in (root / path).iterdir():
            inside = str(Path(path) / entry.name)
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                stack.append((inside, above | {real}))
            elif entry.suffix.lower() in (".jpg", ".png"):
                found.append(inside)
    return sorted(found)


@pytest.mark.parametrize("seed", range(8))
def test_random_trees_and_changes(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grow_old(monkeypatch)
    draw, root, outside = random.Random(seed), tmp_path / "data", tmp_path / "outside"
    touch(root / "first.jpg")
    touch(outside / "second.jpg")
    for _ in range(12):
        for _ in range(draw.choice([1, 1, 5])):
            disturb(draw, root, outside)
        time.sleep(0.012)  # longer than a step of the file system's clock
        assert list(image_files(root)) == listed_slowly(root)


def test_opening_a_folder_does_not_import_torch(data: Path) -> None:
    code = (
        "import sys\nfrom patchssl.data.sources import open_unlabelled\n"
        "print(len(open_unlabelled(sys.argv[1])), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(data)], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("6 False\n", 0), done.stderr


def test_a_source_of_a_listing_is_as_one_that_is_listed_anew(data: Path) -> None:
    kept_one = open_unlabelled(data)
    shutil.rmtree(kept())
    anew = open_unlabelled(data)
    assert kept_one == anew
    assert kept_one.fingerprint() == anew.fingerprint()
    assert kept_one.state() == anew.state()
