"""Folders of revisited Oxford and Paris: what is read, and what is refused with words."""

import json
import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from patchssl.data.revisited import is_revisited, open_revisited
from patchssl.data.revisited_truth import load_truth
from patchssl.data.synth.dataset import write_dataset
from patchssl.errors import DataError

Content = dict[str, Any]


def content(**changes: Any) -> Content:
    gnd = [
        {"bbx": [1, 2.5, 20, 18], "easy": [2, 0], "hard": [], "junk": [3]},
        {"bbx": [0, 0, 5, 5], "easy": [], "hard": [1], "junk": []},
    ]
    return {"imlist": list("abcd"), "qimlist": ["q1", "q2"], "gnd": gnd, **changes}


def with_entry(**changes: Any) -> Content:
    made = content()
    made["gnd"][0] |= changes
    return made


def write(folder: Path, given: Any, *, suffix: str = ".json") -> Path:
    path = folder / f"gnd_places{suffix}"
    path.write_bytes(json.dumps(given).encode() if suffix == ".json" else pickle.dumps(given, 2))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four database images and two queries, 24 x 20 px of noise."""
    generator = np.random.default_rng(0)
    (tmp_path / "jpg").mkdir()
    for name in ("a", "b", "c", "d", "q1", "q2"):
        Image.fromarray(generator.integers(0, 256, (20, 24, 3), np.uint8)).save(tmp_path / "jpg" / f"{name}.jpg")
    write(tmp_path, content())
    return tmp_path


def test_a_pickle_and_a_json_say_the_same(tmp_path: Path) -> None:
    arrays = content()
    for entry in arrays["gnd"]:
        entry |= {grade: np.array(entry[grade]) for grade in ("easy", "hard", "junk", "bbx")}
    truths = [load_truth(write(tmp_path, content())), load_truth(write(tmp_path, arrays, suffix=".pkl"))]
    for truth in truths:
        assert (truth.name, truth.database, truth.queries) == ("places", ("a", "b", "c", "d"), ("q1", "q2"))
        assert truth.boxes == ((1.0, 2.5, 20.0, 18.0), (0.0, 0.0, 5.0, 5.0))
        assert [rows.tolist() for rows in truth.easy] == [[0, 2], []]
        assert [rows.tolist() for rows in truth.hard] == [[], [1]]
        assert [rows.tolist() for rows in truth.junk] == [[3], []]
        assert truth.num_own == 0
    assert truths[0].fingerprint() == truths[1].fingerprint()
    assert load_truth(write(tmp_path, with_entry(easy=[2]))).fingerprint() != truths[0].fingerprint()


def test_a_query_that_is_in_the_gallery_is_junk_for_itself(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    given = content(qimlist=["c", "q2"])
    with caplog.at_level(logging.WARNING):
        truth = load_truth(write(tmp_path, given))
    assert "1 of 2 queries stand in the database too (c); each is junk for itself" in caplog.text
    assert [rows.tolist() for rows in truth.easy] == [[0], []]
    assert [rows.tolist() for rows in truth.junk] == [[2, 3], []]
    assert truth.num_own == 1


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([1], "must be a dict with imlist, qimlist, gnd; it holds list"),
        ({"imlist": ["a"], "gnd": []}, "it holds ['gnd', 'imlist']"),
        (content(imlist=["a", "b", "a", "d"]), "1 names stand more than once in imlist (a)"),
        (content(qimlist=["q1", "q1"]), "1 names stand more than once in qimlist (q1)"),
        (content(imlist=[]), "imlist must be a list of names"),
        (content(imlist=[1, 2, 3, 4]), "imlist must be a list of names"),
        (content(qimlist=["q1"]), "an entry for each of the 1 queries; it is 2 entries"),
        (content(gnd="ab"), "gnd[0] (query q1) must be a dict"),
        (with_entry(easy=[4, -1]), "gnd[0] (query q1): 2 places of easy (4, -1) are outside imlist; allowed: 0 to 3"),
        (with_entry(easy=[0.5]), "easy must be a list of whole numbers"),
        (with_entry(easy=[True]), "easy must be a list of whole numbers"),
        (with_entry(easy=["a"]), "easy must be a list of whole numbers"),
        (with_entry(easy=[[0], [1]]), "easy must be a list of whole numbers"),
        (with_entry(easy=7), "easy must be a list of whole numbers"),
        (with_entry(junk=[0]), "(query q1): 1 images have more than one grade: a in easy and junk"),
        (with_entry(hard=[2, 1]), "1 images have more than one grade: c in easy and hard"),
        (with_entry(easy=[1, 1]), "1 images have more than one grade: b in easy and easy"),
        (with_entry(bbx=[1, 2, 3]), "bbx must be four numbers"),
        (with_entry(bbx=[1, 2, 3, float("nan")]), "bbx must be four numbers"),
        (with_entry(bbx="1234"), "bbx must be four numbers"),
        (with_entry(bbx=[5, 2, 5, 9]), "the box [5, 2, 5, 9] is empty"),
        (content(gnd=[{"ok": [0], "junk": []}] * 2), "`ok` is of Oxford and Paris before they were revisited"),
        (
            content(gnd=[{"bbx": [0, 0, 1, 1], "easy": [], "hard": [], "junk": [1]}] * 2),
            "no query has an easy or hard image; there is nothing to find",
        ),
    ],
)
def test_contradictions_are_refused(given: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_truth(write(tmp_path, given))
    assert words in str(caught.value)
    assert "gnd_places.json" in str(caught.value)


def test_files_that_are_no_ground_truth_are_refused(tmp_path: Path) -> None:
    (tmp_path / "gnd_x.json").write_text("{")
    with pytest.raises(DataError, match=r"gnd_x\.json is not JSON"):
        load_truth(tmp_path / "gnd_x.json")
    with pytest.raises(DataError, match=r"allowed: \.pkl and \.json"):
        load_truth(tmp_path / "gnd.yaml")
    with pytest.raises(DataError, match="cannot be read: No such file"):
        load_truth(tmp_path / "gnd_none.json")
    (tmp_path / "gnd_y.pkl").write_bytes(pickle.dumps({"imlist": print}))
    with pytest.raises(DataError, match=r"is refused: it asks for builtins\.print"):
        load_truth(tmp_path / "gnd_y.pkl")


def test_a_folder_opens_with_and_without_cut_queries(folder: Path) -> None:
    data = open_revisited(folder, crop_queries=True)
    assert list(data.sources) == ["database", "queries"]
    assert data.sources["database"].ids == ("a.jpg", "b.jpg", "c.jpg", "d.jpg")
    assert data.sources["queries"].ids == ("q1.jpg", "q2.jpg")
    whole = open_revisited(folder, crop_queries=False)
    image = whole.sources["queries"].read(0)
    assert image.size == (24, 20)
    cut = data.sources["queries"].read(0)
    np.testing.assert_array_equal(np.asarray(cut), np.asarray(image)[2:18, 1:20])
    assert data.sources["database"].read(1).size == (24, 20)
    assert data.sources["queries"].fingerprint() != whole.sources["queries"].fingerprint()
    assert data.sources["database"].fingerprint() == whole.sources["database"].fingerprint()
    assert data.sources["database"].name == folder.name


def test_distractors_are_a_part_of_their_own_before_the_queries(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "more" / "deep").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "more" / "deep" / "x.png")
    data = open_revisited(folder, crop_queries=True, distractors=tmp_path / "more")
    assert list(data.sources) == ["database", "distractors", "queries"]
    assert data.sources["distractors"].ids == ("deep/x.png",)
    with pytest.raises(DataError, match="none does not exist"):
        open_revisited(folder, crop_queries=True, distractors=tmp_path / "none")


def test_queries_without_boxes_can_be_taken_whole_only(folder: Path) -> None:
    given = content()
    del given["gnd"][1]["bbx"]
    write(folder, given)
    with pytest.raises(DataError, match=r"1 of 2 queries of places have no bbx \(q2\).*--no-crop-queries"):
        open_revisited(folder, crop_queries=True)
    assert len(open_revisited(folder, crop_queries=False).sources["queries"]) == 2


def test_missing_images_are_counted_and_named(folder: Path) -> None:
    for name in ("b", "q1"):
        (folder / "jpg" / f"{name}.jpg").unlink()
    with pytest.raises(
        DataError, match=r"2 of the 6 images that places names are missing .*\(q1\.jpg, b\.jpg\).*robots"
    ):
        open_revisited(folder, crop_queries=True)


def test_a_folder_of_another_layout_gets_an_answer(folder: Path, tmp_path: Path) -> None:
    (folder / "gnd_places.json").unlink()
    with pytest.raises(DataError) as caught:
        open_revisited(folder, crop_queries=True)
    told = str(caught.value)
    assert "lacks gnd_NAME.pkl or gnd_NAME.json; found: jpg/; needed: gnd_NAME.pkl" in told
    assert "http://cmp.felk.cvut.cz/revisitop/" in told
    assert "https://www.robots.ox.ac.uk/~vgg/data/oxbuildings/" in told
    assert "https://www.robots.ox.ac.uk/~vgg/data/parisbuildings/" in told
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"lacks gnd_NAME\.pkl or gnd_NAME\.json and jpg/; found: nothing"):
        open_revisited(tmp_path / "empty", crop_queries=True)
    with pytest.raises(DataError, match="is no folder; needed: gnd_NAME"):
        open_revisited(tmp_path / "none", crop_queries=True)


def test_two_ground_truths_are_one_too_many(folder: Path) -> None:
    write(folder, content(), suffix=".pkl")
    with pytest.raises(DataError, match=r"holds 2 ground truths: gnd_places\.json, gnd_places\.pkl"):
        open_revisited(folder, crop_queries=True)


def test_what_is_meant_as_such_a_folder(folder: Path, tmp_path: Path) -> None:
    assert is_revisited(folder)
    (folder / "gnd_places.json").unlink()
    assert is_revisited(folder)  # jpg/ alone: its answer tells what is missing
    (folder / "cats").mkdir()
    assert not is_revisited(folder)
    assert not is_revisited(folder / "jpg" / "a.jpg")
    assert not is_revisited(tmp_path / "none")


def test_the_built_in_images_open(tmp_path: Path) -> None:
    write_dataset(tmp_path / "drawn", num_images=128, image_size_px=32)
    data = open_revisited(tmp_path / "drawn" / "revisited", crop_queries=True)
    assert len(data.truth.queries) == len(data.sources["queries"])
    for index in range(len(data.truth.queries)):
        box = data.truth.boxes[index]
        assert box is not None
        left, top, right, bottom = box
        assert data.sources["queries"].read(index).size == (right - left, bottom - top)
