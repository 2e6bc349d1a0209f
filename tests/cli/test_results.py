"""`patchssl results`: what users see of rows, and what scripts read."""

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from patchssl.cli.main import main
from patchssl.evaluate.outcomes import Outcomes, Scored, record
from patchssl.evaluate.results import Row, append_row

MakeRow = Callable[..., Row]
Run = Callable[..., tuple[str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command that must succeed, and return stdout and stderr."""

    def run_command(*arguments: str | Path) -> tuple[str, str]:
        assert main([*map(str, arguments)]) == 0
        out, err = capsys.readouterr()
        return out, err

    return run_command


@pytest.fixture
def folder(tmp_path: Path, make_row: MakeRow) -> Path:
    """Three trained models of which two have outcomes, floors, and one row at another image size."""
    details = {"chance": {"top1@k20": 0.1}, "gflops": 1.25, "images_per_s": 812.0}
    places = np.arange(100)
    for spec, first_right in (("runs/a", 40), ("runs/b", 48)):
        right = places >= first_right
        row = make_row(spec, float(right.mean()), width=0.2, details=details)
        record(tmp_path / "rows", Scored(row, Outcomes(None, {"top1@k20": right})))
    for row in (
        make_row("runs/c", 0.55, width=0.2),
        make_row("runs/a", 0.3, settings={"image_px": 32}),
        make_row("runs/a@random", 0.2),
        make_row("floor:raw-pixels", 0.15, family="floor"),
    ):
        append_row(tmp_path / "rows", row)
    return tmp_path / "rows"


def test_the_table_as_people_see_it(folder: Path, run: Run) -> None:
    out, err = run("results", "table", "--results", folder)
    assert err == ""
    lines = [line.split() for line in out.splitlines()]
    assert lines[:4] == [
        ["knn", "(dino)", "knn", "(dino)"],
        ["tiny", "tiny"],
        ["image_px", "224", "image_px", "32"],
        ["model", "top1@k20", "top1@k20"],
    ]
    assert [line.rstrip() for line in out.splitlines()[4:12]] == [
        "runs/a               60.00 (50.00 to 70.00) *   30.00 (25.00 to 35.00)",
        "runs/b               52.00 (42.00 to 62.00)",
        "runs/c               55.00 (45.00 to 65.00) ~",
        "",
        "floors, not ranked:",
        "chance                                10.00",
        "floor:raw-pixels     15.00 (10.00 to 20.00)",
        "runs/a@random        20.00 (15.00 to 25.00)",
    ]
    text = " ".join(out.split())
    assert "* best of the column." in text
    assert "~ not separable from the best, unpaired: their intervals overlap." in text
    assert "Unpaired, because outcomes of each image are missing: runs/c;" in text
    assert "= not separable" not in text


def test_markdown_and_latex_show_the_same_marks(folder: Path, run: Run) -> None:
    out, _ = run("results", "table", "--results", folder, "--format", "markdown")
    assert out.splitlines()[0] == (
        "| model | knn (dino)<br>tiny<br>image_px 224<br>top1@k20 | knn (dino)<br>tiny<br>image_px 32<br>top1@k20 |"
    )
    assert "| runs/a | **60.00** (50.00 to 70.00) \\* | 30.00 (25.00 to 35.00) |" in out
    assert "| runs/b | 52.00 (42.00 to 62.00) |  |" in out
    assert "| runs/c | **55.00** (45.00 to 65.00) \\~ |  |" in out
    assert "| chance | 10.00 |  |" in out
    out, _ = run("results", "table", "--results", folder, "--format", "latex", "--cost")
    assert "\\begin{tabular}{lrrrrr}" in out
    assert "\\shortstack[r]{knn (dino) \\\\ tiny \\\\ image\\_px 224 \\\\ top1@k20}" in out
    assert "runs/a & 5.5 M & 1.25 & 812 & \\textbf{60.00}$^{*}$ (50.00 to 70.00) & 30.00 (25.00 to 35.00) \\\\" in out
    assert "\\textbf{55.00}$^{\\sim}$" in out
    assert out.count("\\midrule") == 2
    assert "95 \\% bootstrap" in out


def test_json_is_one_document_of_fractions_with_ids(folder: Path, run: Run) -> None:
    out, _ = run("results", "table", "--results", folder, "--format", "json")
    records = json.loads(out)
    assert [entry["model"] for entry in records[:2]] == ["runs/a", "runs/a"]
    assert (records[0]["value"], records[0]["num"], records[0]["mark"]) == (0.6, 100, "best")
    assert len(records[0]["row_id"]) == 12
    assert len(records[0]["comparability"]) == 64
    assert next(entry for entry in records if entry["kind"] == "chance")["ci95_low"] is None
    assert "gflops" not in records[0]
    with_cost, _ = run("results", "table", "--results", folder, "--format", "json", "--cost")
    assert json.loads(with_cost)[0]["gflops"] == 1.25


def test_csv_has_a_line_for_each_model_and_column(folder: Path, run: Run) -> None:
    out, _ = run("results", "table", "--results", folder, "--format", "csv")
    lines = list(csv.DictReader(io.StringIO(out)))
    assert {"value", "ci95_low", "ci95_high", "num", "row_id", "comparability"} <= set(lines[0])
    assert [(line["model"], line["told_apart"], line["value"]) for line in lines] == [
        ("runs/a", "image_px 224", "0.6"),
        ("runs/a", "image_px 32", "0.3"),
        ("runs/b", "image_px 224", "0.52"),
        ("runs/c", "image_px 224", "0.55"),
        ("chance", "image_px 224", "0.1"),
        ("floor:raw-pixels", "image_px 224", "0.15"),
        ("runs/a@random", "image_px 224", "0.2"),
    ]


def test_filters_and_all_rows(folder: Path, make_row: MakeRow, run: Run) -> None:
    append_row(folder, make_row("runs/b", 0.5, created="2026-02-01T00:00:00+00:00"))
    append_row(folder, make_row("runs/b", 0.9, task="linear", dataset={"name": "other"}))
    out, _ = run("results", "table", "--results", folder, "--model", "runs/b", "--task", "knn", "--format", "csv")
    assert [line["value"] for line in csv.DictReader(io.StringIO(out))] == ["0.5"]
    out, _ = run("results", "table", "--results", folder, "--model", "runs/b", "--dataset", "t*", "--all-rows")
    assert "runs/b (row 1 of 2)  52.00" in out
    assert "runs/b (row 2 of 2)  50.00" in out
    out, _ = run("results", "table", "--results", folder, "--task", "linear", "--metric", "top1@k20")
    assert "90.00" in out
    assert "knn" not in out


def test_wide_tables_are_broken_at_the_edge_of_a_terminal(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from patchssl.cli import tables

    whole, _ = run("results", "table", "--results", folder)
    monkeypatch.setattr(tables, "_room", lambda: 60)
    broken, _ = run("results", "table", "--results", folder)
    assert max(map(len, whole.split("\n\n")[0].splitlines())) > 60
    assert max(len(line) for line in broken.splitlines() if "Percent" not in line and "npaired" not in line) <= 60
    assert broken.count("runs/c") == 1 + whole.count("runs/c")


def test_published_figures_stand_apart(folder: Path, run: Run) -> None:
    plain, _ = run("results", "table", "--results", folder)
    out, _ = run("results", "table", "--results", folder, "--published")
    assert out.startswith(plain.rstrip("\n"))
    block = out[len(plain) :]
    assert "Published by others, by protocols, images and selection rules of their own; not ranked:" in block
    assert "DINO ViT-S/16" in block
    assert "best of k = 10, 20, 100, 200" in block
    # Only of the tasks that the table shows.
    assert "Copydays" not in block
    records = json.loads(run("results", "table", "--results", folder, "--published", "--format", "json")[0])
    ours = [entry for entry in records if entry["kind"] != "published"]
    theirs = [entry for entry in records if entry["kind"] == "published"]
    assert len(ours) == 7
    assert all(entry["source"] and entry["mark"] is None and entry["comparability"] is None for entry in theirs)
    assert {entry["task"] for entry in theirs} == {"knn"}


def test_published_figures_need_no_rows(tmp_path: Path, run: Run) -> None:
    out, err = run("results", "table", "--results", tmp_path / "none", "--published", "--dataset", "copydays")
    assert "is no folder" in err
    assert out.startswith("Published by others")
    assert "DINO ViT-B/8" in out
    out, _ = run("results", "table", "--results", tmp_path / "none", "--published", "--task", "linear")
    assert "not verified in its source; quoted from memory" in out


def test_broken_lines_are_told_and_the_rest_is_shown(folder: Path, run: Run) -> None:
    whole, _ = run("results", "table", "--results", folder)
    path = folder / "knn.jsonl"
    lines = path.read_text().splitlines()
    newer = json.dumps({**json.loads(lines[0]), "schema": 99})
    path.write_text("\n".join([*lines[:2], lines[0][:50], newer, *lines[2:]]) + "\n")
    for quiet in ([], ["--quiet"]):
        out, err = run("results", "table", "--results", folder, *quiet)
        assert out == whole
        assert err.count("\n") == 2
        assert f"{path}:3: is not JSON" in err
        assert f"{path}:4: has schema 99; this version reads 1 to 1" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--results", "none"], "none is no folder"),
        (["--results", "empty"], "empty should hold result rows in files *.jsonl and has none; an evaluation such as"),
        (["--results", "broken"], "has 1 broken lines and no row"),
        (["--task", "linear"], "no row matches --task linear; there are: knn"),
        (["--dataset", "x*"], "no row matches --dataset x*; there are: tiny"),
        (["--model", "runs/q"], "no row matches --model runs/q; there are: floor:raw-pixels, runs/a"),
        (["--metric", "top9"], "no row has the metric 'top9'; they have: top1@k20"),
    ],
)
def test_what_cannot_be_shown_is_told_in_one_line(
    arguments: list[str],
    words: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder.parent)
    Path("empty").mkdir()
    Path("broken").mkdir()
    Path("broken/knn.jsonl").write_text("{\n")
    given = arguments if "--results" in arguments else ["--results", "rows", *arguments]
    assert main(["results", "table", *given]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    last = err.splitlines()[-1]
    assert last.startswith("Error: ")
    assert words in last


def test_compare_says_in_words_which_is_better(folder: Path, run: Run) -> None:
    out, err = run("results", "compare", "runs/a", "runs/b", "--results", folder)
    assert err == ""
    # b is wrong on 8 of 100 more images and right on no other.
    assert "paired over 100 test images" in out
    assert "A is better by 8.0 points (3.0 to 14.0)" in out
    assert "knn on tiny: image_px 32 against 224" in out
    out, _ = run("results", "compare", "runs/b", "runs/a", "--results", folder, "--format", "markdown")
    # McNemar's exact p-value is 2 / 2**8 = 0.0078.
    assert re.search(
        r"\| top1@k20 \| 52.00 \| 60.00 \| 0.0(0[5-9]|1[01]) \| B is better by 8.0 points \(3.0 to 14.0\)", out
    )
    out, _ = run("results", "compare", "runs/a", "runs/a", "--results", folder, "--format", "csv")
    first = next(csv.DictReader(io.StringIO(out)))
    assert (first["difference"], first["ci95_low"], first["separable"]) == ("0.0", "0.0", "False")
    assert first["verdict"] == "not separable: +0.0 points (+0.0 to +0.0)"


def test_compare_without_outcomes_says_that_it_is_unpaired(folder: Path, run: Run) -> None:
    out, _ = run("results", "compare", "runs/a", "runs/c", "--results", folder)
    assert "unpaired, by the rows' own intervals: no outcomes of each image were kept of row" in out
    # Two intervals of 10 points to either side make one of 14.1.
    assert "not separable: +5.0 points (-9.1 to +19.1, unpaired)" in out
    document = json.loads(run("results", "compare", "runs/a", "runs/c", "--results", folder, "--format", "json")[0])
    (entry,) = document["compared"]
    assert (entry["num"], entry["separable"]) == (None, False)
    assert entry["unpaired"].startswith("no outcomes")
    assert [one["differing"] for one in document["refused"]] == ["image_px 32 against 224"]


def test_compare_refuses_what_means_different_things(
    folder: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    records = json.loads(run("results", "table", "--results", folder, "--format", "json")[0])
    small = next(entry["row_id"] for entry in records if entry["told_apart"] == "image_px 32")
    assert main(["results", "compare", small[:8], "runs/b", "--results", str(folder)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"Error: no rows of {small[:8]} and runs/b may be compared")
    assert "image_px 32 against 224" in err
    assert err.count("\n") == 1


def test_damaged_outcomes_fail_a_comparison_and_not_a_table(
    folder: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (folder / "outcomes").iterdir():
        path.write_bytes(path.read_bytes()[:40])
    out, err = run("results", "table", "--results", folder)
    assert err.count("is damaged") == 2
    assert "unpaired" in out
    assert main(["results", "compare", "runs/a", "runs/b", "--results", str(folder)]) == 1
    assert "is damaged" in capsys.readouterr().err


def test_the_rows_of_an_evaluation_are_compared_image_by_image(tmp_path: Path, run: Run) -> None:
    generator = np.random.default_rng(0)
    labels = {"train": np.repeat(np.arange(4), 20), "test": np.repeat(np.arange(4), 15)}
    for name, spread in (("sharp", 1.0), ("blurred", 2.5)):
        for part, of_part in labels.items():
            centres = np.eye(4, 8)[of_part] * 3
            features = (centres + generator.normal(size=centres.shape) * spread).astype(np.float32)
            np.savez(tmp_path / f"{name}-{part}.npz", features=features, labels=of_part)
        files = [str(tmp_path / f"{name}-{part}.npz") for part in labels]
        run("eval", "knn", "--train-features", files[0], "--test-features", files[1], "--k", "5", "--results", tmp_path)
    out, _ = run(
        "results", "compare", "sharp-test.npz", "blurred-test.npz", "--results", tmp_path, "--metric", "top1@k5"
    )
    assert "A is better by" in out
    assert "paired over 60 test images" in out
