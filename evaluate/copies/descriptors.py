"""Features of the parts of the data → the descriptors that are searched, whitened where that can be learned."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchssl.evaluate.copies.plan import WHITENING, CopyPlan
from patchssl.evaluate.copies.protocols import CENTRED
from patchssl.evaluate.copies.whitening import Whitening, fit
from patchssl.evaluate.features import Features
from patchssl.evaluate.search.index import normalise_rows

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False, slots=True)
class Descriptors:
    """What is searched.

    Attributes:
        parts: name → (m, d) float32; their cosines are what counts.
        settings: what a row says of how they were made.
    """

    parts: Mapping[str, NDArray[np.float32]]
    settings: Mapping[str, Any]


def make_descriptors(features: Mapping[str, Features], plan: CopyPlan) -> Descriptors:
    """Whiten, where there is a set to learn from.

    Args:
        features: the plan's parts, all of one width.
        plan: how.

    Raises:
        DataError: the set is too small, or its features are all the same.
    """
    # Of images to whiten by nothing but their statistics is needed.
    searched = {name: features[name].features for name in plan.parts if name != WHITENING}
    if plan.learned_from is None:
        if plan.lacks_whitening:
            logger.warning(
                "there are no images to learn a whitening from, so there is none, which changes the numbers "
                "(--whitening DIR names them; --whitening-mode none says that none is meant)"
            )
        return Descriptors(searched, {"whitening": plan.whitening})
    learned = features[plan.learned_from].features
    if plan.protocol.unit_before:
        searched = {name: normalise_rows(part) for name, part in searched.items()}
        learned = normalise_rows(learned)
    whitening = fit(learned, centred=plan.whitening == CENTRED, dim=plan.protocol.whitening_dim)
    _tell_narrow(whitening, learned.shape[1], plan)
    settings = {
        "whitening": plan.whitening,
        "whitening_dim": whitening.dim,
        "whitening_set": plan.learned_from,
        "whitening_images": whitening.num_images,
        "l2_before_whitening": plan.protocol.unit_before,
    }
    return Descriptors({name: whitening.apply(part) for name, part in searched.items()}, settings)


def _tell_narrow(whitening: Whitening, width: int, plan: CopyPlan) -> None:
    wanted = plan.protocol.whitening_dim
    if wanted is not None and whitening.dim < wanted:
        logger.warning(
            "whitening keeps %d dimensions instead of %d: features are %d wide, and %d images span at most %d",
            whitening.dim,
            wanted,
            width,
            whitening.num_images,
            whitening.num_images - 1,
        )
    elif whitening.num_images < width:
        logger.warning(
            "whitening is learned from %d images, fewer than the features are wide (%d); DINO takes 20,000",
            whitening.num_images,
            width,
        )
