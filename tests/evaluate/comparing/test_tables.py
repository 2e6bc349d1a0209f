import logging
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from patchssl.errors import ConfigError, DataError
from patchssl.evaluate.comparing.tables import Table, build_table
from patchssl.evaluate.outcomes import Outcomes
from patchssl.evaluate.results import Row

MakeRow = Callable[..., Row]


def shown(table: Table, *fields: str) -> list[tuple[object, ...]]:
    """Fields of the cells, in order; missing ones as None."""
    frame = table.cells[list(fields)]
    return [tuple(None if pd.isna(value) else value for value in line) for line in frame.itertuples(index=False)]


def hits(*counts: int) -> Outcomes:
    """Images of which the first so many are wrong, the next so many right, and so on in turns."""
    values = np.concatenate([np.full(count, place % 2) for place, count in enumerate(counts)])
    return Outcomes(None, {"top1@k20": values.astype(bool)})


def test_the_best_is_marked_and_what_cannot_be_told_from_it(make_row: MakeRow) -> None:
    # a is right on the last 60 images, b on 58 of these, c on 40 of these.
    rows = [make_row("c", 0.4, num=100), make_row("a", 0.6), make_row("b", 0.58)]
    kept = dict(zip((row.id for row in rows), (hits(60, 40), hits(40, 60), hits(42, 58)), strict=True))
    table = build_table(rows, outcomes=lambda row: kept[row.id])
    assert shown(table, "model", "mark", "paired") == [
        ("a", "best", None),
        ("b", "not separable", True),
        ("c", "", True),
    ]


def test_pairing_separates_what_intervals_do_not(make_row: MakeRow) -> None:
    # b is wrong on 8 more images than a and right on no other: that is no chance, though the intervals overlap.
    rows = [make_row("a", 0.6, width=0.2), make_row("b", 0.52, width=0.2)]
    kept = {rows[0].id: hits(40, 60), rows[1].id: hits(48, 52)}
    paired = build_table(rows, outcomes=lambda row: kept[row.id])
    assert shown(paired, "mark", "paired") == [("best", None), ("", True)]
    for getter in (None, lambda row: kept[row.id] if row is rows[0] else None):
        assert shown(build_table(rows, outcomes=getter), "mark", "paired") == [("best", None), ("not separable", False)]
    apart = [make_row("a", 0.6, width=0.05), make_row("b", 0.52, width=0.05)]
    assert shown(build_table(apart), "mark", "paired") == [("best", None), ("", False)]


def test_columns_are_ranked_each_for_itself_and_alone_nothing_is_best(make_row: MakeRow) -> None:
    rows = [
        make_row("a", 0.9, width=0.01),
        make_row("b", 0.1, width=0.01),
        make_row("b", 0.95, settings={"image_px": 32}),
        make_row("a", 0.2, width=0.01, task="linear"),
        make_row("b", 0.3, width=0.01, task="linear"),
    ]
    table = build_table(rows)
    assert shown(table, "model", "task", "told_apart", "mark") == [
        ("a", "knn", "image_px 224", "best"),
        ("a", "linear", "", ""),
        ("b", "knn", "image_px 224", ""),
        ("b", "knn", "image_px 32", ""),
        ("b", "linear", "", "best"),
    ]
    assert len({shown_column.column.comparability for shown_column in table.columns}) == 3


def test_floors_stand_below_and_are_never_ranked(make_row: MakeRow) -> None:
    chance = {"chance": {"top1@k20": 0.25}}
    rows = [
        make_row("floor:raw-pixels", 0.99, family="floor"),
        make_row("runs/a@random", 0.98),
        make_row("runs/a", 0.5, width=0.01, details=chance),
        make_row("runs/b", 0.4, width=0.01, details=chance),
    ]
    table = build_table(rows)
    assert shown(table, "kind", "model", "value", "mark") == [
        ("model", "runs/a", 0.5, "best"),
        ("model", "runs/b", 0.4, ""),
        ("chance", "chance", 0.25, ""),
        ("floor", "floor:raw-pixels", 0.99, ""),
        ("untrained", "runs/a@random", 0.98, ""),
    ]
    assert shown(table, "ci95_low", "row_id")[2] == (None, None)


