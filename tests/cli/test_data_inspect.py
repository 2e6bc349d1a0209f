"""`patchssl data inspect` on data whose every figure is known."""

import csv
import io
import json
import os
import pickle
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from patchssl.cli.main import main
from patchssl.data.images import ArraySource
from patchssl.data.inspection.collection import Collection
from patchssl.data.inspection.duplicates import find_duplicates
from patchssl.data.inspection.facts import write_facts
from patchssl.data.inspection.leakage import find_leakage
from patchssl.data.inspection.reading import read_facts

ODD = "a,\"b\"\n'c'\r\t\x1b[31m é.png"
NOT_UTF8 = os.fsdecode(b"\xff\xfe.png")
FORMULA = "=cmd|' C'!A0.png"


def noise(number: int, width: int = 40, height: int = 30) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def save(image: Image.Image, path: Path, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("labelled")
    train, val = root / "train", root / "val"
    save(noise(1), train / "cat" / "a.png")
    save(noise(1), train / "cat" / "again.png")
    save(noise(1), train / "dog" / "a.bmp")  # the same picture in another class
    save(noise(2).convert("L"), train / "dog" / "grey.jpg")
    save(noise(3, 300, 250), train / "dog" / "large.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    save(noise(4, 60, 20), train / "emu" / "turned.jpg", exif=exif)
    (train / "emu" / "cut.png").write_bytes((train / "cat" / "a.png").read_bytes()[:200])
    save(noise(5), train / "loose.png")
    save(noise(1), val / "cat" / "same-file.png")
    save(noise(1), val / "fox" / "same-picture.tif")
    save(noise(3, 300, 250), val / "dog" / "large.png")
    save(noise(6).convert("RGBA"), val / "cat" / "alpha.png")
    save(noise(7).convert("CMYK"), val / "dog" / "cmyk.jpg")
    save(Image.new("RGB", (40, 30), "white"), val / "fox" / "white.png")
    save(noise(8).convert("P"), root / "more" / "palette.gif")
    (root / "more" / "empty.png").write_bytes(b"")
    return root


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("odd")
    for name in (ODD, NOT_UTF8, FORMULA):
        save(noise(1), root / name)
        (root / f"-{name}").write_bytes(b"no image")
    return root


def inspected(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[str, Any]:
    assert main(["data", "inspect", *map(str, arguments), "--format", "json", "--workers", "0", "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    found = json.loads(out)
    assert isinstance(found, dict)
    return found


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("workers", ["0", "2"])
def test_every_figure_by_hand(workers: str, labelled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "inspect", str(labelled), "--format", "json", "--workers", workers, "--view-size", "41"]) == 0
    found = json.loads(capsys.readouterr().out)
    files = [path for path in labelled.rglob("*") if path.is_file()]
    assert found["num_images"] == len(files) == 16
    assert found["num_bytes"] == sum(path.stat().st_size for path in files)
    assert (found["is_labelled"], found["num_classes"]) == (True, 4)
    train, val, elsewhere = found["parts"]
    assert (train["name"], train["num_images"], train["num_unreadable"], train["num_unlabelled"]) == ("train", 8, 1, 1)
    assert train["classes"] == {"cat": 2, "dog": 3, "emu": 2}
    assert train["smallest_class"] == {"name": "cat", "num_images": 2}
    assert train["largest_class"] == {"name": "dog", "num_images": 3}
    assert (train["num_classes"], train["missing_classes"]) == (3, ["fox"])
    assert (val["num_images"], val["num_unreadable"], val["missing_classes"]) == (6, 0, ["emu"])
    assert (elsewhere["name"], elsewhere["num_images"], elsewhere["num_unreadable"]) == ("elsewhere", 2, 1)
    assert found["num_unreadable"] == 2
    assert {bad["image"] for bad in found["unreadable"]} == {"more/empty.png", "train/emu/cut.png"}
    assert {"image": "more/empty.png", "reason": "is empty (0 bytes)"} in found["unreadable"]
    # 11 of 40 x 30, two of 300 x 250, one upright of 20 x 60.
    assert found["sizes"] == {
        "width_px": {"min": 20, "median": 40, "max": 300},
        "height_px": {"min": 30, "median": 30, "max": 250},
        "shorter_side_px": {"min": 20, "median": 30, "max": 250},
        "aspect_ratio": {"min": 20 / 60, "median": 40 / 30, "max": 40 / 30},
    }
    assert (found["view_size_px"], found["num_smaller_than_view"]) == (41, 12)
    kinds = found["kinds"]
    assert kinds["formats"] == {"PNG": 8, "JPEG": 3, "BMP": 1, "GIF": 1, "TIFF": 1}
    assert kinds["colours"] == {"RGB": 11, "CMYK": 1, "grey": 1, "palette": 1}
    assert (kinds["num_16_bit"], kinds["num_with_alpha"], kinds["num_exif_turned"]) == (0, 1, 1)
    assert (kinds["num_one_colour"], kinds["num_nearly_one_colour"]) == (1, 0)
    assert found["one_colour"] == ["val/fox/white.png"]
    assert found["same_file"] == {"num_groups": 2, "num_images": 5, "num_superfluous": 3}
    assert found["same_picture"] == {"num_groups": 2, "num_images": 7, "num_superfluous": 5}
    assert found["num_same_picture_other_file"] == 1
    assert found["num_label_conflicts"] == 1
    (conflict,) = found["conflicting"]
    assert {(image["image"], image["label"]) for image in conflict} == {
        ("train/cat/a.png", "cat"),
        ("train/cat/again.png", "cat"),
        ("train/dog/a.bmp", "dog"),
        ("val/cat/same-file.png", "cat"),
        ("val/fox/same-picture.tif", "fox"),
    }
    assert found["leakage"] == [
        {
            "parts": ["train", "val"],
            "num_same_file": 2,
            "num_same_picture": 1,
            "num_near": None,
            "num_disagreeing": 1,
        }
    ]
    assert found["near_duplicates"] is None
    assert found["warnings"] == [
        "val is not apart from train: 3 of its images are there as well; 1 of these have other labels there",
        "1 pictures stand in several classes",
        "1 images of train have no class; evaluations refuse that",
        "2 images lie outside of the parts; evaluations leave them out, pretraining does not",
    ]


def test_the_folder_by_hand(labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "report"
    found = inspected(capsys, labelled, "--output", output, "--sheet-images", "5")
    assert json.loads((output / "report.json").read_text()) == found
    assert {path.name for path in output.iterdir()} == {
        "report.json",
        "unreadable.csv",
        "duplicates.csv",
        "leakage.csv",
        "one_colour.csv",
        "contact_sheet.jpg",
        "duplicate_sheet.jpg",
    }
    assert [(row["image"], row["part"], row["label"]) for row in table(output / "unreadable.csv")] == [
        ("more/empty.png", "elsewhere", ""),
        ("train/emu/cut.png", "train", "emu"),
    ]
    assert [(row["image"], row["shows"]) for row in table(output / "one_colour.csv")] == [
        ("val/fox/white.png", "one colour")
    ]
    rows = table(output / "duplicates.csv")
    assert [(row["group"], row["file"], row["image"], row["labels_agree"]) for row in rows] == [
        ("1", "1", "train/cat/a.png", "no"),
        ("1", "1", "train/cat/again.png", "no"),
        ("1", "2", "train/dog/a.bmp", "no"),
        ("1", "1", "val/cat/same-file.png", "no"),
        ("1", "3", "val/fox/same-picture.tif", "no"),
        ("2", "1", "train/dog/large.png", "yes"),
        ("2", "1", "val/dog/large.png", "yes"),
    ]
    size = (labelled / "train" / "dog" / "a.bmp").stat().st_size
    assert {name: rows[2][name] for name in ("format", "width", "height", "num_bytes")} == {
        "format": "BMP",
        "width": "40",
        "height": "30",
        "num_bytes": str(size),
    }
    leaks = [(row["kind"], row["image"], row["other"], row["labels_agree"]) for row in table(output / "leakage.csv")]
    assert leaks == [
        ("same file", "train/cat/a.png", "val/cat/same-file.png", "yes"),
        ("same file", "train/dog/large.png", "val/dog/large.png", "yes"),
        ("same picture", "train/cat/a.png", "val/fox/same-picture.tif", "no"),
    ]
    for name in ("contact_sheet.jpg", "duplicate_sheet.jpg"):
        with Image.open(output / name) as sheet:
            sheet.load()
            assert min(sheet.size) > 144
            assert np.asarray(sheet).std() > 20


def test_formats_say_the_same(labelled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = {}
    for kind in ("table", "csv", "markdown"):
        assert main(["data", "inspect", str(labelled), "--format", kind, "--workers", "0", "-q"]) == 0
        told[kind] = capsys.readouterr().out
    lines = list(csv.reader(io.StringIO(told["csv"])))
    assert lines[0] == ["fact", "value"]
    facts = [(name, value) for name, value in lines[1:] if name != "data"]
    assert ("labels", "yes, 4 classes") in facts
    assert ("train classes missing", "1: fox") in facts
    assert ("train and val", "share 2 files, 1 pictures in other files; 1 with other labels") in facts
    for name, value in facts:
        assert f"{name} " in told["table"]
        assert value in told["table"]
        assert f"| {name} | {value} |" in told["markdown"]


def test_without_labels_and_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(noise(1), tmp_path / "photos" / "a.png")
    found = inspected(capsys, tmp_path / "photos")
    assert (found["num_images"], found["is_labelled"], found["leakage"], found["warnings"]) == (1, False, [], [])
    assert [part["name"] for part in found["parts"]] == ["all"]
    assert main(["data", "inspect", str(tmp_path / "photos"), "--workers", "1", "-q"]) == 0
    out = capsys.readouterr().out
    assert "labels          no" in out
    assert "in several classes" not in out


def test_cifar(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flat = np.random.default_rng(0).integers(0, 256, (7, 3072), dtype=np.uint8)
    for number in range(1, 6):
        batch = {b"data": flat[number - 1 : number], b"labels": [number % 2]}
        (tmp_path / f"data_batch_{number}").write_bytes(pickle.dumps(batch))
    (tmp_path / "test_batch").write_bytes(pickle.dumps({b"data": flat[[5, 2, 6, 3]], b"labels": [0, 1, 1, 1]}))
    (tmp_path / "batches.meta").write_bytes(pickle.dumps({b"label_names": [b"cat", b"dog"]}))
    found = inspected(capsys, tmp_path)
    assert [part["classes"] for part in found["parts"]] == [{"cat": 2, "dog": 3}, {"cat": 1, "dog": 3}]
    assert found["kinds"]["formats"] == {"array": 9}
    assert found["num_bytes"] == 9 * 3072
    (leak,) = found["leakage"]
    assert (leak["parts"], leak["num_same_file"], leak["num_disagreeing"]) == (["train", "test"], 2, 1)
    assert [named["other"] for named in found["leaking"]] == [
        {"image": "test/00001", "label": "dog"},
        {"image": "test/00003", "label": "dog"},
    ]


def test_all_unreadable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos, output = tmp_path / "photos", tmp_path / "report"
    photos.mkdir()
    for number in range(40):
        (photos / f"{number:02d}.jpg").write_bytes(b"not an image")
    (photos / "gone.jpg").symlink_to(photos / "nowhere")
    os.mkfifo(photos / "pipe.jpg")
    (photos / "endless.jpg").symlink_to("/dev/zero")
    found = inspected(capsys, photos, "--output", output)
    assert (found["num_images"], found["num_unreadable"], found["sizes"]) == (43, 43, None)
    assert found["same_file"]["num_groups"] == 0
    assert found["warnings"] == ["no image can be read"]
    rows = {row["image"]: row["reason"] for row in table(output / "unreadable.csv")}
    assert len(rows) == 43
    assert (rows["gone.jpg"], rows["pipe.jpg"]) == ("No such file or directory", "is no regular file")
    assert rows["endless.jpg"] == "is no regular file"
    assert not (output / "contact_sheet.jpg").exists()
    near = inspected(capsys, photos, "--model", "floor:raw-pixels")["near_duplicates"]
    assert (near["num_compared"], near["num_pairs"]) == (0, 0)


def test_odd_names_stay_names(odd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = inspected(capsys, odd, "--output", tmp_path / "report")
    assert {bad["image"] for bad in found["unreadable"]} == {f"-{name}" for name in (ODD, NOT_UTF8, FORMULA)}
    for name, prefix in (("duplicates", ""), ("unreadable", "-")):
        rows = [row["image"] for row in table(tmp_path / "report" / f"{name}.csv")]
        assert len(rows) == 3
        # Names lead to their files as they are, and none begins a formula.
        assert {(odd / row).resolve() for row in rows} == {odd / f"{prefix}{one}" for one in (ODD, NOT_UTF8, FORMULA)}
        assert not [row for row in rows if row.startswith(("=", "-", "+", "@"))]
    assert main(["data", "inspect", str(odd), "--workers", "0", "-q"]) == 0
    out = capsys.readouterr().out
    assert "\\n" in out
    assert all(letter.isprintable() for letter in out.replace("\n", ""))


def test_near_duplicates_by_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawn = [np.asarray(noise(number, 8, 8).resize((32, 32))) for number in range(4)]
    almost = drawn[0].copy()
    almost[0, 0] ^= 8
    folder, output = tmp_path / "folder", tmp_path / "report"
    for name, pixels in (
        ("train/a/0.png", drawn[0]),
        ("train/a/1.png", drawn[1]),
        ("train/a/copy.png", drawn[1]),
        ("val/b/0.png", almost),
        ("val/a/2.png", drawn[2]),
        ("val/b/3.png", drawn[3]),
    ):
        save(Image.fromarray(pixels), folder / name)
    model = ["--model", "timm:vit_tiny_patch16_224@random", "--image-size", "32", "--device", "cpu", "--no-cache"]
    found = inspected(capsys, folder, *model, "--threshold", "0.9999", "--output", output)
    near = found["near_duplicates"]
    assert (near["model"], near["threshold"], near["num_compared"]) == (model[1], 0.9999, 5)
    assert (near["num_pairs"], near["listed_above"]) == (1, None)
    assert near["groups"] == {"num_groups": 1, "num_images": 2, "num_superfluous": 1}
    (row,) = table(output / "near_duplicates.csv")
    assert 0.9999 < float(row["cosine"]) <= 1
    assert (row["image"], row["other"], row["labels_agree"]) == ("train/a/0.png", "val/b/0.png", "no")
    (leak,) = table(output / "leakage.csv")
    assert (leak["kind"], leak["image"], leak["other"]) == ("near", "train/a/0.png", "val/b/0.png")
    assert (found["leakage"][0]["num_near"], found["leakage"][0]["num_disagreeing"]) == (1, 1)
    assert "1 pairs are near-duplicates; 1 of these have other labels" in found["warnings"][0]


def test_an_earlier_report_is_replaced_and_nothing_else(
    labelled: Path, odd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "report"
    inspected(capsys, odd, "--output", output)
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    command = ["data", "inspect", str(labelled), "--workers", "0", "-q", "--output", str(output)]
    assert main(command) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before
    (output / "near_duplicates.csv").write_text("of an earlier model")
    assert main([*command, "--overwrite"]) == 0
    assert json.loads((output / "report.json").read_text())["num_images"] == 16
    assert not (output / "near_duplicates.csv").exists()
    (output / "mine.txt").write_text("kept")
    capsys.readouterr()
    assert main([*command, "--overwrite"]) == 1
    assert "'mine.txt'" in capsys.readouterr().err
    assert main(["data", "inspect", str(labelled), "--workers", "0", "--output", str(labelled / "more")]) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--threshold", "0.9"], "--threshold change nothing without --model"),
        (["--device", "cpu", "--no-cache"], "--device, --no-cache change nothing without --model"),
        (["--overwrite"], "--overwrite change nothing without --output"),
        (["--model", "floor:raw-pixels", "--threshold", "0"], "0.0 is not in the range"),
        (["--view-size", "0"], "0 is not in the range"),
        (["--max-bad-fraction", "0"], "No such option"),
    ],
)
def test_wrong_usage(arguments: list[str], said: str, labelled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "inspect", str(labelled), *arguments]) == 2
    assert said in capsys.readouterr().err


def test_a_full_disk_leaves_nothing(
    odd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("patchssl.data.inspection.sheets.write_duplicate_sheet", full)
    assert main(["data", "inspect", str(odd), "--workers", "0", "-q", "--output", str(tmp_path / "report")]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("Error: Cannot write ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_signals_end_it_at_once(
    number: signal.Signals,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    launch: Callable[..., Any],
) -> None:
    photos, begun, output = tmp_path / "photos", tmp_path / "begun", tmp_path / "out" / "report"
    for place in range(200):
        save(noise(place, 4, 4), photos / f"{place}.png")

    def slow(*arguments: Any, **options: Any) -> None:
        write_facts(*arguments, **options)
        begun.touch()
        time.sleep(0.2)

    monkeypatch.setattr("patchssl.data.inspection.reading.write_facts", slow)
    arguments = ("data", "inspect", str(photos), "--workers", "2", "--output", str(output))
    started = launch(*arguments, environments=[{}])
    started.wait_for(begun)
    before = time.monotonic()
    started.signal(number)
    assert started.ends(30) == [code], started.told(0)
    assert time.monotonic() - before < 15  # 20 s of work were left
    assert started.errors() == []
    assert not (tmp_path / "out").exists()


def test_a_signal_that_python_lost_ends_it_after_the_next_images(
    odd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Losing:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0)  # where the handler runs, whose exception goes nowhere

    def losing(*arguments: Any, **options: Any) -> None:
        Losing()
        write_facts(*arguments, **options)

    monkeypatch.setattr("patchssl.data.inspection.reading.write_facts", losing)
    assert main(["data", "inspect", str(odd), "--workers", "0", "--output", str(tmp_path / "report")]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "SIGTERM: stopping at once" in err
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def pictures() -> NDArray[np.uint8]:
    """Sixty pictures of which many are equal."""
    rng = np.random.default_rng(3)
    return rng.integers(0, 256, (25, 4, 5, 3), dtype=np.uint8)[rng.integers(25, size=60)]


def collection_of(pixels: NDArray[np.uint8], part_of: NDArray[np.int8], labels: NDArray[np.int64]) -> Collection:
    ids = tuple(map(str, range(len(pixels))))
    source = ArraySource(pixels, ids, None, (), "arrays", "arrays")
    return Collection(source, ("train", "val", "test"), part_of, ("x", "y"), labels)


def test_duplicates_and_leaks_one_by_one_in_any_order(pictures: NDArray[np.uint8]) -> None:
    rng = np.random.default_rng(4)
    part_of, labels = rng.integers(3, size=60).astype(np.int8), rng.integers(-1, 2, size=60)
    equal = [[bool((one == other).all()) for other in pictures] for one in pictures]
    groups = {frozenset(place for place in range(60) if equal[one][place]) for one in range(60)}
    groups = {group for group in groups if len(group) > 1}
    conflicts = {group for group in groups if {0, 1} <= {int(labels[place]) for place in group}}
    leaks = {
        (other, earlier)
        for one in range(60)
        for other in range(60)
        if equal[one][other] and (earlier := int(part_of[one])) < part_of[other]
    }
    for order in (np.arange(60), rng.permutation(60)):
        collection = collection_of(pictures[order], part_of[order], labels[order])
        duplicates = find_duplicates(read_facts(collection.source, workers=0))
        assert {frozenset(order[members].tolist()) for members in duplicates.pictures} == groups
        assert {frozenset(order[members].tolist()) for members in duplicates.conflicts(collection.labels)} == conflicts
        leakage = find_leakage(collection, duplicates, None)
        assert {(order[leak.other], int(collection.part_of[leak.one])) for leak in leakage.leaks} == leaks
        assert sum(count.num_same_file for count in leakage.counts) == len(leaks) > 20


def test_the_report_does_not_depend_on_the_order(
    labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [str(path) for path in labelled.rglob("*") if path.is_file()]
    reports = []
    for seed in (0, 1):
        rows = [
            f"{name},{name.split('/')[-2]},{'train' if '/train/' in name else 'val'}\n"
            for name in np.random.default_rng(seed).permutation(names)
        ]
        (tmp_path / f"{seed}.csv").write_text("path,label,split\n" + "".join(rows))
        found = inspected(capsys, tmp_path / f"{seed}.csv")
        named = ("data", "unreadable", "one_colour", "conflicting", "leaking")
        reports.append({key: value for key, value in found.items() if key not in named})
    assert reports[0] == reports[1]
    assert reports[0]["num_images"] == 16


def test_the_sheet_follows_from_the_seed(labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheets = []
    for place, seed in enumerate(("0", "0", "1")):
        output = tmp_path / str(place)
        inspected(capsys, labelled, "--output", output, "--seed", seed, "--sheet-images", "3")
        sheets.append((output / "contact_sheet.jpg").read_bytes())
    assert sheets[0] == sheets[1] != sheets[2]
