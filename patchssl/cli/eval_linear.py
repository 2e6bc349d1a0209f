"""`patchssl eval linear`."""

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
from patchssl.cli.image_progress import image_progress
from patchssl.cli.logs import configure_logging
from patchssl.cli.options import format_option, no_record_option, quiet_option, results_option, seed_option
from patchssl.cli.output import print_row
from patchssl.cli.processes import evaluation_process, is_reporting

if TYPE_CHECKING:
    from patchssl.evaluate.outcomes import Scored

# The options of protocols, under the names that they have on the command line.
_FLAGS = {
    "blocks": "--blocks",
    "avgpool": "--avgpool",
    "epochs": "--epochs",
    "iterations": "--iterations",
    "learning_rates": "--learning-rate",
    "train_batch_size": "--train-batch-size",
    "val_fraction": "--val-fraction",
}


def _rates(context: click.Context, option: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    """Turn `1e-3,1e-2` into (0.001, 0.01)."""
    if value is None:
        return None
    try:
        rates = tuple(float(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is no list of numbers such as 1e-3,1e-2", context, option) from None
    if not all(0 < rate < float("inf") for rate in rates):
        raise click.BadParameter(f"{value!r}: each rate must be above 0", context, option)
    return rates


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
    type=click.Choice(["dino", "dinov2", "logistic"]),
    show_default="dino; logistic for features from files",
    help="dino: SGD on augmented images, a forward pass for each in every epoch. dinov2: a sweep of heads by SGD on "
    "features computed once. logistic: logistic regression on features computed once.",
)
@click.option(
    "--blocks",
    type=click.IntRange(min=1),
    metavar="N",
    show_default="dino: by width; dinov2: the better of 1 and 4; logistic: 1",
    help="Class tokens of the last N blocks.",
)
@click.option(
    "--avgpool/--no-avgpool",
    default=None,
    show_default="dino: by width; dinov2: the better of both; logistic: no",
    help="Whether to add the mean of the last block's patches.",
)
@click.option(
    "--epochs", type=click.IntRange(min=1), metavar="N", show_default="100", help="dino: passes through the images."
)
@click.option(
    "--iterations", type=click.IntRange(min=1), metavar="N", show_default="12500", help="dinov2: steps of training."
)
@click.option(
    "--learning-rate",
    "learning_rates",
    callback=_rates,
    metavar="R[,R…]",
    show_default="dino: 1e-3; dinov2: 13 from 1e-5 to 0.1",
    help="For 256 images in a batch, scaled to the batch; dinov2 compares several.",
)
@click.option(
    "--train-batch-size",
    type=click.IntRange(min=1),
    metavar="N",
    show_default="dino: 1024; dinov2: 128",
    help="Images in a step of training.",
)
@click.option(
    "--val-fraction",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    metavar="F",
    show_default="0.1",
    help="dinov2, logistic: fraction of the training images, held out to choose by.",
)
@click.option(
    "--checkpoint",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="dino: save to it after every epoch, go on from it if it is there, remove it in the end.",
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
def linear(
    context: click.Context,
    /,
    data: Path | None,
    model: str | None,
    train_features: Path | None,
    test_features: Path | None,
    protocol: str | None,
    checkpoint: Path | None,
    model_options: ModelOptions,
    compute: ComputeOptions,
    seed: int,
    results: Path,
    no_record: bool,
    output_format: str,
    quiet: bool,
    **options: Any,
) -> None:
    """Train a linear classifier on the frozen backbone's features of DATA, and test it.

    DATA is an image folder with train/ and val/ (or test/), a CIFAR python folder, or a CSV file with the columns
    path, label and split. What is chosen is chosen on held-out training images, never on test images.

    \b
    Examples:
      patchssl eval linear cifar10 --model runs/cifar10 --protocol logistic
      patchssl eval linear cifar10 --model runs/cifar10 --protocol dino --checkpoint probe.pt
      patchssl eval linear --train-features train.npz --test-features val.npz --format json
    """  # noqa: D301 - the backslash is Click's mark for text that keeps its lines
    configure_logging(quiet=quiet)
    idle = ("blocks", "avgpool", *(name for name in OF_IMAGES if name != "device" or protocol != "dinov2"))
    from_files = features_are_given(context, data, model, ("train_features", "test_features"), idle)
    protocol = protocol or ("logistic" if from_files else "dino")
    if model is not None:
        model_options.check(model)
    _check_options(protocol, options, checkpoint)

    from patchssl.evaluate.outcomes import record

    if from_files:
        assert train_features is not None
        assert test_features is not None
        device = compute.device if protocol == "dinov2" else "cpu"
        scored = _score_files(train_features, test_features, protocol, options, device=device, seed=seed)
    else:
        assert data is not None
        assert model is not None
        found = _score_model(
            data, model, protocol, options, model_options, compute, seed=seed, checkpoint=checkpoint, quiet=quiet
        )
        if found is None:
            return
        scored = found
    print_row(scored.row, output_format)
    if not no_record:
        record(results, scored)
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)


def _check_options(protocol: str, options: dict[str, Any], checkpoint: Path | None) -> None:
    """Refuse options that have no effect in a protocol, before anything is read."""
    from patchssl.evaluate.probes.protocols import PROTOCOLS, foreign_option

    foreign = foreign_option(protocol, options)
    if foreign is not None:
        raise click.UsageError(f"{_FLAGS[foreign[0]]} is for --protocol {' or '.join(foreign[1])}, not {protocol}")
    if checkpoint is not None and not PROTOCOLS[protocol].needs_images:
        raise click.UsageError(f"--checkpoint is for --protocol dino, not {protocol}")
    if protocol == "dino" and len(options["learning_rates"] or ()) > 1:
        raise click.UsageError("--learning-rate takes one rate for --protocol dino, which trains one head")


def _score_files(
    train: Path, test: Path, protocol: str, options: dict[str, Any], *, device: str, seed: int
) -> "Scored":
    from patchssl.evaluate.features import load_features
    from patchssl.evaluate.linear import GIVEN, score

    start = time.perf_counter()
    parts = [{GIVEN: load_features(path)} for path in (train, test)]
    given = {name: value for name, value in options.items() if value is not None}
    seconds = time.perf_counter() - start
    return score(*parts, protocol=protocol, features_s=seconds, device=device, seed=seed, **given)


def _score_model(
    data: Path,
    model: str,
    protocol: str,
    options: dict[str, Any],
    model_options: ModelOptions,
    compute: ComputeOptions,
    *,
    seed: int,
    checkpoint: Path | None,
    quiet: bool,
) -> "Scored | None":
    """The result; None in the processes that only compute features for the one that reports."""
    from patchssl.data.sources import open_labelled
    from patchssl.evaluate.linear import PROTOCOLS, needed_tokens, score, score_images

    start = time.perf_counter()
    # The reference protocols ignore EXIF orientation.
    sources = open_labelled(data, apply_exif=False)
    backbone = model_options.load(model, device=compute.device, seed=seed)
    chosen = {name: options[name] for name in ("blocks", "avgpool")}
    tokens = needed_tokens(protocol, num_blocks=backbone.num_blocks, dim=backbone.dim, **chosen)
    on_crops = PROTOCOLS[protocol].needs_images
    wanted = {name: source for name, source in sources.items() if name == "test" or not on_crops}
    features = compute_features(wanted, backbone, tokens, compute=compute, quiet=quiet)
    if not is_reporting():
        return None
    seconds = time.perf_counter() - start
    given = {name: value for name, value in options.items() if value is not None}
    if not on_crops:
        return score(
            features["train"],
            features["test"],
            protocol=protocol,
            features_s=seconds,
            device=compute.device,
            seed=seed,
            **given,
        )
    num_epochs = given.get("epochs", PROTOCOLS[protocol].defaults["epochs"])
    total = num_epochs * len(sources["train"])
    with image_progress(f"training images in {num_epochs} epochs", total, quiet=quiet) as progress:
        return score_images(
            backbone,
            sources,
            features["test"],
            protocol=protocol,
            batch_size=compute.batch_size,
            num_workers=compute.workers,
            precision=compute.precision,
            max_bad_fraction=compute.max_bad_fraction,
            features_s=seconds,
            seed=seed,
            checkpoint=checkpoint,
            progress=progress,
            **given,
        )
