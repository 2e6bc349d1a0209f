"""Revisited Oxford and Paris: against the original's values, and the traps of such an evaluation."""

import csv
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from patchssl.backbones import Backbone, load_backbone
from patchssl.backbones.preprocess import Preprocess
from patchssl.backbones.sizes import Sizes
from patchssl.data.boxed import BoxedSource
from patchssl.data.images import ArraySource
from patchssl.data.revisited_truth import RevisitedTruth
from patchssl.errors import ConfigError, DataError
from patchssl.evaluate.extraction import extract
from patchssl.evaluate.features import Features
from patchssl.evaluate.queries.tables import COLUMNS, write_query_table
from patchssl.evaluate.retrieval import PROTOCOLS, SCALES, precision_at, prepare, score, score_with_ranks
from patchssl.evaluate.search.ranking import ranks_in_list
from patchssl.structs import Tokens

GOLDEN = Path(__file__).parents[1] / "golden"
Grades = Sequence[Sequence[int]]


def truth_of(num: int, easy: Grades, hard: Grades | None = None, junk: Grades | None = None) -> RevisitedTruth:
    """A ground truth over images `i0`, `i1` … and queries `q0`, `q1` and so on."""
    none: Grades = [[]] * len(easy)
    graded = [tuple(np.array(rows, np.int64) for rows in grade or none) for grade in (easy, hard, junk)]
    names = tuple(f"i{row}" for row in range(num))
    queries = tuple(f"q{query}" for query in range(len(easy)))
    return RevisitedTruth("drawn", names, queries, (None,) * len(queries), graded[0], graded[1], graded[2], 0)


def features_of(similarity: NDArray[Any]) -> dict[str, Features]:
    """Unit features whose cosines are (M, Q) similarities, but for one factor."""
    similarity = np.asarray(similarity, np.float64)
    scaled = similarity / max(1.0, 1.01 * float(np.linalg.norm(similarity, axis=1).max()))
    rest = np.sqrt(1 - (scaled**2).sum(axis=1, keepdims=True))
    database = np.concatenate([scaled, rest], axis=1).astype(np.float32)
    queries = np.eye(similarity.shape[1], database.shape[1], dtype=np.float32)
    return {"database": Features(database), "queries": Features(queries)}


def value(features: Mapping[str, Features], truth: RevisitedTruth, name: str = "map_medium") -> float:
    return score(features, truth).row.metrics[name].value


def test_the_values_of_the_original() -> None:
    with np.load(GOLDEN / "revisited_map.npz", allow_pickle=False) as file:
        golden = {name: file[name] for name in file.files}
    grades = {}
    for grade in ("easy", "hard", "junk"):
        flat, offsets = golden[f"gnd_{grade}_flat"], golden[f"gnd_{grade}_offsets"]
        grades[grade] = [flat[start:end] for start, end in pairwise(offsets)]
    scored = score(features_of(golden["similarity"]), truth_of(300, **grades))
    for difficulty in ("easy", "medium", "hard"):
        metrics, values = scored.row.metrics, scored.outcomes.values
        np.testing.assert_allclose(values[f"map_{difficulty}"], golden[f"{difficulty}_ap"], rtol=0, atol=1e-12)
        assert metrics[f"map_{difficulty}"].value == pytest.approx(float(golden[f"{difficulty}_map"]), abs=1e-12)
        assert metrics[f"map_{difficulty}"].num == np.isfinite(golden[f"{difficulty}_ap"]).sum()
        for column, k in enumerate((1, 5, 10)):
            name = f"mp_at_{k}_{difficulty}"
            np.testing.assert_allclose(values[name], golden[f"{difficulty}_p_at_k"][:, column], rtol=0, atol=1e-12)
            assert metrics[name].value == pytest.approx(golden[f"{difficulty}_mp_at_k"][column], abs=1e-12)


