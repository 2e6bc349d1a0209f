import json
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from patchssl.backbones import Backbone, load_backbone
from patchssl.data.images import ArraySource
from patchssl.errors import ConfigError, DataError, TrainingError
from patchssl.evaluate.extraction import extract
from patchssl.evaluate.features import Features
from patchssl.evaluate.linear import GIVEN, PROTOCOLS, needed_tokens, score, score_images
from patchssl.evaluate.outcomes import Scored
from patchssl.evaluate.results import Row

QUICK: Mapping[str, dict[str, Any]] = {"dinov2": {"iterations": 60, "learning_rates": (0.01, 0.1, 1.0)}, "logistic": {}}


def features(
    num: int, *, seed: int, dim: int = 6, labels: tuple[int, ...] = (-3, 4, 90), noise: float = 1.0, **meta: Any
) -> Features:
    """Classes about means of their own."""
    generator = np.random.default_rng(seed)
    places = np.arange(num) % len(labels)
    means = np.random.default_rng(7).normal(size=(len(labels), dim)) * 2
    values = means[places] + noise * generator.normal(size=(num, dim))
    return Features(values.astype(np.float32), np.array(labels)[places], None, meta)


def on(protocol: str, train: Features, test: Features, *, tokens: str = GIVEN, **more: Any) -> Scored:
    return score({tokens: train}, {tokens: test}, protocol=protocol, **{**QUICK[protocol], **more})


def same(one: Row, other: Row) -> bool:
    return all(
        getattr(one, name) == getattr(other, name)
        for name in Row.__dataclass_fields__
        if name not in {"seconds", "created"}
    )


@pytest.mark.parametrize("protocol", QUICK)
def test_separable_classes_are_told_apart_and_two_runs_give_one_row(protocol: str) -> None:
    train, test = features(60, seed=1, noise=0.1), features(30, seed=2, noise=0.1)
    scored = on(protocol, train, test, seed=3)
    row = scored.row
    assert row.task == "linear"
    assert row.protocol == protocol
    assert row.headline == "top1"
    assert row.metrics["top1"].value == row.metrics["top5"].value == 1.0
    assert row.metrics["top1"].num == 30
    assert row.dataset["splits"] == {"train": 60, "test": 30}
    assert scored.outcomes.values["top1"].dtype == bool
    assert row.settings["selection"] == PROTOCOLS[protocol].selection
    assert row.settings["augmentation"] == "none (one feature pass)"
    assert row.settings["val_fraction"] == 0.1
    assert row.details["num_held_out"] == 6
    assert same(row, on(protocol, train, test, seed=3).row)
    json.loads(row.to_json())


@pytest.mark.parametrize("protocol", QUICK)
def test_what_labels_are_called_does_not_matter(protocol: str) -> None:
    train, test = features(90, seed=1, noise=3.0), features(60, seed=2, noise=3.0)
    renamed = [Features(part.features, part.labels * 11 + 5) for part in (train, test) if part.labels is not None]
    expected = on(protocol, train, test)
    got = on(protocol, *renamed)
    np.testing.assert_array_equal(got.outcomes.values["top1"], expected.outcomes.values["top1"])
    assert 0.4 < expected.row.metrics["top1"].value < 1.0


def test_every_image_twice_gives_the_same_classifier_at_half_of_c() -> None:
    train, test = features(90, seed=1, noise=3.0), features(60, seed=2, noise=3.0)
    assert train.labels is not None
    twice = Features(np.repeat(train.features, 2, axis=0), np.repeat(train.labels, 2))
    one, other = on("logistic", train, test), on("logistic", twice, test)
    assert np.mean(one.outcomes.values["top1"] == other.outcomes.values["top1"]) > 0.9


