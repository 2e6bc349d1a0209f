"""Retrieval of classes: against tables worked by hand, a slow definition, and its traps."""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from patchssl.backbones import load_backbone
from patchssl.errors import ConfigError, DataError
from patchssl.evaluate.class_retrieval import evaluate, prepare, score
from patchssl.evaluate.features import Features
from patchssl.evaluate.queries import class_positives


def drawn(num: int, *, seed: int, labels: tuple[int, ...] = (-3, 4, 90), ids: str | None = None) -> Features:
    generator = np.random.default_rng(seed)
    names = None if ids is None else np.array([f"{ids}{row}" for row in range(num)])
    return Features(generator.normal(size=(num, 5)).astype(np.float32), generator.choice(labels, num), names)


def on_a_circle(degrees: list[float], labels: list[int]) -> Features:
    angles = np.deg2rad(degrees)
    return Features(np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32), np.array(labels))


def test_by_hand_among_others() -> None:
    # The order for 0 degrees: 10 (right), 25, 60 (right), 100; for 25: 10, 0, 60, 100 (right).
    result = evaluate(on_a_circle([0, 10, 25, 60, 100], [1, 1, 2, 1, 2]))
    values = result.values
    assert values["map"][0] == pytest.approx((1 + 2 / 3) / 2)
    assert values["map"][2] == pytest.approx(1 / 4)
    assert (values["r_precision"][0], values["r_precision"][2]) == (0.5, 0.0)
    assert (values["recall_at_1"][0], values["recall_at_1"][2]) == (1.0, 0.0)
    assert list(values) == ["map", "r_precision", "recall_at_1"]
    assert result.num_candidates.tolist() == [4] * 5
    assert result.num_positives.tolist() == [2, 2, 1, 2, 1]


def test_by_hand_in_a_gallery() -> None:
    result = evaluate(on_a_circle([0, 10, 20], [1, 2, 1]), on_a_circle([2, 19], [2, 1]))
    assert result.values["map"].tolist() == [pytest.approx(1 / 2), pytest.approx((1 + 2 / 3) / 2)]
    assert result.values["recall_at_1"].tolist() == [0.0, 1.0]


def slow_values(query: NDArray[Any], gallery: NDArray[Any], right: NDArray[np.bool_]) -> dict[str, float]:
    cosine = gallery @ query / np.linalg.norm(gallery, axis=1) / np.linalg.norm(query)
    hits = right[np.argsort(-cosine)]
    num = int(right.sum())
    first = hits[:100]
    precisions = first.cumsum() / (np.arange(len(first)) + 1)
    return {
        "map": float(average_precision_score(right, cosine)),
        "map_at_100": float((precisions * first).sum() / min(num, 100)),
        "r_precision": float(hits[:num].mean()),
        **{f"recall_at_{k}": float(hits[:k].any()) for k in (1, 5, 10, 100)},
    }


