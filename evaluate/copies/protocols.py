"""The named protocols of copy detection, as far as they are values.

`dino` (arXiv 2104.14294 §4.2, eval_copy_detection.py): Copydays at 320 x 320 px, both sides resized; class token and
generalised mean of the patches side by side, whitened where there is a set to learn from, cosine; the first 20
references count, AP is trapezoidal, the mean is taken over each block of queries.
`sscd` (Pizzi et al., CVPR 2022, copydays_eval.py): Copydays with the shorter side at 288 px; unit descriptors with
centred whitening to 512 dimensions, the first 100 references count; besides the means, AP over the pairs of all queries
in one list, trapezoidal as there.
`disc21` (Douze et al., arXiv 2106.09672; SSCD's disc_eval.py): the same descriptors, the first 10 references of each
query in one list, rectangular AP, with normalised scores where there are training images.
`generic`: the features of `dino` for one's own queries and references, metrics of both kinds, and normalised scores.
"""

from dataclasses import dataclass
from typing import Any

from patchssl.errors import ConfigError

UNCENTRED, CENTRED, NONE = "uncentred", "centred", "none"
WHITENINGS = (UNCENTRED, CENTRED, NONE)


@dataclass(frozen=True, kw_only=True, slots=True)
class CopyMetrics:
    """What a protocol reports.

    Attributes:
        by_block: the mean AP of each block of queries.
        overall: the mean AP of all queries, `map`.
        recall_ks: recalls at these ranks.
        pooled: how AP over the pairs of all queries is taken, `rectangle` or `trapezoid`; None for not at all.
        headline: the metric to show first; None for the strong block's, or of the first family of blocks that is there.
    """

    by_block: bool = False
    overall: bool = False
    recall_ks: tuple[int, ...] = ()
    pooled: str | None = None
    headline: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class CopyProtocol:
    """The defaults that a named protocol sets.

    Attributes:
        name: of the protocol.
        fit: how images come to their size, as `patchssl.backbones.Preprocess` has it.
        image_px: the side that fit names.
        interpolation: of the resizing.
        k: references that count for each query.
        metrics: what is reported.
        layouts: of the data that it is for.
        tokens: of the descriptor.
        whitening: its kind, where there is a set to learn from.
        whitening_dim: most dimensions that it keeps.
        unit_before: whether features are L2-normalised before whitening, too.
        normalises_scores: whether scores are normalised where there are training images.
        recursive: whether images in folders below that of distractors, or of whitening, count.
    """

    name: str
    fit: str
    image_px: int
    interpolation: str = "bicubic"
    k: int
    metrics: CopyMetrics
    layouts: tuple[str, ...]
    tokens: str = "cls+gem"
    whitening: str = UNCENTRED
    whitening_dim: int | None = None
    unit_before: bool = False
    normalises_scores: bool = False
    recursive: bool = True


_SSCD: dict[str, Any] = {
    "fit": "short-side",
    "image_px": 288,
    "interpolation": "bilinear",
    "whitening": CENTRED,
    "whitening_dim": 512,
    "unit_before": True,
}
_FOLDERS = ("disc", "generic")

PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        CopyProtocol(
            name="dino",
            fit="squash",
            image_px=320,
            k=20,
            metrics=CopyMetrics(by_block=True),
            layouts=("copydays",),
            recursive=False,
        ),
        CopyProtocol(
            name="sscd", k=100, metrics=CopyMetrics(by_block=True, pooled="trapezoid"), layouts=("copydays",), **_SSCD
        ),
        CopyProtocol(
            name="disc21",
            k=10,
            metrics=CopyMetrics(recall_ks=(1, 10), pooled="rectangle", headline="micro_ap"),
            layouts=_FOLDERS,
            normalises_scores=True,
            **_SSCD,
        ),
        CopyProtocol(
            name="generic",
            fit="squash",
            image_px=320,
            k=20,
            metrics=CopyMetrics(overall=True, recall_ks=(1,), pooled="rectangle", headline="map"),
            layouts=_FOLDERS,
            normalises_scores=True,
        ),
    )
}


def protocol_for(layout: str, name: str | None = None) -> CopyProtocol:
    """The protocol of a name, or the first one for data of a layout.

    Raises:
        ConfigError: it is unknown, or for data of other layouts.
    """
    fitting = [protocol.name for protocol in PROTOCOLS.values() if layout in protocol.layouts]
    default = "generic" if layout == "generic" else fitting[0]
    chosen = named_protocol(default if name is None else name)
    if chosen.name not in fitting:
        raise ConfigError(
            f"--protocol {chosen.name} is for data of the layout {' or '.join(chosen.layouts)}, and these have the "
            f"layout {layout}; allowed: {', '.join(fitting)}"
        )
    return chosen


def named_protocol(name: str) -> CopyProtocol:
    """The protocol of a name.

    Raises:
        ConfigError: it is unknown.
    """
    if name not in PROTOCOLS:
        raise ConfigError(f"protocol {name!r} is unknown to copy detection; allowed: {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