def test_the_head_is_chosen_by_held_out_images_and_the_best_on_test_is_marked() -> None:
    train, test = features(90, seed=1, noise=3.0), features(200, seed=2, noise=3.0)
    row = on("dinov2", train, test, iterations=40, learning_rates=(1e-5, 0.01, 0.3, 3.0)).row
    table = row.details["held_out"]
    assert [entry["learning_rate"] for entry in table] == [1e-5, 0.01, 0.3, 3.0]
    best = max(table, key=lambda entry: (entry["top1"], -entry["log_loss"]))
    assert row.details["chosen"] == {"tokens": GIVEN, "learning_rate": best["learning_rate"]}
    assert row.details["test_selected"] == ["top1_best_head_on_test"]
    assert row.metrics["top1_best_head_on_test"].value >= row.metrics["top1"].value
    assert row.settings["features"] == "from files"


def test_features_of_several_blocks_are_compared_as_columns() -> None:
    # Only the first of four class tokens tells the classes apart.
    train, test = features(90, seed=1, dim=3, noise=0.1), features(45, seed=2, dim=3, noise=0.1)
    wide = []
    for part in (train, test):
        noise = np.random.default_rng(len(part)).normal(size=(len(part), 12)).astype(np.float32)
        wide.append(Features(np.concatenate((part.features, noise), axis=1), part.labels))
    row = on("dinov2", *wide, tokens="cls:4+mean").row
    assert len(row.details["held_out"]) == 4 * 3
    best = {
        entry["tokens"]: entry["top1"] for entry in sorted(row.details["held_out"], key=lambda entry: entry["top1"])
    }
    assert best["cls:4"] == best["cls:4+mean"] == 1.0
    assert max(best["cls"], best["cls+mean"]) < 0.8
    assert row.details["chosen"]["tokens"] in {"cls:4", "cls:4+mean"}
    assert row.metrics["top1"].value == 1.0
    only_last = on("dinov2", *wide, tokens="cls:5", blocks=5, avgpool=False).row
    assert [entry["tokens"] for entry in only_last.details["held_out"]] == ["cls:5"] * 3


def test_c_is_chosen_on_held_out_images_and_all_are_fitted_again() -> None:
    train, test = features(90, seed=1, noise=3.0), features(60, seed=2, noise=3.0)
    scored = on("logistic", train, test)
    details = scored.row.details
    best = max(details["held_out"], key=lambda entry: (entry["top1"], -entry["log_loss"]))
    assert details["chosen"]["c"] == best["c"]
    from sklearn.linear_model import LogisticRegression

    plain = LogisticRegression(C=details["chosen"]["c"], max_iter=10_000, tol=1e-8).fit(train.features, train.labels)
    hits = plain.predict(test.features) == test.labels
    assert np.mean(hits == scored.outcomes.values["top1"]) > 0.98
    assert details["test_selected"] == []


def test_comparability_follows_meaning_and_nothing_else() -> None:
    train, test = features(60, seed=1), features(30, seed=2)
    settings = {"token": "cls:2", "image_px": 32}
    parts = [Features(part.features, part.labels, None, {"settings": settings}) for part in (train, test)]
    usual = on("logistic", *parts, tokens="cls:2").row
    assert "token" not in usual.settings
    assert usual.settings["tokens"] == "cls:2"
    # Another backbone reads other tokens by the same protocol.
    assert on("logistic", *parts, tokens="cls+mean").row.comparability == usual.comparability
    assert on("logistic", *parts, tokens="cls:2", seed=1).row.comparability == usual.comparability
    different = [
        on("logistic", *parts, tokens="cls:2", blocks=2).row,
        on("logistic", *parts, tokens="cls+mean", avgpool=True).row,
        on("logistic", *parts, tokens="cls:2", val_fraction=0.2).row,
        on("logistic", *parts).row,
        on("dinov2", *parts, tokens="cls:2").row,
        on("dinov2", *parts, tokens="cls:2", iterations=61).row,
        on("dinov2", *parts, tokens="cls:2", train_batch_size=64).row,
    ]
    assert len({row.comparability for row in [usual, *different]}) == 8
    assert different[3].settings["token"] == "cls:2"


