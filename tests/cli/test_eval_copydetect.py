import csv
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from patchssl.cli import eval_copydetect as module
from patchssl.cli.main import main
from patchssl.data.synth.copies import copydays_drawings
from patchssl.data.synth.files import save

GOLDEN = Path(__file__).parents[1] / "golden"
TINY = "timm:vit_tiny_patch16_224@random"


def write_csv(path: Path, header: str, rows: Iterable[Iterable[Any]]) -> str:
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return str(path)


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "copydays"
    for drawing in copydays_drawings(100, 32, 0):
        if drawing.relative_path.split("/")[-2] in ("original", "strong", "15", "50"):
            save(drawing, folder)
    return folder


@pytest.fixture
def folders(drawn: Path, tmp_path: Path) -> Path:
    """The drawn copies as queries and references with a ground truth and training images."""
    data = tmp_path / "mine"
    shutil.copytree(drawn / "original", data / "references")
    shutil.copytree(drawn / "strong", data / "queries")
    shutil.copytree(drawn / "crops/50", data / "training")
    rows = [(path.stem, f"{path.stem[:4]}00") for path in sorted((data / "queries").iterdir())]
    write_csv(data / "groundtruth.csv", "query,reference", [*rows[1:], (rows[0][0], "")])
    return data


@pytest.fixture
def features(tmp_path: Path) -> list[str]:
    """Files of 25 noisy copies and 60 references, as arguments."""
    generator = np.random.default_rng(0)
    references = generator.normal(size=(60, 16)).astype(np.float32)
    queries = references[:25] + 1.5 * generator.normal(size=(25, 16)).astype(np.float32)
    np.savez(tmp_path / "r.npz", features=references, ids=np.array([f"R{n:02d}" for n in range(60)]))
    np.savez(tmp_path / "q.npz", features=queries, ids=np.array([f"Q{n:02d}" for n in range(25)]))
    np.savez(tmp_path / "t.npz", features=generator.normal(size=(40, 16)).astype(np.float32))
    pairs = [(f"Q{n:02d}", f"R{n:02d}") for n in range(25)]
    files = ["--query-features", str(tmp_path / "q.npz"), "--reference-features", str(tmp_path / "r.npz")]
    return [*files, "--ground-truth", write_csv(tmp_path / "gt.csv", "query,reference", pairs)]


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path, code: int = 0) -> dict[str, Any]:
    command = ["eval", "copydetect", *map(str, arguments)]
    assert main([*command, "--no-record", "--format", "json"]) == code
    row: dict[str, Any] = json.loads(capsys.readouterr().out)
    return row


