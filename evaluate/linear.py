"""Linear probes by named protocols: features, or images and a backbone → a row.

Where the originals choose by test accuracy (DINO the best epoch, DINOv2 the best head), the headline here is chosen
without it, and their number stands beside it under a name that says so.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from patchssl.backbones import Backbone
from patchssl.data.images import ImageSource
from patchssl.errors import ConfigError, DataError
from patchssl.evaluate.checks import Targets, check_features, check_ids, check_pair, place_labels
from patchssl.evaluate.extraction import resolve_precision
from patchssl.evaluate.features import Features, meta_part
from patchssl.evaluate.outcomes import Scored
from patchssl.evaluate.probes.augmented import Loading, Recipe, train_on_crops
from patchssl.evaluate.probes.cached import Outcome, regress, sweep
from patchssl.evaluate.probes.protocols import (
    PROTOCOLS,
    feature_sets,
    find_protocol,
    needed_tokens,
    scaled_rate,
    settle,
)
from patchssl.evaluate.probes.row import GIVEN, make_linear_row

__all__ = ["GIVEN", "PROTOCOLS", "needed_tokens", "score", "score_images"]


def score(
    train: Mapping[str, Features],
    test: Mapping[str, Features],
    *,
    protocol: str,
    blocks: int | None = None,
    avgpool: bool | None = None,
    iterations: int | None = None,
    learning_rates: Sequence[float] | None = None,
    train_batch_size: int | None = None,
    val_fraction: float | None = None,
    features_s: float = 0.0,
    device: str = "cpu",
    seed: int = 0,
) -> Scored:
    """Evaluate features by a protocol that needs no images.

    Args:
        train: the training features under the name that needed_tokens gave, or under GIVEN.
        test: the test features under the same.
        protocol: `dinov2` or `logistic`.
        blocks: what was handed to needed_tokens.
        avgpool: what was handed to needed_tokens.
        iterations: of `dinov2`; this and the following by the protocol where they are None.
        learning_rates: of `dinov2`, for 256 images in a batch.
        train_batch_size: of `dinov2`.
        val_fraction: of the training images, held out to choose by.
        features_s: how long computing the features took.
        device: where they were computed, and where heads are trained.
        seed: of split, heads, order and bootstrap intervals, and what fresh weights were drawn from.

    Raises:
        ConfigError: the protocol is unknown or needs images, or an option is out of range or none of its own.
        DataError: the features cannot be evaluated.
        TrainingError: all heads diverge.
    """
    if find_protocol(protocol).needs_images:
        raise ConfigError(
            f"the protocol {protocol} trains on augmented images and cannot run on features: give images and a model, "
            f"or take {' or '.join(other.name for other in PROTOCOLS.values() if not other.needs_images)}"
        )
    given = {"iterations": iterations, "learning_rates": learning_rates}
    options = settle(protocol, {**given, "train_batch_size": train_batch_size, "val_fraction": val_fraction})
    tokens, train_part, test_part = _only(train, test)
    check_pair(train_part, test_part)
    targets = _targets(train_part.labels, test_part.labels)
    start = time.perf_counter()
    if protocol == "dinov2":
        width = train_part.dim
        sets = {GIVEN: (0, width)} if tokens == GIVEN else feature_sets(tokens, width, blocks=blocks, avgpool=avgpool)
        outcome = sweep(train_part, test_part, targets, sets, options, device=device, seed=seed)
    else:
        outcome = regress(train_part, test_part, targets, options, seed=seed)
    return make_linear_row(
        protocol,
        train_part,
        test_part,
        outcome,
        tokens=tokens,
        chosen=blocks is not None or avgpool is not None,
        num_unknown=targets.num_unknown,
        seconds={"features": features_s, "evaluate": time.perf_counter() - start},
        device=device,
        seed=seed,
    )


def score_images(
    backbone: Backbone,
    sources: Mapping[str, ImageSource],
    test: Mapping[str, Features],
    *,
    protocol: str = "dino",
    batch_size: int,
    num_workers: int = 0,
    precision: str = "auto",
    max_bad_fraction: float = 0.05,
    blocks: int | None = None,
    avgpool: bool | None = None,
    epochs: int | None = None,
    learning_rates: Sequence[float] | None = None,
    train_batch_size: int | None = None,
    features_s: float = 0.0,
    seed: int = 0,
    checkpoint: Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> Scored:
    """Evaluate a backbone by a protocol that trains on augmented images.

    Args:
        backbone: on the device to compute on.
        sources: the images; `train` is used.
        test: the test features under the name that needed_tokens gave.
        protocol: `dino`.
        batch_size: images in a forward pass; with the three that follow it changes the number by rounding only.
        num_workers: processes that decode and crop.
        precision: of the forward pass.
        max_bad_fraction: unreadable training images above this fraction are an error.
        blocks: what was handed to needed_tokens.
        avgpool: what was handed to needed_tokens.
        epochs: how often the images are gone through; this and the following by the protocol where they are None.
        learning_rates: a single one, for 256 images in a batch.
        train_batch_size: images in a step.
        features_s: how long computing the test features took.
        seed: of augmentation, order, weights and bootstrap intervals, and what fresh weights were drawn from.
        checkpoint: a file to save to after every epoch, and to go on from if it is there.
        progress: called with the number of training images done since the last call.

    Raises:
        ConfigError: the protocol is unknown or needs no images, or an option is out of range or none of its own.
        DataError: images or features cannot be evaluated.
        TrainingError: the head diverges.
        CheckpointError: the checkpoint cannot be written, or is of another training.
    """
    if not find_protocol(protocol).needs_images:
        raise ConfigError(f"the protocol {protocol} runs on features: compute those of the training images as well")
    options = settle(
        protocol, {"epochs": epochs, "learning_rates": learning_rates, "train_batch_size": train_batch_size}
    )
    source = sources["train"]
    tokens, train_part, test_part = _only({name: _without_pixels(source, backbone) for name in test}, test)
    check_features("test", test_part)
    check_ids("training", train_part)
    check_ids("test", test_part)
    targets = _targets(train_part.labels, test_part.labels)
    (rate,) = options["learning_rates"]
    recipe = Recipe(
        tokens=tokens,
        num_epochs=options["epochs"],
        batch_size=options["train_batch_size"],
        learning_rate=scaled_rate(rate, options["train_batch_size"]),
        seed=seed,
    )
    probe = train_on_crops(
        backbone,
        source,
        targets.train,
        (test_part.features, targets.test),
        recipe,
        Loading(
            batch_size=batch_size,
            num_workers=num_workers,
            precision=resolve_precision(precision, backbone.device),
            max_bad_fraction=max_bad_fraction,
        ),
        num_classes=len(targets.classes),
        checkpoint=checkpoint,
        progress=progress,
    )
    best = int(np.argmax(probe.accuracies))
    outcome = Outcome(
        {**probe.hits, "top1_best_epoch_on_test": probe.best_hits["top1"]},
        options,
        {
            "top1_by_epoch_on_test": probe.accuracies,
            "best_epoch_on_test": best + 1,
            "test_selected": ["top1_best_epoch_on_test"],
        },
    )
    return make_linear_row(
        protocol,
        _without_unreadable(train_part, probe.num_unreadable),
        test_part,
        outcome,
        tokens=tokens,
        chosen=blocks is not None or avgpool is not None,
        num_unknown=targets.num_unknown,
        seconds={"features": features_s, "evaluate": probe.seconds},
        device=backbone.device.type,
        seed=seed,
    )


def _only(train: Mapping[str, Features], test: Mapping[str, Features]) -> tuple[str, Features, Features]:
    """The single choice of tokens that both parts hold."""
    if len(test) != 1 or set(train) != set(test):
        raise ConfigError(
            f"linear probing takes one choice of tokens, the one that needed_tokens gives; training: "
            f"{', '.join(train) or 'none'}, test: {', '.join(test) or 'none'}"
        )
    (tokens,) = test
    return tokens, train[tokens], test[tokens]


def _targets(train: NDArray[np.int64] | None, test: NDArray[np.int64] | None) -> Targets:
    if train is None:
        raise DataError("the training images have no labels; a linear probe learns from them")
    assert test is not None
    targets = place_labels(train, test)
    if len(targets.classes) < 2:
        raise DataError(
            f"all {len(train)} training images are of one class (label {targets.classes[0]}); a linear probe needs "
            "at least two"
        )
    return targets


def _without_pixels(source: ImageSource, backbone: Backbone) -> Features:
    """What a row tells of training images whose features change with every epoch: their number, labels and origin."""
    num_classes = 0 if source.labels is None else len(np.unique(source.labels))
    dataset = {"fingerprint": source.fingerprint(), "num_unreadable": 0, "num_classes": num_classes}
    return Features(
        np.empty((len(source), 0), dtype=np.float32),
        source.labels,
        np.array([str(name) for name in source.ids], dtype=np.str_),
        {"model": backbone.facts(), "dataset": dataset},
    )


def _without_unreadable(part: Features, num: int) -> Features:
    """The same for the images that could be read; which ones is not kept."""
    dataset = {**meta_part(part, "dataset"), "num_unreadable": num}
    return Features(part.features[num:], None, None, {**part.meta, "dataset": dataset})