def test_classes_without_training_images_count_as_wrong(caplog: pytest.LogCaptureFixture) -> None:
    train, test = features(60, seed=1, noise=0.1), features(30, seed=2, noise=0.1)
    assert test.labels is not None
    strange = Features(test.features, np.where(np.arange(30) < 6, 1234, test.labels))
    for protocol in QUICK:
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            row = on(protocol, train, strange).row
        assert row.metrics["top1"].value == row.metrics["top5"].value == pytest.approx(24 / 30)
        assert row.settings["num_unknown_class"] == 6
        assert "6 of 30 test images are of 1 classes without training images (labels 1234)" in caplog.text
    # A class without test images is no matter.
    fewer = Features(test.features[test.labels != 4], test.labels[test.labels != 4])
    assert on("logistic", train, fewer).row.metrics["top1"].value == 1.0


def test_heads_that_diverge_are_left_out_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    train, test = features(60, seed=1), features(30, seed=2)
    row = on("dinov2", train, test, learning_rates=(0.1, 1e38)).row
    assert row.details["num_diverged"] == 1
    assert row.details["held_out"][1] == {"tokens": GIVEN, "learning_rate": 1e38, "top1": None}
    assert row.details["chosen"]["learning_rate"] == row.details["best_head_on_test"]["learning_rate"] == 0.1
    assert "1 of 2 heads diverged and are left out" in caplog.text
    with pytest.raises(TrainingError, match=r"all 2 heads diverged at learning rates 1e\+38 to 2e\+38"):
        on("dinov2", train, test, learning_rates=(1e38, 2e38))


def test_a_class_of_one_image_is_learned_and_not_held_out(caplog: pytest.LogCaptureFixture) -> None:
    train, test = features(60, seed=1, noise=0.1), features(30, seed=2, noise=0.1)
    assert train.labels is not None
    kept = np.concatenate((np.flatnonzero(train.labels != 4), np.flatnonzero(train.labels == 4)[:1]))
    row = on("logistic", Features(train.features[kept], train.labels[kept]), test).row
    assert "1 of 3 classes have a single training image" in caplog.text
    assert row.details["num_held_out"] == 4
    assert row.metrics["top1"].value > 0.9
    with pytest.raises(DataError, match="none of the 3 classes has two training images"):
        on("dinov2", Features(train.features[:3], train.labels[:3]), test)


GOOD = features(30, seed=1)


def with_nan() -> Features:
    values = GOOD.features.copy()
    values[4] = np.nan
    return Features(values, GOOD.labels, np.array([f"{row}.jpg" for row in range(30)]))


@pytest.mark.parametrize(
    ("train", "test", "words"),
    [
        (with_nan(), GOOD, r"1 of 30 training features hold NaN or infinite values \(4.jpg\)"),
        (GOOD, features(30, seed=1, dim=7), "training features are 6 wide, test features 7"),
        (features(9, seed=1, labels=(5,)), GOOD, r"all 9 training images are of one class \(label 5\)"),
        (Features(GOOD.features, GOOD.labels, np.array(["a"] * 30)), GOOD, "1 ids of the training features occur more"),
        (GOOD, Features(GOOD.features), "the test features have no labels"),
    ],
)
@pytest.mark.parametrize("protocol", QUICK)
def test_features_that_cannot_be_evaluated_are_refused(
    train: Features, test: Features, words: str, protocol: str
) -> None:
    with pytest.raises(DataError, match=words):
        on(protocol, train, test)


def test_protocols_and_choices_that_cannot_be_used_are_refused() -> None:
    parts = {GIVEN: GOOD}
    with pytest.raises(ConfigError, match=r"dino trains on augmented images and cannot run on features.*dinov2 or"):
        score(parts, parts, protocol="dino")
    with pytest.raises(ConfigError, match="'probe' is unknown"):
        score(parts, parts, protocol="probe")
    with pytest.raises(ConfigError, match=r"takes one choice of tokens.*training: cls, mean, test: cls"):
        score({"cls": GOOD, "mean": GOOD}, {"cls": GOOD}, protocol="logistic")
    with pytest.raises(ConfigError, match="iterations is no option of the protocol logistic"):
        score(parts, parts, protocol="logistic", iterations=5)


