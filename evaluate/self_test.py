"""Whether a backbone can be evaluated: checks of its forward pass, and every task on 20 drawn images."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from patchssl.backbones import Backbone
from patchssl.data.boxed import BoxedSource
from patchssl.data.copy_truth import CopyTruth
from patchssl.data.images import ArraySource, ImageSource
from patchssl.data.revisited_truth import RevisitedTruth
from patchssl.data.synth.classes import CLASSES, ClassImage, class_images, draw_class_image
from patchssl.errors import ConfigError
from patchssl.evaluate.extraction import extract
from patchssl.evaluate.features import Features
from patchssl.evaluate.suite import Setting, run_suite
from patchssl.evaluate.suites.config import SuiteConfig
from patchssl.evaluate.suites.plan import Failure, plan
from patchssl.evaluate.suites.structs import Compute, Needs, Opened, Sources
from patchssl.evaluate.suites.tasks import data_key_of

OK, FAILED, REFUSED = "ok", "failed", "refused"
NUM_IMAGES = 20
_SIDE_PX = 128
_ROUNDING = 1e-4
_DATA = "drawn"
_TASKS = (
    {"task": "knn", "k": 3},
    {"task": "knn", "protocol": "leave-one-out", "k": 3},
    {"task": "linear", "protocol": "dino", "epochs": 1},
    {"task": "linear", "protocol": "dinov2", "iterations": 10},
    {"task": "linear", "protocol": "logistic"},
    {"task": "copydetect", "protocol": "generic"},
    {"task": "retrieval", "protocol": "official"},
    {"task": "retrieval", "protocol": "class"},
    {"task": "correspondence", "views": 1},
)


@dataclass(frozen=True, slots=True)
class Check:
    """One check and what came of it.

    Attributes:
        name: what was checked.
        status: `ok`, `failed`, or `refused` for a task that the network cannot do, with the reason.
        told: figures, or what went wrong.
    """

    name: str
    status: str
    told: str


def self_test(backbone: Backbone, compute: Compute) -> list[Check]:
    """Check the forward pass, then run every task.

    Args:
        backbone: with the preprocessing that it is to be evaluated with.
        compute: how; the forward pass is checked in fp32 whatever it says.
    """
    return [*check_forward(backbone), *run_tasks(backbone, compute)]


@torch.inference_mode()
def check_forward(backbone: Backbone) -> list[Check]:
    """Finite, the same twice, the same alone as in a batch, and different for different images."""
    crops = torch.stack([backbone.preprocess.crop(Image.fromarray(pixels)) for pixels in _pixels(_images())])
    batch = backbone.preprocess.normalise(crops.to(backbone.device))
    tokens = backbone.forward(batch)
    outputs = {"class token": tokens.cls, "patches": tokens.patches.flatten(1)}
    again, alone = backbone.forward(batch).cls, torch.cat([backbone.forward(one[None]).cls for one in batch])
    num_bad = {name: int((~torch.isfinite(values)).sum()) for name, values in outputs.items()}
    apart = _relative(alone, tokens.cls)
    spread = float(tokens.cls.std(dim=0).max() / tokens.cls.abs().max().clamp(min=1e-12))
    height, width = tokens.grid
    return [
        _check(
            "finite",
            not sum(num_bad.values()),
            "every value of class token and patches"
            if not sum(num_bad.values())
            else ", ".join(f"{num} of the {name} are NaN or infinite" for name, num in num_bad.items() if num),
        ),
        _check(
            "width",
            tokens.cls.shape[1] == backbone.dim and tokens.patches.shape[1] == height * width,
            f"class token {tokens.cls.shape[1]}, patches {height} x {width} of {tokens.patches.shape[2]}",
        ),
        _check(
            "deterministic", bool(torch.equal(again, tokens.cls)), f"largest difference {_largest(again, tokens.cls)}"
        ),
        _check(
            "independent of the batch",
            apart <= _ROUNDING,
            f"alone against a batch of {len(batch)}: {apart:.1e} of the largest value, allowed {_ROUNDING:.0e}",
        ),
        _check("tells images apart", spread > _ROUNDING, f"spread over the images: {spread:.1e} of the largest value"),
    ]


def run_tasks(backbone: Backbone, compute: Compute) -> list[Check]:
    """Run every task on the drawn images; a task that the network cannot do is refused, with the reason."""
    suite = SuiteConfig.model_validate({"data": _DATA, "tasks": [dict(task) for task in _TASKS]})
    groups = plan(suite.resolved())
    opened = _opened()
    data = {key: opened[key.layout] for task in suite.resolved() for key in [data_key_of(task)]}
    setting = Setting(
        suite="self-test", data=data, load=lambda spec: backbone, extract=_extractor(compute), compute=compute
    )
    checks = []
    for result in run_suite(groups, [backbone.spec], setting, floors=False):
        if isinstance(result, Failure):
            status = REFUSED if isinstance(result.error, ConfigError) else FAILED
            checks += [Check(_short(name), status, str(result.error)) for name in result.tasks]
            continue
        row = result.row
        metric = row.metrics[row.headline]
        checks.append(Check(f"{row.task} ({row.protocol})", OK, f"{row.headline} {metric.value:.3f} of {metric.num}"))
    return checks


def _short(name: str) -> str:
    return name.removesuffix(f" on {_DATA}")


def _check(name: str, passed: bool, told: str) -> Check:
    return Check(name, OK if passed else FAILED, told)


def _relative(values: Tensor, expected: Tensor) -> float:
    return float((values - expected).abs().max() / expected.abs().max().clamp(min=1e-12))


def _largest(values: Tensor, expected: Tensor) -> str:
    return f"{float((values - expected).abs().max()):.1e}"


def _images() -> list[ClassImage]:
    """The first images of two classes, in turn."""
    return [image for image in class_images(NUM_IMAGES // 2 * len(CLASSES)) if _label(image) < 2]


def _label(image: ClassImage) -> int:
    return CLASSES.index((image.shape, image.pattern))


def _pixels(images: list[ClassImage]) -> NDArray[np.uint8]:
    return np.stack([draw_class_image(image, _SIDE_PX, 0) for image in images])


def _opened() -> dict[str, Opened]:
    """The same images in every layout."""
    images = _images()
    pixels = _pixels(images)
    labels = np.array([_label(image) for image in images], dtype=np.int64)
    whole = _source(pixels, labels, "image")
    half = NUM_IMAGES // 2
    train, test = _source(pixels[:half], labels[:half], "train"), _source(pixels[half:], labels[half:], "test")
    brighter = _source(pixels // 2 + 100, labels, "copy")
    positives = {copy: (image,) for copy, image in zip(brighter.ids, whole.ids, strict=True)}
    return {
        "parts": Opened({"train": train, "test": test}),
        "labelled": Opened({"labelled": whole}),
        "classes": Opened({"labelled": whole}),
        "pictures": Opened({"pictures": whole}),
        "copies": Opened(
            {"references": whole, "queries": brighter}, CopyTruth(dict.fromkeys(positives, "queries"), positives)
        ),
        "revisited": _places(train, test),
    }


def _places(database: ArraySource, queries: ArraySource) -> Opened:
    """The class is the place; of its images every other one is hard."""
    assert database.labels is not None
    assert queries.labels is not None
    same = [np.flatnonzero(database.labels == label) for label in queries.labels]
    box = (8.0, 8.0, _SIDE_PX - 8.0, _SIDE_PX - 8.0)
    truth = RevisitedTruth(
        name=_DATA,
        database=database.ids,
        queries=queries.ids,
        boxes=(box,) * len(queries),
        easy=tuple(rows[0::2] for rows in same),
        hard=tuple(rows[1::2] for rows in same),
        junk=tuple(rows[:0] for rows in same),
        num_own=0,
    )
    sources: Mapping[str, ImageSource] = {"database": database, "queries": BoxedSource(queries, truth.boxes)}
    return Opened(sources, truth)


def _source(pixels: NDArray[np.uint8], labels: NDArray[np.int64], word: str) -> ArraySource:
    ids = tuple(f"{word}{number}" for number in range(len(pixels)))
    return ArraySource(pixels, ids, labels, tuple(map(" ".join, CLASSES[:2])), _DATA, _DATA)


def _extractor(compute: Compute) -> Callable[[Sources, Backbone, Needs], Mapping[str, Mapping[str, Features]]]:
    def compute_features(sources: Sources, backbone: Backbone, needs: Needs) -> Mapping[str, Mapping[str, Features]]:
        return {
            part: extract(
                backbone, sources[part], tokens=tokens, batch_size=compute.batch_size, precision=compute.precision
            ).features
            for part, tokens in needs.items()
        }

    return compute_features
