"""`patchssl eval copydetect`."""

import time
from collections.abc import Mapping, Sequence
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
from patchssl.cli.copy_choices import CopyChoices, copy_options
from patchssl.cli.features import compute_features
from patchssl.cli.index_options import IndexOptions, index_options
from patchssl.cli.logs import configure_logging
from patchssl.cli.options import format_option, no_record_option, quiet_option, results_option, seed_option
from patchssl.cli.output import print_row
from patchssl.cli.processes import evaluation_process, is_reporting

if TYPE_CHECKING:
    from patchssl.backbones import Backbone
    from patchssl.evaluate.copies.row import CopyResult

PROTOCOLS = ("dino", "sscd", "disc21", "generic")
_FEATURES = ("query_features", "reference_features", "ground_truth")
_OF_DATA = ("query_set", "tokens", "distractors", "whitening")
# What a search is made with, which predictions come after.
_OF_FEATURES = (
    "query_features",
    "reference_features",
    "training_features",
    "distractor_features",
    "whitening_features",
    "whitening_mode",
    "score_normalisation",
    "beta",
    "neighbours",
    "index",
    "index_parameters",
)


@click.command()
@click.argument("data", required=False, type=click.Path(path_type=Path))
@click.option("--model", metavar="SPEC", help="RUN, FILE, timm:NAME or torchvision:NAME; see patchssl inspect.")
@click.option(
    "--protocol",
    type=click.Choice(PROTOCOLS),
    show_default="dino for Copydays, disc21 for DISC21, else generic",
    help="dino: both sides 320 px, the first 20 references, mean AP of each block. sscd: shorter side 288 px, centred "
    "whitening to 512 dimensions, the first 100, and AP over all pairs. disc21: the same images, the first 10, AP over "
    "all pairs of normalised scores. generic: the features of dino, metrics of both kinds.",
)
@copy_options
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
def copydetect(
    context: click.Context,
    /,
    data: Path | None,
    model: str | None,
    protocol: str | None,
    index_options: IndexOptions,
    model_options: ModelOptions,
    compute: ComputeOptions,
    seed: int,
    results: Path,
    no_record: bool,
    output_format: str,
    quiet: bool,
    **chosen: Any,
) -> None:
    """Find the images that the queries of DATA were made from.

    DATA is a Copydays folder (original/ strong/ jpegqual/Q/ crops/P/) of any size, a DISC21 folder (references/
    dev_queries/ training/ dev_queries_groundtruth.csv), or a folder with queries/, references/, perhaps distractors/
    and training/, and groundtruth.csv with query,reference.

    \b
    Examples:
      patchssl eval copydetect copydays --model runs/imagenet1k
      patchssl eval copydetect copydays --model timm:NAME --whitening yfcc20k --distractors yfcc10k
      patchssl eval copydetect disc21 --model runs/imagenet1k --per-query ranks.csv
      patchssl eval copydetect --query-features q.npz --reference-features r.npz --ground-truth gt.csv
      patchssl eval copydetect --predictions p.csv --ground-truth gt.csv --format json
    """  # noqa: D301 - the backslash is Click's mark for text that keeps its lines
    configure_logging(quiet=quiet)
    choices = CopyChoices(**chosen)
    from_files = _check_usage(context, data, model, choices, model_options)

    from patchssl.evaluate.copies.row import make_copy_row, write_per_query
    from patchssl.evaluate.outcomes import record

    start = time.perf_counter()
    options = {
        **choices.scoring(),
        "index": index_options.index,
        "index_parameters": index_options.parameters,
        "seed": seed,
    }
    if choices.predictions is not None:
        result = _of_predictions(choices, protocol)
    elif from_files:
        result = _of_features(choices, protocol, options)
    else:
        assert data is not None
        assert model is not None
        found = _of_images(data, model, protocol, choices, options, model_options, compute, quiet=quiet)
        if found is None:
            return
        result = found
    features_s = time.perf_counter() - start - result.evaluate_s
    device = "cpu" if from_files else compute.device
    scored = make_copy_row(result, features_s=features_s, device=device, seed=seed)
    if choices.per_query is not None:
        write_per_query(choices.per_query, result)
    print_row(scored.row, output_format)
    if not no_record:
        record(results, scored)


def _check_usage(
    context: click.Context, data: object, model: str | None, choices: CopyChoices, options: ModelOptions
) -> bool:
    """Whether features or predictions come from files; refuses options that change nothing."""
    if choices.per_query is not None and not choices.per_query.absolute().parent.is_dir():
        raise click.UsageError(f"--per-query {choices.per_query}: there is no folder {choices.per_query.parent}")
    if choices.predictions is not None:
        _check_predictions(context, data, model)
        return True
    if choices.query_features is None and choices.reference_features is None:
        useless = [
            name
            for name in ("ground_truth", "training_features", "distractor_features")
            if context.params[name] is not None
        ]
        if useless and data is not None:
            raise click.UsageError(f"{_flags(useless)} go with features from files; DATA holds its own ground truth")
    if features_are_given(context, data, model, _FEATURES, (*OF_IMAGES, *_OF_DATA)):
        return True
    assert model is not None
    if choices.whitening is not None and choices.whitening_features is not None:
        raise click.UsageError("--whitening and --whitening-features are two sets of the same kind; give one of them")
    if options.preprocess == "protocol" and options.crop_fraction is not None:
        raise click.UsageError(
            "--crop-fraction changes nothing where whole images are resized; take --preprocess model"
        )
    options.check(model)
    return False