@pytest.fixture(scope="module")
def vit() -> Backbone:
    return load_backbone("timm:vit_tiny_patch16_224@random").at_size(32)


def images(num: int, seed: int) -> ArraySource:
    """Two colours with noise, 20 px."""
    generator = np.random.default_rng(seed)
    labels = np.arange(num) % 2
    colours = np.array([[20, 40, 200], [220, 30, 30]])[labels][:, None, None]
    pixels = np.clip(generator.normal(colours, 20, (num, 20, 20, 3)), 0, 255).astype(np.uint8)
    ids = tuple(f"{seed}/{index}.png" for index in range(num))
    return ArraySource(pixels, ids, labels, ("blue", "red"), "drawn", "drawn")


def on_images(vit: Backbone, sources: dict[str, ArraySource], **options: Any) -> Scored:
    tokens = needed_tokens("dino", num_blocks=vit.num_blocks, dim=vit.dim)
    test = extract(vit, sources["test"], tokens=tokens, batch_size=8).features
    return score_images(vit, sources, test, batch_size=8, **options)


def test_images_give_a_whole_row(vit: Backbone) -> None:
    sources = {"train": images(20, 0), "test": images(10, 1)}
    options = {"epochs": 3, "train_batch_size": 16, "learning_rates": (0.1,), "features_s": 1.5, "seed": 2}
    row = on_images(vit, sources, **options).row
    assert (row.task, row.protocol, row.headline) == ("linear", "dino", "top1")
    assert list(row.metrics) == ["top1", "top5", "top1_best_epoch_on_test"]
    history = row.details["top1_by_epoch_on_test"]
    assert len(history) == 3
    assert row.metrics["top1"].value == history[-1] == 1.0
    assert row.metrics["top1_best_epoch_on_test"].value == max(history)
    assert row.details["best_epoch_on_test"] == 1 + history.index(max(history))
    assert row.details["test_selected"] == ["top1_best_epoch_on_test"]
    wanted = {
        "tokens": "cls:4",
        "epochs": 3,
        "learning_rates": [0.1],
        "train_batch_size": 16,
        "image_px": 32,
        "selection": "none: the head after the last epoch",
    }
    assert wanted.items() <= row.settings.items()
    assert row.settings["augmentation"].startswith("random resized crop")
    assert row.dataset["splits"] == {"train": 20, "test": 10}
    assert row.model["weights_sha256"] == vit.weights_sha256
    assert row.seconds["features"] == 1.5
    assert row.seconds["evaluate"] > 0
    assert same(row, on_images(vit, sources, **options).row)
    assert on_images(vit, sources, **{**options, "epochs": 2}).row.comparability != row.comparability
    with torch.random.fork_rng():
        torch.manual_seed(99)
        assert same(row, on_images(vit, sources, num_workers=1, **options).row)
    # The features by which the others learn come from the same data: rows name one fingerprint.
    tokens = needed_tokens("logistic", num_blocks=vit.num_blocks, dim=vit.dim)
    parts = [extract(vit, sources[name], tokens=tokens, batch_size=8).features for name in ("train", "test")]
    assert score(*parts, protocol="logistic").row.dataset == row.dataset


def test_images_that_cannot_be_learned_from_are_refused(vit: Backbone) -> None:
    good, one = images(10, 1), images(10, 2)
    one = ArraySource(one.pixels, one.ids, np.ones(10, np.int64), one.classes, "one", "one")
    with pytest.raises(DataError, match="all 10 training images are of one class"):
        on_images(vit, {"train": one, "test": good})
    twice = ArraySource(good.pixels, (good.ids[0], *good.ids[:-1]), good.labels, good.classes, "twice", "twice")
    with pytest.raises(DataError, match="1 ids of the training features occur more than once"):
        on_images(vit, {"train": twice, "test": good})
    with pytest.raises(ConfigError, match="the protocol logistic runs on features"):
        on_images(vit, {"train": good, "test": good}, protocol="logistic")
