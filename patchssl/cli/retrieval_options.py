"""The options of `eval retrieval`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from patchssl.cli.bundles import bundle

CLASS = "class"
PLACES = ("official", "dino")
TOKENS = "cls"


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrievalOptions:
    """What is particular to this evaluation.

    Attributes:
        protocol: `official`, `dino` or `class`; None for the one that fits the data.
        tokens: what the descriptor is.
        multiscale: three scales or one; None for the protocol's.
        crop_queries: whether queries are cut to their boxes; None for the protocol's, or where nobody knows.
        distractors: a folder of further images.
        distractor_features: the same as features.
        per_query: a file for the outcome of every query.
    """

    protocol: str | None
    tokens: str
    multiscale: bool | None
    crop_queries: bool | None
    distractors: Path | None
    distractor_features: Path | None
    per_query: Path | None

    @property
    def name(self) -> str:
        """The protocol, once it is known."""
        assert self.protocol is not None
        return self.protocol

    @property
    def of_classes(self) -> bool:
        """Whether labels tell what is right."""
        return self.name == CLASS


def retrieval_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """How is searched for what; passed as `retrieval_options: RetrievalOptions`."""
    file = click.Path(dir_okay=False, path_type=Path)
    options = (
        click.option(
            "--protocol",
            type=click.Choice([*PLACES, CLASS]),
            show_default="official where DATA has a ground truth, else class",
            help="official: revisited Oxford and Paris; every query is cut to its box first, the longer side shrunk to "
            "224 px, class token, the whole database ranked by cosine. dino: the same with whole queries. class: "
            "images of the query's class are right; shorter side resized bicubically, centre crop.",
        ),
        click.option(
            "--tokens", default=TOKENS, show_default=True, metavar="T", help="cls, cls:N, mean, gem, joined by +."
        ),
        click.option(
            "--multiscale/--no-multiscale",
            default=None,
            show_default="no",
            help="official, dino: mean descriptor of the image at its size, at 0.71 and at 0.5 of it.",
        ),
        click.option(
            "--crop-queries/--no-crop-queries",
            default=None,
            show_default="as the protocol says",
            help="official, dino: cut every query to its box before anything else.",
        ),
        click.option(
            "--distractors",
            type=click.Path(file_okay=False, path_type=Path),
            metavar="DIR",
            help="official, dino: further images to rank, none of which is right, such as R1M.",
        ),
        click.option("--distractor-features", type=file, metavar="FILE", help="The same as an .npz of features."),
        click.option(
            "--per-query",
            type=file,
            callback=_in_a_folder,
            metavar="FILE",
            help="Write the outcome of every query to a CSV file.",
        ),
    )
    return bundle(function, options, "retrieval_options", RetrievalOptions)


def _in_a_folder(context: click.Context, option: click.Parameter, value: Path | None) -> Path | None:
    if value is not None and not value.absolute().parent.is_dir():
        raise click.BadParameter(f"there is no folder {value.absolute().parent}", context, option)
    return value
