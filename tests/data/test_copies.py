"""Benchmarks for copy detection made from photographs."""

import csv
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from patchssl.cli.data import data
from patchssl.data.copies import CopiesSummary, write_copies
from patchssl.data.copies.processes import in_order
from patchssl.data.decode import UnreadableImage
from patchssl.data.images import ArraySource
from patchssl.data.sources import open_unlabelled
from patchssl.data.synth.copies import CROP_PERCENTS, JPEG_QUALITIES, draw_original
from patchssl.errors import DataError

NUM_PHOTOS = 5


@dataclass
class Written:
    photos: Path
    folder: Path
    summary: CopiesSummary
    progress: list[tuple[int, int]]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five usable pictures, a small one, a broken one and a text, in folders; one in a file with metadata."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "b").mkdir()
    for number in range(NUM_PHOTOS):
        image = Image.fromarray(draw_original(number, 96, 0))
        if number == 0:
            exif = Image.Exif()
            exif[0x0112] = 6  # to be turned by a quarter
            image.save(folder / "photo0.jpg", quality=95, exif=exif, comment=b"secret")
        elif number == 1:
            image.convert("L").save(folder / "photo1.png")
        else:
            image.save(folder / "b" / f"photo{number}.png")
    Image.new("RGB", (200, 63)).save(folder / "low.png")
    (folder / "b" / "broken.jpg").write_bytes((folder / "photo0.jpg").read_bytes()[:700])
    (folder / "read.txt").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def written(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Written:
    folder, progress = tmp_path_factory.mktemp("benchmark") / "out", list[tuple[int, int]]()
    summary = write_copies(
        folder, open_unlabelled(photos), on_original=lambda done, total: progress.append((done, total))
    )
    return Written(photos, folder, summary, progress)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def pixels(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    with Image.open(path) as image:
        assert (image.mode, image.format) == ("RGB", "JPEG")
        return np.asarray(image)


def source_of(images: Sequence[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]) -> ArraySource:
    names = tuple(f"{number}.png" for number in range(len(images)))
    return ArraySource(np.stack(images), names, None, (), "arrays", "arrays")


def test_the_layout_is_that_of_copydays(written: Written) -> None:
    folder = written.folder
    originals = [f"{number:04d}00.jpg" for number in range(NUM_PHOTOS)]
    assert sorted(path.name for path in (folder / "original").iterdir()) == originals
    for block, numbers in (("jpegqual", JPEG_QUALITIES), ("crops", CROP_PERCENTS)):
        assert sorted(int(path.name) for path in (folder / block).iterdir()) == sorted(numbers)
        for part in (folder / block).iterdir():
            assert sorted(path.name for path in part.iterdir()) == originals
    strong = sorted(path.name for path in (folder / "strong").iterdir())
    assert strong == [f"{number:04d}{copy:02d}.jpg" for number in range(NUM_PHOTOS) for copy in (1, 2)]
    entries = {path.name for path in folder.iterdir()}
    assert entries == {"original", "strong", "jpegqual", "crops", "originals.csv", "edits.csv", "left_out.csv"}
    assert not [path for path in folder.parent.iterdir() if path != folder]


def test_summary_progress_and_files_agree(written: Written) -> None:
    summary = written.summary
    assert (summary.output, summary.num_originals, summary.num_strong) == (written.folder, 5, 10)
    assert summary.num_copies == 5 * (9 + 9 + 2)
    assert len(list(written.folder.rglob("*.jpg"))) == summary.num_originals + summary.num_copies
    assert written.progress == [(done, 5) for done in range(1, 6)]


def test_what_cannot_be_used_is_left_out_and_named(written: Written) -> None:
    left_out = dict(written.summary.left_out)
    assert set(left_out) == {"low.png", "b/broken.jpg"}
    assert left_out["low.png"] == "is 200 x 63 px, and 64 is the least side"
    assert "cannot be decoded" in left_out["b/broken.jpg"]
    assert {row["source"]: row["reason"] for row in table(written.folder / "left_out.csv")} == left_out


def test_each_original_names_its_photograph_and_looks_like_it(written: Written) -> None:
    rows = table(written.folder / "originals.csv")
    names = ["b/photo2.png", "b/photo3.png", "b/photo4.png", "photo0.jpg", "photo1.png"]
    assert [row["source"] for row in rows] == names
    assert [row["original"] for row in rows] == [f"original/{number:04d}00.jpg" for number in range(5)]
    source = open_unlabelled(written.photos)
    for row in rows:
        photo = np.asarray(source.read(list(source.ids).index(row["source"])))
        original = pixels(written.folder / row["original"])
        assert original.shape == photo.shape
        assert np.abs(original.astype(int) - photo).mean() < 12
    turned = pixels(written.folder / rows[3]["original"])
    assert turned.shape == (96, 72, 3)


def test_nothing_of_a_file_but_its_pixels_goes_on(written: Written) -> None:
    assert not [name for name, content in files(written.folder).items() if b"secret" in content or b"Exif" in content]


def test_jpeg_copies_lose_and_crops_shrink(written: Written) -> None:
    for name in ("000000.jpg", "000300.jpg"):
        original = pixels(written.folder / "original" / name)
        lost = [
            np.abs(pixels(written.folder / "jpegqual" / str(quality) / name).astype(int) - original).mean()
            for quality in (3, 10, 30, 75)
        ]
        assert lost == sorted(lost, reverse=True)
        assert lost[0] > 2 * lost[-1]
        for percent in (10, 40, 80):
            kept = pixels(written.folder / "crops" / str(percent) / name)
            assert kept.size / original.size == pytest.approx(1 - percent / 100, abs=0.03)


def test_a_jpeg_copy_is_the_photograph_at_that_quality(written: Written, tmp_path: Path) -> None:
    with Image.open(written.photos / "b" / "photo2.png") as image:
        image.save(tmp_path / "same.jpg", quality=20)
    assert (tmp_path / "same.jpg").read_bytes() == (written.folder / "jpegqual" / "20" / "000000.jpg").read_bytes()


def test_every_strong_copy_has_its_edits_recorded(written: Written) -> None:
    rows = table(written.folder / "edits.csv")
    assert [row["query"] for row in rows] == [
        f"strong/{number:04d}{copy:02d}.jpg" for number in range(5) for copy in (1, 2)
    ]
    for row in rows:
        original = written.folder / row["original"]
        assert original.name[:4] == Path(row["query"]).name[:4]
        assert [edit["edit"] for edit in json.loads(row["parameters"])] == row["edits"].split("+")
        copy, before = pixels(written.folder / row["query"]), pixels(original)
        assert copy.shape != before.shape or np.abs(copy.astype(int) - before).mean() > 0.5
    assert len({row["parameters"] for row in rows}) == len(rows)


def test_copies_follow_from_seed_number_and_pixels_alone(written: Written, tmp_path: Path) -> None:
    # Fewer photographs, other parts asked for: what is written is the same.
    images = [draw_original(number, 96, 0) for number in (0, 1, 3, 4, 6)]
    for name, few in (("all", images), ("few", images[:3])):
        write_copies(tmp_path / name, source_of(few), qualities=(50,), crops=(30,), strong_per_image=2)
    write_copies(tmp_path / "one", source_of(images), qualities=(50, 60), crops=(30, 35), strong_per_image=1)
    everything = files(tmp_path / "all")
    for name, expected in (("few", 3 * 5), ("one", 5 * 4)):
        same = {path: content for path, content in files(tmp_path / name).items() if path in everything}
        images_only = {path for path in same if path.endswith(".jpg")}
        assert len(images_only) == expected
        assert all(same[path] == everything[path] for path in images_only)


def test_processes_change_nothing(written: Written, tmp_path: Path) -> None:
    write_copies(tmp_path / "out", open_unlabelled(written.photos), workers=2)
    assert files(tmp_path / "out") == files(written.folder)


def test_another_seed_and_difficulty_give_other_copies_of_the_same_originals(written: Written, tmp_path: Path) -> None:
    source = open_unlabelled(written.photos)
    write_copies(tmp_path / "seed", source, seed=1)
    write_copies(tmp_path / "hard", source, difficulty=4)
    for name, changed in (("seed", ("strong", "crops")), ("hard", ("strong",))):
        for path, content in files(tmp_path / name).items():
            if path.endswith(".jpg"):
                is_same = content == files(written.folder)[path]
                assert is_same or path.startswith(changed), path
        strong = [path for path in files(tmp_path / name) if path.startswith("strong")]
        assert all(files(tmp_path / name)[path] != files(written.folder)[path] for path in strong)
    usual, hard = (
        [row["edits"].count("+") for row in table(folder / "edits.csv")]
        for folder in (written.folder, tmp_path / "hard")
    )
    assert sum(hard) > 2 * sum(usual)


def test_fewer_originals_are_the_first_of_more(written: Written, tmp_path: Path) -> None:
    source = open_unlabelled(written.photos)
    for num in (2, 4):
        write_copies(tmp_path / str(num), source, num_originals=num, workers=num - 2)
    few, more = (table(tmp_path / str(num) / "originals.csv") for num in (2, 4))
    assert (len(few), len(more)) == (2, 4)
    assert few == more[:2]
    assert all(
        (tmp_path / "2" / path).read_bytes() == (tmp_path / "4" / path).read_bytes()
        for path in files(tmp_path / "2")
        if path.endswith(".jpg")
    )
    write_copies(tmp_path / "other", source, num_originals=4, seed=3)
    assert table(tmp_path / "other" / "originals.csv") != more


def test_long_sides_are_shrunk_and_short_ones_checked_afterwards(written: Written, tmp_path: Path) -> None:
    source = open_unlabelled(written.photos)
    summary = write_copies(tmp_path / "out", source, max_side_px=60, min_side_px=40)
    sizes = {pixels(path).shape for path in (tmp_path / "out" / "original").iterdir()}
    assert sizes == {(45, 60, 3), (60, 45, 3)}
    assert dict(summary.left_out)["low.png"] == "is 60 x 19 px, and 40 is the least side"


def test_four_digits_are_not_enough_for_more(tmp_path: Path) -> None:
    many = source_of([np.zeros((1, 1, 3), dtype=np.uint8)] * 10_001)
    with pytest.raises(DataError, match=r"10,001 images.*at most 10,000 originals.*--num-originals"):
        write_copies(tmp_path / "out", many)
    with pytest.raises(DataError, match=r"10001 originals.*2 to 10,000"):
        write_copies(tmp_path / "out", many, num_originals=10_001)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("num_originals", "least"), [(None, 2), (3, 3)])
def test_too_few_usable_photographs_are_refused(tmp_path: Path, num_originals: int | None, least: int) -> None:
    images = [np.zeros((64, 64, 3), dtype=np.uint8)]
    (tmp_path / "photos").mkdir()
    for number, size in enumerate((64, 20, 20)):
        Image.new("RGB", (size, size)).save(tmp_path / "photos" / f"{number}.png")
    with pytest.raises(DataError, match=rf"1 of the 3 images.*{least} originals are needed; .*20 x 20 px"):
        write_copies(tmp_path / "out", open_unlabelled(tmp_path / "photos"), num_originals=num_originals)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]
    with pytest.raises(DataError, match="1 of the 1 images"):
        write_copies(tmp_path / "out", source_of(images))


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"num_originals": 1}, "1 originals.*2 to 10,000"),
        ({"strong_per_image": 0}, "0 strong copies.*1 to 99"),
        ({"strong_per_image": 100}, "100 strong copies"),
        ({"qualities": (3, 96)}, "3, 96.*1 to 95"),
        ({"qualities": (3, 3)}, "different"),
        ({"crops": (0,)}, "crops 0"),
        ({"difficulty": 0.0}, "difficulty is 0"),
        ({"difficulty": float("nan")}, "difficulty is nan"),
        ({"min_side_px": 31}, "31 px.*at least 32"),
        ({"max_side_px": 63}, "63 px.*64 px"),
        ({"seed": -1}, "-1"),
    ],
)
def test_numbers_out_of_range_are_refused(
    written: Written, tmp_path: Path, wrong: dict[str, object], told: str
) -> None:
    with pytest.raises(DataError, match=told):
        write_copies(tmp_path / "out", open_unlabelled(written.photos), **wrong)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_an_occupied_folder_is_left_alone(written: Written, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match=r"holds 1 entries.*new or empty"):
        write_copies(tmp_path, open_unlabelled(written.photos))
    assert files(tmp_path) == {"mine.txt": b"mine"}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_photograph_that_vanishes_meanwhile_leaves_nothing_behind(tmp_path: Path, workers: int) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(6):
        Image.new("RGB", (64, 64), (40 * number, 0, 0)).save(tmp_path / "photos" / f"{number}.png")

    def remove(done: int, total: int) -> None:
        (tmp_path / "photos" / "5.png").unlink(missing_ok=True)

    with pytest.raises(UnreadableImage, match=r"5\.png: No such file"):
        write_copies(tmp_path / "out", open_unlabelled(tmp_path / "photos"), workers=workers, on_original=remove)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_interruption_leaves_nothing_behind(tmp_path: Path, workers: int) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    # Enough work that the processes are in the middle of it.
    images = [draw_original(number, 128, 0) for number in (0, 1, 3, 4, 6, 7, 9, 10)]
    with pytest.raises(KeyboardInterrupt):
        write_copies(tmp_path / "out", source_of(images), strong_per_image=9, workers=workers, on_original=interrupt)
    time.sleep(0.3)
    assert list(tmp_path.iterdir()) == []


