import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from patchssl.data.images import ArraySource, FileSource

LABELS = np.array([0, 1])


@pytest.fixture
def files(tmp_path: Path) -> FileSource:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(name.encode())
    return FileSource(tmp_path, ("a.png", "b.png"), LABELS, ("x", "y"), "name", "location", apply_exif=False)


def with_changes(source: FileSource, **changes: object) -> FileSource:
    return FileSource(**{**vars(source), **changes})


def test_the_state_of_untouched_files_stays(files: FileSource) -> None:
    assert files.state() == with_changes(files).state()
    assert files.state() == with_changes(files, name="other", location="elsewhere").state()


def test_a_file_changed_to_equal_size_and_time_of_writing_changes_the_state_and_not_the_fingerprint(
    files: FileSource,
) -> None:
    path = files.root / "a.png"
    before = path.stat()
    state, fingerprint = files.state(), files.fingerprint()
    path.write_bytes(b"A.png")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert files.state() != state
    assert files.fingerprint() == fingerprint


def test_everything_that_may_change_what_is_read_changes_the_state(files: FileSource) -> None:
    states = [files.state()]
    states.append(with_changes(files, apply_exif=True).state())
    states.append(with_changes(files, labels=LABELS[::-1]).state())
    states.append(with_changes(files, ids=("b.png", "a.png")).state())
    os.utime(files.root / "a.png")
    states.append(files.state())
    (files.root / "a.png").unlink()
    states.append(files.state())
    shutil.copy2(files.root / "b.png", files.root / "a.png")
    states.append(files.state())
    assert len(set(states)) == len(states)


def test_files_of_equal_names_and_sizes_elsewhere_have_another_state(files: FileSource, tmp_path: Path) -> None:
    shutil.copytree(files.root, tmp_path / "copy", copy_function=shutil.copy2, ignore=lambda *_: ["copy"])
    copy = with_changes(files, root=tmp_path / "copy")
    assert copy.state() != files.state()
    assert copy.fingerprint() == files.fingerprint()


def test_the_state_of_arrays_follows_pixels_shape_and_labels() -> None:
    def of(pixels: np.ndarray, labels: np.ndarray | None) -> str:
        ids = tuple(str(index) for index in range(len(pixels)))
        return ArraySource(pixels, ids, labels, ("x", "y"), "name", "location").state()

    pixels = np.arange(48, dtype=np.uint8).reshape(2, 4, 2, 3)
    states = {
        of(pixels, LABELS),
        of(pixels, None),
        of(pixels, LABELS[::-1]),
        of(255 - pixels, LABELS),
        of(pixels.reshape(2, 2, 4, 3), LABELS),
    }
    assert len(states) == 5
    assert of(pixels.copy(), LABELS) in states
