"""Logistic regression on features, its strength of regularisation chosen on held-out images.

As DINOv2 evaluates it (arXiv 2304.07193 §B.3, eval/log_regression.py): multinomial, L2 on the weights and none on the
intercept, raw features, C among 45 values from 1e-6 to 1e5. There cuML fits it, here scikit-learn's L-BFGS does; both
mean the same by C.
"""

import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

logger = logging.getLogger(__name__)

GRID: tuple[float, ...] = tuple(float(value) for value in 10 ** np.linspace(-6, 5, 45))
MAX_ITERATIONS = 1000

# Steps along the grid that the search takes, one after the other: a decade, half of one, and the next value.
_STRIDES = (4, 2, 1)


@dataclass(frozen=True, eq=False, slots=True)
class Classifier:
    """A fitted model.

    Attributes:
        weights: (D, C).
        intercepts: (C,).
        num_iterations: of L-BFGS.
        finished: whether it came to its tolerance before MAX_ITERATIONS.
    """

    weights: NDArray[np.float32]
    intercepts: NDArray[np.float32]
    num_iterations: int
    finished: bool

    def scores(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """(M, D) → (M, C) log-odds."""
        return features @ self.weights + self.intercepts


@dataclass(frozen=True, slots=True)
class Tried:
    """What a value of the grid gave on the held-out images.

    Attributes:
        c: the value.
        top1: accuracy.
        log_loss: mean negative log-probability of the true class.
        num_iterations: of L-BFGS.
    """

    c: float
    top1: float
    log_loss: float
    num_iterations: int


def fit(features: NDArray[np.float32], classes: NDArray[np.int64], c: float) -> Classifier:
    """Minimise C · Σ cross-entropy + ½ ‖W‖², the intercept free of penalty.

    The features are centred, which the free intercept makes up for, and divided by one number s, for which C · s²
    makes up: the same problem, on which L-BFGS takes half as many steps. Two classes have one set of weights W, that of
    their log-odds, as scikit-learn has it.

    Args:
        features: (M, D) finite.
        classes: (M,) in [0, C), each of them at least once, at least two.
        c: C.
    """
    mean = features.mean(axis=0, dtype=np.float64).astype(np.float32)
    centred = features - mean
    spread = float(np.sqrt(np.einsum("md,md->", centred, centred, dtype=np.float64) / centred.size))
    # Where all features are equal there is nothing to scale, and the intercept is all there is to learn.
    scale = spread if spread > 0 else 1.0
    centred /= np.float32(scale)
    model = LogisticRegression(C=c * scale**2, max_iter=MAX_ITERATIONS, solver="lbfgs")
    with warnings.catch_warnings():
        # Said by `finished`, for each value of the grid that is tried.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(centred, classes)
    weights, intercepts = model.coef_ / scale, model.intercept_  # (C, D), or (1, D) for two classes
    if len(weights) == 1:
        # Scikit-learn gives two classes one set of weights: the log-odds of the second.
        weights, intercepts = np.concatenate((-weights, weights)) / 2, np.concatenate((-intercepts, intercepts)) / 2
    num_iterations = int(np.max(model.n_iter_))
    return Classifier(
        weights.astype(np.float32).T,
        (intercepts - weights.astype(np.float64) @ mean.astype(np.float64)).astype(np.float32),
        num_iterations,
        num_iterations < MAX_ITERATIONS,
    )


def try_value(
    train: tuple[NDArray[np.float32], NDArray[np.int64]], held: tuple[NDArray[np.float32], NDArray[np.int64]], c: float
) -> Tried:
    """Fit one value of the grid and measure it on held-out images.

    Args:
        train: features (M, D) and classes (M,).
        held: the same of the held-out images.
        c: C.
    """
    model = fit(*train, c)
    scores = model.scores(held[0]).astype(np.float64)  # (m, C)
    scores -= scores.max(axis=1, keepdims=True)
    true = scores[np.arange(len(scores)), held[1]]
    log_loss = float(np.mean(np.log(np.exp(scores).sum(axis=1)) - true))
    return Tried(c, float(np.mean(scores.argmax(axis=1) == held[1])), log_loss, model.num_iterations)


def search(measure: Callable[[float], Tried], grid: Sequence[float] = GRID) -> tuple[Tried, list[Tried]]:
    """Find the value of a grid with the lowest held-out log-loss without trying all of them.

    First every fourth value is tried, from strong regularisation to weak, until the log-loss rises; then the neighbours
    of the best two steps away, then one. DINOv2 takes the value with the highest accuracy. Beyond the summit of the
    log-loss accuracy is a plateau, on which noise chooses, often a value so large that the fit hardly ends; log-loss
    has one summit, is less noisy, and its search ends there.

    Args:
        measure: what a value gives.
        grid: ascending.

    Returns:
        The best, the smallest of equal ones, and all that were tried, ascending.
    """
    tried: dict[int, Tried] = {}

    def best() -> int:
        return min(tried, key=lambda place: (tried[place].log_loss, place))

    for place in range(0, len(grid), _STRIDES[0]):
        tried[place] = measure(grid[place])
        if tried[place].log_loss > tried[best()].log_loss:
            break
    for stride in _STRIDES[1:]:
        centre = best()
        for place in (centre - stride, centre + stride):
            if 0 <= place < len(grid) and place not in tried:
                tried[place] = measure(grid[place])
    return tried[best()], [tried[place] for place in sorted(tried)]