def slow_values(similarity: NDArray[Any], easy: set[int], hard: set[int], junk: set[int]) -> dict[str, float]:
    """From the definition: take out what is ignored, walk down the ranking."""
    found = {}
    for name, right, ignored in (
        ("easy", easy, junk | hard),
        ("medium", easy | hard, junk),
        ("hard", hard, junk | easy),
    ):
        kept = [row for row in sorted(range(len(similarity)), key=lambda row: -similarity[row]) if row not in ignored]
        area, before, hits, last = 0.0, 1.0, 0, -1
        for place, row in enumerate(kept):
            if row in right:
                hits, last = hits + 1, place
                area += (before + hits / (place + 1)) / 2 / len(right)
            before = hits / (place + 1)
        found[f"map_{name}"] = area if right else np.nan
        for k in (1, 5, 10):
            places = min(last + 1, k)
            precision = sum(row in right for row in kept[:places]) / places if right else np.nan
            found[f"mp_at_{k}_{name}"] = precision
    return found


def test_the_definition_on_drawn_cases() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        similarity = generator.normal(size=(25, 3))
        order = [generator.permutation(25).tolist() for _ in range(3)]
        easy = [rows[: int(generator.integers(0, 5))] for rows in order]
        hard = [rows[5 : 5 + int(generator.integers(1, 4))] for rows in order]
        junk = [rows[10 : 10 + int(generator.integers(0, 6))] for rows in order]
        values = score(features_of(similarity), truth_of(25, easy, hard, junk)).outcomes.values
        for query in range(3):
            expected = slow_values(similarity[:, query], set(easy[query]), set(hard[query]), set(junk[query]))
            for name, found in values.items():
                assert found[query] == pytest.approx(expected[name], abs=1e-12, nan_ok=True)


def test_by_hand() -> None:
    # Ranking of q0: i0 junk, i1 easy, i2 other, i3 hard, i4 other.
    features = features_of(np.array([[0.9], [0.8], [0.7], [0.6], [0.5]]))
    values = score(features, truth_of(5, [[1]], [[3]], [[0]])).row.metrics
    assert values["map_easy"].value == 1.0
    # Without i0 and i1: i3 is second of two negatives around it: (0 + 1/2) / 2.
    assert values["map_hard"].value == pytest.approx(1 / 4)
    # Without i0: ranks 0 and 2 of 2: (1 + (1/2 + 2/3) / 2) / 2.
    assert values["map_medium"].value == pytest.approx((1 + (1 / 2 + 2 / 3) / 2) / 2)
    assert values["mp_at_1_medium"].value == 1.0
    assert values["mp_at_5_medium"].value == pytest.approx(2 / 3)  # the last is the third
    assert values["mp_at_1_hard"].value == 0.0


def test_junk_at_rank_1_leaves_ap_unchanged() -> None:
    similarity = np.array([[0.5], [0.9], [0.4], [0.8], [0.1]])
    without = score(features_of(similarity), truth_of(5, [[1, 2]], [[4]])).row.metrics
    with_junk = np.concatenate([similarity, [[0.99]]])
    found = score(features_of(with_junk), truth_of(6, [[1, 2]], [[4]], [[5]])).row.metrics
    assert {name: metric.value for name, metric in found.items()} == {
        name: metric.value for name, metric in without.items()
    }
    as_negative = score(features_of(with_junk), truth_of(6, [[1, 2]], [[4]])).row.metrics
    assert as_negative["map_medium"].value < without["map_medium"].value


def test_a_perfect_ranking_scores_1() -> None:
    similarity = np.tile(np.linspace(1, 0, 100)[:, None], 2)
    row = score(features_of(similarity), truth_of(100, [list(range(60))] * 2, [list(range(60, 79))] * 2)).row
    assert all(metric.value == 1.0 for metric in row.metrics.values())
    assert len(row.metrics) == 12


def test_ties_never_help() -> None:
    constant = {name: Features(np.ones((num, 3), np.float32)) for name, num in (("database", 10), ("queries", 1))}
    truth = truth_of(10, [[0, 4]])
    worst = score(features_of(-np.isin(np.arange(10), [0, 4])[:, None].astype(float)), truth).row.metrics
    found = score(constant, truth).row.metrics
    for name, metric in worst.items():
        assert found[name].value == metric.value
    assert found["mp_at_5_medium"].value == 0.0


