"""Linear probes on features that were computed once: what is chosen is chosen on held-out training images."""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchssl.errors import TrainingError
from patchssl.evaluate.checks import Targets
from patchssl.evaluate.features import Features
from patchssl.evaluate.metrics import class_hits
from patchssl.evaluate.probes.holdout import hold_out
from patchssl.evaluate.probes.logistic import GRID, MAX_ITERATIONS, fit, search, try_value
from patchssl.evaluate.probes.protocols import scaled_rate
from patchssl.evaluate.probes.sgd import (
    Heads,
    converged,
    count_correct,
    fresh_heads,
    head_scores,
    mean_losses,
    train_heads,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False, slots=True)
class Outcome:
    """What a probe gives.

    Attributes:
        values: for each metric (Q,) whether a test image is hit.
        meaning: settings that change what the numbers mean.
        details: what was chosen and how, and which metrics were chosen by test accuracy.
    """

    values: Mapping[str, NDArray[np.bool_]]
    meaning: Mapping[str, Any]
    details: Mapping[str, Any]


def sweep(
    train: Features,
    test: Features,
    targets: Targets,
    sets: Mapping[str, tuple[int, int]],
    options: Mapping[str, Any],
    *,
    device: str,
    seed: int,
) -> Outcome:
    """Train a head for each set of features and learning rate, and choose one on held-out images.

    A head that diverges is left out. Of equal accuracies the one with the lowest log-loss is taken: on few images many
    heads are equally right, and those with hardly any training would come first.

    Args:
        train: (M, D).
        test: (Q, D).
        targets: of both.
        sets: name → first and end of the columns of a set of features.
        options: as settled for `dinov2`.
        device: where to train.
        seed: of split, weights and order.

    Raises:
        TrainingError: all heads diverge.
    """
    held = hold_out(targets.train, options["val_fraction"], seed=seed)
    features, classes = _tensors(train, targets.train)
    heads = _trained(features, classes, np.flatnonzero(~held), len(targets.classes), sets, options, device, seed)
    named = [{"tokens": name, "learning_rate": rate} for name in sets for rate in options["learning_rates"]]
    rows = torch.from_numpy(held)
    losses = mean_losses(heads, features[rows], classes[rows])
    # Weights may be finite and so large that a loss is not.
    finite = converged(heads) & np.isfinite(losses)
    held_out = np.where(finite, count_correct(heads, features[rows], classes[rows]) / held.sum(), -1.0)
    test_features, test_targets = _tensors(test, targets.test)
    on_test = np.where(finite, count_correct(heads, test_features, test_targets), -1)
    chosen, best_on_test = int(np.lexsort((losses, -held_out))[0]), int(on_test.argmax())
    best_hits = class_hits(head_scores(heads, best_on_test, test_features), targets.test)
    values = class_hits(head_scores(heads, chosen, test_features), targets.test)
    return Outcome(
        {**values, "top1_best_head_on_test": best_hits["top1"]},
        options,
        {
            "chosen": named[chosen],
            "best_head_on_test": named[best_on_test],
            "held_out": [
                {**name, "top1": float(value), "log_loss": float(loss)} if is_finite else {**name, "top1": None}
                for name, value, loss, is_finite in zip(named, held_out, losses, finite, strict=True)
            ],
            "num_held_out": int(held.sum()),
            "num_diverged": int(np.count_nonzero(~finite)),
            "test_selected": ["top1_best_head_on_test"],
        },
    )


def _trained(
    features: Tensor,
    classes: Tensor,
    rows: NDArray[np.int64],
    num_classes: int,
    sets: Mapping[str, tuple[int, int]],
    options: Mapping[str, Any],
    device: str,
    seed: int,
) -> Heads:
    rates, batch_size = options["learning_rates"], options["train_batch_size"]
    scaled = [scaled_rate(rate, batch_size) for rate in rates]
    heads = fresh_heads(list(sets.values()), scaled, num_classes, seed=seed, device=device)
    train_heads(
        heads, features, classes, rows=rows, num_iterations=options["iterations"], batch_size=batch_size, seed=seed
    )
    num_diverged = int(np.count_nonzero(~converged(heads)))
    if num_diverged == len(heads):
        raise TrainingError(
            f"all {len(heads)} heads diverged at learning rates {min(rates):g} to {max(rates):g}; take lower ones "
            "with --learning-rate"
        )
    if num_diverged:
        logger.warning("%d of %d heads diverged and are left out", num_diverged, len(heads))
    return heads


def _tensors(part: Features, targets: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    # Features that are mapped from a file cannot be written, of which torch warns.
    features = np.require(part.features, requirements=["C", "A", "W"])
    return torch.from_numpy(features), torch.from_numpy(targets)


def regress(train: Features, test: Features, targets: Targets, options: Mapping[str, Any], *, seed: int) -> Outcome:
    """Choose C on held-out images and fit once more on all.

    Args:
        train: (M, D).
        test: (Q, D).
        targets: of both.
        options: as settled for `logistic`.
        seed: of the split.
    """
    held = hold_out(targets.train, options["val_fraction"], seed=seed)
    kept, left_out = ((train.features[rows], targets.train[rows]) for rows in (~held, held))
    best, tried = search(lambda c: try_value(kept, left_out, c))
    model = fit(train.features, targets.train, best.c)
    if not model.finished:
        logger.warning(
            "logistic regression with C = %g stopped after %d iterations, before it came to rest",
            best.c,
            MAX_ITERATIONS,
        )
    return Outcome(
        class_hits(model.scores(test.features), targets.test),
        {
            **options,
            "penalty": f"L2, C one of {len(GRID)} from {GRID[0]:g} to {GRID[-1]:g}",
            "solver": f"lbfgs, float32, at most {MAX_ITERATIONS} iterations",
        },
        {
            "chosen": {"c": best.c},
            "held_out": [asdict(value) for value in tried],
            "num_held_out": int(held.sum()),
            "num_iterations": model.num_iterations,
            "test_selected": [],
        },
    )
