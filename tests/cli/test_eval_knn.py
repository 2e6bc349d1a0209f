import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from patchssl.cli.main import main

GOLDEN = Path(__file__).parents[1] / "golden" / "knn.npz"
TINY = "timm:vit_tiny_patch16_224@random"


@pytest.fixture
def features(tmp_path: Path) -> list[str]:
    with np.load(GOLDEN, allow_pickle=False) as file:
        for part in ("train", "test"):
            np.savez(tmp_path / f"{part}.npz", features=file[f"{part}_features"], labels=file[f"{part}_labels"])
    return ["--train-features", str(tmp_path / "train.npz"), "--test-features", str(tmp_path / "test.npz")]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two classes of noise about two colours, 6 training and 3 test images each."""
    generator = np.random.default_rng(0)
    for part, num in (("train", 6), ("val", 3)):
        for name, colour in (("blue", (20, 40, 200)), ("red", (220, 30, 30))):
            folder = tmp_path / "tiny" / part / name
            folder.mkdir(parents=True)
            for index in range(num):
                pixels = np.clip(generator.normal(colour, 12, (40, 48, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return tmp_path / "tiny"


def on_images(images: Path, *more: str) -> list[str]:
    return ["eval", "knn", str(images), "--model", TINY, "--image-size", "32", "--workers", "0", *more]


@pytest.mark.parametrize("temperature", ["0.07", "0.2"])
def test_feature_files_give_every_number_of_the_reference(
    features: list[str], temperature: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with np.load(GOLDEN, allow_pickle=False) as file:
        results = file["results"][file["results"][:, 0] == float(temperature)]
    ks = ",".join(str(int(k)) for k in results[:, 1])
    command = ["eval", "knn", *features, "--k", ks, "--temperature", temperature, "--results", str(tmp_path / "rows")]
    assert main([*command, "--format", "json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    row = json.loads(out)
    for _, k, top1, top5 in results:
        assert 100 * row["metrics"][f"top1@k{int(k)}"]["value"] == pytest.approx(top1, abs=1e-9)
        assert 100 * row["metrics"][f"top5@k{int(k)}"]["value"] == pytest.approx(top5, abs=1e-9)
    (line,) = (tmp_path / "rows" / "knn.jsonl").read_text().splitlines()
    assert json.loads(line) == row


def test_table_and_markdown_show_percent_and_csv_fractions(
    features: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    shown = {}
    for name in ("table", "markdown", "csv"):
        assert main(["eval", "knn", *features, "--k", "5,20", "--no-record", "--format", name]) == 0
        shown[name] = capsys.readouterr().out.splitlines()
    assert shown["table"][2].split() == ["k", "top1", "95", "%", "interval", "top5", "95", "%", "interval"]
    assert shown["table"][4].startswith("20  80.50  75.00 to 86.00  100.00")
    assert shown["markdown"][5].startswith("| 20 | 80.50 | 75.00 to 86.00 |")
    assert shown["csv"][0] == "task,protocol,dataset,model,metric,value,ci95_low,ci95_high,num"
    assert shown["csv"][3].startswith("knn,dino,test.npz,test.npz,top1@k20,0.805,")
    assert len(shown["csv"]) == 5


def test_no_record_writes_nothing(
    features: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert main(["eval", "knn", *features, "--no-record"]) == 0
    assert sorted(tmp_path.rglob("*")) == before
    assert main(["eval", "knn", *features]) == 0
    assert (tmp_path / "results" / "rows" / "knn.jsonl").is_file()
    assert capsys.readouterr().out


def test_images_and_an_untrained_model_give_a_whole_row(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = on_images(images, "--device", "cpu", "--format", "json", "--results", str(tmp_path / "rows"))
    assert main(command) == 0
    out, err = capsys.readouterr()
    row = json.loads(out)
    assert "12 training images are too few for k = 10, 20, 100, 200; evaluating k = 10" in err
    assert "training images: 12 of 12" in err
    assert row["headline"] == "top1@k10"
    # Two colours apart are told apart even by fresh weights.
    assert row["metrics"]["top1@k10"]["value"] == 1.0
    assert row["metrics"]["top1@k10"]["num"] == 6
    assert row["model"] == {
        "spec": TINY,
        "family": "timm",
        "arch": "vit_tiny_patch16_224",
        "num_params": 5524416,
        "dim": 192,
        "weights_sha256": row["model"]["weights_sha256"],
    }
    assert len(row["model"]["weights_sha256"]) == 64
    assert row["dataset"]["name"] == "tiny"
    assert row["dataset"]["path_name"] == str(images)
    assert row["dataset"]["splits"] == {"train": 12, "test": 6}
    wanted = {"token": "cls", "image_px": 32, "resize_px": 36, "precision": "fp32", "k": [10], "temperature": 0.07}
    assert wanted.items() <= row["settings"].items()
    assert row["environment"]["device"] == "cpu"
    assert row["seconds"]["features"] > 0

    assert main([*command, "--quiet"]) == 0
    again = json.loads(capsys.readouterr().out)
    lines = [json.loads(line) for line in (tmp_path / "rows" / "knn.jsonl").read_text().splitlines()]
    assert lines == [row, again]
    for record in (row, again):
        del record["created"], record["seconds"]
    assert row == again


def test_a_row_says_how_the_weights_of_a_file_fitted(
    images: Path, tmp_path: Path, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = torch.load(repository / "tests" / "golden" / "dino_training_checkpoint.pth", weights_only=False)
    del content["teacher"]["backbone.norm.bias"]
    torch.save(content, tmp_path / "cut.pth")
    command = ["eval", "knn", str(images), "--model", str(tmp_path / "cut.pth"), "--image-size", "32", "--no-record"]
    command += ["--format", "json", "--quiet", "--k", "3", "--workers", "0"]
    assert main(command) == 1
    assert "1 missing (norm.bias)" in capsys.readouterr().err
    assert main([*command, "--allow-partial"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["model"]["family"] == "dino"
    assert row["model"]["load"]["partial"]
    assert row["model"]["load"]["names"]["missing"] == ["norm.bias"]
    assert row["settings"]["checkpoint_key"] == "teacher"
    assert (row["settings"]["image_px"], row["settings"]["resize_px"]) == (32, 36)


def test_unreadable_images_are_listed_and_counted_up_to_the_limit(
    images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "train" / "red" / "0.png").write_bytes(b"no image")
    command = on_images(images, "--no-record", "--k", "3", "--format", "json", "--quiet")
    assert main([*command, "--max-bad-fraction", "0.1"]) == 0
    out, err = capsys.readouterr()
    assert "red/0.png: is not an image" in err
    assert json.loads(out)["dataset"]["num_unreadable"] == 1
    assert json.loads(out)["dataset"]["splits"] == {"train": 11, "test": 6}
    assert main(command) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("Error: 1 of the first 12 images")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give DATA and --model, or --train-features"),
        (["DATA"], "give DATA and --model"),
        (["--model", TINY], "give DATA and --model"),
        (["--train-features", "a.npz"], "give both"),
        (["DATA", "--train-features", "a.npz", "--test-features", "b.npz"], "not both"),
        (["--model", TINY, "--train-features", "a.npz", "--test-features", "b.npz"], "not both"),
        (["--train-features", "a", "--test-features", "b", "--image-size", "32"], "--image-size change nothing"),
        (["DATA", "--model", TINY, "--checkpoint-key", "student"], "names none"),
        (["DATA", "--model", TINY, "--k", "10,x"], "'10,x' is no list of whole numbers"),
        (["DATA", "--model", TINY, "--k", "10,0"], "each must be at least 1"),
        (["DATA", "--model", TINY, "--k", ""], "is no list of whole numbers"),
        (["DATA", "--model", TINY, "--temperature", "0"], "not in the range"),
        (["DATA", "--model", TINY, "--protocol", "other"], "'other'"),
    ],
)
def test_wrong_usage(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "knn", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in " ".join(err.split())


def test_bad_inputs_are_told_in_one_line(
    images: Path, features: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = [
        (on_images(images, "--k", "13"), "k is 13; allowed: 1 to 12"),
        (["eval", "knn", *features, "--k", "601"], "k is 601; allowed: 1 to 600"),
        (["eval", "knn", *features, "--temperature", "nan"], "temperature is nan"),
        (["eval", "knn", str(tmp_path / "none"), "--model", TINY], "does not exist"),
        (["eval", "knn", str(images), "--model", "timm:vit_tiny_patch16_225"], "the nearest are"),
        (["eval", "knn", str(images), "--model", TINY, "--image-size", "33"], "not a multiple of the patch size 16"),
        (["eval", "knn", "--train-features", "none.npz", "--test-features", "none.npz"], "no feature file none.npz"),
    ]
    for command, words in cases:
        assert main([*command, "--no-record"]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("Error: ")
        assert err.count("\n") == 1
        assert words in err


def test_a_class_only_in_the_test_part_counts_as_wrong(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(images / "val" / "red", images / "val" / "zebra")
    assert main(on_images(images, "--no-record", "--k", "1", "--format", "json")) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["metrics"]["top1@k1"]["value"] == pytest.approx(6 / 9)
    assert json.loads(out)["settings"]["num_unknown_class"] == 3
    assert "3 of 9 test images are of 1 classes without training images" in err


def test_help_teaches_and_needs_no_torch() -> None:
    code = (
        "import sys; from patchssl.cli.main import main; done = main(['eval', 'knn', '--help']); "
        "sys.exit(done or bool({'torch', 'numpy', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=GOLDEN.parents[2])
    assert done.returncode == 0, done.stderr
    out = done.stdout
    assert out.count("patchssl eval knn ") >= 2
    assert "--train-features train.npz --test-features val.npz" in out