def square(number: int) -> int:
    if number == 30:
        raise OSError(28, "No space left on device")
    return number**2


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_results_come_in_order_and_errors_as_they_were(workers: int) -> None:
    assert list(in_order(square, 30, workers=workers)) == [number**2 for number in range(30)]
    assert list(in_order(square, 0, workers=workers)) == []
    with pytest.raises(OSError, match=r"No space left") as caught:
        list(in_order(square, 31, workers=workers))
    assert caught.value.errno == 28


def test_the_command_prints_the_folder_and_reports_the_rest(written: Written, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = [
        "--strong-per-image",
        "1",
        "--qualities",
        "20",
        "--crops",
        "10,50",
        "--max-side",
        "80",
        "--min-side",
        "32",
    ]
    done = CliRunner().invoke(data, ["copies", str(written.photos), str(out), *options, "--workers", "0"])
    assert done.exit_code == 0, done.output
    assert done.stdout == f"{out}\n"
    assert "left out 2 images, listed in left_out.csv: b/broken.jpg" in done.stderr
    assert "copied 5 of 5 originals" in done.stderr
    assert "5 originals, 20 copies, 5 of them strong; difficulty 1" in done.stderr
    assert sorted(path.name for path in (out / "crops").iterdir()) == ["10", "50"]


def test_quiet_still_warns(written: Written, tmp_path: Path) -> None:
    arguments = ["copies", str(written.photos), str(tmp_path / "out"), "--quiet", "--workers", "0"]
    done = CliRunner().invoke(data, [*arguments, "--qualities", "20", "--crops", "10"])
    assert done.stderr.count("\n") == 1
    assert "left out" in done.stderr


@pytest.mark.parametrize("value", ["three", "3;5", ""])
def test_a_list_that_is_none_is_wrong_usage(tmp_path: Path, value: str) -> None:
    done = CliRunner().invoke(data, ["copies", str(tmp_path), str(tmp_path / "out"), "--qualities", value])
    assert done.exit_code == 2
    assert "no list of whole numbers such as 3,5,8" in done.stderr


@pytest.mark.parametrize("word", ["ORIGINALS", "OUT", "--num-originals", "--difficulty", "edits.csv", "quality 95"])
def test_help_teaches(word: str) -> None:
    assert word in CliRunner().invoke(data, ["copies", "--help"]).stdout
