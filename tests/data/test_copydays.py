import logging
import shutil
from pathlib import Path

import pytest
from PIL import Image

from patchssl.data.copy_data import layout_of, open_copies
from patchssl.data.copydays import HOME
from patchssl.data.synth.copies import copydays_drawings
from patchssl.data.synth.files import save
from patchssl.errors import ConfigError, DataError


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "copydays"
    for drawing in copydays_drawings(100, 32, 0):
        save(drawing, folder)
    return folder


@pytest.fixture
def copydays(drawn: Path, tmp_path: Path) -> Path:
    """Ten originals with two JPEG qualities, one crop and the strong copies."""
    for block in ("original", "strong", "jpegqual/3", "jpegqual/15", "crops/50"):
        shutil.copytree(drawn / block, tmp_path / "data" / block)
    return tmp_path / "data"


def test_blocks_and_positives(drawn: Path) -> None:
    data = open_copies(drawn)
    assert data.layout == "copydays"
    assert list(data.sources) == ["references", "queries"]
    assert len(data.sources["references"]) == 10
    assert len(data.sources["queries"]) == 10 + 15 + 18 * 10
    blocks = list(dict.fromkeys(data.truth.blocks.values()))
    assert blocks[:5] == ["original", "strong", "jpegqual_3", "jpegqual_5", "jpegqual_8"]
    assert blocks[-1] == "crops_80"
    assert data.truth.positives["jpegqual/15/200300.jpg"] == ("original/200300.jpg",)
    assert data.truth.positives["strong/200101.jpg"] == data.truth.positives["strong/200102.jpg"]
    assert data.truth.positives["strong/200101.jpg"] == ("original/200100.jpg",)
    assert data.truth.num_pairs == len(data.sources["queries"])
    assert set(data.truth.blocks) == set(data.sources["queries"].ids)
    assert data.sources["queries"].read(0).mode == "RGB"
    assert open_copies(drawn).truth.fingerprint() == data.truth.fingerprint()


def test_names_decide_and_not_the_order_alone(copydays: Path) -> None:
    # A block of as many images as originals, one of which is another's: by its place it would be taken for a copy.
    (copydays / "jpegqual/15/200000.jpg").rename(copydays / "jpegqual/15/200950.jpg")
    with pytest.raises(DataError) as error:
        open_copies(copydays)
    text = str(error.value)
    assert "jpegqual/15/ lacks 1 of 10 images (200000.jpg)" in text
    assert "jpegqual/15/ has 1 images without an original of that name (200950.jpg)" in text
    assert "original/ (10), strong/ (15), jpegqual/3/ (10), jpegqual/15/ (10), crops/50/ (10)" in text
    assert HOME in text


def test_a_missing_image_is_told(copydays: Path) -> None:
    for name in ("200100", "200500"):
        (copydays / f"crops/50/{name}.jpg").unlink()
    with pytest.raises(DataError, match=r"crops/50/ lacks 2 of 10 images \(200100.jpg, 200500.jpg\)"):
        open_copies(copydays)


def test_a_missing_original_is_told_by_its_copies(copydays: Path) -> None:
    (copydays / "original/200400.jpg").unlink()
    with pytest.raises(DataError) as error:
        open_copies(copydays)
    assert "strong/ has 1 images without an original of the same first four characters (200401.jpg)" in str(error.value)
    assert "jpegqual/3/ has 1 images without an original of that name (200400.jpg)" in str(error.value)


def test_missing_blocks(copydays: Path, caplog: pytest.LogCaptureFixture) -> None:
    open_copies(copydays)
    assert "lacks 15 of the official blocks (jpegqual/5, " in caplog.text
    shutil.rmtree(copydays / "original")
    with pytest.raises(DataError, match=r"original/ is missing\. Found: strong/ \(15\)"):
        open_copies(copydays)
    shutil.copytree(copydays / "jpegqual/3", copydays / "original")
    for name in ("strong", "jpegqual", "crops"):
        shutil.rmtree(copydays / name)
    with pytest.raises(DataError, match="no block of copies"):
        open_copies(copydays)
    (copydays / "strong").mkdir()
    with pytest.raises(DataError, match="strong/ holds no images"):
        open_copies(copydays)


