"""`patchssl demo` from end to end, with fewer images and steps than it has for users."""

import json
from pathlib import Path

import pytest

from patchssl.cli import demo as module
from patchssl.cli.main import main

TINY = """
base: demo
model: {width: 16, depth: 1, num_heads: 2, head_hidden: 16, head_bottleneck: 8}
train: {steps: 3, batch_size: 8}
"""


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(TINY)
    monkeypatch.setattr(module, "RECIPE", str(recipe))
    monkeypatch.setattr(module, "NUM_IMAGES", 120)
    monkeypatch.setattr(module, "usable_workers", lambda: 0)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("small")
def test_it_trains_and_shows_both_networks_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--quiet", "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    found = {(row["task"], row["protocol"], row["model"]["spec"]): row for row in rows}
    tasks = {key[:2] for key in found}
    assert tasks == {
        ("knn", "dino"),
        ("linear", "logistic"),
        ("copydetect", "dino"),
        ("retrieval", "official"),
        ("retrieval", "class"),
        ("correspondence", "warps"),
    }
    for task in tasks:
        trained, untrained = found[(*task, "demo/run")], found[(*task, "demo/run@random")]
        assert untrained["comparability"] == trained["comparability"]
        assert untrained["model"]["weights_sha256"] != trained["model"]["weights_sha256"]
        assert untrained["model"]["num_params"] == trained["model"]["num_params"]
        # A floor without a grid of patches has no correspondence.
        if task[0] != "correspondence":
            assert found[(*task, "floor:raw-pixels")]["comparability"] == trained["comparability"]
    lines = (tmp_path / "results" / "rows" / "knn.jsonl").read_text().splitlines()
    specs = [json.loads(line)["model"]["spec"] for line in lines]
    assert specs == ["demo/run", "demo/run@random", "floor:mean-colour", "floor:raw-pixels"]
    assert (tmp_path / "demo" / "images" / "copydays" / "original").is_dir()


@pytest.mark.usefixtures("small")
def test_difficulty_reaches_images_and_views(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    noise = []
    for name, more in (("usual", ()), ("harder", ("--difficulty", "5"))):
        assert main(["demo", "--quiet", "--no-record", "--format", "json", "--output", name, *more]) == 0
        rows = json.loads(capsys.readouterr().out)
        noise.append(next(row["settings"].get("noise") for row in rows if row["task"] == "correspondence"))
    assert noise == [None, pytest.approx(0.6)]
    first = next(iter(sorted((tmp_path / "usual" / "images" / "folder" / "train").rglob("*.png"))))
    other = tmp_path / "harder" / first.relative_to(tmp_path / "usual")
    assert other.read_bytes() != first.read_bytes()


@pytest.mark.usefixtures("small")
def test_it_does_not_write_over_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "mine.txt").write_text("keep me")
    assert main(["demo", "--no-record", "--quiet"]) == 1
    assert "demo holds something already; replace an earlier demo by --overwrite" in capsys.readouterr().err
    assert main(["demo", "--no-record", "--quiet", "--overwrite"]) == 0
    assert (tmp_path / "demo" / "mine.txt").read_text() == "keep me"
    table = capsys.readouterr().out
    assert table.count("demo/run@random") == table.count("demo/run") - table.count("demo/run@random")
    assert not (tmp_path / "results").exists()


@pytest.mark.usefixtures("small")
def test_it_runs_in_one_process(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert main(["demo"]) == 2
    assert "demo runs in one process; start it without torchrun" in " ".join(capsys.readouterr().err.split())
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]
