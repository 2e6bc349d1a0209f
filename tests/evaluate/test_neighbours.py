import logging

import numpy as np
import pytest

from patchssl.errors import ConfigError
from patchssl.evaluate.metrics import KnnHits
from patchssl.evaluate.neighbours import (
    KnnProtocol,
    Voters,
    _without,
    check_temperature,
    choose_ks,
    classify,
    metric_values,
)
from patchssl.evaluate.search.index import CosineIndex


def test_ks_of_the_protocol_are_cut_and_those_of_the_user_are_not(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert choose_ks(None, (10, 20, 100, 200), 1000) == (10, 20, 100, 200)
        assert not caplog.records
        assert choose_ks(None, (10, 20, 100, 200), 30) == (10, 20)
        assert "30 training images are too few for k = 10, 20, 100, 200; evaluating k = 10, 20" in caplog.text
        assert choose_ks(None, (10, 20), 4) == (4,)
    assert choose_ks([20, 5, 5], (10,), 20) == (5, 20)
    with pytest.raises(ConfigError, match=r"k is 50, 60; allowed: 1 to 20"):
        choose_ks([50, 5, 60], (10,), 20)
    with pytest.raises(ConfigError, match="k is empty"):
        choose_ks([], (10,), 20)


def test_the_headline_is_the_protocols_where_it_was_evaluated() -> None:
    assert KnnProtocol(name="x").headline((10, 20)) == "top1@k20"
    assert KnnProtocol(name="x").headline((5, 10)) == "top1@k5"


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_temperatures_out_of_range_are_refused(temperature: float) -> None:
    with pytest.raises(ConfigError, match="must be above 0"):
        check_temperature(temperature)


def test_own_rows_are_dropped_by_row_and_not_by_rank() -> None:
    similarities = np.array([[1.0, 0.9, 0.1], [1.0, 1.0, 0.2], [1.0, 1.0, 1.0]], np.float32)
    rows = np.array([[0, 5, 3], [4, 7, 1], [0, 1, 2]])
    # First itself, then behind its equal, then behind more equals than there are neighbours.
    left, kept = _without(similarities, rows, np.array([0, 7, 9]))
    assert kept.tolist() == [[5, 3], [4, 1], [0, 1]]
    np.testing.assert_array_equal(left, np.array([[0.9, 0.1], [1.0, 0.2], [1.0, 1.0]], np.float32))


@pytest.mark.parametrize("leave_out", [False, True])
def test_search_in_chunks_changes_nothing(leave_out: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(4)
    features, classes = generator.normal(size=(60, 6)).astype(np.float32), generator.integers(0, 3, 60)
    voters = Voters(CosineIndex(features), classes, 3)

    def hits() -> dict[int, KnnHits]:
        own = np.arange(60) if leave_out else None
        return classify(voters, features, classes, ks=[2, 5], temperature=0.07, own_rows=own)

    whole = hits()
    monkeypatch.setattr("patchssl.evaluate.neighbours._CHUNK_NEIGHBOURS", 20)
    monkeypatch.setattr("patchssl.evaluate.search.index._CHUNK_VALUES", 12)
    for k, part in hits().items():
        np.testing.assert_array_equal(part.top1, whole[k].top1)
        np.testing.assert_array_equal(part.top5, whole[k].top5)


def test_names_of_metrics() -> None:
    hits = {k: KnnHits(np.array([k == 3]), np.array([True])) for k in (1, 3)}
    values = metric_values(hits)
    assert list(values) == ["top1@k1", "top5@k1", "top1@k3", "top5@k3"]
    assert [bool(found[0]) for found in values.values()] == [False, True, True, True]