def test_names_that_cannot_be_matched(copydays: Path) -> None:
    shutil.copy(copydays / "original/200300.jpg", copydays / "original/200350.jpg")
    for block in ("jpegqual/3", "jpegqual/15", "crops/50"):
        shutil.copy(copydays / "original/200300.jpg", copydays / block / "200350.jpg")
    with pytest.raises(DataError, match=r"2 images with several originals of the same first four"):
        open_copies(copydays)
    (copydays / "original/200350.jpg").rename(copydays / "original/200300.png")
    with pytest.raises(DataError, match=r"1 names more than once, with other suffixes \(200300\)"):
        open_copies(copydays)


def test_folders_that_are_no_numbers(copydays: Path) -> None:
    (copydays / "crops/thumbs").mkdir()
    with pytest.raises(DataError, match="the folders thumbs; each folder in it is named by its number"):
        open_copies(copydays)


def test_other_suffixes_count_and_are_told(copydays: Path, caplog: pytest.LogCaptureFixture) -> None:
    (copydays / "strong/200001.jpg").rename(copydays / "strong/200001.JPG")
    Image.open(copydays / "original/200200.jpg").save(copydays / "original/200200.png")
    (copydays / "original/200200.jpg").unlink()
    data = open_copies(copydays)
    assert data.truth.positives["strong/200001.JPG"] == ("original/200000.jpg",)
    assert data.truth.positives["crops/50/200200.jpg"] == ("original/200200.png",)
    assert "2 images of" in caplog.text
    assert "do not end in .jpg" in caplog.text


def test_originals_without_strong_copies_are_told(copydays: Path, caplog: pytest.LogCaptureFixture) -> None:
    (copydays / "strong/200401.jpg").unlink()
    data = open_copies(copydays)
    assert list(data.truth.blocks.values()).count("strong") == 14
    assert "strong/ has no copy of 1 of 10 originals (200400.jpg)" in caplog.text


def test_distractors_and_whitening_of_the_folder_itself(copydays: Path, caplog: pytest.LogCaptureFixture) -> None:
    more = copydays.parent / "more"
    (more / "below").mkdir(parents=True)
    for number in range(3):
        Image.new("RGB", (20, 20), (number, 9, 9)).save(more / f"{number}.png")
    Image.new("RGB", (20, 20), "red").save(more / "below/x.JPEG")
    with caplog.at_level(logging.INFO):
        data = open_copies(copydays, distractors=more, whitening=more, recursive=False)
    assert list(data.sources) == ["references", "distractors", "whitening", "queries"]
    assert data.sources["distractors"].ids == ("0.png", "1.png", "2.png")
    assert "1 images in folders below are left out" in caplog.text
    assert len(open_copies(copydays, whitening=more).sources["whitening"]) == 4
    with pytest.raises(DataError, match="is not there"):
        open_copies(copydays, distractors=more / "nothing")
    for number in range(3):
        (more / f"{number}.png").unlink()
    with pytest.raises(DataError, match="itself holds no images, folders below it 1"):
        open_copies(copydays, whitening=more, recursive=False)


@pytest.mark.parametrize(("source", "told"), [("strong/200101.jpg", "queries"), ("original/200100.jpg", "queries")])
def test_distractors_that_are_queries_are_refused(copydays: Path, source: str, told: str) -> None:
    more = copydays.parent / "more"
    more.mkdir()
    shutil.copy(copydays / source, more / "renamed.jpg")
    Image.new("RGB", (20, 20)).save(more / "other.png")
    with pytest.raises(
        DataError, match=rf"1 of 2 distractors are {told} as well, byte by byte \(.*renamed.jpg is .*{source}"
    ):
        open_copies(copydays, distractors=more)


def test_distractors_of_the_same_name_are_told(copydays: Path, caplog: pytest.LogCaptureFixture) -> None:
    more = copydays.parent / "more"
    more.mkdir()
    Image.new("RGB", (20, 20)).save(more / "200101.png")
    open_copies(copydays, distractors=more)
    assert "1 distractors have the names of queries (200101.png), with other content" in caplog.text


def test_folders_of_no_layout(tmp_path: Path, copydays: Path) -> None:
    with pytest.raises(DataError, match="is not there; needed: a Copydays folder"):
        layout_of(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no layout of copy detection.*found: nothing"):
        layout_of(tmp_path / "empty")
    with pytest.raises(ConfigError, match="no query sets"):
        open_copies(copydays, query_set="dev")
