from collections.abc import Callable

import numpy as np
import pytest

from patchssl.errors import ConfigError, DataError
from patchssl.evaluate.comparing.comparison import paired_difference
from patchssl.evaluate.comparing.pairs import compare_models
from patchssl.evaluate.outcomes import Outcomes
from patchssl.evaluate.results import Row

MakeRow = Callable[..., Row]
A, B = np.arange(100) >= 40, np.arange(100) >= 48  # right on the last 60 and 52 images


def outcomes(row: Row) -> Outcomes | None:
    if row.model["spec"] not in "ab":
        return None
    return Outcomes(None, {"top1@k20": A if row.model["spec"] == "a" else B})


def test_rows_of_equal_comparability_are_compared_image_by_image(make_row: MakeRow) -> None:
    rows = [make_row("a", 0.6), make_row("b", 0.52), make_row("c", 0.1), make_row("a", 0.6, task="linear")]
    found = compare_models(rows, "a", "b", outcomes, seed=4)
    (one,) = found.compared
    assert (one.a, one.b) == (rows[0], rows[1])
    assert one.differences == {"top1@k20": paired_difference(A, B, seed=4)}
    assert one.differences["top1@k20"].separable
    assert found.refused == ()
    (unpaired,) = compare_models(rows, "a", "c", outcomes).compared
    assert unpaired.differences["top1@k20"].unpaired is not None


def test_the_newest_row_of_a_model_counts(make_row: MakeRow) -> None:
    rows = [
        make_row("a", 0.6, created="2026-01-02T00:00:00+00:00"),
        make_row("a", 0.1, created="2026-01-01T00:00:00+00:00"),
        make_row("b", 0.52),
    ]
    assert compare_models(rows, "a", "b", outcomes).compared[0].a is rows[0]
    # An older one is compared by its id.
    older = compare_models(rows, rows[1].id[:6], "b", lambda row: None).compared[0]
    assert older.a is rows[1]


def test_rows_that_mean_different_things_are_named_and_not_compared(make_row: MakeRow) -> None:
    rows = [make_row("a", 0.6), make_row("b", 0.52), make_row("a", 0.6, settings={"image_px": 32})]
    found = compare_models(rows, "a", "b", outcomes)
    assert len(found.compared) == 1
    assert [str(one) for one in found.refused] == ["knn on tiny: image_px 32 against 224"]
    with pytest.raises(DataError, match=r"no rows of .* may be compared.*image_px 32 against 224.*evaluate one"):
        compare_models(rows, rows[2].id, "b", outcomes)
    with pytest.raises(DataError, match="protocol dino against dinov2"):
        compare_models([rows[0], make_row("b", protocol="dinov2")], "a", "b", outcomes)


def test_models_without_a_common_task_are_told_what_each_has(make_row: MakeRow) -> None:
    rows = [make_row("a"), make_row("b", task="linear")]
    with pytest.raises(DataError, match="in common: a has knn on tiny; b has linear on tiny"):
        compare_models(rows, "a", "b", outcomes)


def test_a_spec_of_two_weights_is_refused_with_the_candidates(make_row: MakeRow) -> None:
    rows = [make_row("a", weights="1" * 64), make_row("a", weights="2" * 64, seed=1), make_row("b")]
    with pytest.raises(ConfigError, match="models of 2 different weights") as caught:
        compare_models(rows, "a", "b", outcomes)
    for row in rows[:2]:
        assert row.id in str(caught.value)
    assert "weights 11111111" in str(caught.value)
    assert compare_models(rows, rows[1].id, "b", lambda row: None).compared[0].a is rows[1]


def test_the_beginning_of_an_id_must_be_long_and_unique(make_row: MakeRow, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [make_row("a"), make_row("b")]
    monkeypatch.setattr(Row, "id", property(lambda row: f"123456{row.model['spec']}"))
    assert compare_models(rows, "123456a", "123456b", lambda row: None).compared
    with pytest.raises(ConfigError, match=r"begins the ids of several rows; give more digits: 123456a .*; 123456b "):
        compare_models(rows, "12345", "b", outcomes)
    with pytest.raises(ConfigError, match="no row is of a model '123'"):
        compare_models(rows, "123", "b", outcomes)


def test_unknown_models_and_metrics_are_told_with_what_there_is(make_row: MakeRow) -> None:
    rows = [make_row("runs/small"), make_row("runs/large"), make_row("timm:x")]
    with pytest.raises(ConfigError, match=r"no row is of a model 'runs/smal'.*models are: runs/small"):
        compare_models(rows, "runs/smal", "runs/large", outcomes)
    with pytest.raises(ConfigError, match="no two rows have the metric 'top9'; they have: top1@k20"):
        compare_models(rows, "runs/small", "runs/large", lambda row: None, metric="top9")