def test_a_query_without_positives_leaves_the_mean(caplog: pytest.LogCaptureFixture) -> None:
    similarity = np.random.default_rng(0).normal(size=(8, 3))
    scored = score(features_of(similarity), truth_of(8, [[0], [], [5]], [[1], [], []], [[], [3], []]))
    assert np.isnan(scored.outcomes.values["map_medium"]).tolist() == [False, True, False]
    assert scored.row.metrics["map_medium"].num == 2
    assert scored.row.metrics["map_hard"].num == 1
    assert scored.row.details["num_queries_without_positives"] == {"easy": 1, "medium": 1, "hard": 2}
    with caplog.at_level(logging.WARNING):
        row = score(features_of(similarity), truth_of(8, [[0], [1], [5]])).row
    assert "no query has hard images: map_hard is left out" in caplog.text
    assert "map_hard" not in row.metrics


def test_a_query_in_the_gallery_never_counts() -> None:
    similarity = np.array([[1.0], [0.7], [0.8], [0.2]])  # i0 is the query itself
    truth = truth_of(4, [[2]], junk=[[0]])
    assert value(features_of(similarity), truth) == 1.0


def test_features_may_come_in_any_order_with_names() -> None:
    generator = np.random.default_rng(1)
    features = features_of(generator.normal(size=(12, 3)))
    truth = truth_of(12, [[0, 1], [2], [3, 4]], [[5], [6], []])
    expected = score(features, truth).outcomes.values
    orders = {"database": generator.permutation(12), "queries": np.array([2, 0, 1])}
    names = {"database": truth.database, "queries": truth.queries}
    shuffled = {
        part: Features(features[part].features[order], ids=np.array([f"jpg/{names[part][row]}.jpg" for row in order]))
        for part, order in orders.items()
    }
    found = score(shuffled, truth).outcomes
    assert found.ids is not None
    assert found.ids.tolist() == ["jpg/q2.jpg", "jpg/q0.jpg", "jpg/q1.jpg"]
    for name, values in found.values.items():
        np.testing.assert_array_equal(values, expected[name][orders["queries"]])


def named(features: NDArray[np.float32], names: Sequence[str], *, num_unreadable: int = 0) -> Features:
    return Features(features, ids=np.array(names), meta={"dataset": {"num_unreadable": num_unreadable}})


def test_unreadable_images_are_missed_and_unreadable_queries_leave(caplog: pytest.LogCaptureFixture) -> None:
    features = features_of(np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.9]]))
    truth = truth_of(3, [[0, 1], [2]])
    lacking = {
        "database": named(features["database"].features[[0, 2]], ["i0.jpg", "i2.jpg"], num_unreadable=1),
        "queries": named(features["queries"].features[[0]], ["q0.jpg"], num_unreadable=1),
    }
    scored = score(lacking, truth)
    assert scored.outcomes.values["map_easy"].tolist() == [0.5]  # one of two, at the first place
    assert scored.outcomes.values["mp_at_5_easy"].tolist() == [0.2]
    assert "1 database images could not be read and count as never found where they are right: i1" in caplog.text
    assert "1 query images could not be read and leave the mean: q1" in caplog.text


def test_parts_must_belong_together() -> None:
    features = features_of(np.random.default_rng(0).normal(size=(3, 2)))
    truth = truth_of(3, [[0], [1]])
    cases = [
        (Features(np.ones((2, 5), np.float32)), "database features are 3 wide, queries features 5"),
        (Features(np.full((2, 3), np.inf, np.float32)), "2 of 2 queries features hold NaN or infinite values"),
        (Features(np.zeros((0, 3), np.float32)), "the queries features are empty"),
        (named(np.ones((2, 3), np.float32), ["q0", "q0"]), "1 ids of the queries features occur more than once (q0)"),
    ]
    for part, words in cases:
        with pytest.raises(DataError) as caught:
            score({**features, "queries": part}, truth)
        assert words in str(caught.value)
    made = [replace(part, meta={"settings": {"image_px": 224 + step}}) for step, part in enumerate(features.values())]
    with pytest.raises(DataError, match="made differently \\(image_px 224 and 225\\)"):
        score(dict(zip(features, made, strict=True)), truth)
    with pytest.raises(DataError, match="none of the 2 queries has an easy or hard image"):
        score(features, truth_of(3, [[], []], junk=[[0], []]))
    with pytest.raises(ConfigError, match="protocol 'class' is unknown to retrieval of places"):
        score(features, truth, protocol="class")


