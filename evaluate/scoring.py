"""What every evaluation ends with: outcomes of each image → metrics with intervals → a row."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchssl.environment import environment
from patchssl.evaluate.features import Features, dataset_of, meta_part, model_of
from patchssl.evaluate.metrics import bootstrap_interval
from patchssl.evaluate.results import Metric, Outcomes, Row, Scored, comparability, now

# Settings that change a number by rounding only, or belong to the model that is compared.
_ROUNDING_OR_MODEL = {"precision", "pooling", "mean", "std", "checkpoint_key"}


def make_row(
    *,
    task: str,
    protocol: str,
    train: Features,
    test: Features,
    values: Mapping[str, NDArray[Any]],
    headline: str,
    meaning: Mapping[str, Any],
    settings: Mapping[str, Any],
    seconds: Mapping[str, float],
    device: str,
    seed: int,
    details: Mapping[str, Any] | None = None,
) -> Scored:
    """Put a row together.

    Args:
        task: of the row.
        protocol: of the row.
        train: the features that were learned from; model, data and preprocessing are read from their `meta`.
        test: the features that were tested.
        values: (Q,) outcome of every test image for each metric; NaN where an image does not count.
        headline: the metric to show first.
        meaning: settings of the protocol that change what the numbers mean.
        settings: further settings, which do not.
        seconds: `features` and `evaluate`.
        device: where the features were computed.
        seed: of the bootstrap and of fresh weights.
        details: what else to keep.
    """
    dataset = dataset_of(train, test)
    features = meta_part(test, "settings")
    compared = {name: value for name, value in features.items() if name not in _ROUNDING_OR_MODEL}
    row = Row(
        task=task,
        protocol=protocol,
        dataset=dataset,
        model=model_of(train, test),
        settings={**features, **meaning, **settings},
        metrics={name: _metric(outcomes, seed) for name, outcomes in values.items()},
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
        details={**_stored(train, test), **(details or {})},
    )
    return Scored(row, Outcomes(test.ids, values))


def _stored(train: Features, test: Features) -> dict[str, Any]:
    """How many images' features were read instead of computed, which `seconds` does not count."""
    found = {name: part.meta.get("num_stored") for name, part in (("train", train), ("test", test))}
    return {} if None in found.values() else {"num_stored": found}


def _metric(values: NDArray[Any], seed: int) -> Metric:
    counted = values[~np.isnan(values)] if values.dtype.kind == "f" else values
    low, high = bootstrap_interval(counted, seed=seed)
    return Metric(value=float(counted.mean()), ci95_low=low, ci95_high=high, num=len(counted))
