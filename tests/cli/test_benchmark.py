"""`patchssl benchmark` from end to end, on drawn images of 32 px."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from patchssl.backbones.protocol import fresh_weights
from patchssl.backbones.vit import build_vit
from patchssl.cli import suite_run
from patchssl.cli.features import compute_features
from patchssl.cli.main import main
from patchssl.config import Config
from patchssl.evaluate import throughput
from patchssl.evaluate.extracting.forward import resolve_precision

SUITE = """
data: builtin
image_size: 32
builtin: {num_images: 48, image_size: 32}
tasks:
  - {task: knn, k: [5, 10]}
  - {task: knn, name: by patches, tokens: mean, k: 3}
"""
RAW, MEAN = "floor:raw-pixels", "floor:mean-colour"
SETTINGS: dict[str, Any] = {
    "model": {"arch": "vit_tiny_patch16_224", "patch_size": 8, "width": 24, "depth": 1, "num_heads": 2},
    "views": {"global_size": 32, "local_size": 16},
}


@pytest.fixture(scope="session")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared by all tests, so that images are drawn once."""
    return tmp_path_factory.mktemp("drawings")


@pytest.fixture(autouse=True)
def _surroundings(drawings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "synth").symlink_to(drawings)
    monkeypatch.setenv("PATCHSSL_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(SUITE)


@pytest.fixture
def run(tmp_path: Path) -> str:
    """A checkpoint of ours."""
    config = Config.model_validate(SETTINGS)
    with fresh_weights(5):
        state = build_vit(config.model, 32).state_dict()
    weights = {f"backbone.{name}": value for name, value in state.items()}
    content = {"format": 1, "kind": "patchssl-pretrain", "step": 3, "config": config.model_dump(mode="json")}
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    torch.save({**content, "teacher": weights, "student": weights}, tmp_path / "run" / "checkpoints" / "latest")
    return "run"


def command(*models: str, more: tuple[str, ...] = ()) -> list[str]:
    chosen = [part for model in models for part in ("--model", model)]
    return ["benchmark", *chosen, "--suite", "mine.yaml", "--workers", "0", "--device", "cpu", "--no-cost", *more]


def recorded() -> list[dict[str, Any]]:
    path = Path("results/rows/knn.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def test_every_task_of_every_model_with_its_floors(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(run, more=("--format", "json"))) == 0
    out, err = capsys.readouterr()
    rows = json.loads(out)
    assert rows == recorded()
    specs = [row["model"]["spec"] for row in rows]
    assert specs == [spec for spec in (run, f"{run}@random", MEAN, RAW) for _ in range(2)]
    for column in (rows[0::2], rows[1::2]):
        assert len({row["comparability"] for row in column}) == 1
        assert len({row["model"]["weights_sha256"] for row in column}) == 4
    assert [row["settings"]["token"] for row in rows[:2]] == ["cls", "mean"]
    assert rows[0]["dataset"]["name"] == "builtin"
    assert rows[0]["dataset"]["path_name"] == "builtin: 48 images of 32 px, seed 0"
    assert rows[0]["dataset"]["splits"] == {"train": 36, "test": 12}
    assert rows[0]["details"]["benchmark"].items() >= {"suite": "mine", "task": "knn (dino) on builtin"}.items()
    assert "task 2 of 2: by patches, run" in err
    assert "floor task 6 of 6: by patches, floor:raw-pixels" in err
    # One pass over the images for both tasks.
    assert err.count("training images: 36 of 36") == 4
    names = {path.stem for path in Path("results/rows/outcomes").glob("*.npz")}
    assert len(names) == 8


def test_the_table_without_floors_and_without_a_record(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(run, MEAN, more=("--no-floors", "--no-record", "--quiet"))) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "knn (dino)" in out
    assert "builtin" in out
    assert RAW not in out
    assert f"{run}@random" not in out
    assert MEAN in out
    assert not Path("results").exists()


def test_cost_is_measured_at_the_size_of_the_task(
    run: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = []
    timed = throughput.images_per_s

    def quick(backbone: Any, **values: Any) -> float:
        sizes.append((backbone.spec, backbone.preprocess.image_px, values["batch_size"]))
        return timed(backbone, **{**values, "min_s": 0.0})

    monkeypatch.setattr(throughput, "images_per_s", quick)
    arguments = [part for part in command(run, more=("--no-floors", "--format", "json")) if part != "--no-cost"]
    assert main(arguments) == 0
    rows = json.loads(capsys.readouterr().out)
    precision = resolve_precision("auto", torch.device("cpu"))
    assert sizes == [(run, 32, 8)]
    for row in rows:
        assert row["details"]["gflops"] > 0
        assert row["details"]["images_per_s"] > 0
        assert row["details"]["cost"] == {"image_px": 32, "batch_size": 8, "precision": precision}
    assert rows == recorded()


def test_failures_are_listed_at_the_end_and_the_others_recorded(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    suite = "  - {task: knn, name: too many, k: 37}\n  - {task: knn, data: gone, name: absent}\n"
    Path("mine.yaml").write_text(SUITE + suite)
    assert main(command("nothing", run, more=("--no-floors", "--format", "json", "--quiet"))) == 1
    out, err = capsys.readouterr()
    assert [row["model"]["spec"] for row in json.loads(out)] == [run, run]
    assert len(recorded()) == 2
    *lines, last = err.splitlines()
    assert len(lines) == 3
    assert "failed: absent, all models: gone does not exist" in lines[0]
    assert "--data gone=PATH" in lines[0]
    assert "failed: knn (dino) on builtin, by patches, too many, nothing: there is no folder or file" in lines[1]
    assert f"failed: too many, {run}: k is 37; allowed: 1 to 36" in lines[2]
    assert last.startswith("Error: 3 failures of the benchmark, listed above; 2 results are there")


def test_with_no_result_at_all_json_is_an_empty_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command("nothing", more=("--format", "json", "--quiet"))) == 1
    assert json.loads(capsys.readouterr().out) == []
    assert main(command("nothing", more=("--quiet",))) == 1
    assert capsys.readouterr().out == ""
    assert not Path("results").exists()


def test_what_is_done_is_not_run_again(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(MEAN, more=("--quiet",))) == 0
    first = recorded()
    capsys.readouterr()
    assert main(command(MEAN, more=("--skip-done", "--format", "json"))) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == first == recorded()
    assert "training images" not in err
    assert main(command(run, MEAN, more=("--skip-done", "--no-floors", "--format", "json"))) == 0
    out, err = capsys.readouterr()
    assert err.count("training images") == 1
    assert [row["model"]["spec"] for row in json.loads(out)] == [run, run, MEAN, MEAN]
    assert len(recorded()) == len(first) + 2


def test_interrupting_keeps_what_is_recorded(
    run: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    passes: list[str] = []

    def interrupted(sources: Any, backbone: Any, tokens: Any, **values: Any) -> Any:
        passes.append(backbone.spec)
        if backbone.spec == MEAN:
            raise KeyboardInterrupt
        return compute_features(sources, backbone, tokens, **values)

    monkeypatch.setattr(suite_run, "compute_features", interrupted)
    assert main(command(run, MEAN, more=("--format", "json"))) == 130
    out, err = capsys.readouterr()
    assert out == ""
    assert [row["model"]["spec"] for row in recorded()] == [run, run]
    assert "2 results are in results/rows: go on with --skip-done" in " ".join(err.split())
    assert passes[-1] == MEAN


def test_data_by_name_and_one_size_for_all(drawings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(MEAN, more=("--quiet", "--no-record"))) == 0
    (drawn,) = drawings.iterdir()
    shutil.copytree(drawn / "folder", tmp_path / "elsewhere")
    Path("mine.yaml").write_text(
        "tasks:\n  - {task: knn, data: photos, k: 3}\n  - {task: knn, data: elsewhere, k: 3}\n"
    )
    capsys.readouterr()
    more = ("--data", "photos=elsewhere", "--image-size", "16", "--format", "json", "--quiet", "--no-floors")
    assert main(command(MEAN, more=more)) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["dataset"]["name"] for row in rows] == ["photos", "elsewhere"]
    assert rows[0]["dataset"]["fingerprint"] == rows[1]["dataset"]["fingerprint"]
    assert [row["settings"]["image_px"] for row in rows] == [16, 16]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--data", "cifar10"), "'cifar10' is not of the form NAME=PATH"),
        (("--data", "a=b", "--data", "a=c"), "a is given twice"),
        (("--data", "cifar10=there"), "names no data set cifar10; it needs no data set besides the built-in images"),
        (("--checkpoint-key", "student"), "--checkpoint-key is for weight files"),
        (("--image-size", "0"), "--image-size"),
    ],
)
def test_wrong_usage(more: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command("timm:vit_tiny_patch16_224@random", MEAN, more=more)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in " ".join(err.split())


def test_no_model_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "--suite", "mine.yaml"]) == 2
    assert "--model" in capsys.readouterr().err