def on_images(data: Path, *more: str | Path) -> list[str]:
    return [str(data), "--model", TINY, "--image-size", "32", "--workers", "0", *map(str, more)]


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str | Path, code: int = 2) -> str:
    assert main(["eval", "copydetect", *map(str, arguments), "--no-record"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    return err


def test_predictions_give_every_number_of_sscd(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    golden = json.loads((GOLDEN / "disc_micro_ap.json").read_text())
    truth = write_csv(tmp_path / "gt.csv", "query_id,reference_id", golden["ground_truth"])
    found = write_csv(tmp_path / "p.csv", "query,reference,score", golden["predictions"])
    row = run(capsys, "--predictions", found, "--ground-truth", truth, "--protocol", "disc21")
    names = {"micro_ap": "micro_ap", "recall_at_precision_90": "recall_at_precision_90"}
    names |= {"recall_at_1": "recall_at_rank1", "recall_at_10": "recall_at_rank10"}
    for ours, theirs in names.items():
        assert row["metrics"][ours]["value"] == pytest.approx(golden[theirs], abs=1e-9)
    assert row["headline"] == "micro_ap"


def test_predictions_give_every_average_precision_of_dino(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = json.loads((GOLDEN / "copydays_ap.json").read_text())
    pairs, predictions = [], []
    for place, case in enumerate(cases):
        pairs += [(f"q{place:02d}", f"right{number}", "strong") for number in range(case["positives"])]
        names = dict(zip(case["ranks"], ("right0", "right1", "right2", "right3"), strict=False))
        predictions += [(f"q{place:02d}", names.get(rank, f"wrong{rank}"), -rank) for rank in range(20)]
    truth = write_csv(tmp_path / "gt.csv", "query,reference,block", pairs)
    found = write_csv(tmp_path / "p.csv", "query,reference,score", predictions)
    table = tmp_path / "queries.csv"
    row = run(capsys, "--predictions", found, "--ground-truth", truth, "--per-query", table)
    wanted = [case["ap"] for case in cases]
    assert row["protocol"] == "dino"
    assert row["metrics"]["strong_map"]["value"] == pytest.approx(np.mean(wanted), abs=1e-12)
    with table.open(newline="") as file:
        np.testing.assert_allclose([float(line["ap"]) for line in csv.DictReader(file)], wanted, rtol=0, atol=1e-12)


def test_features_are_searched(features: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = features
    row = run(capsys, *files)
    assert row["protocol"] == "generic"
    assert list(row["metrics"]) == ["map", "recall_at_1", "micro_ap", "recall_at_precision_90"]
    with np.load(tmp_path / "r.npz") as references, np.load(tmp_path / "q.npz") as queries:
        units = [part["features"].astype(float) for part in (references, queries)]
    units = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in units]
    ranks = [(cosines > cosines[place]).sum() for place, cosines in enumerate(units[1] @ units[0].T)]
    wanted = [1.0 if rank == 0 else 0.5 / (rank + 1) if rank < 20 else 0.0 for rank in ranks]
    assert row["metrics"]["map"]["value"] == pytest.approx(np.mean(wanted), abs=1e-9)
    assert row["metrics"]["recall_at_1"]["value"] == pytest.approx(np.mean(np.array(ranks) == 0))

    disc = run(capsys, *files, "--protocol", "disc21", "--training-features", tmp_path / "t.npz")
    assert disc["settings"]["score_normalisation"] == {"beta": 1.0, "neighbours": [0, 2]}
    assert (disc["settings"]["whitening"], disc["settings"]["whitening_dim"]) == ("centred", 16)
    assert disc["dataset"]["splits"] == {"references": 60, "training": 40, "queries": 25}
    more = ["--training-features", str(tmp_path / "t.npz"), "--protocol", "disc21"]
    other = run(capsys, *files, *more, "--beta", "0.5", "--neighbours", "1,3", "--whitening-mode", "none")
    assert other["settings"]["score_normalisation"] == {"beta": 0.5, "neighbours": [1, 3]}
    assert other["settings"]["whitening"] == "none"
    assert other["metrics"]["micro_ap"]["value"] != disc["metrics"]["micro_ap"]["value"]
    plain = run(capsys, *files, *more, "--no-score-normalisation", "--k", "3")
    assert (plain["settings"]["score_normalisation"], plain["settings"]["k"]) == (None, 3)
    approximate = run(capsys, *files, "--index", "HNSW8", "--index-parameters", "efSearch=16")
    assert approximate["settings"]["index"] == "HNSW8 (efSearch=16)"
    assert approximate["details"]["index"]["recall@1"] > 0.5
    with_more = run(capsys, *files, "--distractor-features", tmp_path / "t.npz")
    assert with_more["metrics"]["map"]["value"] <= row["metrics"]["map"]["value"]
    assert with_more["dataset"]["splits"]["distractors"] == 40


def test_copydays_of_images(drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(drawn / "crops/50", tmp_path / "more")
    for path in (tmp_path / "more").iterdir():
        path.write_bytes(path.read_bytes() + b"\0")  # other bytes, so that they are no queries
    command = on_images(drawn, "--whitening", tmp_path / "more", "--distractors", tmp_path / "more")
    command += ["--results", str(tmp_path / "rows"), "--format", "json", "--per-query", str(tmp_path / "queries.csv")]
    assert main(["eval", "copydetect", *command]) == 0
    out, err = capsys.readouterr()
    row = json.loads(out)
    assert "has other sizes than the official data: original/ 10 for 157, strong/ 15 for 229" in err
    assert "10 distractors have the names of queries" in err
    assert json.loads((tmp_path / "rows" / "copydetect.jsonl").read_text()) == row
    assert row["headline"] == "strong_map"
    assert row["metrics"]["strong_map"]["num"] == 15
    assert row["metrics"]["original_map"]["value"] == 1
    assert row["metrics"]["jpegqual_15_map"]["value"] > row["metrics"]["strong_map"]["value"]
    wanted = {"token": "cls+gem", "image_px": 32, "resize": "bicubic, both sides", "whitening": "uncentred", "k": 20}
    assert wanted.items() <= row["settings"].items()
    assert row["dataset"]["splits"] == {"references": 10, "distractors": 10, "whitening": 10, "queries": 65}
    assert row["dataset"]["name"] == "copydays"
    with (tmp_path / "queries.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    strong = [float(line["ap"]) for line in lines if line["block"] == "strong"]
    assert np.mean(strong) == pytest.approx(row["metrics"]["strong_map"]["value"])

    bare = run(capsys, *on_images(drawn, "--tokens", "mean", "--whitening-mode", "none"))
    assert (bare["settings"]["token"], bare["settings"]["whitening"]) == ("mean", "none")
    assert bare["comparability"] != row["comparability"]


def test_other_protocols_of_images(drawn: Path, folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sscd = run(capsys, *on_images(drawn, "--protocol", "sscd"))
    assert (sscd["settings"]["resize"], sscd["settings"]["crop"]) == ("bilinear, shorter side", "none")
    assert {"strong_map", "micro_ap", "recall_at_precision_90"} <= sscd["metrics"].keys()
    mine = run(capsys, *on_images(folders))
    assert mine["protocol"] == "generic"
    assert mine["metrics"]["map"]["num"] == 14
    assert mine["settings"]["names"] == "file stem"
    assert mine["settings"]["score_normalisation"] == {"beta": 1.0, "neighbours": [0, 2]}
    (folders / "queries").rename(folders / "dev_queries")
    (folders / "groundtruth.csv").rename(folders / "dev_queries_groundtruth.csv")
    disc = run(capsys, *on_images(folders, "--preprocess", "model"))
    assert (disc["protocol"], disc["headline"], disc["settings"]["k"]) == ("disc21", "micro_ap", 10)
    assert disc["settings"]["query_set"] == "dev"
    assert disc["settings"]["crop"] == "centre"
    assert disc["settings"]["whitening_dim"] == 9


def test_mismatches_are_refused(drawn: Path, folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = refusal(capsys, *on_images(drawn, "--protocol", "disc21"), code=1)
    assert "--protocol disc21 is for data of the layout disc or generic" in told
    assert "is for data of the layout copydays" in refusal(capsys, *on_images(folders, "--protocol", "dino"), code=1)
    assert "no query sets" in refusal(capsys, *on_images(folders, "--query-set", "dev"), code=1)
    told = refusal(capsys, *on_images(drawn, "--distractors", drawn / "strong"), code=1)
    assert "15 of 15 distractors are queries as well" in told
    assert "compares no scores" in refusal(capsys, *on_images(drawn, "--score-normalisation"), code=1)
    assert "needs images to learn from" in refusal(capsys, *on_images(drawn, "--whitening-mode", "centred"), code=1)
    broken = tmp_path / "broken"
    shutil.copytree(drawn, broken)
    (broken / "jpegqual/15/200500.jpg").unlink()
    told = refusal(capsys, *on_images(broken), code=1)
    assert "jpegqual/15/ lacks 1 of 10 images (200500.jpg)" in told
    assert "lear.inrialpes.fr" in told


def test_usage(features: list[str], drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = features
    truth = files[-1]
    assert "give DATA and --model" in refusal(capsys)
    assert "belong together" in refusal(capsys, *files[:4])
    assert "not both" in refusal(capsys, *on_images(drawn)[:3], *files)
    assert "--tokens, --distractors change nothing" in refusal(capsys, *files, "--tokens", "cls", "--distractors", "x")
    assert "belong together" in refusal(capsys, "--predictions", "p.csv")
    assert "not both" in refusal(capsys, drawn, "--predictions", "p.csv", "--ground-truth", truth)
    told = refusal(capsys, "--predictions", "p.csv", "--ground-truth", truth, "--index", "HNSW8", "--beta", "1")
    assert "--beta, --index change nothing about predictions" in told
    assert "DATA holds its own ground truth" in refusal(capsys, *on_images(drawn), "--ground-truth", truth)
    assert "--crop-fraction changes nothing" in refusal(capsys, *on_images(drawn), "--crop-fraction", "1")
    assert "two sets of the same kind" in refusal(
        capsys, *on_images(drawn), "--whitening", tmp_path, "--whitening-features", "w.npz"
    )
    assert "no descriptor of an image" in refusal(capsys, *on_images(drawn), "--tokens", "patches")
    assert "there is no folder" in refusal(capsys, *files, "--per-query", tmp_path / "no" / "q.csv")
    assert "no pair of places" in refusal(capsys, *files, "--neighbours", "2")
    assert "0 <= first <= last" in refusal(capsys, *files, "--neighbours", "3,1")
    assert "there is no file" in refusal(capsys, *files[:5], tmp_path / "none.csv", code=1)
    assert "not normalised here" in refusal(capsys, *files, "--beta", "2", code=1)
    np.savez(tmp_path / "q.npz", features=np.ones((2, 3), np.float32))
    assert "holds no array `ids`" in refusal(capsys, *files, code=1)


def test_whitening_from_a_feature_file(drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = np.random.default_rng(0).normal(size=(500, 384)).astype(np.float32)
    np.savez(tmp_path / "w.npz", features=rows)
    row = run(capsys, *on_images(drawn, "--whitening-features", tmp_path / "w.npz"))
    assert row["settings"]["whitening_images"] == 500
    np.savez(tmp_path / "w.npz", features=rows[:, :192])
    told = refusal(capsys, *on_images(drawn, "--whitening-features", tmp_path / "w.npz"), code=1)
    assert "192" in told


def test_a_wrong_index_is_refused_before_anything_is_computed(
    drawn: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "compute_features", lambda *args, **values: pytest.fail("features were computed"))
    command = ["eval", "copydetect", str(drawn), "--model", "timm:vit_tiny_patch16_224@random", "--image-size", "32"]
    assert main([*command, "--index", "IVFx,Flat", "--no-record"]) == 1
    assert "IVFx,Flat" in capsys.readouterr().err
