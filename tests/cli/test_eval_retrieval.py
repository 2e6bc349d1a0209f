"""`patchssl eval retrieval`, from images and from features."""

import csv
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from patchssl.cli.main import main
from patchssl.data.synth.dataset import write_dataset

GOLDEN = Path(__file__).parents[1] / "golden" / "revisited_map.npz"
TINY = "timm:vit_tiny_patch16_224@random"


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in images, few and small."""
    folder = tmp_path_factory.mktemp("retrieval") / "drawn"
    write_dataset(folder, num_images=128, image_size_px=32)
    return folder


@pytest.fixture
def golden(tmp_path: Path) -> list[str]:
    """Features whose cosines rank as the golden similarities, and their ground truth, as command line options."""
    with np.load(GOLDEN, allow_pickle=False) as file:
        similarity = file["similarity"]
        grades = {
            grade: np.split(file[f"gnd_{grade}_flat"], file[f"gnd_{grade}_offsets"][1:-1])
            for grade in ("easy", "hard", "junk")
        }
    scaled = similarity / (1.01 * np.linalg.norm(similarity, axis=1).max())
    database = np.concatenate([scaled, np.sqrt(1 - (scaled**2).sum(axis=1, keepdims=True))], axis=1)
    np.savez(tmp_path / "d.npz", features=database.astype(np.float32))
    np.savez(tmp_path / "q.npz", features=np.eye(20, 21, dtype=np.float32))
    gnd = [{grade: rows[query] for grade, rows in grades.items()} for query in range(20)]
    names = {"imlist": [f"i{row}" for row in range(300)], "qimlist": [f"q{row}" for row in range(20)]}
    (tmp_path / "gnd_golden.pkl").write_bytes(pickle.dumps({**names, "gnd": gnd}, 2))
    lists = [{grade: rows.tolist() for grade, rows in entry.items()} for entry in gnd]
    (tmp_path / "gnd_golden.json").write_text(json.dumps({**names, "gnd": lists}))
    return from_files(tmp_path, "--ground-truth", str(tmp_path / "gnd_golden.pkl"))


def from_files(folder: Path, *more: str) -> list[str]:
    files = ["--query-features", str(folder / "q.npz"), "--database-features", str(folder / "d.npz")]
    return ["eval", "retrieval", *files, *more]


def on_images(data: Path, *more: str) -> list[str]:
    fixed = ["--image-size", "32", "--workers", "0", "--device", "cpu", "--precision", "fp32", "--quiet"]
    return ["eval", "retrieval", str(data), "--model", TINY, *fixed, *more]


def row_of(command: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main([*command, "--no-record", "--format", "json"]) == 0, capsys.readouterr().err
    row = json.loads(capsys.readouterr().out)
    assert isinstance(row, dict)
    return row


@pytest.mark.parametrize("suffix", ["pkl", "json"])
def test_feature_files_give_every_number_of_the_original(
    suffix: str, golden: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*golden[:-1], str(tmp_path / f"gnd_golden.{suffix}"), "--per-query", str(tmp_path / "out.csv")]
    row = row_of(command, capsys)
    with (tmp_path / "out.csv").open(newline="") as file:
        lines = {(line["query"], line["difficulty"]): line for line in csv.DictReader(file)}
    with np.load(GOLDEN, allow_pickle=False) as file:
        for difficulty in ("easy", "medium", "hard"):
            expected = float(file[f"{difficulty}_map"])
            assert row["metrics"][f"map_{difficulty}"]["value"] == pytest.approx(expected, abs=1e-12)
            for k, value in zip((1, 5, 10), file[f"{difficulty}_mp_at_k"], strict=True):
                assert row["metrics"][f"mp_at_{k}_{difficulty}"]["value"] == pytest.approx(value, abs=1e-12)
            for query, ap in enumerate(file[f"{difficulty}_ap"]):
                told = lines[f"q{query}", difficulty]["ap"]
                assert (told == "") if np.isnan(ap) else (float(told) == pytest.approx(ap, abs=1e-12))
    assert (row["protocol"], row["headline"]) == ("official", "map_medium")
    assert row["settings"]["crop_queries"] is None


def test_a_pickle_that_is_not_plain_data_does_not_run(
    golden: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Payload:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "ran"),)

    (tmp_path / "gnd_golden.pkl").write_bytes(pickle.dumps({"imlist": Payload()}))
    assert main([*golden, "--no-record"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "gnd_golden.pkl is refused: it asks for " in err
    assert "mkdir" in err
    assert not (tmp_path / "ran").exists()


def test_the_built_in_images_give_a_whole_row(drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = on_images(drawn / "revisited", "--results", str(tmp_path / "rows"), "--format", "json")
    assert main(command) == 0
    row = json.loads(capsys.readouterr().out)
    (line,) = (tmp_path / "rows" / "retrieval.jsonl").read_text().splitlines()
    assert json.loads(line) == row
    assert row["dataset"]["splits"] == {"database": 200, "queries": 10}
    assert row["dataset"]["name"] == "revisited"
    wanted = {"token": "cls", "image_px": 32, "resize": "lanczos, longer side, never enlarged", "crop": "none"}
    wanted |= {"crop_queries": True, "similarity": "cosine", "average_precision": "trapezoid", "index": "Flat"}
    assert wanted.items() <= row["settings"].items()
    assert "scales" not in row["settings"]
    assert row["metrics"]["map_medium"]["num"] == 10
    # 12 of 198 are right: colours alone find more than chance does, even by fresh weights.
    assert row["metrics"]["map_medium"]["value"] > 0.08


def test_protocols_and_options_stand_in_columns_of_their_own(drawn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*more: str) -> dict[str, Any]:
        return row_of(on_images(drawn / "revisited", *more), capsys)

    official, dino = run(), run("--protocol", "dino")
    assert dino["settings"]["crop_queries"] is False
    assert dino["metrics"] != official["metrics"]
    uncut = run("--no-crop-queries")
    assert uncut["metrics"] == dino["metrics"]
    several = run("--multiscale", "--image-size", "48")
    assert several["settings"]["scales"] == [1.0, 0.5**0.5, 0.5]
    assert several["settings"]["unit_scales"] is True
    assert run("--protocol", "dino", "--multiscale")["settings"]["unit_scales"] is False
    joined = run("--tokens", "cls+gem")
    assert joined["settings"]["token"] == "cls+gem"
    indexed = run("--index", "HNSW16,Flat")
    assert (indexed["settings"]["index"], indexed["settings"]["depth"]) == ("HNSW16,Flat", 200)
    assert indexed["details"]["index"]["num_vectors"] == 200
    wider = run("--index", "HNSW16,Flat", "--index-parameters", "efSearch=400")
    assert wider["settings"]["index_parameters"]["efSearch"] == 400
    own = run("--preprocess", "model")
    assert own["settings"]["crop"] == "centre"
    rows = [official, dino, uncut, several, joined, indexed, wider, own]
    assert len({row["comparability"] for row in rows}) == len(rows)


def test_distractors_from_a_folder_and_from_features(
    drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = row_of(on_images(drawn / "revisited"), capsys)
    more = row_of(on_images(drawn / "revisited", "--distractors", str(drawn / "copydays" / "original")), capsys)
    assert list(more["dataset"]["splits"]) == ["database", "distractors", "queries"]
    assert more["metrics"]["map_medium"]["value"] < alone["metrics"]["map_medium"]["value"]
    drawn_features = np.random.default_rng(0).normal(size=(7, 192)).astype(np.float32)
    np.savez(tmp_path / "far.npz", features=drawn_features)
    row = row_of(on_images(drawn / "revisited", "--distractor-features", str(tmp_path / "far.npz")), capsys)
    assert row["dataset"]["splits"] == {"database": 200, "distractors": 7, "queries": 10}
    values = {name: row["metrics"]["map_medium"]["value"] for name, row in (("alone", alone), ("far", row))}
    assert 0.99 * values["alone"] < values["far"] <= values["alone"]  # little is less alike than these


def test_an_unreadable_database_image_is_listed_and_missed(
    drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(drawn / "revisited", tmp_path / "copy")
    (tmp_path / "copy" / "jpg" / "object00_easy0.jpg").write_bytes(b"no image")
    assert main([*on_images(tmp_path / "copy"), "--no-record", "--format", "json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["dataset"]["num_unreadable"] == 1
    assert "object00_easy0.jpg: is not an image" in err
    assert "count as never found where they are right: object00_easy0" in err


def test_classes_of_folders_tables_and_features(
    drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    for part, name in (("train", "gallery"), ("val", "query")):
        shutil.copytree(drawn / "folder" / part, data / name)
    row = row_of(on_images(data), capsys)
    assert (row["protocol"], row["headline"]) == ("class", "map")
    assert list(row["dataset"]["splits"]) == ["gallery", "queries"]
    assert row["settings"]["resize_px"] == 36
    assert row["metrics"]["map"]["value"] > row["details"]["chance"]["map"]
    table = tmp_path / "each.csv"
    assert row_of([*on_images(data), "--per-query", str(table)], capsys)["metrics"] == row["metrics"]
    with table.open(newline="") as file:
        outcomes = list(csv.DictReader(file))
    assert len(outcomes) == row["dataset"]["splits"]["queries"]
    mean = sum(float(outcome["map"]) for outcome in outcomes) / len(outcomes)
    assert mean == pytest.approx(row["metrics"]["map"]["value"])
    indexed = row_of([*on_images(data), "--index", "HNSW16,Flat"], capsys)
    assert indexed["details"]["index"]["recall@1"] > 0.9
    alone = row_of(on_images(data / "query"), capsys)
    assert list(alone["dataset"]["splits"]) == ["labelled"]

    lines = []
    for name in ("gallery", "query"):
        files = sorted((data / name).rglob("*.png"))
        lines += [f"{file.relative_to(data)},{file.parent.name},{name}" for file in files]
    (data / "t.csv").write_text("\n".join(["path,label,split", *lines]))
    assert row_of(on_images(data / "t.csv"), capsys)["metrics"] == row["metrics"]

    generator = np.random.default_rng(0)
    for name, num in (("d", 120), ("q", 9)):
        features = generator.normal(size=(num, 4)).astype(np.float32)
        np.savez(tmp_path / f"{name}.npz", features=features, labels=np.arange(num) % 3)
    row = row_of(from_files(tmp_path), capsys)
    assert row["dataset"]["splits"] == {"gallery": 120, "queries": 9}
    row = row_of(["eval", "retrieval", "--database-features", str(tmp_path / "d.npz")], capsys)
    assert row["dataset"]["splits"] == {"labelled": 120}
    assert row["settings"]["num_queries_in_gallery"] == 0


def test_boxes_of_a_table_change_what_is_seen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Half red and half blue: what an image is retrieved as depends on the half that its box shows."""
    generator = np.random.default_rng(0)
    lines = ["path,label,split,x1,y1,x2,y2"]
    for number in range(6):
        pixels = generator.integers(0, 60, (32, 64, 3))
        pixels[:, :32, 0] += 190
        pixels[:, 32:, 2] += 190
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"{number}.png")
        split, left = ("query", 0) if number < 2 else ("gallery", 32 * (number % 2))
        label = "red" if left == 0 else "blue"
        lines.append(f"{number}.png,{label},{split},{left},0,{left + 32},32")
    (tmp_path / "t.csv").write_text("\n".join(lines))
    assert row_of(on_images(tmp_path / "t.csv"), capsys)["metrics"]["map"]["value"] == 1.0


