"""A protocol of copy detection, what its user chose besides, and the parts of the data → what is done."""

from collections.abc import Collection
from dataclasses import dataclass

from patchssl.errors import ConfigError, DataError
from patchssl.evaluate.copies.protocols import NONE, WHITENINGS, CopyProtocol, named_protocol
from patchssl.evaluate.copies.score_normalisation import ScoreNormalisation

REFERENCES, DISTRACTORS, TRAINING, WHITENING, QUERIES = "references", "distractors", "training", "whitening", "queries"


@dataclass(frozen=True, kw_only=True, slots=True)
class CopyPlan:
    """What is done with features.

    Attributes:
        protocol: the named one.
        k: references that count for each query.
        whitening: `uncentred`, `centred` or `none`.
        learned_from: the part that the whitening is learned from, or None.
        normalisation: how scores are normalised, or None.
        parts: those that are needed, queries last.
        lacks_whitening: whether the protocol whitens and there is nothing to learn it from.
    """

    protocol: CopyProtocol
    k: int
    whitening: str
    learned_from: str | None
    normalisation: ScoreNormalisation | None
    parts: tuple[str, ...]
    lacks_whitening: bool


def make_plan(
    protocol: str,
    parts: Collection[str],
    *,
    k: int | None = None,
    whitening: str | None = None,
    normalise_scores: bool | None = None,
    normalisation: ScoreNormalisation | None = None,
) -> CopyPlan:
    """Decide what is done, before anything is computed.

    Args:
        protocol: which sets what is None below.
        parts: `references`, `queries`, and perhaps `distractors`, `training` and `whitening`. Whitening is learned from
            the last, or else from the training images.
        k: references that count for each query.
        whitening: `uncentred`, `centred` or `none`.
        normalise_scores: take from scores what a query's nearest training images score.
        normalisation: how; of None as SSCD does.

    Raises:
        ConfigError: an option is out of range, changes nothing, or needs a part that is not there.
        DataError: there are no references or no queries.
    """
    chosen = named_protocol(protocol)
    missing = [part for part in (REFERENCES, QUERIES) if part not in parts]
    if missing:
        raise DataError(f"there are no {' and no '.join(missing)}; copy detection needs both")
    if k is not None and k < 1:
        raise ConfigError(f"k is {k}; it must be at least 1")
    normaliser = _normaliser(chosen, parts, normalise_scores, normalisation)
    mode = chosen.whitening if whitening is None else whitening
    learned_from = _whitening_set(parts, mode, is_asked=whitening is not None)
    needed = {REFERENCES, DISTRACTORS, QUERIES, learned_from, None if normaliser is None else TRAINING}
    return CopyPlan(
        protocol=chosen,
        k=chosen.k if k is None else k,
        whitening=NONE if learned_from is None else mode,
        learned_from=learned_from,
        normalisation=normaliser,
        parts=tuple(
            part for part in (REFERENCES, DISTRACTORS, TRAINING, WHITENING, QUERIES) if part in parts and part in needed
        ),
        lacks_whitening=mode != NONE and learned_from is None,
    )


def _whitening_set(parts: Collection[str], mode: str, *, is_asked: bool) -> str | None:
    if mode not in WHITENINGS:
        raise ConfigError(f"whitening {mode!r} is unknown; allowed: {', '.join(WHITENINGS)}")
    if mode == NONE:
        if WHITENING in parts:
            raise ConfigError(
                "whitening images are given, and whitening is none, so they change nothing; leave one out"
            )
        return None
    source = next((part for part in (WHITENING, TRAINING) if part in parts), None)
    if source is None and is_asked:
        raise ConfigError(
            f"whitening {mode} needs images to learn from; name them (--whitening DIR or --whitening-features FILE), "
            "or take --whitening-mode none"
        )
    return source


def _normaliser(
    protocol: CopyProtocol,
    parts: Collection[str],
    is_asked: bool | None,
    normalisation: ScoreNormalisation | None,
) -> ScoreNormalisation | None:
    """How scores are normalised, or None."""
    is_default = is_asked is None and protocol.normalises_scores and TRAINING in parts
    if not (is_asked or is_default):
        if normalisation is not None:
            raise ConfigError(
                "scores are not normalised here, so beta and the range of neighbours change nothing; leave them out, "
                "or give training images and take --score-normalisation"
            )
        return None
    if protocol.metrics.pooled is None:
        raise ConfigError(
            f"--protocol {protocol.name} compares no scores between queries, so normalising them changes nothing; "
            "leave it out"
        )
    if TRAINING not in parts:
        raise ConfigError(
            "normalised scores need training images (training/ in DATA, or --training-features); without them take "
            "--no-score-normalisation"
        )
    return normalisation or ScoreNormalisation()
