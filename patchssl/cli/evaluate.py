"""`patchssl eval`."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from patchssl.cli.image_progress import image_progress
from patchssl.cli.logs import configure_logging
from patchssl.cli.options import (
    batch_size_option,
    device_option,
    format_option,
    no_record_option,
    precision_option,
    quiet_option,
    resolve_device,
    results_option,
    seed_option,
    workers_option,
)
from patchssl.cli.output import print_row

if TYPE_CHECKING:
    from patchssl.evaluate.features import Features

# What only matters when features are computed here.
_OF_MODELS = (
    "checkpoint_key",
    "image_size",
    "device",
    "precision",
    "workers",
    "batch_size",
    "max_bad_fraction",
)


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


@click.group()
def evaluate() -> None:
    """Evaluate a backbone, or features from a file."""


@evaluate.command()
@click.argument("data", required=False, type=click.Path(path_type=Path))
@click.option("--model", metavar="SPEC", help="RUN, FILE.pt, either with @random behind it, or timm:NAME@random.")
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
@click.option(
    "--image-size",
    type=click.IntRange(min=1),
    metavar="N",
    show_default="the model's",
    help="Side of the crop in pixels, a multiple of the patch.",
)
@click.option(
    "--checkpoint-key",
    type=click.Choice(["teacher", "student"]),
    default="teacher",
    show_default=True,
    help="Which network of a checkpoint of patchssl.",
)
@click.option(
    "--max-bad-fraction",
    type=click.FloatRange(0, 1),
    default=0.05,
    show_default=True,
    help="Unreadable images are left out and listed; above this fraction they are an error.",
)
@device_option()
@precision_option()
@workers_option()
@batch_size_option(default=64)
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
    image_size: int | None,
    checkpoint_key: str,
    max_bad_fraction: float,
    device: str,
    precision: str,
    workers: int,
    batch_size: int,
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
    from_files = _features_are_given(context, data, model, train_features, test_features)

    from patchssl.evaluate.knn import score
    from patchssl.evaluate.results import append_row

    start = time.perf_counter()
    if from_files:
        from patchssl.evaluate.features import load_features

        assert train_features is not None
        assert test_features is not None
        device = "cpu"
        train, test = load_features(train_features), load_features(test_features)
    else:
        assert data is not None
        assert model is not None
        device = resolve_device(device)
        train, test = compute_features(
            data,
            model,
            checkpoint_key=checkpoint_key,
            image_px=image_size,
            ks=ks,
            device=device,
            seed=seed,
            quiet=quiet,
            batch_size=batch_size,
            num_workers=workers,
            precision=precision,
            max_bad_fraction=max_bad_fraction,
        )
    row = score(
        train,
        test,
        protocol=protocol,
        ks=ks,
        temperature=temperature,
        features_s=time.perf_counter() - start,
        device=device,
        seed=seed,
    )
    print_row(row, output_format)
    if not no_record:
        append_row(results, row)


def _features_are_given(
    context: click.Context, data: Path | None, model: str | None, train: Path | None, test: Path | None
) -> bool:
    """Whether features come from files; refuses anything between that and DATA with --model."""
    if train is None and test is None:
        if data is None or model is None:
            raise click.UsageError("give DATA and --model, or --train-features and --test-features")
        if model.startswith("timm:") and _is_given(context, "checkpoint_key"):
            raise click.UsageError(f"--checkpoint-key is for checkpoints of patchssl; {model} has none")
        return False
    if train is None or test is None:
        raise click.UsageError("--train-features and --test-features belong together; give both")
    if data is not None or model is not None:
        raise click.UsageError("give either DATA and --model, or --train-features and --test-features, not both")
    idle = [f"--{name.replace('_', '-')}" for name in _OF_MODELS if _is_given(context, name)]
    if idle:
        raise click.UsageError(f"{', '.join(idle)} change nothing about features from files; leave them out")
    return True


def _is_given(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) is not ParameterSource.DEFAULT


def compute_features(
    data: Path,
    model: str,
    *,
    checkpoint_key: str,
    image_px: int | None,
    ks: tuple[int, ...] | None,
    device: str,
    seed: int,
    quiet: bool,
    **settings: Any,
) -> tuple["Features", "Features"]:
    """The features of the training and the test images of DATA, with progress."""
    from patchssl.backbones import load_backbone
    from patchssl.data.sources import open_labelled
    from patchssl.evaluate.extraction import extract
    from patchssl.evaluate.knn import choose_ks

    # The reference protocol ignores EXIF orientation.
    sources = open_labelled(data, apply_exif=False)
    if ks is not None:
        choose_ks(ks, (), len(sources["train"]))
    backbone = load_backbone(model, checkpoint_key=checkpoint_key, device=device, seed=seed)
    if image_px is not None:
        backbone = backbone.at_size(image_px)
    features = {}
    for part, told in (("train", "training images"), ("test", "test images")):
        with image_progress(told, len(sources[part]), quiet=quiet) as progress:
            features[part] = extract(backbone, sources[part], progress=progress, **settings).features
    return features["train"], features["test"]
