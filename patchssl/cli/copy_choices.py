"""The options of `patchssl eval copydetect` that are its own, handed on as one frozen record."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from patchssl.evaluate.copies.score_normalisation import ScoreNormalisation

WHITENINGS = ("uncentred", "centred", "none")
QUERY_SETS = ("dev", "final")


@dataclass(frozen=True, kw_only=True, slots=True)
class CopyChoices:
    """What was chosen besides data, model and protocol.

    Attributes:
        query_features: a file of features.
        reference_features: the same.
        training_features: the same, or None.
        distractor_features: the same, or None.
        whitening_features: the same, or None.
        predictions: a CSV of scored pairs.
        ground_truth: a CSV of right pairs.
        query_set: of DISC21.
        tokens: of the descriptor; None for the protocol's.
        distractors: a folder of images.
        whitening: a folder of images.
        whitening_mode: None for the protocol's.
        k: None for the protocol's.
        score_normalisation: None for the protocol's.
        beta: None for 1.
        neighbours: places of the first and last neighbour; None for 0 and 2.
        per_query: a CSV to write.
    """

    query_features: Path | None
    reference_features: Path | None
    training_features: Path | None
    distractor_features: Path | None
    whitening_features: Path | None
    predictions: Path | None
    ground_truth: Path | None
    query_set: str | None
    tokens: str | None
    distractors: Path | None
    whitening: Path | None
    whitening_mode: str | None
    k: int | None
    score_normalisation: bool | None
    beta: float | None
    neighbours: tuple[int, int] | None
    per_query: Path | None

    def optional_features(self) -> dict[str, Path | None]:
        """Files of features by the part of the data that they are of."""
        return {
            "training": self.training_features,
            "distractors": self.distractor_features,
            "whitening": self.whitening_features,
        }

    def scoring(self) -> dict[str, Any]:
        """The options of `patchssl.evaluate.copydetect.evaluate`."""
        return {
            "k": self.k,
            "whitening": self.whitening_mode,
            "normalise_scores": self.score_normalisation,
            "normalisation": self._normalisation(),
        }

    def _normalisation(self) -> "ScoreNormalisation | None":
        from patchssl.evaluate.copies.score_normalisation import ScoreNormalisation

        given: dict[str, Any] = {} if self.beta is None else {"beta": self.beta}
        if self.neighbours is not None:
            given |= {"first": self.neighbours[0], "last": self.neighbours[1]}
        return ScoreNormalisation(**given) if given else None


def _range(context: click.Context, option: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """Turn `0,2` into (0, 2)."""
    if value is None:
        return None
    try:
        first, last = (int(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is no pair of places such as 0,2", context, option) from None
    if not 0 <= first <= last:
        raise click.BadParameter(f"{value!r}: needed are 0 <= first <= last", context, option)
    return first, last


def _file(name: str, text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option(name, type=click.Path(path_type=Path), metavar="FILE", help=text)


def _folder(name: str, text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option(name, type=click.Path(path_type=Path), metavar="DIR", help=text)


def copy_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options; a command takes them as `**chosen: Any` and makes a `CopyChoices` of them."""
    options = (
        _file("--query-features", "An .npz with features and ids of the queries, instead of DATA and --model."),
        _file("--reference-features", "The same of the references."),
        _file("--training-features", "The same of training images, for normalised scores and whitening."),
        _file("--distractor-features", "The same of further images for the database."),
        _file("--whitening-features", "The same of images to learn the whitening from; also besides DATA and --model."),
        _file("--ground-truth", "A CSV with query,reference, perhaps block; an empty reference is no match."),
        _file("--predictions", "A CSV with query,reference,score, instead of features."),
        click.option(
            "--query-set",
            type=click.Choice(QUERY_SETS),
            show_default="the one that is there, dev of both",
            help="Queries of a DISC21 folder.",
        ),
        click.option(
            "--tokens", metavar="TOKENS", show_default="cls+gem", help="Descriptor: cls, mean, gem, joined by +."
        ),
        _folder("--distractors", "Images that are added to the references; none may be a query or a reference."),
        _folder("--whitening", "Images to learn the whitening from; without, training images of DATA serve."),
        click.option(
            "--whitening-mode",
            type=click.Choice(WHITENINGS),
            show_default="as --protocol says",
            help="uncentred: as DINO's script, of the second moment; centred: PCA whitening.",
        ),
        click.option(
            "--k",
            type=click.IntRange(min=1),
            metavar="K",
            show_default="20 for dino and generic, 100 for sscd, 10 for disc21",
            help="References that count for each query; later ones count as not found.",
        ),
        click.option(
            "--score-normalisation/--no-score-normalisation",
            default=None,
            show_default="as --protocol says, where there are training images",
            help="Take from a query's scores what its nearest training images score.",
        ),
        click.option(
            "--beta",
            type=click.FloatRange(min=0),
            metavar="B",
            show_default="1",
            help="Weight of what is taken from scores.",
        ),
        click.option(
            "--neighbours",
            callback=_range,
            metavar="A,B",
            show_default="0,2",
            help="Places, from 0, of the nearest training images whose mean is taken.",
        ),
        _file("--per-query", "Write a CSV of query, block, AP and rank of the first right reference."),
    )
    for option in reversed(options):
        function = option(function)
    return function
