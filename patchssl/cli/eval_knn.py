"""`patchssl eval knn`."""

import time
from pathlib import Path

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
    type=click.Choice(["dino"]),
    default="dino",
    show_default=True,
    help="dino: class token, shorter side resized bicubically, centre crop, cosine, votes exp(similarity / T).",
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
@model_options
@compute_options
@seed_option()
@results_option()
@no_record_option()
@format_option()
@quiet_option()
@click.pass_context
def knn(
    context: click.Context,
    data: Path | None,
    model: str | None,
    train_features: Path | None,
    test_features: Path | None,
    protocol: str,
    ks: tuple[int, ...] | None,
    temperature: float | None,
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
    path, label and split.

    \b
    Examples:
      patchssl eval knn cifar10 --model runs/cifar10
      patchssl eval knn --train-features train.npz --test-features val.npz --k 20 --format json
    """  # noqa: D301 - the backslash is Click's mark for text that keeps its lines
    configure_logging(quiet=quiet)
    from_files = features_are_given(context, data, model, ("train_features", "test_features"), OF_IMAGES)
    if model is not None:
        model_options.check(model)

    from patchssl.evaluate.knn import choose_ks, score
    from patchssl.evaluate.results import record

    start = time.perf_counter()
    if from_files:
        from patchssl.evaluate.features import load_features

        assert train_features is not None
        assert test_features is not None
        train, test = load_features(train_features), load_features(test_features)
    else:
        from patchssl.data.sources import open_labelled

        assert data is not None
        assert model is not None
        # The reference protocol ignores EXIF orientation.
        sources = open_labelled(data, apply_exif=False)
        if ks is not None:
            choose_ks(ks, (), len(sources["train"]))
        backbone = model_options.load(model, device=compute.device, seed=seed)
        features = compute_features(sources, backbone, ["cls"], compute=compute, quiet=quiet)
        train, test = features["train"]["cls"], features["test"]["cls"]
    scored = score(
        train,
        test,
        protocol=protocol,
        ks=ks,
        temperature=temperature,
        features_s=time.perf_counter() - start,
        device="cpu" if from_files else compute.device,
        seed=seed,
    )
    print_row(scored.row, output_format)
    if not no_record:
        record(results, scored)
