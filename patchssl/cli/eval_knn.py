"""`patchssl eval knn`."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from patchssl.cli.bundles import (
    OF_IMAGES,
    ComputeOptions,
    ModelOptions,
    compute_options,
    features_are_given,
    model_options,
)
from patchssl.cli.features import compute_features
from patchssl.cli.logs import configure_logging
from patchssl.cli.options import format_option, no_record_option, quiet_option, results_option, seed_option
from patchssl.cli.output import print_row
from patchssl.cli.processes import evaluation_process, is_reporting

if TYPE_CHECKING:
    from patchssl.data.images import ImageSource
    from patchssl.evaluate.features import Features
    from patchssl.evaluate.outcomes import Scored

LEAVE_ONE_OUT, FEW_SHOT = "leave-one-out", "few-shot"
PROTOCOLS = ("dino", "dinov2", LEAVE_ONE_OUT, FEW_SHOT)


def _counts(context: click.Context, option: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    """Turn `10,20` into (10, 20)."""
    if value is None:
        return None
    try:
        counts = tuple(int(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is no list of whole numbers such as 10,20", context, option) from None
    if min(counts) < 1:
        raise click.BadParameter(f"{value!r} holds {min(counts)}; each must be at least 1", context, option)
    return counts


@click.command()
@click.argument("data", required=False, type=click.Path(path_type=Path))
@click.option("--model", metavar="SPEC", help="RUN, FILE, timm:NAME or torchvision:NAME; see patchssl inspect.")
@click.option(
    "--train-features",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="An .npz with features and labels, instead of DATA and --model.",
)
@click.option("--test-features", type=click.Path(path_type=Path), metavar="FILE", help="The same for the test images.")
@click.option(
    "--protocol",
    type=click.Choice(PROTOCOLS),
    default="dino",
    show_default=True,
    help="dino: class token, shorter side resized bicubically, centre crop, cosine, votes exp(similarity / T). "
    "dinov2: the same with votes softmax(similarity / T) and classes from 0 to the largest label. leave-one-out: data "
    "without a test part, each image by all others. few-shot: few training images of each class, drawn several times.",
)
@click.option(
    "--k", "ks", callback=_counts, metavar="K,K,…", show_default="10,20,100,200", help="Neighbours that vote."
)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0, min_open=True),
    metavar="T",
    show_default="0.07",
    help="The lower, the more the nearest neighbours count.",
)
@click.option(
    "--shots",
    type=click.IntRange(min=1),
    metavar="N",
    show_default="16",
    help="few-shot: training images of each class; all of a class that has fewer.",
)
@click.option(
    "--draws",
    type=click.IntRange(min=1),
    metavar="N",
    show_default="5",
    help="few-shot: how often they are drawn, by --seed; the result is the mean.",
)
@model_options
@compute_options
@seed_option()
@results_option()
@no_record_option()
@format_option()
@quiet_option()
@click.pass_context
@evaluation_process()
def knn(
    context: click.Context,
    data: Path | None,
    model: str | None,
    train_features: Path | None,
    test_features: Path | None,
    protocol: str,
    ks: tuple[int, ...] | None,
    temperature: float | None,
    shots: int | None,
    draws: int | None,
    model_options: ModelOptions,
    compute: ComputeOptions,
    seed: int,
    results: Path,
    no_record: bool,
    output_format: str,
    quiet: bool,
) -> None:
    """Classify the test images of DATA by their nearest training images.

    DATA is an image folder with train/ and val/ (or test/), a CIFAR python folder, or a CSV file with the columns
    path, label and split. With leave-one-out it has no such parts: a folder with a folder per class, or a CSV file
    with the columns path and label.

    \b
    Examples:
      patchssl eval knn cifar10 --model runs/cifar10
      patchssl eval knn cifar10 --model runs/cifar10 --protocol few-shot --shots 5
      patchssl eval knn my-classes --model runs/cifar10 --protocol leave-one-out
      patchssl eval knn --train-features train.npz --test-features val.npz --k 20 --format json
    """  # noqa: D301 - the backslash is Click's mark for text that keeps its lines
    configure_logging(quiet=quiet)
    from_files = _check_usage(context, data, model, protocol)
    if model is not None:
        model_options.check(model)

    from patchssl.evaluate.outcomes import record

    start = time.perf_counter()
    if from_files:
        parts = _load(train_features, test_features)
    else:
        assert data is not None
        assert model is not None
        sources = _open(data, protocol, ks)
        backbone = model_options.load(model, device=compute.device, seed=seed)
        computed = compute_features(sources, backbone, ["cls"], compute=compute, quiet=quiet)
        if not is_reporting():
            return
        parts = [features["cls"] for features in computed.values()]
    scored = _score(
        protocol,
        parts,
        shots=shots,
        draws=draws,
        ks=ks,
        temperature=temperature,
        features_s=time.perf_counter() - start,
        device="cpu" if from_files else compute.device,
        seed=seed,
    )
    print_row(scored.row, output_format)
    if not no_record:
        record(results, scored)


def _check_usage(context: click.Context, data: object, model: object, protocol: str) -> bool:
    """Whether features come from files; refuses options that the protocol does not have."""
    if protocol != FEW_SHOT:
        useless = [f"--{name}" for name in ("shots", "draws") if context.params[name] is not None]
        if useless:
            raise click.UsageError(f"{' and '.join(useless)} change nothing but --protocol {FEW_SHOT}; leave them out")
    files = ["train_features", "test_features"]
    if protocol == LEAVE_ONE_OUT:
        files.pop()
        if context.params["test_features"] is not None:
            raise click.UsageError(f"--protocol {LEAVE_ONE_OUT} has no test part; give --train-features alone")
    return features_are_given(context, data, model, files, OF_IMAGES)


def _load(*files: Path | None) -> "list[Features]":
    from patchssl.evaluate.features import load_features

    return [load_features(file) for file in files if file is not None]


def _open(data: Path, protocol: str, ks: tuple[int, ...] | None) -> "dict[str, ImageSource]":
    """The parts of the data, after a look at whether there are enough images for each k."""
    from patchssl.data.sources import open_classes, open_labelled
    from patchssl.evaluate.neighbours import choose_ks

    # The reference protocol ignores EXIF orientation.
    if protocol == LEAVE_ONE_OUT:
        sources = {"labelled": open_classes(data, apply_exif=False)}
        num_voters = len(sources["labelled"]) - 1
    else:
        sources = open_labelled(data, apply_exif=False)
        num_voters = len(sources["train"])
    if ks is not None and protocol != FEW_SHOT:  # which clips them
        choose_ks(ks, (), num_voters)
    return sources


def _score(protocol: str, parts: "list[Features]", *, shots: int | None, draws: int | None, **options: Any) -> "Scored":
    from patchssl.evaluate import few_shot, knn, leave_one_out

    if protocol == LEAVE_ONE_OUT:
        return leave_one_out.score(*parts, **options)
    if protocol == FEW_SHOT:
        return few_shot.score(*parts, shots=shots, draws=draws, **options)
    return knn.score(*parts, protocol=protocol, **options)