def test_distractors_push_down_and_are_told(caplog: pytest.LogCaptureFixture) -> None:
    similarity = np.array([[0.9], [0.5], [0.3]])
    both = features_of(np.concatenate([similarity, [[0.95], [0.4]]]))
    matrix = both["database"].features
    truth = truth_of(3, [[0, 1]])
    parts = {
        "database": Features(matrix[:3]),
        "distractors": Features(matrix[3:], ids=np.array(["x/i1.png", "y.png"])),
        "queries": both["queries"],
    }
    row = score(parts, truth).row
    assert row.metrics["map_medium"].value == value(both, truth_of(5, [[0, 1]]))
    assert row.metrics["map_medium"].value < value({**parts, "distractors": Features(-matrix[:1])}, truth)
    assert row.dataset["splits"] == {"database": 3, "distractors": 2, "queries": 1}
    assert "1 of 2 distractors have the name of an image of the ground truth (x/i1.png)" in caplog.text
    assert row.details["num_distractors_named_as_listed"] == 1


def test_row() -> None:
    features = features_of(np.random.default_rng(0).normal(size=(9, 2)))
    truth = truth_of(9, [[0], [1]], [[2], [3]])
    row = score(features, truth, crop_queries=True, features_s=2.0, seed=3).row
    assert (row.task, row.protocol, row.headline) == ("retrieval", "official", "map_medium")
    assert next(iter(row.metrics)) == "map_easy"
    assert row.settings["crop_queries"] is True
    assert row.settings["index"] == "Flat"
    assert row.dataset["splits"] == {"database": 9, "queries": 2}
    assert row.seconds["features"] == 2.0
    others = [
        score(features, truth, crop_queries=False).row,
        score(features, truth, crop_queries=True, protocol="dino").row,
        score(features, truth_of(9, [[0], [4]], [[2], [3]]), crop_queries=True).row,
        score(features, truth, crop_queries=True, index="HNSW8").row,
        score(features, truth, crop_queries=True, index="HNSW8", depth=3).row,
    ]
    assert len({row.comparability, *(other.comparability for other in others)}) == 6
    assert score(features, truth, crop_queries=True, seed=1).row.comparability == row.comparability


def test_an_approximate_index_that_finds_all_agrees_with_the_full_ranking() -> None:
    features = features_of(np.random.default_rng(0).normal(size=(40, 4)))
    truth = truth_of(40, [[0, 1], [2], [3, 4, 5], [6]], [[7], [8], [], [9]], [[10, 11], [], [12], []])
    exact = score(features, truth)
    found = score(features, truth, index="SQfp16", depth=100)
    for name, metric in exact.row.metrics.items():
        assert found.row.metrics[name].value == pytest.approx(metric.value, abs=1e-12)
    assert (found.row.settings["index"], found.row.settings["depth"]) == ("SQfp16", 40)
    assert found.row.details["index"]["factory"] == "SQfp16"
    assert "index" not in exact.row.details


def test_what_an_index_does_not_return_counts_as_missed() -> None:
    similarity = np.array([[0.9], [0.8], [0.7], [0.6], [0.5]])
    row = score(features_of(similarity), truth_of(5, [[0, 4]]), index="SQfp16", depth=3).row
    assert row.metrics["map_easy"].value == 0.5
    assert row.metrics["mp_at_1_easy"].value == 1.0
    assert row.metrics["mp_at_10_easy"].value == pytest.approx(1 / 10)


def test_ranks_in_a_list() -> None:
    similarities = np.array([0.9, 0.8, 0.8, 0.7, -np.inf], np.float32)
    rows = np.array([5, 2, 3, 4, -1])
    none = np.empty(0, np.int64)
    assert ranks_in_list(similarities, rows, np.array([2, 4]), none).tolist() == [2, 3]  # 3 ties with 2 and is wrong
    assert ranks_in_list(similarities, rows, np.array([2, 4]), np.array([5, 3])).tolist() == [0, 1]
    assert ranks_in_list(similarities, rows, np.array([9]), none).tolist() == []


