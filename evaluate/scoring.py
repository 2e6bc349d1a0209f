"""What every evaluation ends with: outcomes of each image → metrics with intervals → a row."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchssl.environment import environment
from patchssl.evaluate.features import Features, dataset_of, meta_part, model_of
from patchssl.evaluate.metrics import TOP_N, bootstrap_interval
from patchssl.evaluate.outcomes import Outcomes, Scored
from patchssl.evaluate.results import NOT_COMPARED, Metric, Row, comparability, now


def make_row(
    *,
    task: str,
    protocol: str,
    parts: Mapping[str, Features],
    values: Mapping[str, NDArray[Any]],
    headline: str,
    meaning: Mapping[str, Any],
    settings: Mapping[str, Any],
    seconds: Mapping[str, float],
    device: str,
    seed: int,
    details: Mapping[str, Any] | None = None,
    intervals: Mapping[str, tuple[float, float]] | None = None,
    whole: Mapping[str, Metric] | None = None,
) -> Scored:
    """Put a row together.

    Args:
        task: of the row.
        protocol: of the row.
        parts: the features by the name of the part of the data, for instance `train` and `test`; the last are those
            that were tested, the first those that were learned from, which may be the same. Model, data and
            preprocessing are read from their `meta`.
        values: (Q,) outcome of every test image for each metric; NaN where an image does not count.
        headline: the metric to show first.
        meaning: settings of the protocol that change what the numbers mean.
        settings: further settings, which do not.
        seconds: `features` and `evaluate`.
        device: where the features were computed.
        seed: of the bootstrap and of fresh weights.
        details: what else to keep; `chance` is added, what guessing gives for each metric where that is known.
        intervals: 95 % intervals of metrics where the bootstrap over the images is not the right one.
        whole: metrics that are no mean over images; they have no outcomes.
    """
    test = list(parts.values())[-1]
    dataset = dataset_of(parts)
    guess = chance(values, dataset["num_classes"])
    features = meta_part(test, "settings")
    compared = {name: value for name, value in features.items() if name not in NOT_COMPARED}
    row = Row(
        task=task,
        protocol=protocol,
        dataset=dataset,
        model=model_of(list(parts.values())),
        settings={**features, **meaning, **settings},
        metrics={
            **{name: _metric(outcomes, seed, (intervals or {}).get(name)) for name, outcomes in values.items()},
            **(whole or {}),
        },
        headline=headline,
        seconds={name: round(value, 3) for name, value in seconds.items()},
        environment=environment(device),
        seed=seed,
        created=now(),
        comparability=comparability(
            task=task,
            protocol=protocol,
            fingerprint=dataset["fingerprint"],
            settings={**compared, **meaning, "headline": headline, "splits": dataset["splits"]},
        ),
        details={**({"chance": guess} if guess else {}), **_stored(parts), **(details or {})},
    )
    return Scored(row, Outcomes(test.ids, values))


def chance(metrics: Iterable[str], num_classes: int) -> dict[str, float]:
    """What a uniform guess among the training classes gives, for metrics named `top1…` and `top5…`.

    Args:
        metrics: names; of `top5@kK` the first min(5, K) classes count, as in the metric itself.
        num_classes: C.
    """
    guesses = {}
    for name in metrics:
        kind, _, k = name.partition("@k")
        num_named = {"top1": 1, f"top{TOP_N}": TOP_N}.get(kind)
        if num_named is not None and num_classes:
            num_named = min(num_named, int(k)) if k else num_named
            guesses[name] = min(num_named, num_classes) / num_classes
    return guesses


def _stored(parts: Mapping[str, Features]) -> dict[str, Any]:
    """How many images' features were read instead of computed, which `seconds` does not count."""
    found = {name: part.meta.get("num_stored") for name, part in parts.items()}
    return {} if None in found.values() else {"num_stored": found}


def _metric(values: NDArray[Any], seed: int, interval: tuple[float, float] | None) -> Metric:
    counted = values[~np.isnan(values)] if values.dtype.kind == "f" else values
    low, high = bootstrap_interval(counted, seed=seed) if interval is None else interval
    return Metric(value=float(counted.mean()), ci95_low=low, ci95_high=high, num=len(counted))
