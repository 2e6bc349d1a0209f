"""Whether two models differ: the same test images resampled for both."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchssl.errors import DataError
from patchssl.evaluate.metrics import bootstrap_means, percentile_interval
from patchssl.evaluate.outcomes import Outcomes
from patchssl.evaluate.results import Metric, Row

LEVEL = 0.95
_STANDARD_ERRORS = 1.959963984540054  # from the mean to either end of a 95 % interval of a normal distribution
_AGREEMENT = 1e-6
_ROUNDING = 1e-12
_CHUNK_VALUES = 4_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """How much better the first of two models is.

    Attributes:
        value: first minus second, in the metric's unit; a fraction.
        ci95_low: lower end of its 95 % interval.
        ci95_high: its upper end.
        p_value: two-sided.
        num: test images that counted for both; None where the images were not paired.
        unpaired: why they were not paired; None where they were.
        num_draws: draws of training images that the interval allows for besides; None where there was one set.
    """

    value: float
    ci95_low: float
    ci95_high: float
    p_value: float
    num: int | None
    unpaired: str | None = None
    num_draws: int | None = None

    @property
    def separable(self) -> bool:
        """Whether the interval leaves out 0 and the p-value is below 5 %.

        Both, because the bootstrap is too sure where the models differ in a handful of images.
        """
        return (self.ci95_low > 0 or self.ci95_high < 0) and self.p_value < 1 - LEVEL


def paired_difference(
    a: NDArray[Any], b: NDArray[Any], *, seed: int, num_resamples: int = 2000, level: float = LEVEL
) -> Difference:
    """Difference of two means over the same test images, with the percentile interval of the paired bootstrap.

    Images are drawn with replacement, each with both of its outcomes (Efron and Tibshirani, 1993, chapters 8 and 13).
    Only the difference of an image's two outcomes matters to the difference of the means, so a resample is drawn as
    how often each distinct difference occurs in it. The p-value is that of the randomisation test for pairs (Fisher,
    1935, §21), for hits and misses McNemar's exact test: the share of exchanges of the two models, by a coin for each
    image, that give at least as large a difference. Exchanging `a` and `b` changes the sign and nothing else.

    Args:
        a: (Q,) outcomes of the first model; NaN where an image does not count.
        b: (Q,) outcomes of the second on the same images in the same order.
        seed: of the resampling.
        num_resamples: how many differences the percentiles are taken of.
        level: probability between the ends.

    Raises:
        DataError: the lengths differ, no image counts for both, or an outcome is infinite.
    """
    if a.shape != b.shape or a.ndim != 1:
        raise DataError(f"outcomes of {a.shape} and {b.shape} images cannot be paired; both must be of the same images")
    differences = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    differences = differences[~(np.isnan(a) | np.isnan(b))]
    if not len(differences):
        raise DataError(f"none of {len(a)} images counts for both models; there is nothing to compare")
    mean = float(differences.mean())
    sign = _orientation(differences, mean)
    means = bootstrap_means(sign * differences, seed=seed, num_resamples=num_resamples)
    low, high = percentile_interval(means, level=level)
    ends = (low, high) if sign > 0 else (-high, -low)
    return Difference(
        # Adding 0 turns -0.0 into 0.0.
        value=mean + 0.0,
        ci95_low=ends[0] + 0.0,
        ci95_high=ends[1] + 0.0,
        p_value=_exchange_p(differences, seed=seed, num_exchanges=num_resamples),
        num=len(differences),
    )


def _orientation(differences: NDArray[np.float64], mean: float) -> int:
    """1 or -1, the opposite for negated differences: resampling one of the two orders serves both."""
    signs = differences[differences != 0]
    deciding = mean or (signs[0] if len(signs) else 1.0)
    return 1 if deciding > 0 else -1


def _exchange_p(differences: NDArray[np.float64], *, seed: int, num_exchanges: int) -> float:
    """Two-sided p-value under random signs, drawn as how many of each distinct size are positive."""
    sizes, counts = np.unique(np.abs(differences[differences != 0]), return_counts=True)
    if not len(sizes):
        return 1.0
    generator = np.random.default_rng([seed, 1])
    observed = abs(float(differences.sum()))
    rows = max(1, _CHUNK_VALUES // len(sizes))
    beyond = 0
    for start in range(0, num_exchanges, rows):
        positive = generator.binomial(counts, 0.5, size=(min(rows, num_exchanges - start), len(sizes)))
        sums = (2 * positive - counts) @ sizes
        # What is equal but for rounding counts as equal.
        beyond += int(np.count_nonzero(np.abs(sums) >= observed - _ROUNDING * len(differences)))
    return (1 + beyond) / (1 + num_exchanges)


def unpaired_difference(a: Metric, b: Metric, *, reason: str) -> Difference:
    """Difference of two metrics by their intervals alone, as if they came from different images.

    Both are taken for normal, with a standard error of a 3.92nd of the 95 % interval. For models that were tested on
    the same images that is too wide as a rule, because what is difficult for both counts twice.

    Args:
        a: of the first model.
        b: of the second.
        reason: why the images are not paired.
    """
    value = a.value - b.value
    widths = [(metric.ci95_high - metric.ci95_low) / 2 for metric in (a, b)]
    half = math.hypot(*widths)
    return Difference(
        value=value,
        ci95_low=value - half,
        ci95_high=value + half,
        p_value=_normal_p(value, half),
        num=None,
        unpaired=reason,
    )


def _normal_p(value: float, half: float) -> float:
    """Two-sided p-value of a normal difference whose 95 % interval reaches `half` to either side."""
    return math.erfc(abs(value) / half * _STANDARD_ERRORS / math.sqrt(2)) if half else float(value == 0)


def over_draws(difference: Difference, a: NDArray[np.float64], b: NDArray[np.float64], *, shared: bool) -> Difference:
    """Widen a difference over test images by how much it varies with the training images that were drawn.

    Both are taken for independent and normal, so that their standard errors add as squares.

    Args:
        difference: of means over the draws, resampled over images alone.
        a: (R,) values of the first model in each draw.
        b: (R,) those of the second.
        shared: whether draw r took the same images for both.
    """
    if shared:
        variance = float(np.var(a - b, ddof=1)) / len(a)
    else:
        variance = float(np.var(a, ddof=1)) / len(a) + float(np.var(b, ddof=1)) / len(b)
    half = _STANDARD_ERRORS * math.sqrt(variance)
    below = math.hypot(difference.value - difference.ci95_low, half)
    above = math.hypot(difference.ci95_high - difference.value, half)
    return replace(
        difference,
        ci95_low=difference.value - below,
        ci95_high=difference.value + above,
        p_value=max(difference.p_value, _normal_p(difference.value, below if difference.value > 0 else above)),
        num_draws=len(a),
    )


def compare(
    a: Row, b: Row, outcomes: tuple[Outcomes | None, Outcomes | None], *, seed: int, num_resamples: int = 2000
) -> dict[str, Difference]:
    """Compare two rows in every metric that both have, image by image where both have outcomes.

    Args:
        a: the first row.
        b: the second, of equal comparability.
        outcomes: of both.
        seed: of the resampling.
        num_resamples: as in `paired_difference`.

    Raises:
        DataError: the rows may not be compared.
    """
    if a.comparability != b.comparability:
        raise DataError(f"rows {a.id} and {b.id} are of unequal comparability; their numbers mean different things")
    return {
        name: compare_metric(a, b, name, outcomes, seed=seed, num_resamples=num_resamples)
        for name in a.metrics
        if name in b.metrics
    }


def compare_metric(
    a: Row,
    b: Row,
    name: str,
    outcomes: tuple[Outcomes | None, Outcomes | None],
    *,
    seed: int,
    num_resamples: int = 2000,
) -> Difference:
    """Compare two rows in one metric, as `compare` does.

    Rows of several draws of training images tell in `details["draws"]` what each draw gave; those of one seed share
    their draws.
    """
    pair = _pair(a, b, name, outcomes)
    if isinstance(pair, str):
        return unpaired_difference(a.metrics[name], b.metrics[name], reason=pair)
    difference = paired_difference(*pair, seed=seed, num_resamples=num_resamples)
    draws = _draws(a, name), _draws(b, name)
    if draws[0] is None or draws[1] is None or len(draws[0]) != len(draws[1]):
        return difference
    return over_draws(difference, draws[0], draws[1], shared=a.seed == b.seed)


def _draws(row: Row, name: str) -> NDArray[np.float64] | None:
    """(R,) values of a metric in each of R > 1 draws of training images; None where the row tells of none."""
    draws = row.details.get("draws")
    values = draws.get(name) if isinstance(draws, Mapping) else None
    if not isinstance(values, Sequence) or len(values) < 2 or not all(isinstance(v, int | float) for v in values):
        return None
    return np.asarray(values, dtype=np.float64)


def _pair(
    a: Row, b: Row, name: str, outcomes: tuple[Outcomes | None, Outcomes | None]
) -> tuple[NDArray[Any], NDArray[Any]] | str:
    """(Q,) outcomes of the same images in both rows, or why there are none."""
    first, second = outcomes
    for row, kept in ((a, first), (b, second)):
        if kept is None:
            return f"no outcomes of each image were kept of row {row.id}"
        if name not in kept.values:
            return f"{name} of row {row.id} is not a mean over images"
        if not _agree(kept.values[name], row.metrics[name]):
            return f"the outcomes kept of row {row.id} do not give its {name}"
    assert first is not None
    assert second is not None
    places = aligned(first, second)
    if isinstance(places, str):
        return places
    pair = first.values[name][places[0]], second.values[name][places[1]]
    return pair if (~(np.isnan(pair[0]) | np.isnan(pair[1]))).any() else "no image counts for both"


def _agree(values: NDArray[Any], metric: Metric) -> bool:
    counted = values[~np.isnan(values)]
    return len(counted) == metric.num and bool(abs(counted.mean() - metric.value) < _AGREEMENT)


def aligned(a: Outcomes, b: Outcomes) -> tuple[NDArray[np.intp], NDArray[np.intp]] | str:
    """Find the test images that two rows share.

    By name where both have names; else by position, which needs equal lengths.

    Returns:
        (P,) places in each of the two, of the same images; or why there are none.
    """
    sizes = [_num_images(outcomes.values) for outcomes in (a, b)]
    if a.ids is not None and b.ids is not None and not np.array_equal(a.ids, b.ids):
        if len(np.unique(a.ids)) < len(a.ids) or len(np.unique(b.ids)) < len(b.ids):
            return "some images have the same name"
        shared, first, second = np.intersect1d(a.ids, b.ids, assume_unique=True, return_indices=True)
        return (first, second) if len(shared) else "no image has the same name in both"
    if sizes[0] != sizes[1]:
        return f"{sizes[0]:,} and {sizes[1]:,} images without names cannot be told to be the same"
    return np.arange(sizes[0]), np.arange(sizes[0])


def _num_images(values: Mapping[str, NDArray[Any]]) -> int:
    return len(next(iter(values.values()))) if values else 0
