import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from patchssl.errors import DataError
from patchssl.evaluate.features import Features, dataset_of, load_features, model_of, save_features


def some(num: int = 4, **changes: Any) -> Features:
    given: dict[str, Any] = {
        "features": np.arange(num * 3, dtype=np.float32).reshape(num, 3),
        "labels": np.arange(num) - 1,
        "ids": np.array([f"a/ü{row}.jpg" for row in range(num)]),
        "meta": {"model": {"spec": "x", "weights_sha256": "w"}},
    }
    return Features(**{**given, **changes})


def test_saved_features_are_loaded_unchanged(tmp_path: Path) -> None:
    path, features = tmp_path / "f.npz", some()
    save_features(path, features)
    loaded = load_features(path)
    np.testing.assert_array_equal(loaded.features, features.features)
    assert loaded.labels is not None
    assert loaded.ids is not None
    assert [str(array.dtype) for array in (loaded.features, loaded.labels)] == ["float32", "int64"]
    assert loaded.labels.tolist() == [-1, 0, 1, 2]
    assert loaded.ids.tolist() == [f"a/ü{row}.jpg" for row in range(4)]
    assert loaded.meta == {**features.meta, "file": "f.npz"}
    assert [file.name for file in tmp_path.iterdir()] == ["f.npz"]
    with np.load(path, allow_pickle=False) as file:
        assert set(file.files) == {"features", "labels", "ids", "meta"}


def test_optional_arrays_may_be_absent_and_other_number_types_are_converted(tmp_path: Path) -> None:
    np.savez(tmp_path / "f.npz", features=np.ones((2, 3), np.float16), labels=np.array([1, 2], np.uint8))
    loaded = load_features(tmp_path / "f.npz")
    assert loaded.labels is not None
    assert [str(array.dtype) for array in (loaded.features, loaded.labels)] == ["float32", "int64"]
    assert loaded.ids is None


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f.npz"
    save_features(path, some())
    before = path.read_bytes()

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(DataError, match="No space left"):
        save_features(path, some(num=2))
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["f.npz"]


def npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def not_numpy() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("features.txt", "1")
    return buffer.getvalue()


ONES = np.ones((2, 3), np.float32)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no feature file"),
        (b"hello", "no feature file"),
        (npz(features=ONES)[:-60], "no feature file"),
        (npy(ONES), "is a single array"),
        (not_numpy(), "holds no array `features`; it holds: features.txt"),
        (npz(x=ONES, y=ONES), "holds no array `features`; it holds: x, y"),
        (npz(features=np.array([{"a": 1}], dtype=object)), "no feature file .an .npz without pickles"),
        (npz(features=np.ones((2, 3), np.int64)), "features are of type int64; needed: floating point"),
        (npz(features=np.ones(3, np.float32)), r"features have the shape \(3,\)"),
        (npz(features=ONES, labels=np.ones(2)), "labels are of type float64; needed: integer"),
        (npz(features=ONES, labels=np.ones(3, np.int64)), r"labels have the shape \(3,\); 2 features need \(2,\)"),
        (npz(features=ONES, ids=np.array(["a"])), r"ids have the shape \(1,\)"),
        (npz(features=ONES, meta=np.array("{")), "meta is no JSON object"),
        (npz(features=ONES, meta=np.array("[1]")), "meta is no JSON object"),
        (npz(features=ONES, meta=np.array(["{}"])), "meta is no JSON object"),
    ],
)
def test_wrong_files_are_told(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "f.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        load_features(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_and_a_folder_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no feature file"):
        load_features(tmp_path / "none.npz")
    with pytest.raises(DataError, match="no feature file"):
        load_features(tmp_path)


def test_model_and_data_come_from_the_meta() -> None:
    meta = {
        "model": {"spec": "RUN", "family": "patchssl", "arch": "vit", "num_params": 5, "weights_sha256": "w"},
        "dataset": {"name": "tiny", "path_name": "data/tiny", "fingerprint": "p", "num_unreadable": 2},
    }
    train, test = some(meta=meta), some(num=3, meta=meta)
    assert model_of([train, test]) == {**meta["model"], "dim": 3}
    dataset = dataset_of({"train": train, "test": test})
    assert dataset["name"] == "tiny"
    assert dataset["num_images"] == 7
    assert dataset["num_unreadable"] == 4
    assert dataset["num_classes"] == 4  # those of the training labels
    assert dataset["splits"] == {"train": 4, "test": 3}
    # The fingerprints of the sources count, not what was computed from them.
    assert dataset_of({"train": some(meta=meta, features=np.ones((4, 9), np.float32)), "test": test}) == dataset


def test_how_a_file_was_loaded_stays_with_the_model() -> None:
    load = {"matched": 3, "missing": 1, "partial": True}
    matrix = np.zeros((2, 3), np.float32)
    told = Features(matrix, meta={"model": {"spec": "x", "weights_sha256": "0", "load": load}})
    assert model_of([told, told])["load"] == load
    assert "load" not in model_of([Features(matrix), Features(matrix)])


def test_without_meta_labels_tell_the_data_and_features_the_model() -> None:
    train, test = some(meta={}), some(meta={"model": "?", "file": "t.npz"})
    assert model_of([train, test])["spec"] == "t.npz"
    other = some(meta={}, features=np.ones((4, 3), np.float32))
    assert model_of([train, other])["weights_sha256"] != model_of([train, test])["weights_sha256"]
    assert (
        dataset_of({"train": train, "test": other})["fingerprint"]
        == dataset_of({"train": train, "test": test})["fingerprint"]
    )
    relabelled = some(meta={}, labels=np.zeros(4, np.int64))
    assert (
        dataset_of({"train": train, "test": relabelled})["fingerprint"]
        != dataset_of({"train": train, "test": test})["fingerprint"]
    )


def test_data_without_parts_are_one() -> None:
    meta = {"dataset": {"name": "tiny", "fingerprint": "p", "num_unreadable": 2}}
    dataset = dataset_of({"labelled": some(meta=meta)})
    assert dataset["splits"] == {"labelled": 4}
    assert (dataset["num_images"], dataset["num_classes"], dataset["num_unreadable"]) == (4, 4, 2)
    assert dataset["fingerprint"] != dataset_of({"train": some(meta=meta), "test": some(meta=meta)})["fingerprint"]
    assert dataset_of({"labelled": some(labels=None)})["num_classes"] == 0