@pytest.mark.parametrize("chunk", [8_000_000, 700])
def test_the_definition(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(class_positives, "_CHUNK_RANKS", chunk)
    gallery, queries = drawn(400, seed=0), drawn(20, seed=1)
    assert gallery.labels is not None
    assert queries.labels is not None
    result = evaluate(gallery, queries)
    for row in range(20):
        expected = slow_values(
            queries.features[row].astype(float), gallery.features.astype(float), gallery.labels == queries.labels[row]
        )
        assert {name: values[row] for name, values in result.values.items()} == pytest.approx(expected, abs=1e-9)


def test_among_others_equals_a_gallery_without_the_image() -> None:
    part = drawn(130, seed=2)
    assert part.labels is not None
    result = evaluate(part)
    for row in range(0, 130, 7):
        others = np.arange(130) != row
        alone = evaluate(
            Features(part.features[others], part.labels[others]), Features(part.features[~others], part.labels[~others])
        )
        for name, values in alone.values.items():
            assert result.values[name][row] == pytest.approx(values[0], abs=1e-12)


def test_a_query_in_the_gallery_never_counts(caplog: pytest.LogCaptureFixture) -> None:
    gallery = drawn(30, seed=3, ids="g")
    assert gallery.ids is not None
    assert gallery.labels is not None
    rows = np.array([4, 9, 2])
    queries = Features(gallery.features[rows], gallery.labels[rows], gallery.ids[rows])
    with caplog.at_level(logging.WARNING):
        result = evaluate(gallery, queries)
    assert "3 of 3 queries stand in the gallery too" in caplog.text
    among = evaluate(Features(gallery.features, gallery.labels))
    for name, values in result.values.items():
        np.testing.assert_array_equal(values, among.values[name][rows])
    assert result.num_own == 3
    assert result.num_candidates.tolist() == [29] * 3
    found_as_itself = evaluate(gallery, Features(queries.features, queries.labels))
    assert found_as_itself.values["recall_at_1"].tolist() == [1.0] * 3
    assert score({"gallery": gallery, "queries": queries}).row.settings["num_queries_in_gallery"] == 3


def test_an_id_in_both_under_another_label_takes_no_positive_away() -> None:
    gallery = Features(np.eye(3, dtype=np.float32), np.array([0, 1, 1]), np.array(["a", "b", "c"]))
    queries = Features(np.eye(3, dtype=np.float32)[:1], np.array([1]), np.array(["a"]))
    result = evaluate(gallery, queries)
    assert result.num_positives.tolist() == [2]
    assert result.values["map"].tolist() == [1.0]


def test_a_class_of_one_image_leaves_the_mean(caplog: pytest.LogCaptureFixture) -> None:
    part = on_a_circle([0, 5, 40, 45, 90], [1, 1, 2, 2, 7])
    with caplog.at_level(logging.WARNING):
        scored = score({"labelled": part})
    assert "1 of 5 queries are alone in their class; they are left out of the mean" in caplog.text
    assert "4 images to rank are too few for recall at 5, 10, 100" in caplog.text
    np.testing.assert_array_equal(scored.outcomes.values["map"], [1, 1, 1, 1, np.nan])
    assert scored.row.metrics["map"].num == 4
    assert scored.row.settings["num_without_positives"] == 1
    gallery = on_a_circle([0, 40], [1, 2])
    scored = score({"gallery": gallery, "queries": on_a_circle([1, 2], [1, 3])})
    assert "1 of 2 queries have no other image of their class in the gallery" in caplog.text
    np.testing.assert_array_equal(scored.outcomes.values["map"], [1, np.nan])


def test_a_perfect_ranking_scores_1() -> None:
    labels = np.arange(120) % 3
    row = score({"labelled": Features(np.eye(3, dtype=np.float32)[labels], labels)}).row
    assert {name: metric.value for name, metric in row.metrics.items()} == dict.fromkeys(row.metrics, 1.0)
    assert len(row.metrics) == 7


def test_ties_never_help() -> None:
    part = Features(np.ones((12, 4), np.float32), np.arange(12) % 3)
    values = {name: metric.value for name, metric in score({"labelled": part}).row.metrics.items()}
    # Three right of eleven, all behind the eight wrong ones.
    assert values["recall_at_1"] == values["recall_at_5"] == values["r_precision"] == 0.0
    assert values["recall_at_10"] == 1.0
    assert values["map"] == pytest.approx((1 / 9 + 2 / 10 + 3 / 11) / 3)


def test_row_and_chance() -> None:
    part = drawn(150, seed=4)
    row = score({"labelled": part}, features_s=1.5, seed=3).row
    assert (row.task, row.protocol, row.headline) == ("retrieval", "class", "map")
    assert row.dataset["splits"] == {"labelled": 150}
    assert row.dataset["num_classes"] == 3
    assert set(row.details["chance"]) == set(row.metrics)
    # Features say nothing about these labels.
    for name, metric in row.metrics.items():
        assert metric.value == pytest.approx(row.details["chance"][name], abs=0.1)
    assert score({"labelled": Features(part.features * 2, part.labels)}).row.comparability == row.comparability
    parts = {"gallery": drawn(110, seed=5), "queries": drawn(8, seed=6)}
    assert score(parts).row.dataset["splits"] == {"gallery": 110, "queries": 8}


def test_chance_is_the_mean_over_the_queries_that_count() -> None:
    part = Features(np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32), np.array([0, 0, 0, 1, 1, 2]))
    chance = score({"labelled": part}).row.details["chance"]
    assert chance["r_precision"] == pytest.approx((3 * 2 / 5 + 2 * 1 / 5) / 5)
    assert chance["recall_at_1"] == chance["r_precision"]
    assert chance["recall_at_5"] == 1.0


