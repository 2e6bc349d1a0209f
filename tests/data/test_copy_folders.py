import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from patchssl.data.copy_data import layout_of, open_copies
from patchssl.data.groundtruth import read_groundtruth, read_predictions
from patchssl.errors import DataError


def draw(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(list(str(path).encode())).integers(0, 255, (12, 12, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(path)


@pytest.fixture
def generic(tmp_path: Path) -> Path:
    data = tmp_path / "mine"
    draw(data / "queries", "a.png", "deep/b.png", "c.png")
    draw(data / "references", "1.png", "2.png", "sub/3.png")
    draw(data / "training", "t.png")
    (data / "groundtruth.csv").write_text("query,reference\na,1\na,3\ndeep/b.png,2\nc,\n".replace("deep/b.png", "b"))
    return data


@pytest.fixture
def disc(tmp_path: Path) -> Path:
    data = tmp_path / "disc21"
    draw(data / "references", *(f"R00000{number}.jpg" for number in range(4)))
    draw(data / "training", "T000000.jpg", "T000001.jpg")
    draw(data / "dev_queries", "Q00000.jpg", "Q00001.jpg")
    draw(data / "final_queries", "Q50000.jpg")
    (data / "dev_queries_groundtruth.csv").write_text("query_id,reference_id\nQ00000,R000002\nQ00001,\n")
    (data / "final_queries_groundtruth.csv").write_text("query_id,reference_id\nQ50000,R000001\n")
    return data


def test_generic(generic: Path) -> None:
    data = open_copies(generic)
    assert data.layout == "generic"
    assert list(data.sources) == ["references", "training", "queries"]
    assert data.truth.positives == {"a.png": ("1.png", "sub/3.png"), "deep/b.png": ("2.png",), "c.png": ()}
    assert set(data.truth.blocks.values()) == {"queries"}
    assert (data.truth.num_pairs, data.truth.num_negative) == (3, 1)
    assert data.told == {"names": "file stem"}
    (generic / "groundtruth.csv").write_text("query,reference\na.png,1.png\ndeep/b.png,sub/3.png\n")
    data = open_copies(generic)
    assert data.told == {"names": "relative path"}
    # Queries that do not stand in the file have no match.
    assert data.truth.positives == {"a.png": ("1.png",), "deep/b.png": ("sub/3.png",), "c.png": ()}


def test_disc(disc: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert layout_of(disc) == "disc"
    data = open_copies(disc)
    assert "taking dev" in caplog.text
    assert data.told == {"query_set": "dev", "names": "file stem"}
    assert data.truth.positives == {"Q00000.jpg": ("R000002.jpg",), "Q00001.jpg": ()}
    assert [len(source) for source in data.sources.values()] == [4, 2, 2]
    assert open_copies(disc, query_set="final").truth.positives == {"Q50000.jpg": ("R000001.jpg",)}
    shutil.rmtree(disc / "final_queries")
    with pytest.raises(
        DataError, match=r"final_queries/ \(or queries/\) with final_queries_groundtruth.csv.*ai.meta.com"
    ):
        open_copies(disc, query_set="final")
    (disc / "dev_queries").rename(disc / "queries")
    (disc / "final_queries_groundtruth.csv").unlink()
    assert open_copies(disc).told["query_set"] == "dev"
    shutil.rmtree(disc / "references")
    with pytest.raises(DataError, match="needed are references/"):
        open_copies(disc)


def test_missing_parts(generic: Path) -> None:
    (generic / "groundtruth.csv").rename(generic / "truth.csv")
    with pytest.raises(DataError, match=r"lacks groundtruth.csv; needed are queries/.*found: queries, references"):
        open_copies(generic)
    (generic / "truth.csv").rename(generic / "groundtruth.csv")
    shutil.rmtree(generic / "references")
    with pytest.raises(DataError, match="lacks references/"):
        open_copies(generic)
    (generic / "references").mkdir()
    with pytest.raises(DataError, match="holds no image files"):
        open_copies(generic)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("query,reference\na,1\nz,2\ny,2\n", r"names 2 queries that are not there \(z, y\); there are 3 queries"),
        ("query,reference\na,9\n", r"names 1 references that are not there \(9\); there are 3 references"),
        ("query,reference\na.png,1\nz.png,2\n", r"names 1 queries that are not there \(z.png\)"),
        ("query,reference\na,1\na,1\n", r"1 pairs stand in several rows \(a,1\)"),
        ("query,reference\na,1\na,\n", r"1 queries have a reference and also a row without one \(a\)"),
        ("query,reference\na,\nb,\n", "none of the 3 queries is a copy"),
        ("query,match\na,1\n", "has the columns query, match; needed: query,reference"),
        ("query,reference\n", "has a header but no rows"),
        ("query,reference\n,1\n", "query is empty"),
        ("query,reference,block\na,1,strong\nb,2,\n", "1 of 2 queries have no block"),
        ("query,reference,block\na,1,strong\na,2,weak\n", "in the blocks strong and weak"),
        ("query,reference,block\na,1,strong\n", r"gives blocks, but none to 2 of 3 queries"),
    ],
)
def test_bad_ground_truth_is_refused(generic: Path, text: str, told: str) -> None:
    (generic / "groundtruth.csv").write_text(text)
    with pytest.raises(DataError, match=told):
        open_copies(generic)


def test_ambiguous_stems_are_refused(generic: Path) -> None:
    draw(generic / "references", "other/1.png")
    with pytest.raises(DataError, match=r"1 references that are the stem of several files \(1: 1.png, other/1.png\)"):
        open_copies(generic)
    (generic / "groundtruth.csv").write_text("query,reference\na,1.png\n")
    assert open_copies(generic).truth.positives["a.png"] == ("1.png",)


def test_distractors_of_the_folder_are_checked(generic: Path) -> None:
    draw(generic / "distractors", "x.png")
    assert list(open_copies(generic).sources) == ["references", "distractors", "training", "queries"]
    with pytest.raises(DataError, match="distractors of its own"):
        open_copies(generic, distractors=generic / "training")
    shutil.copy(generic / "references/sub/3.png", generic / "distractors/y.png")
    with pytest.raises(DataError, match="1 of 2 distractors are references as well, byte by byte"):
        open_copies(generic)


def test_files_that_are_no_tables(tmp_path: Path) -> None:
    for read in (read_groundtruth, read_predictions):
        with pytest.raises(DataError, match="there is no file"):
            read(tmp_path / "none.csv")
        (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00query")
        with pytest.raises(DataError, match="not a CSV file in UTF-8"):
            read(tmp_path / "bytes.csv")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("query,reference\na,1\n", "missing: score"),
        ("query,reference,score\na,1,high\n", "row 2: the score is 'high'; needed: a finite number"),
        ("query,reference,score\na,1,0.5\nb,1,nan\n", "row 3: the score is 'nan'"),
        ("query,reference,score\na,,0.5\n", "1 predictions have no reference"),
        ("query,reference,score\na,1,0.5\na,1,0.4\n", "1 pairs are predicted several times"),
    ],
)
def test_bad_predictions_are_refused(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(DataError, match=told):
        read_predictions(tmp_path / "p.csv")
