"""Parts and labels of every layout."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from patchssl.data.inspection.collection import Collection, open_collection
from patchssl.errors import DataError


def fill(root: Path, *names: str) -> str:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2)).save(root / name)
    return str(root)


def placed(collection: Collection) -> dict[str, tuple[str, str | None]]:
    return {
        image: (collection.part(index), collection.label(index)) for index, image in enumerate(collection.source.ids)
    }


def test_parts_with_classes(tmp_path: Path) -> None:
    names = ("train/cat/a.png", "train/dog/deep/b.png", "val/cat/c.png", "test/emu/d.png", "test/e.png", "more/f/g.png")
    collection = open_collection(fill(tmp_path, *names))
    assert placed(collection) == {
        "train/cat/a.png": ("train", "cat"),
        "train/dog/deep/b.png": ("train", "dog"),
        "val/cat/c.png": ("val", "cat"),
        "test/emu/d.png": ("test", "emu"),
        "test/e.png": ("test", None),
        "more/f/g.png": ("elsewhere", None),
    }
    assert collection.parts == ("train", "val", "test", "elsewhere")
    assert collection.classes == ("cat", "dog", "emu")
    assert collection.splits == (0, 1, 2)


def test_parts_without_classes(tmp_path: Path) -> None:
    collection = open_collection(fill(tmp_path, "train/a.png", "test/b.png"))
    assert placed(collection) == {"train/a.png": ("train", None), "test/b.png": ("test", None)}
    assert not collection.is_labelled


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (("cat/a.png", "dog/b.png"), ["cat", "dog"]),
        (("cat/a.png", "dog/b.png", "c.png"), [None] * 3),  # one lies outside
        (("cat/a.png", "cat/b.png"), [None] * 2),  # one class is none
        (("train/a/b.png", "train/c/d.png"), [None] * 2),  # a training part alone is a folder as any other
        (("a.png",), [None]),
    ],
)
def test_one_part(names: tuple[str, ...], labels: list[str | None], tmp_path: Path) -> None:
    collection = open_collection(fill(tmp_path, *names))
    assert collection.parts == ("all",)
    assert collection.splits == ()
    assert [collection.label(index) for index in range(len(names))] == [
        label for _, label in sorted(zip(names, labels, strict=True))
    ]


def test_tables(tmp_path: Path) -> None:
    fill(tmp_path, "a.png", "b.png")
    table = tmp_path / "list.csv"
    table.write_text("path,label,split\na.png,x,train\nb.png,y,test\na.png,x,test\nb.png,,\n")
    collection = open_collection(str(table))
    # The same image in two rows is not refused: it is what one looks for.
    assert [(collection.part(index), collection.label(index)) for index in range(4)] == [
        ("train", "x"),
        ("test", "y"),
        ("test", "x"),
        ("elsewhere", None),
    ]
    table.write_text("path\na.png\n")
    assert open_collection(str(table)).parts == ("all",)
    table.write_text("path,split\na.png,other\n")
    with pytest.raises(DataError, match="split is 'other'; allowed: train, val"):
        open_collection(str(table))


def test_cifar(tmp_path: Path) -> None:
    import pickle

    def batch(labels: list[int]) -> bytes:
        rng = np.random.default_rng(len(labels))
        return pickle.dumps({b"data": rng.integers(0, 256, (len(labels), 3072), np.uint8), b"labels": labels})

    for number in range(1, 6):
        (tmp_path / f"data_batch_{number}").write_bytes(batch([0] * number))
    (tmp_path / "test_batch").write_bytes(batch([1, 0]))
    (tmp_path / "batches.meta").write_bytes(pickle.dumps({b"label_names": [b"cat", b"dog"]}))
    collection = open_collection(str(tmp_path))
    assert np.bincount(collection.part_of).tolist() == [15, 2]
    assert collection.parts == ("train", "test")
    assert [collection.label(index) for index in (0, 14, 15, 16)] == ["cat", "cat", "dog", "cat"]
    assert (collection.source.ids[14], collection.source.ids[15]) == ("train/00014", "test/00000")


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no image files"):
        open_collection(str(tmp_path))
    with pytest.raises(DataError, match="does not exist"):
        open_collection(str(tmp_path / "none"))