def test_options_of_checkpoints_hold_for_the_models_that_have_them(
    run: str, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--checkpoint-key", "student", "--no-floors", "--format", "json", "--quiet")
    assert main(command(run, MEAN, more=more)) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["settings"]["checkpoint_key"] for row in rows] == ["student", "student", None, None]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tasks: [{task: kn, data: builtin}]", "mine.yaml: tasks.0.task is 'kn'; did you mean knn?"),
        ("tasks: [{task: knn, data: builtin, kk: 3}]", "unknown key tasks.0.knn.kk; did you mean k?"),
        ("tasks: [{task: knn, data: builtin, protocol: dimo}]", "no protocol 'dimo'; did you mean dino?"),
        ("tasks: [{task: knn, data: builtin, draws: 3}]", "takes no draws; allowed: tokens, k, temperature"),
    ],
)
def test_a_suite_that_cannot_be_run_is_refused_before_anything_runs(
    text: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mine.yaml").write_text(text)
    assert main(command(MEAN)) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("Error: ")
    assert err.count("\n") == 1
    assert words in err


def test_an_unknown_suite_lists_those_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "--model", MEAN, "--suite", "quik"]) == 1
    assert "'quik' is neither a file nor a suite; suites: cifar10, demo, paper, photos" in capsys.readouterr().err


def test_help_teaches_and_needs_no_torch(repository: Path) -> None:
    code = (
        "import sys; from patchssl.cli.main import main; done = main(['benchmark', '--help']); "
        "sys.exit(done or bool({'torch', 'numpy', 'pandas', 'pydantic', 'yaml'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=repository)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("patchssl benchmark ") >= 3
