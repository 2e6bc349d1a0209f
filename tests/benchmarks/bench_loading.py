"""How fast stored images become views: decoding workers, everything on the CPU, and small images kept decoded.

    python tests/benchmarks/bench_loading.py PHOTOGRAPHS SMALL_IMAGES [--num 200] [--rounds 5]

One thread of one process does everything, so that figures are images a second and core. The plain form decodes with
Pillow and makes every view by torchvision's RandomResizedCrop (bicubic), flip, ColorJitter, greyscale, Pillow's
GaussianBlur, solarise, ToTensor and Normalize, with DINO's probabilities: 2 views of 224 px and 8 of 96 px, of small
images 2 of 32 px and 6 of 16 px. Forms are interleaved, each three times in a row, and ratios are
those of their fastest runs. Afterwards views
of the photographs are compared with Pillow's. Photographs enlarged to 12 megapixels show what decoding at a reduced
size saves. Exits with 1 where a ratio is below its floor.
"""

import argparse
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import torchvision.transforms as tv
from bench_photometric import theirs
from PIL import Image

from patchssl.augmentation import prepare_views, view_settings
from patchssl.config import Config
from patchssl.cutting import ViewsByWorkers, cut
from patchssl.data.decode import file_content, open_image
from patchssl.data.images import FileSource, StoredSource
from patchssl.data.loader import Division, TrainingBatches, iterate
from patchssl.data.samples import ALONE
from patchssl.data.sources import open_unlabelled
from patchssl.decoded_images import ImagesByWorkers, cut_decoded, pack
from patchssl.feeding import feed
from patchssl.recipes import parse_config
from patchssl.structs import CropPlan, SampleKeys
from patchssl.views import MultiCrop
from patchssl.workspace import Workspace

CPU = torch.device("cpu")
LARGE = {"global_size": 224, "local_size": 96, "num_local": 8}
# What a process does for the first time finds its memory elsewhere.
_IN_A_ROW = 3
SMALL = {"global_size": 32, "local_size": 16, "num_local": 6}


@dataclass(frozen=True)
class Form:
    """One way of making views.

    Attributes:
        name: of it.
        run: makes those of so many images.
        num_images: how many.
        plain: the name of the form to compare with, if there is one.
        floor: the least ratio.
    """

    name: str
    run: Callable[[], object]
    num_images: int
    plain: str = ""
    floor: float = 0.0


def of_kind(side: int, scale: tuple[float, float], blur: float, solarise: float) -> tv.Compose:
    """From an image to a view, as DINO makes it."""
    crop = tv.RandomResizedCrop(side, scale, interpolation=tv.InterpolationMode.BICUBIC)
    return tv.Compose([crop, tv.RandomHorizontalFlip(), *theirs(blur, solarise).transforms])


def plain(paths: list[Path], views: dict[str, int]) -> Callable[[], object]:
    """Image after image and view after view."""
    first = of_kind(views["global_size"], (0.4, 1.0), 1.0, 0.0)
    second = of_kind(views["global_size"], (0.4, 1.0), 0.1, 0.2)
    local = of_kind(views["local_size"], (0.05, 0.4), 0.5, 0.0)
    kinds = [first, second, *[local] * views["num_local"]]

    def run() -> None:
        for path in paths:
            with Image.open(path) as file:
                image = file.convert("RGB")
            for kind in kinds:
                kind(image)

    return run


def config(views: dict[str, int], num: int, patch_probability: float, division: str) -> Config:
    return parse_config(
        {
            "data": {"division": division},
            "views": views,
            "photometric": {"patch_probability": patch_probability},
            "model": {"arch": "vit_tiny_patch16_224", "patch_size": 16 if views is LARGE else 8},
            "train": {"steps": 1000, "batch_size": num, "seed": 0},
        }
    )


def by_workers(source: StoredSource, settings: Config) -> Callable[[], object]:
    """What a loader process does for a training device that cuts views."""
    return batches(source, settings, ImagesByWorkers(MultiCrop(settings.views, 0)))


class InFull(ViewsByWorkers):
    """Decodes every image at its size."""

    def plan(self, sizes: torch.Tensor, keys: SampleKeys, reducible: torch.Tensor) -> CropPlan:
        return super().plan(sizes, keys, torch.zeros_like(reducible))


