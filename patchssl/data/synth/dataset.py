"""All parts of the built-in data set, written in one go."""

import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from patchssl.data.synth import classes, copies, instances
from patchssl.data.synth.difficulty import check_difficulty
from patchssl.data.synth.files import Drawing, save, whole_folder
from patchssl.errors import DataError

_log = logging.getLogger(__name__)

MIN_SIZE_PX = 32
_MAX_SIZE_PX = 2048


@dataclass(frozen=True, slots=True)
class SynthSummary:
    """What was written.

    Attributes:
        output: the folder.
        num_classes: classes of `folder/`.
        num_train: images in `folder/train/`.
        num_val: images in `folder/val/`.
        num_originals: images in `copydays/original/`.
        num_copies: images in the other folders of `copydays/`.
        num_queries: query images in `revisited/jpg/`.
        num_database: all other images there.
        difficulty: how hard they are.
        seconds: how long it took.
    """

    output: Path
    num_classes: int
    num_train: int
    num_val: int
    num_originals: int
    num_copies: int
    num_queries: int
    num_database: int
    difficulty: float
    seconds: float


def write_dataset(
    output: Path,
    *,
    num_images: int = 2000,
    image_size_px: int = 64,
    seed: int = 0,
    difficulty: float = 1.0,
    on_image: Callable[[int, int], None] | None = None,
) -> SynthSummary:
    """Draw and write the class images, the copies and the instances.

    Image `i` of every part follows from `seed`, `i`, the image size and the difficulty alone. PNG pixels are the same
    on every platform; JPEG pixels are as far as the JPEG encoder is.

    Args:
        output: a new or empty folder; gets `folder/{train,val}/CLASS/*.png`, `copydays/` and `revisited/`. It
            appears under its name only when everything is in it.
        num_images: class images in all, four fifths of them in `train`. The other parts grow with it up to the
            sizes of the data sets whose layouts they have.
        image_size_px: side of the class images; the pictures of the other parts are 4:3 with twice that long side.
        seed: other seeds give other images.
        difficulty: above 0, at most 100; 1 is usual. The larger, the more varied and covered are the images, until
            every score comes down to that of guessing.
        on_image: called after every file with the numbers of files written and to be written.

    Returns:
        How many images of each kind were written.

    Raises:
        DataError: a number is out of range, or `output` is not free.
    """
    _check(num_images, image_size_px, seed)
    check_difficulty(difficulty)
    start = time.perf_counter()
    total = num_images + copies.num_drawings(num_images) + instances.num_drawings(num_images)
    with whole_folder(output) as partial:
        for done, drawing in enumerate(_drawings(partial, num_images, image_size_px, seed, difficulty), start=1):
            save(drawing, partial)
            if on_image is not None:
                on_image(done, total)
    splits = [image.split for image in classes.class_images(num_images)]
    originals, queries = copies.num_originals(num_images), instances.num_queries(num_images)
    summary = SynthSummary(
        output=output,
        num_classes=len(classes.CLASSES),
        num_train=splits.count("train"),
        num_val=splits.count("val"),
        num_originals=originals,
        num_copies=copies.num_drawings(num_images) - originals,
        num_queries=queries,
        num_database=instances.num_drawings(num_images) - queries,
        difficulty=float(difficulty),
        seconds=time.perf_counter() - start,
    )
    _log.info(
        "folder: %d train and %d val images of %d classes; copydays: %d originals, %d copies; "
        "revisited: %d queries, %d database images; difficulty %g; %.1f s",
        summary.num_train,
        summary.num_val,
        summary.num_classes,
        summary.num_originals,
        summary.num_copies,
        summary.num_queries,
        summary.num_database,
        summary.difficulty,
        summary.seconds,
    )
    return summary


def _drawings(partial: Path, num_images: int, image_size_px: int, seed: int, difficulty: float) -> Iterator[Drawing]:
    """All files of all parts; the ground truth is written after the images that it lists."""
    for image in classes.class_images(num_images):
        pixels = classes.draw_class_image(image, image_size_px, seed, difficulty)
        yield Drawing(f"folder/{image.relative_path}", pixels)
    for drawing in copies.copydays_drawings(num_images, 2 * image_size_px, seed, difficulty):
        yield Drawing(f"copydays/{drawing.relative_path}", drawing.pixels, drawing.quality)
    listed = []
    for retrieval in instances.retrieval_images(num_images, 2 * image_size_px, seed, difficulty):
        drawing = retrieval.drawing
        yield Drawing(f"revisited/{drawing.relative_path}", drawing.pixels, drawing.quality)
        listed.append(retrieval)
    text = json.dumps(instances.ground_truth(listed), indent=1)
    (partial / "revisited" / "gnd_revisited.json").write_text(text, encoding="utf-8")


def _check(num_images: int, image_size_px: int, seed: int) -> None:
    if num_images < classes.MIN_IMAGES:
        raise DataError(
            f"{num_images} images are too few: the {len(classes.CLASSES)} classes need one image each in train and "
            f"in val, {classes.MIN_IMAGES} in all. Ask for at least {classes.MIN_IMAGES} images."
        )
    if not MIN_SIZE_PX <= image_size_px <= _MAX_SIZE_PX:
        raise DataError(
            f"Images of {image_size_px} pixels cannot be drawn: the patterns need at least {MIN_SIZE_PX} pixels a "
            f"side, and {_MAX_SIZE_PX} is the most. Choose an image size between them."
        )
    if seed < 0:
        raise DataError(f"The seed is {seed}; give a whole number from 0 up.")
