"""CIFAR's python folders, written as the originals are: Python 2 pickles of byte strings."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from patchssl.data.cifar import is_cifar, open_cifar
from patchssl.data.sources import open_labelled, open_unlabelled
from patchssl.errors import DataError


def write(path: Path, content: Mapping[bytes, Any]) -> None:
    path.write_bytes(pickle.dumps(dict(content), protocol=2))


def rows(num: int, seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (num, 3072), dtype=np.uint8)


@pytest.fixture
def ten(tmp_path: Path) -> Path:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for batch in range(1, 6):
        write(folder / f"data_batch_{batch}", {b"data": rows(2, batch), b"labels": [batch % 3, 0]})
    write(folder / "test_batch", {b"data": rows(3, 9), b"labels": [2, 1, 0]})
    write(folder / "batches.meta", {b"label_names": [b"airplane", b"automobile", b"bird"], b"num_cases_per_batch": 2})
    return folder


@pytest.fixture
def hundred(tmp_path: Path) -> Path:
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    write(folder / "train", {b"data": rows(4, 1), b"fine_labels": [1, 0, 1, 1], b"coarse_labels": [0, 0, 0, 0]})
    write(folder / "test", {b"data": rows(2, 2), b"fine_labels": [0, 1], b"coarse_labels": [0, 0]})
    write(folder / "meta", {b"fine_label_names": [b"apple", b"aquarium_fish"], b"coarse_label_names": [b"x"]})
    return folder


def test_cifar_10(ten: Path) -> None:
    parts = open_labelled(ten)
    assert {part: len(source) for part, source in parts.items()} == {"train": 10, "test": 3}
    for source in parts.values():
        assert source.classes == ("airplane", "automobile", "bird")
        assert source.name == "cifar-10-batches-py"
        assert source.location == str(ten)
    train = parts["train"]
    assert train.labels is not None
    assert train.labels.tolist() == [1, 0, 2, 0, 0, 0, 1, 0, 2, 0]
    assert train.ids[:2] == ("train/00000", "train/00001")
    assert parts["test"].ids[-1] == "test/00002"


def test_cifar_100_has_fine_labels(hundred: Path) -> None:
    parts = open_labelled(hundred)
    assert parts["test"].labels is not None
    assert parts["test"].labels.tolist() == [0, 1]
    assert parts["train"].classes == parts["test"].classes == ("apple", "aquarium_fish")
    assert len(open_unlabelled(hundred)) == 4  # the training part


def test_pixels_are_planes_of_red_green_and_blue(ten: Path) -> None:
    """Number c * 1024 + y * 32 + x of a row is channel c at (y, x)."""
    flat = rows(2, 1)[1]
    pixels = np.asarray(open_cifar(ten, train=True).read(1))
    assert pixels.shape == (32, 32, 3)
    for channel, y, x in ((0, 0, 0), (1, 3, 5), (2, 31, 0), (0, 0, 31)):
        assert pixels[y, x, channel] == flat[channel * 1024 + y * 32 + x]


def test_arrays_in_pickles_of_python_2_are_read(ten: Path) -> None:
    """The originals name numpy's module as it was called then, and hold the data as a string of that time."""
    content = pickle.dumps({b"data": rows(2, 1), b"labels": [0, 1]}, protocol=2)
    named = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert named != content
    (ten / "data_batch_1").write_bytes(named)
    assert np.array_equal(open_cifar(ten, train=True).pixels[0].transpose(2, 0, 1).ravel(), rows(2, 1)[0])


class Creating:
    """Pickled, it asks whoever unpickles it to make a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (self.path,)


def test_a_malicious_pickle_is_refused_and_does_not_run(ten: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    (ten / "data_batch_2").write_bytes(pickle.dumps({b"data": Creating(made), b"labels": [0]}, protocol=2))
    with pytest.raises(DataError, match=r"data_batch_2 is not a readable CIFAR file: it asks for .*, which is refused"):
        open_unlabelled(ten)
    assert not made.exists()
    with (ten / "data_batch_2").open("rb") as file:
        pickle.load(file)
    assert made.exists()  # so the file is as bad as it should be


@pytest.mark.parametrize("code", [b"cos\nsystem\n(S'true'\ntR.", b"c__builtin__\neval\n(S'1'\ntR."])
def test_functions_are_refused_by_name(code: bytes, ten: Path) -> None:
    (ten / "test_batch").write_bytes(code)
    with pytest.raises(DataError, match=r"it asks for (os\.system|builtins\.eval|__builtin__\.eval), which is refused"):
        open_labelled(ten)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "test_batch is not a readable CIFAR file"),
        (b"not a pickle", "test_batch is not a readable CIFAR file"),
        (b"\x80\x02}q\x00(U\x04da", "test_batch is not a readable CIFAR file"),
        (pickle.dumps([1, 2], protocol=2), "it holds a list"),
        (pickle.dumps({b"data": rows(1, 0)}, protocol=2), "b'labels' is missing in test_batch"),
        (pickle.dumps({b"data": rows(2, 0), b"labels": [0]}, protocol=2), r"\(2, 3072\) and labels of shape \(1,\)"),
        (pickle.dumps({b"data": rows(2, 0)[:, :99], b"labels": [0, 1]}, protocol=2), r"needed are \(M, 3072\)"),
        (pickle.dumps({b"data": rows(2, 0), b"labels": [0, 7]}, protocol=2), "must be numbers below 3"),
    ],
)
def test_damaged_files_are_named(content: bytes, words: str, ten: Path) -> None:
    (ten / "test_batch").write_bytes(content)
    with pytest.raises(DataError, match=words):
        open_labelled(ten)


def test_a_missing_file_is_named(ten: Path) -> None:
    (ten / "test_batch").unlink()
    with pytest.raises(DataError, match=r"test_batch .*No such file"):
        open_labelled(ten)


def test_which_folders_are_cifar(ten: Path, hundred: Path, tmp_path: Path) -> None:
    assert is_cifar(ten)
    assert is_cifar(hundred)
    (tmp_path / "train").mkdir()  # an image folder
    (tmp_path / "meta").write_text("")
    assert not is_cifar(tmp_path)


def test_fingerprint(ten: Path) -> None:
    before = open_cifar(ten, train=True).fingerprint()
    assert before == open_cifar(ten, train=True).fingerprint()
    assert before != open_cifar(ten, train=False).fingerprint()
    write(ten / "data_batch_1", {b"data": rows(2, 1), b"labels": [2, 0]})
    assert before != open_cifar(ten, train=True).fingerprint()
    write(ten / "data_batch_1", {b"data": rows(2, 77), b"labels": [1, 0]})
    assert before != open_cifar(ten, train=True).fingerprint()
