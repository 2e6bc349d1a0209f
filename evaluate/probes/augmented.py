"""A linear head trained on augmented images, as DINO does it (arXiv 2104.14294 §F.2, eval_linear.py)."""

import logging
import pickle
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchssl.backbones import Backbone
from patchssl.checkpoint import written_whole
from patchssl.data.images import ImageSource
from patchssl.data.loader import BadImages, iterate
from patchssl.errors import CheckpointError, TrainingError
from patchssl.evaluate.extracting.forward import forward
from patchssl.evaluate.metrics import class_hits
from patchssl.evaluate.probes.crops import AugmentedCrops, Piece
from patchssl.evaluate.probes.sgd import Heads, converged, fresh_heads, head_scores, sgd_step
from patchssl.evaluate.results import canonical_hash
from patchssl.pooling import concatenate, parse_tokens
from patchssl.schedules import cosine

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """How the head is trained.

    Attributes:
        tokens: what it reads, as `patchssl.pooling.parse_tokens` has it.
        num_epochs: how often the images are gone through.
        batch_size: images in a step.
        learning_rate: of the first epoch, as SGD applies it.
        seed: of weights, order and augmentation.
    """

    tokens: str
    num_epochs: int
    batch_size: int
    learning_rate: float
    seed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Loading:
    """How images get to the backbone; it changes the outcome by rounding only.

    Attributes:
        batch_size: images in a forward pass.
        num_workers: processes that decode and crop.
        precision: of the forward pass, resolved.
        max_bad_fraction: unreadable images above this fraction are an error.
    """

    batch_size: int
    num_workers: int
    precision: str
    max_bad_fraction: float


@dataclass(slots=True)
class Probe:
    """A head and what became of it after each epoch.

    Attributes:
        head: a single one.
        hits: of the test images after the last epoch done.
        best_hits: after the epoch with the highest test accuracy, the first of equal ones.
        accuracies: on the test images after each epoch.
        num_unreadable: training images that were left out.
        seconds: spent on all epochs, those before an interruption included.
    """

    head: Heads
    hits: dict[str, NDArray[np.bool_]] = field(default_factory=dict)
    best_hits: dict[str, NDArray[np.bool_]] = field(default_factory=dict)
    accuracies: list[float] = field(default_factory=list)
    num_unreadable: int = 0
    seconds: float = 0.0


