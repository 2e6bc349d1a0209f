import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

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
    command = on_images(images, "--device", "cpu", "--precision", "fp32", "--format", "json")
    command += ["--results", str(tmp_path / "rows")]
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
    found = {"chance": {"top1@k10": 0.5, "top5@k10": 1.0}, "num_test_in_train": 0}
    assert row.pop("details") == {"num_stored": {"train": 0, "test": 0}, **found}
    assert again.pop("details") == {"num_stored": {"train": 12, "test": 6}, **found}
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
        (
            ["DATA", "--model", TINY, "--shots", "3", "--draws", "2"],
            "--shots and --draws change nothing but --protocol",
        ),
        (["DATA", "--model", TINY, "--protocol", "dinov2", "--draws", "2"], "--draws change nothing but"),
        (["DATA", "--model", TINY, "--protocol", "few-shot", "--shots", "0"], "0 is not in the range"),
        (["--protocol", "leave-one-out"], "give DATA and --model, or --train-features"),
        (["--train-features", "a", "--test-features", "b", "--protocol", "leave-one-out"], "has no test part"),
        (["DATA", "--train-features", "a", "--protocol", "leave-one-out"], "not both"),
        (["--train-features", "a", "--protocol", "few-shot"], "give both"),
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


def result_of(command: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main([*command, "--no-record", "--format", "json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert isinstance(row, dict)
    return row


def test_dinov2_gives_the_numbers_of_dino_in_a_column_of_its_own(
    features: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    dino, dinov2 = (result_of(["eval", "knn", *features, "--protocol", name], capsys) for name in ("dino", "dinov2"))
    assert dino["metrics"] == dinov2["metrics"]
    assert dinov2["protocol"] == "dinov2"
    assert dinov2["settings"]["weight"] == "softmax(similarity / temperature)"
    assert dino["comparability"] != dinov2["comparability"]
    assert dino["details"]["chance"]["top1@k20"] == pytest.approx(1 / dino["dataset"]["num_classes"])


def test_few_shot_from_feature_files(features: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    command = ["eval", "knn", *features, "--protocol", "few-shot", "--shots", "3", "--draws", "4", "--k", "1,500"]
    row = result_of(command, capsys)
    num_drawn = 3 * row["dataset"]["num_classes"]
    wanted = {"shots": 3, "draws": 4, "k": [1, num_drawn], "k_clipped": [500], "num_drawn": num_drawn}
    assert wanted.items() <= row["settings"].items()
    values = row["details"]["draws"]["top1@k1"]
    assert len(values) == 4
    assert row["metrics"]["top1@k1"]["value"] == pytest.approx(sum(values) / 4)
    assert result_of(command, capsys)["metrics"] == row["metrics"]
    assert result_of([*command, "--seed", "1"], capsys)["details"]["draws"] != row["details"]["draws"]


def test_few_shot_on_images(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = on_images(images, "--protocol", "few-shot", "--quiet", "--results", str(tmp_path / "rows"))
    assert main([*command, "--shots", "2"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("knn (few-shot) of ")
    assert "a draw has 4 training images, too few for k = 10, 20, 100, 200; evaluating k = 4" in err
    (line,) = (tmp_path / "rows" / "knn.jsonl").read_text().splitlines()
    assert json.loads(line)["headline"] == "top1@k4"


def test_leave_one_out_on_class_folders_tables_and_feature_files(
    images: Path, features: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--protocol", "leave-one-out", "--k", "3", "--quiet"]
    row = result_of(on_images(images / "train", *arguments), capsys)
    assert row["dataset"]["splits"] == {"labelled": 12}
    assert row["metrics"]["top1@k3"] == {"value": 1.0, "ci95_low": 1.0, "ci95_high": 1.0, "num": 12}
    lines = [f"train/{name}/{index}.png,{name}" for name in ("blue", "red") for index in range(6)]
    table = images / "t.csv"
    table.write_text("\n".join(["path,label", *lines]))
    assert result_of(on_images(table, *arguments), capsys)["metrics"] == row["metrics"]
    row = result_of(["eval", "knn", *features[:2], *arguments], capsys)
    assert row["dataset"]["splits"] == {"labelled": 600}
    assert row["metrics"]["top1@k3"]["num"] == 600
    assert main(["eval", "knn", *features[:2], *arguments, "--no-record"]) == 0
    assert "on train.npz (600 labelled images), percent" in capsys.readouterr().out


def test_data_and_protocol_must_fit(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = [
        (on_images(images, "--protocol", "leave-one-out"), "has train/ and val/; leave-one-out is for class folders"),
        (on_images(images / "train"), "eval knn --protocol leave-one-out"),
        (on_images(images / "train", "--protocol", "leave-one-out", "--k", "12"), "k is 12; allowed: 1 to 11"),
    ]
    for command, words in cases:
        assert main([*command, "--no-record"]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("Error: ")
        assert err.count("\n") == 1
        assert words in err


def test_images_of_one_name_in_both_parts_are_not_taken_for_one(
    images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(on_images(images, "--no-record", "--k", "1", "--format", "json", "--quiet")) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert json.loads(out)["details"]["num_test_in_train"] == 0
    shutil.copy(images / "train" / "red" / "1.png", images / "val" / "red" / "1.png")
    assert main(on_images(images, "--no-record", "--k", "1", "--format", "json", "--quiet")) == 0
    out, err = capsys.readouterr()
    assert "1 of 6 test images have the id and the features of a training image (red/1.png)" in err
    assert json.loads(out)["details"]["num_test_in_train"] == 1


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
