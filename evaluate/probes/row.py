"""What came of a linear probe → a row."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from patchssl.evaluate.features import Features, meta_part
from patchssl.evaluate.outcomes import Scored
from patchssl.evaluate.probes.cached import Outcome
from patchssl.evaluate.probes.protocols import find_protocol
from patchssl.evaluate.scoring import make_row

#: In the place of a choice of tokens: features from a file, taken whole, whatever they are of.
GIVEN = "given"


def make_linear_row(
    protocol: str,
    train: Features,
    test: Features,
    outcome: Outcome,
    *,
    tokens: str,
    chosen: bool,
    num_unknown: int,
    seconds: Mapping[str, float],
    device: str,
    seed: int,
) -> Scored:
    """Put a row together.

    Which tokens a protocol reads differs with the width and depth of the backbone; rows of several backbones remain
    comparable as long as it was the protocol's choice.

    Args:
        protocol: a key of PROTOCOLS.
        train: what was learned from.
        test: what was tested.
        outcome: of each test image.
        tokens: what the features are of, or GIVEN.
        chosen: whether someone else than the protocol chose them.
        num_unknown: test images of classes without training images.
        seconds: `features` and `evaluate`.
        device: where features were computed.
        seed: of the intervals and of fresh weights.
    """
    about = find_protocol(protocol)
    settings = meta_part(test, "settings")
    meaning = {
        "features": about.features,
        "augmentation": about.augmentation,
        "selection": about.selection,
        **outcome.meaning,
    }
    told: dict[str, Any] = {"num_unknown_class": num_unknown}
    if tokens == GIVEN:
        meaning["features"] = "from files"
    else:
        settings.pop("token", None)
        told["tokens"] = tokens
        if chosen:
            meaning["features"] = tokens
    return make_row(
        task="linear",
        protocol=protocol,
        parts={"train": train, "test": replace(test, meta={**test.meta, "settings": settings})},
        values=outcome.values,
        headline="top1",
        meaning={name: list(value) if isinstance(value, tuple) else value for name, value in meaning.items()},
        settings=told,
        seconds=seconds,
        device=device,
        seed=seed,
        details=outcome.details,
    )