def train_on_crops(
    backbone: Backbone,
    source: ImageSource,
    targets: NDArray[np.int64],
    test: tuple[NDArray[np.float32], NDArray[np.int64]],
    recipe: Recipe,
    loading: Loading,
    *,
    num_classes: int,
    checkpoint: Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> Probe:
    """Train a head on crops that the frozen backbone sees anew in every epoch, and test it after each.

    The learning rate falls along half a cosine, epoch by epoch.

    Args:
        backbone: on the device to compute on.
        source: M training images.
        targets: (M,) in [0, C).
        test: features (Q, D) of `recipe.tokens` and targets (Q,), -1 for a class without training images.
        recipe: how the head is trained.
        loading: how images get to the backbone.
        num_classes: C.
        checkpoint: a file to save to after every epoch, and to go on from if it is there.
        progress: called with the number of images done since the last call.

    Raises:
        TrainingError: the head diverges.
        DataError: too many images are unreadable.
        CheckpointError: the checkpoint cannot be written, or is of another training.
    """
    width = test[0].shape[1]
    head = fresh_heads([(0, width)], [recipe.learning_rate], num_classes, seed=recipe.seed, device=backbone.device)
    probe, key = Probe(head), ""
    if checkpoint is not None:
        key = _key(backbone, source, recipe)
        _restore(probe, checkpoint, key)
        if progress is not None and probe.accuracies:
            progress(len(probe.accuracies) * len(source))
    crops = AugmentedCrops(
        source,
        side=backbone.preprocess.image_px,
        batch_size=recipe.batch_size,
        piece_size=loading.batch_size,
        num_epochs=recipe.num_epochs,
        seed=recipe.seed,
    )
    bad_images = BadImages(len(source), loading.max_bad_fraction)
    waiting: list[tuple[Tensor, Tensor]] = []
    start = time.perf_counter()
    for piece, features, indices in _features(backbone, crops, recipe, loading, bad_images, len(probe.accuracies)):
        waiting.append((features, torch.from_numpy(targets[indices]).to(features.device)))
        if piece.ends_batch:
            batch, batch_targets = (torch.cat(values) for values in zip(*waiting, strict=True))
            waiting.clear()
            if len(batch):
                factor = cosine(piece.epoch, base=1.0, final=0.0, num_steps=recipe.num_epochs)
                sgd_step(head, batch, batch_targets, factor=factor)
        if piece.ends_epoch:
            _test(probe, test, recipe)
            probe.num_unreadable = max(probe.num_unreadable, len(bad_images.reasons))
            probe.seconds, start = probe.seconds + time.perf_counter() - start, time.perf_counter()
            if checkpoint is not None:
                _save(probe, checkpoint, key)
        if progress is not None:
            progress(piece.end - piece.first)
    return probe


def _features(
    backbone: Backbone,
    crops: AugmentedCrops,
    recipe: Recipe,
    loading: Loading,
    bad_images: BadImages,
    num_epochs_done: int,
) -> Iterator[tuple[Piece, Tensor, NDArray[np.int64]]]:
    """Each piece with the features (b, D) of its readable images and their indices (b,)."""
    parts = parse_tokens(recipe.tokens)
    first_step = num_epochs_done * len(crops.bounds)
    pin_memory = backbone.device.type == "cuda"
    pieces = iterate(crops, first_step=first_step, workers=loading.num_workers, pin_memory=pin_memory)
    for step, (pixels, keys, bad) in enumerate(pieces, start=first_step):
        for error in bad_images.add(bad):
            logger.warning("left out %s", error)
        outputs = forward(backbone, pixels, parts, loading.precision)
        yield crops.piece(step), concatenate([outputs[part] for part in parts]), keys.index.numpy()


def _test(probe: Probe, test: tuple[NDArray[np.float32], NDArray[np.int64]], recipe: Recipe) -> None:
    if not converged(probe.head)[0]:
        raise TrainingError(
            f"the head's weights are not finite after epoch {len(probe.accuracies) + 1}: the learning rate "
            f"{recipe.learning_rate:g} is too high for these features; take a lower --learning-rate"
        )
    probe.hits = class_hits(head_scores(probe.head, 0, torch.from_numpy(test[0])), test[1])
    accuracy = float(probe.hits["top1"].mean())
    if accuracy > max(probe.accuracies, default=-1.0):
        probe.best_hits = probe.hits
    probe.accuracies.append(accuracy)


def _key(backbone: Backbone, source: ImageSource, recipe: Recipe) -> str:
    """What must be equal for a training to be continued."""
    return canonical_hash(
        {
            "weights": backbone.facts()["weights_sha256"],
            "image_px": backbone.preprocess.image_px,
            "data": source.fingerprint(),
            "recipe": [recipe.tokens, recipe.num_epochs, recipe.batch_size, recipe.learning_rate, recipe.seed],
        }
    )


def _tensors(head: Heads) -> tuple[Tensor, ...]:
    return (*head.weights, *head.weight_momenta, head.bias, head.bias_momentum)


def _save(probe: Probe, path: Path, key: str) -> None:
    content = {
        "key": key,
        "head": list(_tensors(probe.head)),
        "hits": {name: torch.from_numpy(hits) for name, hits in probe.hits.items()},
        "best_hits": {name: torch.from_numpy(hits) for name, hits in probe.best_hits.items()},
        "accuracies": probe.accuracies,
        "num_unreadable": probe.num_unreadable,
        "seconds": probe.seconds,
    }
    with written_whole(path, then="start again to go on from the epoch before") as file:
        torch.save(content, file)


def _restore(probe: Probe, path: Path, key: str) -> None:
    """Bring a probe to where a file left it, if there is one."""
    if not path.parent.is_dir():
        raise CheckpointError(f"there is no folder {path.parent} to save {path.name} in; make it or name another")
    if not path.exists():
        return
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, OSError, RuntimeError, EOFError, ValueError, KeyError, IndexError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path} cannot be read as the checkpoint of a linear probe: {reason}") from None
    if not isinstance(content, dict) or content.get("key") != key:
        raise CheckpointError(
            f"{path} is no checkpoint of this probe: it holds something else, or model, images, seed or settings were "
            "others; give another file, or remove it to begin anew"
        )
    for tensor, saved in zip(_tensors(probe.head), content["head"], strict=True):
        tensor.copy_(saved)
    probe.hits = {name: hits.numpy() for name, hits in content["hits"].items()}
    probe.best_hits = {name: hits.numpy() for name, hits in content["best_hits"].items()}
    probe.accuracies, probe.num_unreadable = content["accuracies"], content["num_unreadable"]
    probe.seconds = content["seconds"]
    logger.info("going on from %s: %d epochs are done", path, len(probe.accuracies))
