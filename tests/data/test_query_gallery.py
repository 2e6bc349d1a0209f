"""Labelled images to search with and in: tables, folders, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from patchssl.data.query_gallery import open_query_gallery
from patchssl.errors import DataError


@pytest.fixture
def images(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for name in ("gallery/cat/1", "gallery/cat/2", "gallery/dog/1", "query/cat/1", "query/elk/1"):
        path = tmp_path / "data" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (6, 8, 3), np.uint8)).save(path)
    return tmp_path / "data"


def table(images: Path, *lines: str) -> Path:
    path = images / "t.csv"
    path.write_text("\n".join(lines))
    return path


def test_two_folders_share_classes_and_no_ids(images: Path) -> None:
    data = open_query_gallery(images)
    gallery, queries = data.sources["gallery"], data.sources["queries"]
    assert list(data.sources) == ["gallery", "queries"]
    assert gallery.ids == ("gallery/cat/1.png", "gallery/cat/2.png", "gallery/dog/1.png")
    assert queries.ids == ("query/cat/1.png", "query/elk/1.png")
    assert gallery.classes == queries.classes == ("cat", "dog", "elk")
    assert gallery.labels is not None
    assert queries.labels is not None
    assert (gallery.labels.tolist(), queries.labels.tolist()) == ([0, 0, 1], [0, 2])
    assert queries.read(0).size == (8, 6)
    assert data.truth is None


def test_class_folders_alone_are_searched_among_themselves(images: Path) -> None:
    (source,) = open_query_gallery(images / "gallery").sources.values()
    assert source.ids == ("cat/1.png", "cat/2.png", "dog/1.png")
    assert source.classes == ("cat", "dog")


def test_a_table_with_splits_and_boxes(images: Path) -> None:
    path = table(
        images,
        "path,label,split,x1,y1,x2,y2",
        "./gallery/cat/1.png,cat,query,1,1,5,4.6",
        "gallery/cat/1.png,cat,gallery,,,,",
        "query/cat/1.png,cat,gallery",
        "gallery/dog/1.png,dog,gallery,,,,",
    )
    sources = open_query_gallery(path).sources
    assert list(sources) == ["gallery", "queries"]
    # One image in both has one id, however it is written.
    assert sources["queries"].ids == ("gallery/cat/1.png",)
    assert sources["gallery"].ids[0] == "gallery/cat/1.png"
    assert sources["queries"].read(0).size == (4, 4)
    assert sources["gallery"].read(0).size == (8, 6)
    assert sources["gallery"].classes == ("cat", "dog")


def test_a_table_without_splits(images: Path) -> None:
    path = table(images, "path,label,x1,y1,x2,y2", "gallery/cat/1.png,cat,0,0,2,2", "query/cat/1.png,cat,,,,")
    (source,) = open_query_gallery(path).sources.values()
    assert [source.read(index).size for index in range(2)] == [(2, 2), (8, 6)]
    assert list(open_query_gallery(path).sources) == ["labelled"]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["path,split", "a,query"], "missing: label"),
        (["path,label,split", "a,x,train"], "split is 'train'; allowed: gallery, query"),
        (["path,label,split", "a,x,query"], "has no row of the split gallery"),
        (["path,label,split", "a,x,query", "./a,x,query", "b,x,gallery"], "1 images stand in more than one row"),
        (["path,label,x1,y1", "a,x,1,2"], "has the columns x1, y1 of a box; needed are x1, y1, x2, y2"),
        (["path,label,x1,y1,x2,y2", "a,x,1,2,3,"], "the box of a is 1, 2, 3, empty; allowed: four numbers"),
        (["path,label,x1,y1,x2,y2", "a,x,1,2,3,z"], "the box of a is 1, 2, 3, z"),
        (["path,label,x1,y1,x2,y2", "a,x,1,2,1,3"], "the box of a is 1, 2, 1, 3"),
        (["path,label,x1,y1,x2,y2", "a,x,1,2,inf,3"], "the box of a is 1, 2, inf, 3"),
    ],
)
def test_tables_that_cannot_be_used(lines: list[str], words: str, images: Path) -> None:
    with pytest.raises(DataError) as caught:
        open_query_gallery(table(images, *lines))
    assert words in str(caught.value)


def test_folders_that_cannot_be_used(images: Path, tmp_path: Path) -> None:
    (images / "query").rename(images / "test")
    with pytest.raises(DataError, match=r"has gallery/ and no query/; needed are both"):
        open_query_gallery(images)
    (images / "gallery").rename(images / "train")
    with pytest.raises(DataError, match=r"has train/ and test/.*or lay them out as query/ and gallery/"):
        open_query_gallery(images)
    with pytest.raises(DataError, match="does not exist"):
        open_query_gallery(tmp_path / "none")
    with pytest.raises(DataError, match=r"none\.csv does not exist"):
        open_query_gallery(tmp_path / "none.csv")
