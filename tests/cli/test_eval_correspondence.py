import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from patchssl.cli import eval_correspondence
from patchssl.cli.main import main
from patchssl.evaluate.correspondence import PROTOCOLS
from patchssl.warps import KINDS

TINY = "timm:vit_tiny_patch16_224@random"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Six pictures of noise in two folders."""
    generator = np.random.default_rng(0)
    for index in range(6):
        path = tmp_path / "noise" / f"part{index % 2}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = generator.integers(0, 256, (10, 12, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((60, 50)).save(path)
    return tmp_path / "noise"


def on(images: Path, *more: str) -> list[str]:
    command = ["eval", "correspondence", str(images), "--model", TINY, "--image-size", "64", "--workers", "0"]
    return [*command, "--device", "cpu", "--precision", "fp32", *more]


def test_a_whole_row_is_printed_and_recorded(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = on(images, "--format", "json", "--results", str(tmp_path / "rows"), "--views", "2")
    assert main(command) == 0
    out, err = capsys.readouterr()
    row = json.loads(out)
    assert "images 2 times: 12 of 12" in err
    assert (row["task"], row["protocol"], row["headline"]) == ("correspondence", "warps", "acc_at_1")
    assert len(row["metrics"]) == 3 * (1 + len(KINDS))
    assert row["dataset"]["splits"] == {"images": 6}
    assert row["settings"]["grid"] == [4, 4]
    assert row["settings"]["views"] == 2
    assert row["seconds"]["features"] > 0
    assert (tmp_path / "rows" / "correspondence.jsonl").read_text() == json.dumps(row) + "\n"
    assert len(list((tmp_path / "rows" / "outcomes").glob("*.npz"))) == 1
    assert main([*command, "--quiet", "--batch-size", "3"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    again = json.loads(out)
    assert again["comparability"] == row["comparability"]
    for name, metric in again["metrics"].items():
        assert metric == pytest.approx(row["metrics"][name], abs=0.01)


def test_tables_show_what_stands_beside(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = on(images, "--no-record", "--quiet", "--kinds", "flip,crop")
    assert main([*command, "--format", "json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert main(command) == 0
    title, empty, header, first, *lines = capsys.readouterr().out.splitlines()
    assert title == f"correspondence (warps) of {TINY} on noise (6 images, 4 x 4 patches), percent"
    assert (empty, len(lines)) == ("", 8)
    assert header.split() == ["metric", "value", "95", "%", "interval", "chance", "position", "raw", "patches"]
    shown = [
        row["metrics"]["acc_at_0.5"]["value"],
        *(row["details"][name]["acc_at_0.5"] for name in ("chance", "position", "raw_patches")),
    ]
    words = first.split()
    assert [words[0], words[1], *words[5:]] == ["acc_at_0.5", *(f"{100 * value:.2f}" for value in shown)]
    assert main([*command, "--format", "markdown"]) == 0
    assert capsys.readouterr().out.splitlines()[4].startswith("| acc_at_0.5 | ")
    assert main([*command, "--format", "csv"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 10


def test_outcomes_of_each_image(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "patches.csv"
    assert main(on(images, "--no-record", "--format", "json", "--per-image", str(path), "--max-images", "4")) == 0
    row = json.loads(capsys.readouterr().out)
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 4
    assert all((images / line["path"]).is_file() for line in lines)
    for name, metric in row["metrics"].items():
        values = [float(line[name]) for line in lines if line[name]]
        assert np.mean(values) == pytest.approx(metric["value"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["DATA"], "Missing option '--model'"),
        (["--model", TINY], "Missing argument 'DATA'"),
        (["DATA", "--model", TINY, "--kinds", "crop,twist"], "'twist' is no kind of warp; allowed: crop,scale,flip"),
        (["DATA", "--model", TINY, "--kinds", ""], "'' is no kind of warp"),
        (["DATA", "--model", TINY, "--views", "0"], "0 is not in the range"),
        (["DATA", "--model", TINY, "--max-images", "0"], "0 is not in the range"),
        (["DATA", "--model", TINY, "--crop-fraction", "0.5"], "--crop-fraction changes nothing"),
        (["DATA", "--model", TINY, "--cache", "x"], "--cache"),
        (["DATA", "--model", TINY, "--checkpoint-key", "student"], "names none"),
        (["DATA", "--model", TINY, "--per-image", "no/where.csv"], "there is no folder no"),
    ],
)
def test_wrong_usage(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "correspondence", *arguments]) == 2
    assert words in " ".join(capsys.readouterr().err.split())


def test_bad_data_and_models_end_with_one_line(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert main(on(tmp_path / "empty", "--no-record")) == 1
    assert "holds no image files" in capsys.readouterr().err
    assert main(on(tmp_path / "missing", "--no-record")) == 1
    assert main(["eval", "correspondence", str(images), "--model", "floor:mean-colour", "--no-record"]) == 1
    assert "makes 1 x 1 patches" in capsys.readouterr().err
    path = tmp_path / "out.csv"
    (images / "part0" / "0.png").write_bytes(b"no image")
    assert main(on(images, "--no-record", "--quiet", "--per-image", str(path))) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "1 of 6 images are unreadable" in err
    assert not path.exists()
    assert main(on(images, "--no-record", "--quiet", "--max-bad-fraction", "0.2", "--format", "json")) == 0
    out, err = capsys.readouterr()
    assert "left out" in err
    assert json.loads(out)["dataset"]["num_unreadable"] == 1


def test_the_help_knows_every_kind_and_protocol() -> None:
    assert tuple(KINDS) == eval_correspondence.KINDS
    assert tuple(PROTOCOLS) == eval_correspondence.PROTOCOLS
