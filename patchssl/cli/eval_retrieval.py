"""`patchssl eval retrieval`."""

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from patchssl.cli.bundles import (
    OF_IMAGES,
    ComputeOptions,
    ModelOptions,
    compute_options,
    features_are_given,
    is_given,
    model_options,
)
from patchssl.cli.features import compute_features
from patchssl.cli.index_options import IndexOptions, index_options
from patchssl.cli.logs import configure_logging
from patchssl.cli.options import format_option, no_record_option, quiet_option, results_option, seed_option
from patchssl.cli.output import print_row
from patchssl.cli.processes import evaluation_process, is_reporting
from patchssl.cli.retrieval_options import CLASS, PLACES, RetrievalOptions, retrieval_options

if TYPE_CHECKING:
    from patchssl.backbones import Backbone
    from patchssl.data.images import ImageSource
    from patchssl.data.revisited_truth import RevisitedTruth
    from patchssl.evaluate.features import Features
    from patchssl.evaluate.outcomes import Scored

# What only the retrieval of places has.
_OF_PLACES = (
    "ground_truth",
    "multiscale",
    "crop_queries",
    "distractors",
    "distractor_features",
)


@click.command()
@click.argument("data", required=False, type=click.Path(path_type=Path))
@click.option("--model", metavar="SPEC", help="RUN, FILE, timm:NAME or torchvision:NAME; see patchssl inspect.")
@click.option(
    "--query-features",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="An .npz with features, and ids or labels, instead of DATA and --model.",
)
@click.option("--database-features", type=click.Path(path_type=Path), metavar="FILE", help="The same to search in.")
@click.option(
    "--ground-truth",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="gnd_NAME.pkl or .json to these features; without it their labels tell what is right.",
)
@retrieval_options
@index_options
@model_options
@compute_options
@seed_option()
@results_option()
@no_record_option()
@format_option()
@quiet_option()
@click.pass_context
@evaluation_process()
def retrieval(
    context: click.Context,
    data: Path | None,
    model: str | None,
    query_features: Path | None,
    database_features: Path | None,
    ground_truth: Path | None,
    retrieval_options: RetrievalOptions,
    index_options: IndexOptions,
    model_options: ModelOptions,
    compute: ComputeOptions,
    seed: int,
    results: Path,
    no_record: bool,
    output_format: str,
    quiet: bool,
) -> None:
    """Find the images that show the place, or are of the class, of each query.

    DATA is a folder of revisited Oxford or Paris (jpg/ and gnd_NAME.pkl or .json); or for classes a folder with
    query/ and gallery/, a folder with a folder per class, of which each image searches all others, or a CSV file with
    the columns path and label, perhaps split (query, gallery) and x1, y1, x2, y2, the box that is shown.

    For places --image-size is the longer side, which is only ever shrunk.

    \b
    Examples:
      patchssl eval retrieval roxford5k --model runs/a
      patchssl eval retrieval rparis6k --model runs/a --protocol dino --image-size 512 --multiscale
      patchssl eval retrieval my-classes --model runs/a
      patchssl eval retrieval --query-features q.npz --database-features d.npz --ground-truth gnd_roxford5k.pkl
    """  # noqa: D301 - the backslash is Click's mark for text that keeps its lines
    configure_logging(quiet=quiet)
    protocol = retrieval_options.protocol or _protocol_of(data, ground_truth)
    options = replace(retrieval_options, protocol=protocol)
    from_files = _check_usage(context, data, model, options, model_options)
    if model is not None:
        model_options.check(model)

    from patchssl.evaluate.outcomes import record

    start = time.perf_counter()
    if from_files:
        features, truth = _load(query_features, database_features, ground_truth, options)
    else:
        assert data is not None
        assert model is not None
        sources, truth = _open(data, options)
        backbone = _backbone(model, options, index_options, model_options, device=compute.device, seed=seed)
        computed = compute_features(sources, backbone, [options.tokens], compute=compute, quiet=quiet)
        if not is_reporting():
            return
        features = _with_distractors({part: found[options.tokens] for part, found in computed.items()}, options)
    scored = _score(
        features,
        truth,
        options,
        index_options,
        crop_queries=None if from_files or options.of_classes else _crops(options),
        features_s=time.perf_counter() - start,
        device="cpu" if from_files else compute.device,
        seed=seed,
    )
    if not no_record:
        record(results, scored)
    print_row(scored.row, output_format)


def _protocol_of(data: Path | None, ground_truth: Path | None) -> str:
    """The protocol that fits what is given."""
    if data is None:
        return CLASS if ground_truth is None else PLACES[0]
    from patchssl.data.revisited import is_revisited

    return PLACES[0] if is_revisited(data) else CLASS