def batches(source: StoredSource, settings: Config, division: Division[object]) -> Callable[[], object]:
    made: TrainingBatches[object] = TrainingBatches(
        source, division, batch_size=settings.train.batch_size, num_steps=1000, seed=0
    )
    steps = iter(range(1000))
    return lambda: made[next(steps)]


def all_on_cpu(source: StoredSource, settings: Config) -> Callable[[], object]:
    """From what is stored to normalised views, by the division that the configuration asks for."""
    of = feed(settings, source, device=CPU, num_steps=1000, share=ALONE, workers=0)
    photometric = view_settings(settings.photometric, settings.model.patch_px)
    steps, workspace = iter(range(1000)), Workspace()  # as a training keeps one

    def run() -> None:
        loaded = of.batches[next(steps)]
        views = of.cut(of.move(loaded.made))
        prepare_views(views, loaded.keys, photometric, seed=0, device=CPU, workspace=workspace)

    return run


def first_of(source: StoredSource, num: int) -> FileSource:
    """Some images, evenly from all."""
    assert isinstance(source, FileSource)
    ids = tuple(source.ids[index] for index in range(0, len(source), max(1, len(source) // num)))[:num]
    return FileSource(source.root, ids, None, (), source.name, source.location, source.apply_exif)


def enlarged(source: FileSource, folder: Path) -> StoredSource:
    """Some photographs at 12 megapixels."""
    for index in range(8):
        image = source.read(index)
        factor = (12e6 / (image.width * image.height)) ** 0.5
        size = round(image.width * factor), round(image.height * factor)
        image.resize(size, Image.Resampling.BICUBIC).save(folder / f"{index}.jpg", quality=90)
    return open_unlabelled(folder)


def forms(photographs: Path, small: Path, folder: Path, num: int, batch: int) -> list[Form]:
    large = first_of(open_unlabelled(photographs), num)
    little = first_of(open_unlabelled(small), 4 * num)
    huge, in_8 = enlarged(large, folder), config(LARGE, 8, 0, "views")
    crop = MultiCrop(in_8.views, 0)
    names = ("plain, photographs", "plain, small images", "12 megapixels, in full")
    files, little_files = ([source.root / name for name in source.ids] for source in (large, little))
    return [
        Form(names[0], plain(files[: num // 4], LARGE), num // 4),
        Form("worker that decodes", by_workers(large, config(LARGE, batch, 0, "images")), batch, names[0], 20),
        Form("CPU, image mode", all_on_cpu(large, config(LARGE, batch, 0, "auto")), batch, names[0], 2.5),
        Form("CPU, patch mode", all_on_cpu(large, config(LARGE, batch, 1, "auto")), batch, names[0], 2),
        Form("CPU that cuts by matrices", all_on_cpu(large, config(LARGE, batch, 0, "images")), batch, names[0]),
        Form(names[2], batches(huge, in_8, InFull(crop)), 8),
        Form("12 megapixels, reduced", batches(huge, in_8, ViewsByWorkers(crop)), 8, names[2]),
        Form(names[1], plain(little_files[:num], SMALL), num),
        Form("kept decoded, image mode", all_on_cpu(little, config(SMALL, 256, 0, "auto")), 256, names[1], 10),
        Form("kept decoded, patch mode", all_on_cpu(little, config(SMALL, 256, 1, "auto")), 256, names[1]),
        Form("small, cut one by one", all_on_cpu(little, config(SMALL, 256, 0, "views")), 256, names[1]),
    ]


def handed_on(source: StoredSource, settings: Config) -> float:
    """Photographs a second that a loader process decodes and hands on to this one, which does nothing else."""
    num_steps, first = 34, 4
    division = ImagesByWorkers(MultiCrop(settings.views, 0))
    size = settings.train.batch_size
    made = TrainingBatches(source, division, batch_size=size, num_steps=num_steps, seed=0)
    loaded = iterate(made, first_step=0, workers=1, pin_memory=False)
    for _ in range(first):
        next(loaded)
    return (num_steps - first) * size / timed(lambda: deque(loaded, 0))


def compare(source: FileSource) -> None:
    """Print how far views lie from Pillow's."""
    images = [np.array(source.read(index)) for index in range(len(source))]
    sizes = torch.tensor([image.shape[:2] for image in images])
    keys = SampleKeys(torch.zeros(len(images), dtype=torch.int64), torch.arange(len(images)))
    plan = MultiCrop(config(LARGE, 4, 0, "views").views, 0).plan(sizes, keys)
    expected = by_pillow(images, plan)
    ways = {"one by one": ViewsByWorkers(MultiCrop(config(LARGE, 4, 0, "views").views, 0)).make(images, plan)}
    ways["whole batches"] = cut_decoded(pack(images, plan))
    for name, groups in ways.items():
        apart = np.concatenate(
            [
                np.abs(group.pixels.numpy().astype(int) - views).ravel()
                for group, views in zip(groups, expected, strict=True)
            ]
        )
        print(
            f"{name} against Pillow's bicubic, {len(images)} photographs: mean {apart.mean():.4f}, "
            f"99th percentile {np.percentile(apart, 99):.0f}, largest {apart.max()} of 255"
        )


def compare_reduced(source: FileSource) -> None:
    """Print how far boxes of photographs decoded smaller lie from Pillow's of their full decoding."""
    box_px, corner = 288, 8
    for reduction in (2, 4):
        for oversampling in (1, 2):
            side, found = box_px // (reduction * oversampling), []
            for index in range(len(source)):
                opened = open_image(file_content(source.where(index)), source.where(index), apply_exif=True)
                image = np.array(source.read(index))
                if not opened.is_reducible or min(image.shape[:2]) < corner + box_px:
                    continue
                box = [float(corner), float(corner), float(box_px), float(box_px)]
                smaller = [part / reduction for part in box]
                view = cut(np.array(opened.pixels(reduction)), smaller, side).numpy().astype(int)
                found.append(np.abs(view - one_by_pillow(image, box, side, False)).ravel())
            apart = np.concatenate(found)
            print(
                f"decoded at 1/{reduction} and resampled by {oversampling}, {len(found)} photographs: mean "
                f"{apart.mean():.2f}, 99th percentile {np.percentile(apart, 99):.0f}"
            )


def by_pillow(images: list[np.ndarray], plan: CropPlan) -> list[np.ndarray]:
    groups = []
    for boxes, side in zip(plan.boxes, plan.sides, strict=True):
        views = np.empty((*boxes.flipped.shape, 3, side, side), dtype=int)
        for row, image in enumerate(images):
            for number, (box, flip) in enumerate(
                zip(boxes.corners[row].tolist(), boxes.flipped[row].tolist(), strict=True)
            ):
                views[row, number] = one_by_pillow(image, box, side, flip)
        groups.append(views)
    return groups


def one_by_pillow(image: np.ndarray, box: list[float], side: int, flip: bool) -> np.ndarray:
    """Crop the pixels that a box touches, then resize."""
    top, left, height, width = box
    rows, columns = slice(int(top), int(np.ceil(top + height))), slice(int(left), int(np.ceil(left + width)))
    edges = (left - columns.start, top - rows.start, left - columns.start + width, top - rows.start + height)
    view = np.asarray(Image.fromarray(image[rows, columns]).resize((side, side), Image.Resampling.BICUBIC, box=edges))
    return (view[:, ::-1] if flip else view).transpose(2, 0, 1)


def timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> int:
    """Print images a second, and the ratios."""
    parser = argparse.ArgumentParser(description="from stored images to views")
    parser.add_argument("photographs", type=Path)
    parser.add_argument("small_images", type=Path)
    parser.add_argument("--num", type=int, default=200, help="photographs")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        every = forms(chosen.photographs, chosen.small_images, Path(folder), chosen.num, chosen.batch)
        fastest = {form.name: float("inf") for form in every}
        for _ in range(chosen.rounds):
            for form in every:
                seconds = min(timed(form.run) for _ in range(_IN_A_ROW))
                fastest[form.name] = min(fastest[form.name], seconds / form.num_images)
    code = 0
    for form in every:
        ratio = fastest[form.plain] / fastest[form.name] if form.plain else 1.0
        below = ratio < form.floor
        code |= below
        told = f"{ratio:7.1f} x" + (f"  BELOW {form.floor}" if below else "") if form.plain else ""
        print(f"{form.name:28}{1 / fastest[form.name]:9.1f} images/s{told}")
    photographs = first_of(open_unlabelled(chosen.photographs), chosen.num)
    through = max(handed_on(photographs, config(LARGE, chosen.batch, 0, "images")) for _ in range(3))
    print(f"{'the same, handed on':28}{through:9.1f} images/s{fastest['plain, photographs'] * through:7.1f} x")
    compare(photographs)
    compare_reduced(photographs)
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