def _check_predictions(context: click.Context, data: object, model: object) -> None:
    if context.params["ground_truth"] is None:
        raise click.UsageError("--predictions and --ground-truth belong together; give both")
    if data is not None or model is not None:
        raise click.UsageError("give either DATA and --model, or --predictions and --ground-truth, not both")
    idle = [name for name in (*_OF_FEATURES, *OF_IMAGES, *_OF_DATA) if is_given(context, name)]
    if idle:
        raise click.UsageError(f"{_flags(idle)} change nothing about predictions from a file; leave them out")
    if not is_reporting():
        context.exit(0)  # there is nothing to share


def _flags(names: Sequence[str]) -> str:
    return ", ".join(f"--{name.replace('_', '-')}" for name in names)


def _protocol_of_file(blocks: Mapping[str, str], protocol: str | None) -> str:
    """A ground truth with blocks is scored as Copydays is, one without as queries of one's own."""
    from patchssl.evaluate.copies.protocols import protocol_for

    return protocol_for("copydays" if blocks else "generic", protocol).name


def _of_predictions(choices: CopyChoices, protocol: str | None) -> "CopyResult":
    from patchssl.data.groundtruth import read_groundtruth, read_predictions
    from patchssl.evaluate.copies.predictions import evaluate_predictions

    assert choices.predictions is not None
    assert choices.ground_truth is not None
    pairs = read_groundtruth(choices.ground_truth)
    chosen = _protocol_of_file(pairs.blocks, protocol)
    return evaluate_predictions(read_predictions(choices.predictions), pairs, protocol=chosen, k=choices.k)


def _of_features(choices: CopyChoices, protocol: str | None, options: Mapping[str, Any]) -> "CopyResult":
    from patchssl.data.groundtruth import make_truth, read_groundtruth
    from patchssl.errors import DataError
    from patchssl.evaluate.copydetect import evaluate
    from patchssl.evaluate.features import load_features

    assert choices.query_features is not None
    assert choices.reference_features is not None
    assert choices.ground_truth is not None
    pairs = read_groundtruth(choices.ground_truth)
    chosen = _protocol_of_file(pairs.blocks, protocol)
    files = {"references": choices.reference_features, "queries": choices.query_features}
    files |= {part: file for part, file in choices.optional_features().items() if file is not None}
    features = {part: load_features(file) for part, file in files.items()}
    ids = {}
    for part in ("queries", "references"):
        named = features[part].ids
        if named is None:
            raise DataError(f"{files[part]} holds no array `ids`; the ground truth names images by them")
        ids[part] = [str(image) for image in named]
    truth, names = make_truth(pairs, ids["queries"], ids["references"])
    return evaluate(features, truth, protocol=chosen, told={"names": names}, **options)


def _of_images(
    path: Path,
    model: str,
    protocol: str | None,
    choices: CopyChoices,
    options: Mapping[str, Any],
    model_options: ModelOptions,
    compute: ComputeOptions,
    *,
    quiet: bool,
) -> "CopyResult | None":
    """The result; None in processes that do not report."""
    from patchssl.data.copy_data import layout_of, open_copies
    from patchssl.evaluate.copies.plan import make_plan
    from patchssl.evaluate.copies.protocols import protocol_for
    from patchssl.evaluate.copydetect import evaluate
    from patchssl.evaluate.features import load_features
    from patchssl.evaluate.search.factory import check_factory
    from patchssl.pooling import parse_tokens

    chosen = protocol_for(layout_of(path), protocol)
    data = open_copies(
        path,
        query_set=choices.query_set,
        distractors=choices.distractors,
        whitening=choices.whitening,
        recursive=chosen.recursive,
    )
    whitening = choices.whitening_features
    loaded = {} if whitening is None else {"whitening": load_features(whitening)}
    # Whatever cannot be done is told before hours of computing.
    plan = make_plan(chosen.name, {*data.sources, *loaded}, **choices.scoring())
    tokens = choices.tokens or chosen.tokens
    parts = parse_tokens(tokens)
    if any(part.kind == "patches" for part in parts):
        raise click.UsageError("--tokens patches is no descriptor of an image; take mean or gem of them")
    backbone = _backbone(model, chosen.name, model_options, compute, options["seed"])
    # Patches of a network of stages may have another width than its pooled feature, and whitening another than both.
    if plan.learned_from is None and backbone.num_blocks > 1:
        check_factory(options["index"], len(parts) * backbone.dim, options["index_parameters"])
    sources = {part: source for part, source in data.sources.items() if part in plan.parts}
    computed = compute_features(sources, backbone, [tokens], compute=compute, quiet=quiet)
    if not is_reporting():
        return None
    features = {part: found[tokens] for part, found in computed.items()}
    return evaluate(features | loaded, data.truth, protocol=chosen.name, told=data.told, **options)


def _backbone(model: str, protocol: str, options: ModelOptions, compute: ComputeOptions, seed: int) -> "Backbone":
    """The backbone in the protocol's geometry, or its own."""
    from patchssl.evaluate.copydetect import prepare

    if options.preprocess == "model":
        return options.load(model, device=compute.device, seed=seed)
    plain = replace(options, preprocess="model", image_size=None)
    backbone = plain.load(model, device=compute.device, seed=seed)
    return prepare(backbone, protocol, image_size=options.image_size)