def _check_usage(
    context: click.Context, data: object, model: object, options: RetrievalOptions, model_options: ModelOptions
) -> bool:
    """Whether features come from files; refuses options that the protocol does not have."""
    own_geometry = model_options.preprocess == "model"
    if options.of_classes:
        _refuse(context, _OF_PLACES, f"for --protocol {' or '.join(PLACES)}; {CLASS} has no such thing")
        alone = context.params["query_features"] is None
        files = ["database_features"] if alone else ["query_features", "database_features"]
    else:
        files = ["query_features", "database_features", "ground_truth"]
        if not own_geometry:
            _refuse(context, ("crop_fraction",), f"for {CLASS} and --preprocess model; {options.name} cuts no centre")
    if own_geometry:
        _refuse(context, ("multiscale",), "for --preprocess protocol; the model's own geometry has one scale")
    if options.distractors is not None and options.distractor_features is not None:
        raise click.UsageError("--distractors and --distractor-features are two ways to give the same; give one")
    return features_are_given(
        context, data, model, files, [*OF_IMAGES, "tokens", "multiscale", "crop_queries", "distractors"]
    )


def _refuse(context: click.Context, names: tuple[str, ...], reason: str) -> None:
    given = [f"--{name.replace('_', '-')}" for name in names if is_given(context, name)]
    if given:
        raise click.UsageError(f"{', '.join(given)} is {reason}; leave it out")


def _load(
    query_features: Path | None, database_features: Path | None, ground_truth: Path | None, options: RetrievalOptions
) -> "tuple[dict[str, Features], RevisitedTruth | None]":
    from patchssl.evaluate.features import load_features

    assert database_features is not None
    if options.of_classes:
        if query_features is None:
            return {"labelled": load_features(database_features)}, None
        return {"gallery": load_features(database_features), "queries": load_features(query_features)}, None
    assert query_features is not None
    assert ground_truth is not None
    from patchssl.data.revisited_truth import load_truth

    truth = load_truth(ground_truth)
    parts = {"database": load_features(database_features), "queries": load_features(query_features)}
    return _with_distractors(parts, options), truth


def _with_distractors(parts: "dict[str, Features]", options: RetrievalOptions) -> "dict[str, Features]":
    if options.distractor_features is None:
        return parts
    from patchssl.evaluate.features import load_features

    # The queries stay the last part, which is the one that is tested.
    return {"database": parts["database"], "distractors": load_features(options.distractor_features), **parts}


def _open(data: Path, options: RetrievalOptions) -> "tuple[Mapping[str, ImageSource], RevisitedTruth | None]":
    # No reference evaluation turns pictures upright.
    if options.of_classes:
        from patchssl.data.query_gallery import open_query_gallery

        return open_query_gallery(data, apply_exif=False).sources, None
    from patchssl.data.revisited import open_revisited

    opened = open_revisited(data, crop_queries=_crops(options), distractors=options.distractors, apply_exif=False)
    return opened.sources, opened.truth


def _crops(options: RetrievalOptions) -> bool:
    from patchssl.evaluate.retrieval import PROTOCOLS

    return PROTOCOLS[options.name].crop_queries if options.crop_queries is None else options.crop_queries


def _backbone(
    spec: str,
    options: RetrievalOptions,
    index_options: IndexOptions,
    model_options: ModelOptions,
    *,
    device: str,
    seed: int,
) -> "Backbone":
    from patchssl.errors import ConfigError
    from patchssl.evaluate.retrieval import prepare
    from patchssl.pooling import parse_tokens

    parts = parse_tokens(options.tokens)
    if parts[0].kind == "patches":
        raise ConfigError(
            "tokens 'patches' are no one vector for an image; allowed: cls, cls:N, mean, gem, joined by +"
        )
    if options.of_classes or model_options.preprocess == "model":
        backbone = model_options.load(spec, device=device, seed=seed)
    else:
        plain = replace(model_options, preprocess="model", image_size=None)
        backbone = prepare(
            plain.load(spec, device=device, seed=seed),
            options.name,
            image_size=model_options.image_size,
            multiscale=options.multiscale,
        )
    if all(part.kind == "cls" for part in parts):  # patches of a network of stages may have another width
        index_options.check(len(parts) * backbone.dim)
    return backbone


def _score(
    features: "Mapping[str, Features]",
    truth: "RevisitedTruth | None",
    options: RetrievalOptions,
    index_options: IndexOptions,
    *,
    crop_queries: bool | None,
    **about: Any,
) -> "Scored":
    from patchssl.evaluate.queries.tables import write_outcome_table, write_query_table

    if truth is None:
        from patchssl.evaluate import class_retrieval

        scored = class_retrieval.score(
            features,
            protocol=options.name,
            index=index_options.index,
            index_parameters=index_options.parameters,
            **about,
        )
        if options.per_query is not None:
            write_outcome_table(options.per_query, scored.outcomes)
        return scored
    from patchssl.evaluate.retrieval import score_with_ranks

    scored, ranked = score_with_ranks(
        features,
        truth,
        protocol=options.name,
        crop_queries=crop_queries,
        index=index_options.index,
        index_parameters=index_options.parameters,
        **about,
    )
    if options.per_query is not None:
        write_query_table(options.per_query, ranked, scored.outcomes.values)
    return scored
