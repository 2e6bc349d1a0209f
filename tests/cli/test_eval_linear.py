import json
import shutil
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
from PIL import Image

from patchssl.cli.eval_linear import _FLAGS, linear
from patchssl.cli.main import main
from patchssl.evaluate.linear import PROTOCOLS

TINY = "timm:vit_tiny_patch16_224@random"
DINO = ("--protocol", "dino", "--epochs", "2", "--learning-rate", "0.1", "--train-batch-size", "6")


@pytest.fixture
def features(tmp_path: Path) -> list[str]:
    """Three classes about means of their own."""
    generator = np.random.default_rng(0)
    means = generator.normal(size=(3, 5)) * 4
    for part, num in (("train", 60), ("test", 30)):
        labels = np.arange(num) % 3
        np.savez(tmp_path / f"{part}.npz", features=means[labels] + generator.normal(size=(num, 5)), labels=labels + 5)
    return ["--train-features", str(tmp_path / "train.npz"), "--test-features", str(tmp_path / "test.npz")]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two classes of noise about two colours, 10 training and 3 test images each."""
    generator = np.random.default_rng(0)
    for part, num in (("train", 10), ("val", 3)):
        for name, colour in (("blue", (20, 40, 200)), ("red", (220, 30, 30))):
            folder = tmp_path / "tiny" / part / name
            folder.mkdir(parents=True)
            for index in range(num):
                pixels = np.clip(generator.normal(colour, 12, (40, 48, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return tmp_path / "tiny"


def on_images(images: Path, *more: str) -> list[str]:
    return ["eval", "linear", str(images), "--model", TINY, "--image-size", "32", "--workers", "0", *more]


def row_of(command: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    assert main([*command, "--format", "json"]) == 0, capsys.readouterr().err
    row = json.loads(capsys.readouterr().out)
    assert isinstance(row, dict)
    return row


def test_feature_files_by_two_protocols(
    features: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["eval", "linear", *features, "--results", str(tmp_path / "rows")]
    usual = row_of(command, capsys)
    swept = row_of([*command, "--protocol", "dinov2", "--iterations", "30", "--device", "cpu"], capsys)
    assert [usual["protocol"], swept["protocol"]] == ["logistic", "dinov2"]
    for row in (usual, swept):
        assert row["metrics"]["top1"]["value"] > 0.9  # type: ignore[index]
        assert row["metrics"]["top5"]["value"] == 1.0  # type: ignore[index]
    lines = (tmp_path / "rows" / "linear.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [usual, swept]
    assert len(list((tmp_path / "rows" / "outcomes").iterdir())) == 2
    rates = ["--protocol", "dinov2", "--iterations", "30", "--learning-rate", "1e-2,0.5", "--no-record"]
    table = row_of([*command, *rates], capsys)["details"]["held_out"]  # type: ignore[index]
    assert [entry["learning_rate"] for entry in table] == [0.01, 0.5]


def test_table_shows_the_headline_first(features: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "linear", *features, "--protocol", "dinov2", "--iterations", "20", "--no-record"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("linear (dinov2) of test.npz")
    assert [line.split()[0] for line in lines[2:]] == ["metric", "top1", "top5", "top1_best_head_on_test"]


def test_images_by_every_protocol(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = on_images(images, "--results", str(tmp_path / "rows"), "--quiet")
    rows = {
        name: row_of([*command, *more], capsys)
        for name, more in {
            "dino": DINO,
            "dinov2": ("--protocol", "dinov2", "--iterations", "30"),
            "logistic": ("--protocol", "logistic"),
        }.items()
    }
    for name, row in rows.items():
        assert row["protocol"] == name
        assert row["metrics"]["top1"]["value"] == 1.0  # type: ignore[index]
        assert row["dataset"] == rows["dino"]["dataset"]
        assert row["model"] == rows["dino"]["model"]
        assert row["seconds"]["features"] > 0  # type: ignore[index]
    tokens = {name: row["settings"]["tokens"] for name, row in rows.items()}  # type: ignore[index]
    assert tokens == {"dino": "cls:4", "dinov2": "cls:4+mean", "logistic": "cls"}
    again = row_of([*command, *DINO], capsys)
    for record in (again, rows["dino"]):
        del record["created"], record["seconds"]
    assert again == rows["dino"]


def test_options_win_over_the_protocol_and_change_comparability(
    images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = on_images(images, "--protocol", "logistic", "--no-record", "--quiet")
    usual = row_of(command, capsys)
    other = row_of([*command, "--blocks", "1", "--avgpool"], capsys)
    assert other["settings"]["tokens"] == other["settings"]["features"] == "cls+mean"  # type: ignore[index]
    assert other["comparability"] != usual["comparability"]


def test_an_interrupted_probe_goes_on_from_its_checkpoint(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "probe.pt"
    command = on_images(images, *DINO, "--results", str(tmp_path / "rows"), "--checkpoint", str(path))
    from patchssl.evaluate.probes import augmented as augmented_probe

    whole = augmented_probe._save

    def save_and_stop(*arguments: object) -> None:
        whole(*arguments)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(augmented_probe, "_save", save_and_stop)
    assert main(command) == 130
    assert path.is_file()
    assert not (tmp_path / "rows").exists()
    monkeypatch.undo()
    capsys.readouterr()
    assert main([*command, "--format", "json"]) == 0
    out, err = capsys.readouterr()
    assert "going on from" in err
    assert "1 epochs are done" in err
    assert len(json.loads(out)["details"]["top1_by_epoch_on_test"]) == 2
    assert not path.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["DATA"], "give DATA and --model, or --train-features and --test-features"),
        (["--train-features", "a.npz"], "belong together"),
        (["DATA", "--model", TINY, "--iterations", "5"], "--iterations is for --protocol dinov2, not dino"),
        (["DATA", "--model", TINY, "--protocol", "logistic", "--epochs", "5"], "--epochs is for --protocol dino, not"),
        (
            ["DATA", "--model", TINY, "--protocol", "logistic", "--train-batch-size", "5"],
            "--train-batch-size is for --protocol dino or dinov2, not logistic",
        ),
        (["DATA", "--model", TINY, "--val-fraction", "0.2"], "--val-fraction is for --protocol dinov2 or logistic"),
        (["DATA", "--model", TINY, "--learning-rate", "0.1,0.2"], "takes one rate for --protocol dino"),
        (["DATA", "--model", TINY, "--learning-rate", "fast"], "is no list of numbers"),
        (["DATA", "--model", TINY, "--learning-rate", "-1"], "each rate must be above 0"),
        (["DATA", "--model", TINY, "--learning-rate", "nan"], "each rate must be above 0"),
        (["DATA", "--model", TINY, "--val-fraction", "1"], "not in the range"),
        (["DATA", "--model", TINY, "--blocks", "0"], "not in the range"),
        (["DATA", "--model", TINY, "--protocol", "dinov2", "--checkpoint", "a.pt"], "--checkpoint is for"),
        (["--train-features", "a", "--test-features", "b", "--blocks", "4"], "--blocks change nothing"),
        (["--train-features", "a", "--test-features", "b", "--device", "cpu"], "--device change nothing"),
        (["DATA", "--model", TINY, "--protocol", "other"], "'other'"),
    ],
)
def test_wrong_usage(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "linear", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in " ".join(err.split())


def test_bad_inputs_are_told_in_one_line(
    images: Path, features: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = tmp_path / "one"
    shutil.copytree(images / "train" / "red", one / "train" / "red")
    shutil.copytree(images / "val" / "red", one / "val" / "red")
    cases = [
        (["eval", "linear", *features, "--protocol", "dino"], "cannot run on features: give images and a model, or"),
        (on_images(images, "--protocol", "logistic", "--blocks", "13"), "blocks is 13; the backbone gives 1 to 12"),
        (on_images(one, "--protocol", "logistic"), "all 10 training images are of one class (label 0)"),
        (on_images(one, *DINO), "all 10 training images are of one class (label 0)"),
        (on_images(images, *DINO, "--checkpoint", str(tmp_path / "no" / "p.pt")), "there is no folder"),
        (on_images(images, *DINO[:4], "--learning-rate", "1e38"), "take a lower --learning-rate"),
        (["eval", "linear", "--train-features", "no.npz", "--test-features", "no.npz"], "no feature file no.npz"),
    ]
    for command, words in cases:
        assert main([*command, "--no-record", "--quiet"]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("Error: ")
        assert err.count("\n") == 1
        assert words in err


def test_protocols_and_options_are_those_of_the_library() -> None:
    choice = next(param for param in linear.params if param.name == "protocol").type
    assert isinstance(choice, click.Choice)
    assert list(choice.choices) == list(PROTOCOLS)
    taken = {name for protocol in PROTOCOLS.values() for name in protocol.options}
    assert taken == set(_FLAGS)
    assert taken <= {param.name for param in linear.params}


def test_help_teaches_and_needs_no_torch() -> None:
    code = (
        "import sys; from patchssl.cli.main import main; done = main(['eval', 'linear', '--help']); "
        "sys.exit(done or bool({'torch', 'numpy', 'sklearn', 'scipy', 'pandas'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("patchssl eval linear ") >= 3