@pytest.mark.parametrize(
    ("ranks", "num", "k", "expected"),
    [([0, 2], 2, 5, 2 / 3), ([0, 2], 3, 5, 2 / 5), ([0, 2], 2, 1, 1.0), ([7], 1, 5, 0.0), ([], 2, 5, 0.0)],
)
def test_precision_by_hand(ranks: list[int], num: int, k: int, expected: float) -> None:
    assert precision_at(np.array(ranks, np.int64), num, k) == pytest.approx(expected)


def test_the_table_of_queries(tmp_path: Path) -> None:
    features = features_of(np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]]))
    truth = truth_of(3, [[1], []], [[2], [0]], [[0], []])
    scored, ranked = score_with_ranks(features, truth, protocol="official", crop_queries=None)
    write_query_table(tmp_path / "q.csv", ranked, scored.outcomes.values)
    with (tmp_path / "q.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0]) == list(COLUMNS)
    assert [(line["query"], line["difficulty"]) for line in lines[:3]] == [
        ("q0", "easy"),
        ("q0", "medium"),
        ("q0", "hard"),
    ]
    assert lines[1]["first_ranks"] == "1 2"
    assert float(lines[1]["ap"]) == scored.outcomes.values["map_medium"][0]
    assert list(lines[3].values()) == ["q1", "easy", "0", "", "", "", "", ""]
    assert lines[5]["first_ranks"] == "3"
    assert float(lines[5]["p_at_5"]) == pytest.approx(1 / 3)
    with pytest.raises(DataError, match="cannot be written"):
        write_query_table(tmp_path / "none" / "q.csv", ranked, scored.outcomes.values)
    assert [path.name for path in tmp_path.iterdir()] == ["q.csv"]


class MeanAndMax(nn.Module):
    """The toy model of the golden values."""

    def __init__(self, weights: Mapping[str, NDArray[np.float32]]) -> None:
        super().__init__()
        self.mean, self.max = (nn.Parameter(torch.from_numpy(weights[name])) for name in ("W_mean", "W_max"))


class MeanAndMaxReader:
    def num_blocks(self, network: Any) -> int:
        return 1

    def last_blocks(self, network: Any, pixels: Tensor, num: int) -> tuple[Tokens, ...]:
        cls = pixels.mean(dim=(2, 3)) @ network.mean + pixels.amax(dim=(2, 3)) @ network.max
        patches = cls[:, None]
        return (Tokens(cls=cls, patches=patches, grid=(1, 1)),)

    def attention(self, network: Any, pixels: Tensor) -> Tensor:
        raise ConfigError("none")


def toy(weights: Mapping[str, NDArray[np.float32]], **preprocess: Any) -> Backbone:
    return Backbone.of(
        MeanAndMax(weights),
        MeanAndMaxReader(),
        spec="toy",
        family="toy",
        arch="toy",
        dim=8,
        patch_px=1,
        preprocess=Preprocess(image_px=64, resize_px=64, **preprocess),
        sizes=Sizes(),
    )


@pytest.fixture(scope="module")
def golden_scales() -> dict[str, NDArray[Any]]:
    with np.load(GOLDEN / "multiscale.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def at_every_scale(images: NDArray[np.float32], weights: Mapping[str, NDArray[Any]]) -> list[NDArray[np.float32]]:
    found = []
    for scale in (1, 1 / 2**0.5, 1 / 2):
        pixels = torch.from_numpy(images)
        if scale != 1:
            pixels = nn.functional.interpolate(pixels, scale_factor=scale, mode="bilinear", align_corners=False)
        mean, peak = pixels.mean(dim=(2, 3)).numpy(), pixels.amax(dim=(2, 3)).numpy()
        found.append(mean @ weights["W_mean"] + peak @ weights["W_max"])
    return found


def test_several_scales_agree_with_the_original(golden_scales: dict[str, NDArray[Any]]) -> None:
    """The golden images are floats and a backbone is given bytes, so the network's scales are taken as they are."""
    from patchssl.evaluate.extracting.forward import (
        _at_scales,  # the only way in for pixels that are normalised already
    )

    backbone = prepare(toy(golden_scales), "dino", image_size=64, multiscale=True)
    images = torch.from_numpy(golden_scales["images"])
    cls = [backbone.forward(pixels).cls for pixels in _at_scales(backbone, images)]
    mean = torch.stack(cls).mean(dim=0)
    expected = golden_scales["descriptors"]
    np.testing.assert_allclose(nn.functional.normalize(mean).numpy(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_scales_of_a_protocol_end_to_end(protocol: str, golden_scales: dict[str, NDArray[Any]]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 48, 40, 3), np.uint8)
    source = ArraySource(pixels, ("a", "b", "c"), None, (), "name", "location")
    plain = toy(golden_scales, mean=(0.4, 0.5, 0.6), std=(0.3, 0.2, 0.1))
    backbone = prepare(plain, protocol, image_size=64, multiscale=True)
    found = extract(backbone, source, batch_size=2, precision="fp32").features["cls"]
    normalised = (pixels.transpose(0, 3, 1, 2) / 255 - np.array([0.4, 0.5, 0.6])[:, None, None]) / np.array(
        [0.3, 0.2, 0.1]
    )[:, None, None]
    scales = at_every_scale(normalised.astype(np.float32), golden_scales)
    if protocol == "official":
        scales = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in scales]
    np.testing.assert_allclose(found.features, np.mean(scales, axis=0), rtol=1e-4, atol=1e-5)
    assert found.meta["settings"]["scales"] == list(SCALES)
    assert found.meta["settings"]["unit_scales"] == (protocol == "official")


def test_what_a_protocol_prepares(golden_scales: dict[str, NDArray[Any]]) -> None:
    backbone = prepare(toy(golden_scales))
    assert backbone.preprocess.settings() == {
        "image_px": 224,
        "resize": "lanczos, longer side, never enlarged",
        "crop": "none",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    }
    assert prepare(toy(golden_scales), "dino").preprocess == backbone.preprocess  # they differ in the cut alone
    assert PROTOCOLS["official"].crop_queries
    assert not PROTOCOLS["dino"].crop_queries
    ours = replace(toy(golden_scales), keeps_geometry=True)
    assert prepare(ours).preprocess.image_px == 64
    assert prepare(ours, image_size=96).preprocess.image_px == 96
    with pytest.raises(ConfigError, match="takes images of 224 x 224 px only"):
        prepare(load_backbone("timm:swin_tiny_patch4_window7_224@random"))


def test_query_crops_are_applied_once_and_before_any_resizing(golden_scales: dict[str, NDArray[Any]]) -> None:
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (1, 90, 120, 3), np.uint8)
    whole = ArraySource(pixels, ("q",), None, (), "name", "location")
    box = (10.0, 20.0, 90.0, 80.0)
    backbone = prepare(toy(golden_scales, mean=(0.0,) * 3, std=(1.0,) * 3), "dino", image_size=40)

    def descriptor(image: Image.Image) -> NDArray[np.float32]:
        (row,) = at_every_scale((np.asarray(image).transpose(2, 0, 1)[None] / 255).astype(np.float32), golden_scales)[
            :1
        ]
        return row

    cut = Image.fromarray(pixels[0]).crop(box)
    again = cut.crop(box)
    cut.thumbnail((40, 40), Image.Resampling.LANCZOS)
    again.thumbnail((40, 40), Image.Resampling.LANCZOS)
    late = Image.fromarray(pixels[0])
    late.thumbnail((40, 40), Image.Resampling.LANCZOS)
    late = late.crop((10 / 3, 20 / 3, 90 / 3, 80 / 3))
    found = extract(backbone, BoxedSource(whole, (box,)), batch_size=1, precision="fp32").features["cls"].features
    np.testing.assert_allclose(found, descriptor(cut), rtol=1e-4, atol=1e-5)
    for wrong in (again, late):
        assert np.abs(found - descriptor(wrong)).max() > 0.01
