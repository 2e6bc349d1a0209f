import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from patchssl.errors import DataError
from patchssl.evaluate.outcomes import Outcomes, Scored, read_outcomes, record
from patchssl.evaluate.results import Metric, Row, append_row, canonical_hash, comparability, parse_row, read_rows

KEYS = [
    "schema",
    "task",
    "protocol",
    "dataset",
    "model",
    "settings",
    "metrics",
    "headline",
    "seconds",
    "environment",
    "seed",
    "created",
    "comparability",
    "details",
]


def a_row(**changes: Any) -> Row:
    row = Row(
        task="knn",
        protocol="dino",
        dataset={"name": "tiny", "fingerprint": "f"},
        model={"spec": "é\u2028x"},
        settings={"k": [1]},
        metrics={"top1@k1": Metric(value=0.5, ci95_low=0.25, ci95_high=0.75, num=4)},
        headline="top1@k1",
        seconds={"features": 1.0, "evaluate": 2.0},
        environment={"python": "3"},
        seed=0,
        created="2026-01-01T00:00:00+00:00",
        comparability="c",
    )
    return dataclasses.replace(row, **changes)


def test_written_rows_are_read_back_in_order(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "rows"
    rows = [a_row(), a_row(seed=1), a_row(task="linear")]
    assert [append_row(folder, row).name for row in rows] == ["knn.jsonl", "knn.jsonl", "linear.jsonl"]
    assert read_rows(folder) == (rows, [])
    lines = (folder / "knn.jsonl").read_bytes().splitlines()
    assert [list(json.loads(line)) for line in lines] == [KEYS, KEYS]


def test_appending_leaves_what_was_there(tmp_path: Path) -> None:
    append_row(tmp_path, a_row())
    before = (tmp_path / "knn.jsonl").read_bytes()
    append_row(tmp_path, a_row(seed=9))
    assert (tmp_path / "knn.jsonl").read_bytes().startswith(before)


def test_a_line_cut_off_does_not_swallow_the_next(tmp_path: Path) -> None:
    path = append_row(tmp_path, a_row())
    path.write_bytes(path.read_bytes()[:-30])
    append_row(tmp_path, a_row(seed=2))
    rows, broken = read_rows(tmp_path)
    assert [row.seed for row in rows] == [2]
    assert [(line.path, line.line) for line in broken] == [(path, 1)]


def changed(**changes: Any) -> str:
    return json.dumps({**json.loads(a_row().to_json()), **changes})


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "is not JSON"),
        ("[1]", "holds a list"),
        (changed(schema=2), "schema 2; this version reads 1 to 1"),
        (changed(schema="1"), "schema '1'"),
        ('{"schema": 1, "task": "knn"}', "lacks protocol, dataset"),
        (changed(headline="top1@k7"), "headline 'top1@k7'"),
        (changed(model=3), "a model that is no object"),
        (changed(details=[]), "a details that is no object"),
        (changed(model={}), "a model spec that is no text"),
        (changed(dataset={"name": 7}), "a dataset name that is no text"),
        (changed(created=20260101), "a created that is no text"),
        (changed(comparability=None), "a comparability that is no text"),
        ("[" * 100_000, "is not JSON"),
        (changed(metrics={"top1@k1": dict.fromkeys(("value", "ci95_low", "ci95_high", "num"), 10**400)}), "finite"),
        (changed(metrics={"top1@k1": {"value": 0.5}}), "without the finite numbers"),
        (changed(metrics={"top1@k1": 0.5}), "without the finite numbers"),
        (
            changed(metrics={"top1@k1": dict.fromkeys(("value", "ci95_low", "ci95_high", "num"), float("nan"))}),
            "finite",
        ),
        ("\xff\xfe", "is not JSON"),
    ],
)
def test_broken_lines_are_told_by_file_and_number(
    line: str, words: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = append_row(tmp_path, a_row())
    with path.open("ab") as file:
        file.write(line.encode("latin-1") + b"\n\n")
    append_row(tmp_path, a_row(seed=2))
    with caplog.at_level(logging.WARNING):
        rows, broken = read_rows(tmp_path)
    assert [row.seed for row in rows] == [0, 2]
    assert [problem.line for problem in broken] == [2]
    assert words in broken[0].reason
    assert f"{path}:2: " in caplog.text


def test_fields_of_later_versions_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "knn.jsonl").write_text(changed(colour="blue") + "\n")
    assert read_rows(tmp_path) == ([a_row()], [])


def test_missing_and_unwritable_folders_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no folder"):
        read_rows(tmp_path / "none")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written to"):
        append_row(tmp_path / "file", a_row())


def test_values_that_are_no_numbers_are_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        append_row(tmp_path, a_row(seconds={"features": float("nan")}))
    assert list(tmp_path.iterdir()) == []


def test_comparability_depends_on_each_part_and_not_on_order() -> None:
    base: dict[str, Any] = {"task": "knn", "protocol": "dino", "fingerprint": "f", "settings": {"a": 1, "b": [2]}}
    first = comparability(**base)
    assert len(first) == 64
    assert comparability(**{**base, "settings": {"b": [2], "a": 1}}) == first
    others: list[dict[str, Any]] = [
        {"task": "linear"},
        {"protocol": "x"},
        {"fingerprint": "g"},
        {"settings": {"a": 1, "b": [3]}},
    ]
    assert len({first, *(comparability(**{**base, **other}) for other in others)}) == 5


def test_canonical_hash_by_hand() -> None:
    # printf '{"a":[1,2],"b":null}' | sha256sum
    expected = "f25109c4111335e4a32d49373585e7a788ff5b10e70023f7004b170e7f84716a"
    assert canonical_hash({"b": None, "a": [1, 2]}) == expected


def test_a_row_keeps_its_id_however_its_line_is_laid_out(tmp_path: Path) -> None:
    row = a_row(settings={"k": (2, 10), 10: "ten", 2: "two"}, details={"chance": {"top1@k1": 0.1}})
    append_row(tmp_path, row)
    (read,), _ = read_rows(tmp_path)
    assert read.id == row.id
    assert len(row.id) == 12
    fields = json.loads(row.to_json())
    turned = json.dumps({name: fields[name] for name in reversed(fields)}, indent=1)
    assert parse_row(turned.encode()).id == row.id
    assert len({row.id, a_row().id, a_row(seed=1).id, a_row(details={"chance": {}}).id}) == 4


def test_a_row_without_details_has_the_id_of_one_with_none() -> None:
    fields = json.loads(a_row().to_json())
    del fields["details"]
    older = parse_row(json.dumps(fields).encode())
    # printf with the record as JSON of sorted keys, without spaces and without details, | sha256sum
    assert older.id == a_row().id == canonical_hash(fields)[:12] == "7f081959902a"
    assert parse_row(older.to_json().encode()).id == older.id


def test_outcomes_are_found_again_by_the_row_that_was_read(tmp_path: Path) -> None:
    row = a_row()
    record(tmp_path, Scored(row, Outcomes(np.array(["x", "y"]), {"top1@k1": np.array([True, False])})))
    (read,), _ = read_rows(tmp_path)
    kept = read_outcomes(tmp_path, read)
    assert kept is not None
    assert kept.ids is not None
    assert kept.ids.tolist() == ["x", "y"]
    assert kept.values["top1@k1"].tolist() == [True, False]
    assert read_outcomes(tmp_path, a_row(seed=5)) is None


def test_a_file_that_cannot_be_opened_is_told(tmp_path: Path) -> None:
    (tmp_path / "knn.jsonl").mkdir()
    with pytest.raises(DataError, match=r"knn.jsonl cannot be read"):
        read_rows(tmp_path)