def test_the_order_of_images_does_not_matter() -> None:
    part = drawn(60, seed=7)
    assert part.labels is not None
    order = np.random.default_rng(0).permutation(60)
    shuffled = Features(part.features[order], part.labels[order])
    assert values_of(shuffled) == pytest.approx(values_of(part), abs=1e-12)


def values_of(part: Features) -> Mapping[str, float]:
    return {name: metric.value for name, metric in score({"labelled": part}).row.metrics.items()}


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"labelled": Features(np.ones((3, 2), np.float32))}, "the labelled features have no labels"),
        ({"gallery": drawn(5, seed=0), "queries": Features(np.ones((3, 5), np.float32))}, "the query features have no"),
        ({"gallery": drawn(5, seed=0), "queries": Features(np.ones((1, 4), np.float32), np.ones(1, int))}, "5 wide"),
        (
            {"labelled": Features(np.full((3, 2), np.nan, np.float32), np.zeros(3, int))},
            "3 of 3 labelled features hold",
        ),
        ({"labelled": Features(np.eye(3, dtype=np.float32), np.arange(3))}, "none of the 3 queries has another image"),
        (
            {"gallery": Features(np.ones((2, 1), np.float32), np.ones(2, int), np.array(["a", "a"]))},
            "occur more than once",
        ),
    ],
)
def test_features_that_cannot_be_evaluated_are_refused(parts: dict[str, Features], words: str) -> None:
    with pytest.raises(DataError) as caught:
        score(parts)
    assert words in str(caught.value)


def test_geometry_is_that_of_classification() -> None:
    backbone = load_backbone("timm:vit_tiny_patch16_224@random")
    assert prepare(backbone).preprocess.settings()["crop"] == "centre"
    assert (prepare(backbone).preprocess.image_px, prepare(backbone).preprocess.resize_px) == (224, 256)
    assert prepare(backbone, image_size=32).preprocess.resize_px == 36
    with pytest.raises(ConfigError, match="protocol 'dino' is unknown to retrieval of classes; allowed: class"):
        prepare(backbone, "dino")
    with pytest.raises(ConfigError, match="allowed: class"):
        score({"labelled": drawn(9, seed=0)}, protocol="official")


def test_an_index_that_misses_nothing_gives_the_values_of_the_whole_ranking() -> None:
    gallery, queries = drawn(60, seed=1, ids="g"), drawn(7, seed=2, ids="q")
    full = evaluate(gallery, queries)
    listed = evaluate(gallery, queries, index="HNSW16,Flat", index_parameters="efSearch=200")
    assert listed.index is not None
    assert listed.index["num_vectors"] == 60
    for name, values in full.values.items():
        np.testing.assert_allclose(listed.values[name], values, atol=1e-12)


def test_what_an_index_does_not_list_counts_as_never_found() -> None:
    features = on_a_circle([0, 10, 20, 30, 40], [1, 2, 1, 2, 1])
    listed = evaluate(features, index="HNSW16,Flat", depth=2)
    # Of 0 degrees the neighbours are 10 and 20; its other right image, 40, is not among them.
    assert listed.values["map"][0] == pytest.approx((1 / 2) / 2)
    assert evaluate(features).values["map"][0] == pytest.approx((1 / 2 + 2 / 4) / 2)


def test_rows_of_an_index_stand_in_a_column_of_their_own() -> None:
    features = {"labelled": drawn(30, seed=1)}
    exact, listed = score(features).row, score(features, index="HNSW16,Flat", depth=9).row
    assert exact.comparability != listed.comparability
    assert (exact.settings["index"], listed.settings["index"], listed.settings["depth"]) == ("Flat", "HNSW16,Flat", 9)
    assert {"recall@1", "build_s", "bytes_per_vector", "queries_per_s"} <= listed.details["index"].keys()