FILES = ["--query-features", "q", "--database-features", "d"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give DATA and --model, or --database-features"),
        (["--protocol", "official"], "give DATA and --model, or --query-features and --database-features and --ground"),
        (["DATA"], "give DATA and --model"),
        (["DATA", "--model", TINY, *FILES], "not both"),
        (["--query-features", "q"], "--query-features and --database-features belong together; give both"),
        (["--query-features", "q", "--ground-truth", "g"], "belong together; give all"),
        ([*FILES, "--protocol", "dino"], "belong together; give all"),
        ([*FILES, "--protocol", "class", "--ground-truth", "g"], "--ground-truth is for --protocol official or dino"),
        ([*FILES, "--ground-truth", "g", "--crop-queries"], "--crop-queries change nothing about features from files"),
        ([*FILES, "--ground-truth", "g", "--tokens", "gem"], "--tokens change nothing about features from files"),
        ([*FILES, "--ground-truth", "g", "--distractors", "x"], "--distractors change nothing about features"),
        (["DATA", "--model", TINY, "--multiscale"], "--multiscale is for --protocol official or dino"),
        (["DATA", "--model", TINY, "--no-crop-queries"], "--crop-queries is for"),
        (["D", "--model", TINY, "--protocol", "dino", "--crop-fraction", "1"], "dino cuts no centre; leave it out"),
        (
            ["D", "--model", TINY, "--protocol", "dino", "--preprocess", "model", "--multiscale"],
            "the model's own geometry has one scale",
        ),
        (
            ["D", "--model", TINY, "--protocol", "dino", "--distractors", "x", "--distractor-features", "y"],
            "two ways to give the same; give one",
        ),
        (["D", "--model", TINY, "--protocol", "official", "--per-query", "none/x.csv"], "there is no folder"),
        (["D", "--model", TINY, "--protocol", "other"], "'other'"),
        (["D", "--model", TINY, "--checkpoint-key", "student"], "names none"),
    ],
)
def test_wrong_usage(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "retrieval", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in " ".join(err.split())


def test_bad_inputs_are_told_in_one_line(
    drawn: Path, golden: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = drawn / "revisited"
    shutil.copytree(places, tmp_path / "lacking")
    (tmp_path / "lacking" / "jpg" / "object01_hard2.jpg").unlink()
    (tmp_path / "gnd_twice.json").write_text(json.dumps({"imlist": ["a", "a"], "qimlist": ["q"], "gnd": [{}]}))
    swin = ["eval", "retrieval", str(places), "--model", "timm:swin_tiny_patch4_window7_224@random"]
    cases = [
        (on_images(tmp_path / "none"), "does not exist"),
        (on_images(drawn / "folder"), "lay them out as query/ and gallery/"),
        (on_images(drawn / "folder", "--protocol", "official"), "lacks gnd_NAME.pkl or gnd_NAME.json and jpg/"),
        (on_images(tmp_path / "lacking"), "1 of the 210 images that revisited names are missing"),
        (on_images(places, "--tokens", "patches"), "tokens 'patches' are no one vector"),
        (on_images(places, "--tokens", "max"), "tokens 'max' cannot be read"),
        (on_images(places, "--index", "Nonsense"), "Nonsense"),
        ([*golden[:-1], str(tmp_path / "gnd_twice.json")], "1 names stand more than once in imlist (a)"),
        ([*golden[:-1], str(tmp_path / "none.pkl")], "cannot be read: No such file"),
        ([*golden, "--query-features", str(tmp_path / "d.npz")], "there are 300 query features for 20 images"),
        (swin, "takes images of 224 x 224 px only"),
    ]
    for command, words in cases:
        assert main([*command, "--no-record", "--quiet"]) == 1, command
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("Error: ")
        assert err.count("\n") == 1
        assert words in err