def test_no_chance_where_rows_tell_none_or_contradict_each_other(
    make_row: MakeRow, caplog: pytest.LogCaptureFixture
) -> None:
    for details in ({}, {"chance": {"top5@k20": 0.5}}, {"chance": "a tenth"}, {"chance": {"top1@k20": "a tenth"}}):
        assert "chance" not in set(build_table([make_row(details=details)]).cells["kind"])
    rows = [make_row(name, details={"chance": {"top1@k20": value}}) for name, value in (("a", 0.1), ("b", 0.2))]
    with caplog.at_level(logging.WARNING):
        assert "chance" not in set(build_table(rows).cells["kind"])
    assert "give [0.1, 0.2] as chance" in caplog.text


def test_values_chosen_by_the_test_images_are_marked_never_ranked_and_no_headline(make_row: MakeRow) -> None:
    both = {"top1_best": 0.9, "top1": 0.8}
    chosen = {"test_selected": ["top1_best"]}
    rows = [
        make_row("a", both, details=chosen),
        make_row("b", {"top1_best": 0.5, "top1": 0.4}, width=0.01, details=chosen),
    ]
    assert {column.metric for column in build_table(rows).columns} == {"top1"}
    every = build_table(rows, metric="all")
    assert shown(every, "model", "metric", "test_selected", "mark") == [
        ("a", "top1_best", True, ""),
        ("a", "top1", False, "best"),
        ("b", "top1_best", True, ""),
        ("b", "top1", False, ""),
    ]
    only = build_table([make_row("a", {"top1_best": 0.9}, details=chosen)])
    assert only.columns == ()
    assert len(only.cells) == 0
    assert "every metric was chosen by the test images" in only.notes[0]


def test_one_metric_by_name_and_what_no_row_has(make_row: MakeRow) -> None:
    rows = [make_row("a", {"top1@k20": 0.5, "top5@k20": 0.9}), make_row("b", {"top1@k20": 0.4}, task="linear")]
    table = build_table(rows, metric="top5@k20")
    assert shown(table, "model", "metric", "value") == [("a", "top5@k20", 0.9)]
    with pytest.raises(ConfigError, match=r"no row has the metric 'top9'; they have: top1@k20, top5@k20"):
        build_table(rows, metric="top9")


def test_several_rows_of_one_model_get_a_line_each_oldest_first(make_row: MakeRow) -> None:
    rows = [
        make_row("a", 0.5, created="2026-01-02T00:00:00+00:00"),
        make_row("a", 0.4, created="2026-01-01T00:00:00+00:00"),
        make_row("a", 0.1, task="linear"),
    ]
    assert shown(build_table(rows), "model", "task", "value") == [
        ("a (row 1 of 2)", "knn", 0.4),
        ("a (row 1 of 2)", "linear", 0.1),
        ("a (row 2 of 2)", "knn", 0.5),
    ]


def test_outcomes_are_read_once_and_damaged_ones_are_told(make_row: MakeRow, caplog: pytest.LogCaptureFixture) -> None:
    rows = [make_row(name, {"top1@k20": 0.5, "top5@k20": 0.9}) for name in "abc"]
    asked: list[str] = []

    def getter(row: Row) -> Outcomes | None:
        asked.append(row.id)
        raise DataError("outcomes are damaged")

    with caplog.at_level(logging.WARNING):
        table = build_table(rows, outcomes=getter, metric="all")
    assert sorted(asked) == sorted(row.id for row in rows)
    assert caplog.text.count("outcomes are damaged") == 3
    assert {paired for (paired,) in shown(table, "paired")} == {None, False}


def test_cost_and_ids_come_from_the_rows(make_row: MakeRow) -> None:
    row = make_row("a", details={"gflops": 1.25, "images_per_s": 812.5})
    table = build_table([row, make_row("b", details={"gflops": "many"})], cost=True)
    assert table.cost
    assert shown(table, "num_params", "gflops", "images_per_s") == [(5_500_000, 1.25, 812.5), (5_500_000, None, None)]
    assert shown(table, "row_id", "comparability")[0] == (row.id, row.comparability)


def test_no_rows_give_an_empty_table() -> None:
    table = build_table([])
    assert (table.columns, len(table.cells)) == ((), 0)
