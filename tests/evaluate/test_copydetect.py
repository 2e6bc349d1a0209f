import csv
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from patchssl.backbones import load_backbone
from patchssl.data.copy_truth import CopyTruth
from patchssl.errors import ConfigError, DataError
from patchssl.evaluate.copies.plan import make_plan
from patchssl.evaluate.copies.protocols import PROTOCOLS, protocol_for
from patchssl.evaluate.copies.row import write_per_query
from patchssl.evaluate.copies.score_normalisation import ScoreNormalisation
from patchssl.evaluate.copydetect import evaluate, prepare, score
from patchssl.evaluate.features import Features
from patchssl.evaluate.outcomes import Scored

NUM, DIM = 30, 24
BLOCKS = ("original", "strong", "jpegqual_15", "jpegqual_30", "crops_50")


def as_features(rows: np.ndarray, prefix: str, settings: Mapping[str, Any] | None = None) -> Features:
    ids = np.array([f"{prefix}{number:03d}" for number in range(len(rows))])
    return Features(rows.astype(np.float32), ids=ids, meta={"settings": dict(settings or {})})


@pytest.fixture
def copies() -> tuple[dict[str, Features], CopyTruth]:
    """Queries that are noisy references in five blocks, with distractors, whitening and training images."""
    generator = np.random.default_rng(0)
    references = generator.normal(size=(NUM, DIM)) + 0.5
    noise = np.repeat([0, 2.0, 0.5, 0.8, 1.3], NUM)[:, None]
    queries = np.tile(references, (len(BLOCKS), 1)) + noise * generator.normal(size=(len(BLOCKS) * NUM, DIM))
    parts = {
        "references": as_features(references, "r"),
        "distractors": as_features(generator.normal(size=(40, DIM)) + 0.5, "d"),
        "whitening": as_features(generator.normal(size=(60, DIM)) * np.linspace(1, 3, DIM) + 0.5, "w"),
        "queries": as_features(queries, "q"),
    }
    assert parts["queries"].ids is not None
    ids = parts["queries"].ids.tolist()
    return parts, CopyTruth(
        {query: BLOCKS[number // NUM] for number, query in enumerate(ids)},
        {query: (f"r{number % NUM:03d}",) for number, query in enumerate(ids)},
    )


def value(scored: Scored, name: str) -> float:
    return scored.row.metrics[name].value


def slow_dino(parts: Mapping[str, Features], k: int = 20) -> dict[str, float]:
    """The means of the blocks from the definition, in float64, one query after the other."""
    database = np.vstack([parts["references"].features, parts["distractors"].features]).astype(np.float64)
    queries, learned = (parts[name].features.astype(np.float64) for name in ("queries", "whitening"))
    values, vectors = np.linalg.eigh(learned.T @ learned / len(learned))
    scale = vectors / np.sqrt(np.maximum(values, 1e-5 * values.max()))
    database, queries = ((rows - learned.mean(axis=0)) @ scale for rows in (database, queries))
    found: dict[str, list[float]] = {}
    for number, query in enumerate(queries):
        cosines = database @ query / np.linalg.norm(database, axis=1) / np.linalg.norm(query)
        ranking = sorted(range(len(database)), key=lambda row: -cosines[row])
        rank = ranking.index(number % NUM)
        ap = 1.0 if rank == 0 else 0.5 / (rank + 1) if rank < k else 0.0
        found.setdefault(BLOCKS[number // NUM], []).append(ap)
    return {f"{block}_map": float(np.mean(aps)) for block, aps in found.items()}


def test_dino_is_what_the_definition_gives(copies: tuple[dict[str, Features], CopyTruth]) -> None:
    parts, truth = copies
    scored = score(parts, truth, protocol="dino")
    wanted = slow_dino(parts)
    assert 0.05 < wanted["strong_map"] < 0.95
    for name, mean in wanted.items():
        assert value(scored, name) == pytest.approx(mean, abs=1e-9)
    assert value(scored, "jpegqual_map") == pytest.approx((wanted["jpegqual_15_map"] + wanted["jpegqual_30_map"]) / 2)
    assert value(scored, "crops_map") == value(scored, "crops_50_map")
    assert list(scored.row.metrics) == [
        "strong_map", "jpegqual_map", "jpegqual_15_map", "jpegqual_30_map", "crops_map", "crops_50_map", "original_map"
    ]  # fmt: skip
    assert scored.row.headline == "strong_map"
    assert value(scored, "original_map") == 1
    assert scored.row.metrics["strong_map"].num == NUM
    told = {"k": 20, "whitening": "uncentred", "whitening_dim": DIM, "whitening_images": 60, "index": "Flat"}
    assert told.items() <= scored.row.settings.items()
    assert scored.row.dataset["splits"] == {"references": 30, "distractors": 40, "whitening": 60, "queries": 150}


def test_only_the_first_k_count(copies: tuple[dict[str, Features], CopyTruth]) -> None:
    parts, truth = copies
    # One reference alone is right, and 19 or 20 others are nearer.
    for num_nearer, wanted in ((19, 0.5 / 20), (20, 0.0)):
        angles = np.linspace(0.1, 0.5, num_nearer + 1)
        references = as_features(np.stack([np.cos(angles), np.sin(angles)], axis=1), "r")
        queries = as_features(np.array([[1.0, 0.0]]), "q")
        one = CopyTruth({"q000": "strong"}, {"q000": (f"r{num_nearer:03d}",)})
        scored = score({"references": references, "queries": queries}, one, protocol="dino", whitening="none")
        assert value(scored, "strong_map") == pytest.approx(wanted, abs=1e-12)
    aps = [value(score(parts, truth, protocol="dino", k=k), "strong_map") for k in (1, 5, 70)]
    assert aps == sorted(aps)
    assert aps[0] < aps[1] < aps[2]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_perfect_ranking_scores_one(copies: tuple[dict[str, Features], CopyTruth], protocol: str) -> None:
    parts, truth = copies
    queries = as_features(np.tile(parts["references"].features, (len(BLOCKS), 1)) * 2, "q")
    for whitening in ("uncentred", "centred"):
        scored = score({**parts, "queries": queries}, truth, protocol=protocol, whitening=whitening)
        assert {metric.value for metric in scored.row.metrics.values()} == {1.0}
        assert {(metric.ci95_low, metric.ci95_high) for metric in scored.row.metrics.values()} == {(1.0, 1.0)}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_ties_never_help(protocol: str) -> None:
    # For a collapsed network every reference is the best; wrong ones come first, as many as there are.
    vector = np.random.default_rng(0).normal(size=(1, 100))
    references = as_features(np.repeat(vector, 9, axis=0), "r")
    queries = as_features(np.repeat(vector, 9, axis=0), "q")
    truth = CopyTruth({f"q00{n}": "strong" for n in range(9)}, {f"q00{n}": (f"r00{n}",) for n in range(9)})
    scored = score({"references": references, "queries": queries}, truth, protocol=protocol, whitening="none")
    of_means = {"strong_map": 0.5 / 9, "map": 0.5 / 9, "recall_at_1": 0.0, "recall_at_10": 1.0}
    for name, metric in scored.row.metrics.items():
        if name in of_means:
            assert metric.value == pytest.approx(of_means[name])
    if "micro_ap" in scored.row.metrics:
        assert value(scored, "micro_ap") < 0.07
        assert value(scored, "recall_at_precision_90") == 0


def test_ties_across_the_cut_never_help() -> None:
    for num_before in (0, 100):
        vector = np.random.default_rng(1).normal(size=(1, 64))
        references = as_features(np.repeat(vector, 150, axis=0), "r")
        queries = as_features(vector, "q")
        truth = CopyTruth({"q000": "strong"}, {"q000": (f"r{num_before:03d}",)})
        scored = score({"references": references, "queries": queries}, truth, protocol="dino", whitening="none")
        assert value(scored, "strong_map") == 0


def test_all_of_several_equal_positives_are_found() -> None:
    generator = np.random.default_rng(2)
    vector = generator.normal(size=(1, 16))
    references = as_features(np.vstack([np.repeat(vector, 30, axis=0), generator.normal(size=(9, 16))]), "r")
    truth = CopyTruth({"q000": "queries"}, {"q000": tuple(f"r{n:03d}" for n in range(30))})
    parts = {"references": references, "queries": as_features(vector, "q")}
    scored = score(parts, truth, protocol="generic", whitening="none", k=30)
    assert value(scored, "map") == 1
    assert value(score(parts, truth, protocol="generic", whitening="none"), "map") == pytest.approx(20 / 30)


def test_sscd_whitens_centred_and_pools_all_queries(copies: tuple[dict[str, Features], CopyTruth]) -> None:
    parts, truth = copies
    scored = score(parts, truth, protocol="sscd")
    told = {
        "whitening": "centred",
        "whitening_dim": DIM,
        "l2_before_whitening": True,
        "k": 100,
        "micro_ap": "trapezoid",
    }
    assert told.items() <= scored.row.settings.items()

    def unit(rows: np.ndarray) -> np.ndarray:
        units: np.ndarray = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return units

    learned = unit(parts["whitening"].features.astype(np.float64))
    values, vectors = np.linalg.eigh(np.cov(learned.T, bias=True))
    database, queries = (
        unit((unit(rows.astype(np.float64)) - learned.mean(axis=0)) @ (vectors / np.sqrt(values)))
        for rows in (
            np.vstack([parts["references"].features, parts["distractors"].features]), parts["queries"].features
        )
    )  # fmt: skip
    cosines = queries @ database.T
    pairs = sorted(
        ((cosines[query, row], row == query % NUM) for query in range(len(queries)) for row in range(len(database))),
        key=lambda pair: -pair[0],
    )
    area, right = 0.0, 0
    for rank, (_, is_right) in enumerate(pairs):
        if is_right:
            before = 1.0 if rank == 0 else right / rank
            right += 1
            area += (before + right / (rank + 1)) / 2 / len(queries)
    assert 0.1 < area < 0.9
    assert value(scored, "micro_ap") == pytest.approx(area, abs=1e-6)
    assert scored.row.metrics["micro_ap"].num == len(queries)


def test_normalised_scores_change_lists_of_all_pairs_and_no_ranking(
    copies: tuple[dict[str, Features], CopyTruth],
) -> None:
    parts, truth = copies
    training = {**parts, "training": parts["whitening"]}
    training.pop("whitening")
    normalised, plain = (
        score(training, truth, protocol="generic", normalise_scores=chosen) for chosen in (None, False)
    )
    assert normalised.row.settings["score_normalisation"] == {"beta": 1.0, "neighbours": [0, 2]}
    assert normalised.row.settings["whitening_set"] == "training"
    assert plain.row.settings["score_normalisation"] is None
    for name in ("map", "recall_at_1"):
        assert value(normalised, name) == value(plain, name)
    assert value(normalised, "micro_ap") != value(plain, "micro_ap")
    assert normalised.row.comparability != plain.row.comparability
    without = score(
        training, truth, protocol="generic", normalise_scores=True, normalisation=ScoreNormalisation(beta=0)
    )
    assert value(without, "micro_ap") == value(plain, "micro_ap")


def test_negative_queries_leave_means_and_lower_micro_ap(copies: tuple[dict[str, Features], CopyTruth]) -> None:
    parts, truth = copies
    without = dict(truth.positives)
    for query in list(without)[:NUM]:
        without[query] = ()
    negative = CopyTruth(truth.blocks, without)
    all_copies, some = (
        score({part: parts[part] for part in ("references", "queries")}, found, protocol="generic", whitening="none")
        for found in (truth, negative)
    )
    assert some.row.metrics["map"].num == 4 * NUM
    assert some.row.metrics["micro_ap"].num == 5 * NUM
    assert some.row.settings["num_negative_queries"] == NUM
    # These are the originals: sure of themselves, and wrong.
    assert value(some, "micro_ap") < value(all_copies, "micro_ap")
    assert some.row.comparability != all_copies.row.comparability


def test_an_approximate_index_is_reported(copies: tuple[dict[str, Features], CopyTruth]) -> None:
    parts, truth = copies
    exact = score(parts, truth, protocol="dino")
    found = score(parts, truth, protocol="dino", index="IVF4,Flat", index_parameters="nprobe=1")
    assert found.row.settings["index"] == "IVF4,Flat (nprobe=1)"
    assert found.row.comparability != exact.row.comparability
    assert 0 < found.row.details["index"]["recall@1"] <= 1
    assert value(found, "strong_map") <= value(exact, "strong_map") + 0.1
    assert "index" not in exact.row.details


def test_a_missing_whitening_set_is_told(
    copies: tuple[dict[str, Features], CopyTruth], caplog: pytest.LogCaptureFixture
) -> None:
    parts, truth = copies
    bare = {part: parts[part] for part in ("references", "queries")}
    assert score(bare, truth, protocol="dino").row.settings["whitening"] == "none"
    assert "no images to learn a whitening from" in caplog.text
    caplog.clear()
    score(bare, truth, protocol="dino", whitening="none")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    with pytest.raises(ConfigError, match="whitening centred needs images"):
        score(bare, truth, protocol="dino", whitening="centred")
    with pytest.raises(ConfigError, match="they change nothing"):
        score(parts, truth, protocol="dino", whitening="none")
    with pytest.raises(ConfigError, match="'zca' is unknown"):
        score(parts, truth, protocol="dino", whitening="zca")


def test_options_that_change_nothing_are_refused() -> None:
    parts = ("references", "queries")
    with pytest.raises(ConfigError, match="compares no scores between queries"):
        make_plan("dino", (*parts, "training"), normalise_scores=True)
    with pytest.raises(ConfigError, match="need training images"):
        make_plan("generic", parts, normalise_scores=True)
    with pytest.raises(ConfigError, match="not normalised here"):
        make_plan("generic", parts, normalisation=ScoreNormalisation(beta=2))
    with pytest.raises(ConfigError, match="k is 0"):
        make_plan("generic", parts, k=0)
    with pytest.raises(DataError, match="no queries"):
        make_plan("generic", ("references",))
    with pytest.raises(ConfigError, match="'isc' is unknown to copy detection; allowed: dino, sscd, disc21, generic"):
        make_plan("isc", parts)
    # What is not needed is not computed.
    assert make_plan("disc21", (*parts, "training"), whitening="none", normalise_scores=False).parts == parts
    assert make_plan("disc21", (*parts, "training")).parts == ("references", "training", "queries")


def test_protocols_are_for_layouts() -> None:
    assert [protocol_for(layout).name for layout in ("copydays", "disc", "generic")] == ["dino", "disc21", "generic"]
    assert protocol_for("copydays", "sscd").name == "sscd"
    with pytest.raises(
        ConfigError, match=r"for data of the layout disc or generic.*layout copydays; allowed: dino, sscd"
    ):
        protocol_for("copydays", "disc21")
    with pytest.raises(ConfigError, match="allowed: disc21, generic"):
        protocol_for("generic", "dino")


def test_bad_features_are_refused(copies: tuple[dict[str, Features], CopyTruth]) -> None:
    parts, truth = copies
    queries = parts["queries"]

    def run(**changed: Features) -> None:
        score({**parts, **changed}, truth, protocol="dino")

    with pytest.raises(DataError, match="NaN"):
        run(queries=Features(np.full_like(queries.features, np.nan), ids=queries.ids))
    with pytest.raises(DataError, match="queries features 3"):
        run(queries=Features(queries.features[:, :3], ids=queries.ids))
    with pytest.raises(DataError, match="no ids"):
        run(queries=Features(queries.features))
    with pytest.raises(DataError, match="not in the ground truth"):
        run(queries=as_features(queries.features, "other"))
    with pytest.raises(DataError, match="occur more than once"):
        run(queries=Features(queries.features, ids=np.full(len(queries), "q000")))
    with pytest.raises(DataError, match="made differently"):
        run(
            queries=as_features(queries.features, "q", {"image_px": 224}),
            references=as_features(parts["references"].features, "r", {"image_px": 320}),
        )
    assert queries.ids is not None
    rows = np.vstack([parts["distractors"].features[1:], queries.features[:1]])
    assert parts["distractors"].ids is not None
    with pytest.raises(
        DataError, match=r"1 of 40 distractors have the id and the features of one of the queries \(q000"
    ):
        run(distractors=Features(rows, ids=np.array([*parts["distractors"].ids[1:], "q000"])))


def test_missing_references_count_as_not_found(
    copies: tuple[dict[str, Features], CopyTruth], caplog: pytest.LogCaptureFixture
) -> None:
    parts, truth = copies
    references = parts["references"]
    assert references.ids is not None
    fewer = Features(references.features[3:], ids=references.ids[3:])
    scored = score({**parts, "references": fewer}, truth, protocol="dino")
    assert value(scored, "original_map") == pytest.approx(27 / 30)
    assert "3 references have no features (r000, r001, r002)" in caplog.text


def test_unreadable_queries_leave_the_evaluation(copies: tuple[dict[str, Features], CopyTruth]) -> None:
    parts, truth = copies
    queries = parts["queries"]
    assert queries.ids is not None
    scored = score({**parts, "queries": Features(queries.features[5:], ids=queries.ids[5:])}, truth, protocol="dino")
    assert scored.row.metrics["original_map"].num == 25


def test_the_table_of_queries_agrees_with_the_row(
    copies: tuple[dict[str, Features], CopyTruth], tmp_path: Path
) -> None:
    parts, truth = copies
    result = evaluate(parts, truth, protocol="dino")
    write_per_query(tmp_path / "out.csv", result)
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["query"] for row in rows] == list(truth.blocks)
    strong = [row for row in rows if row["block"] == "strong"]
    scored = score(parts, truth, protocol="dino")
    assert np.mean([float(row["ap"]) for row in strong]) == pytest.approx(value(scored, "strong_map"), abs=1e-12)
    for row in rows:
        rank = int(row["rank"]) if row["rank"] else None
        wanted = 0.0 if rank is None else 1.0 if rank == 1 else 0.5 / rank
        assert float(row["ap"]) == pytest.approx(wanted, abs=1e-12)
        assert rank is None or rank <= 20
    with pytest.raises(DataError, match="cannot be written"):
        write_per_query(tmp_path / "nowhere" / "out.csv", result)


def test_backbones_get_the_geometry_of_the_protocol() -> None:
    backbone = load_backbone("timm:vit_tiny_patch16_224@random", device="cpu", seed=0)
    found = {name: prepare(backbone, name).preprocess for name in PROTOCOLS}
    shown = {name: (chosen.fit, chosen.image_px, chosen.interpolation) for name, chosen in found.items()}
    squash, short = ("squash", 320, "bicubic"), ("short-side", 288, "bilinear")
    assert shown == {"dino": squash, "sscd": short, "disc21": short, "generic": squash}
    assert {(chosen.mean, chosen.std) for chosen in found.values()} == {
        (backbone.preprocess.mean, backbone.preprocess.std)
    }
    assert prepare(backbone, "dino", image_size=224).preprocess.image_px == 224
    ours = replace(backbone.at_size(64), keeps_geometry=True)
    assert prepare(ours, "dino").preprocess.image_px == 64
    assert prepare(ours, "dino").preprocess.fit == "squash"
    assert prepare(ours, "dino", image_size=96).preprocess.image_px == 96
    with pytest.raises(ConfigError, match="is unknown to copy detection"):
        prepare(backbone, "official")
