"""The built-in images: files, classes, copies, instances."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from patchssl.data.synth import SynthSummary, write_dataset
from patchssl.data.synth.canvas import canvas
from patchssl.data.synth.classes import CLASSES, MIN_IMAGES, class_images, draw_class_image
from patchssl.data.synth.copies import draw_original, num_originals, num_strong
from patchssl.data.synth.files import whole_folder
from patchssl.data.synth.instances import bounding_box, draw_instance, draw_view, hide, num_queries
from patchssl.data.synth.randomness import Part, generator
from patchssl.data.synth.scenes import Picture, Pose, Thing, silhouette
from patchssl.errors import DataError

NUM_IMAGES = 600
ROLES = ("easy", "hard", "junk")
FloatArray = npt.NDArray[np.float64]


@dataclass
class Written:
    folder: Path
    summary: SynthSummary
    progress: list[tuple[int, int]]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    folder = tmp_path_factory.mktemp("synth") / "drawn"
    progress: list[tuple[int, int]] = []
    summary = write_dataset(folder, num_images=NUM_IMAGES, on_image=lambda done, total: progress.append((done, total)))
    return Written(folder, summary, progress)


def pixels(path: Path) -> npt.NDArray[np.uint8]:
    with Image.open(path) as image:
        assert image.mode == "RGB"
        return np.asarray(image)


def split(folder: Path, name: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    paths = sorted((folder / "folder" / name).rglob("*.png"))
    classes = sorted({path.parent.name for path in paths})
    labels = np.array([classes.index(path.parent.name) for path in paths])
    return np.stack([pixels(path) for path in paths]), labels


def knn_accuracy(
    train: tuple[FloatArray, npt.NDArray[np.int64]], val: tuple[FloatArray, npt.NDArray[np.int64]], k: int = 20
) -> float:
    """Majority vote of the k nearest by Euclidean distance."""
    squares = (train[0] ** 2).sum(axis=1) - 2 * val[0] @ train[0].T  # less the query's own square, the same in a row
    nearest = train[1][np.argsort(squares, axis=1, kind="stable")[:, :k]]
    votes = (nearest[:, :, None] == np.arange(len(CLASSES))).sum(axis=1)
    return float((votes.argmax(axis=1) == val[1]).mean())


def test_files_and_summary_agree(written: Written) -> None:
    count = {
        name: sum(1 for path in (written.folder / name).rglob("*") if path.is_file())
        for name in ("folder/train", "folder/val", "copydays/original", "copydays", "revisited/jpg", "")
    }
    summary = written.summary
    assert summary.output == written.folder
    assert count["folder/train"] == summary.num_train
    assert count["folder/val"] == summary.num_val
    assert count["copydays/original"] == summary.num_originals == 30
    assert count["copydays"] == summary.num_originals + summary.num_copies
    assert count["revisited/jpg"] == summary.num_queries + summary.num_database
    total = count[""] - 1  # the ground truth
    assert written.progress == [(done, total) for done in range(1, total + 1)]


@pytest.mark.parametrize("num_images", [24, 25, 100, 600, 1999])
def test_classes_are_balanced_and_a_fifth_is_for_validation(num_images: int) -> None:
    counts = {name: Counter[tuple[str, str]]() for name in ("train", "val")}
    for image in class_images(num_images):
        counts[image.split][image.shape, image.pattern] += 1
    for of_class in counts.values():
        assert set(of_class) == set(CLASSES)
        assert max(of_class.values()) - min(of_class.values()) <= 1
    if num_images >= 600:
        assert counts["val"].total() / num_images == pytest.approx(0.2, abs=0.01)


def test_folders_are_named_by_shape_and_pattern(written: Written) -> None:
    for name in ("train", "val"):
        found = {path.name for path in (written.folder / "folder" / name).iterdir()}
        assert found == {f"{shape}-{pattern}" for shape, pattern in CLASSES}
    assert "disc-stripes" in found
    assert len(found) == 12


def test_neither_mean_colour_nor_raw_pixels_give_the_class_away(written: Written) -> None:
    (train, train_labels), (val, val_labels) = split(written.folder, "train"), split(written.folder, "val")
    chance = 1 / len(CLASSES)

    def mean_colour(images: npt.NDArray[np.uint8]) -> FloatArray:
        return np.asarray(images.mean(axis=(1, 2)) / 255, dtype=np.float64)

    def halved(images: npt.NDArray[np.uint8]) -> FloatArray:
        halves = images.reshape(len(images), 32, 2, 32, 2, 3).mean(axis=(2, 4)) / 255
        return np.asarray(halves.reshape(len(images), -1), dtype=np.float64)

    assert knn_accuracy((mean_colour(train), train_labels), (mean_colour(val), val_labels)) < 2 * chance
    assert knn_accuracy((halved(train), train_labels), (halved(val), val_labels)) < 0.5
    # The test itself can tell: with the mean colour shifted by the class, the vote finds it.
    shifted = [mean_colour(images) + labels[:, None] for images, labels in ((train, train_labels), (val, val_labels))]
    assert knn_accuracy((shifted[0], train_labels), (shifted[1], val_labels)) == 1


def test_the_class_objects_differ_in_nothing_but_the_class(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[Thing, Pose]] = []

    def record(picture: Picture, thing: Thing, pose: Pose) -> Picture:
        drawn.append((thing, pose))
        return picture

    monkeypatch.setattr("patchssl.data.synth.classes.draw_thing", record)
    images = list(class_images(240))
    for image in images:
        draw_class_image(image, 32, 0)
    shares = [silhouette(canvas(64, 64), thing.shape, pose).mean() for thing, pose in drawn]
    assert [(thing.shape, thing.pattern) for thing, _ in drawn] == [(i.shape, i.pattern) for i in images]
    assert min(shares) > 0.4
    assert max(shares) < 0.56
    for shape in ("disc", "square", "triangle", "star"):
        mean = np.mean([share for share, (thing, _) in zip(shares, drawn, strict=True) if thing.shape == shape])
        assert mean == pytest.approx(np.mean(shares), rel=0.06)


def test_an_image_follows_from_seed_and_number_alone(written: Written, tmp_path: Path) -> None:
    write_dataset(tmp_path / "few", num_images=MIN_IMAGES)
    few = sorted(path for path in (tmp_path / "few").rglob("*") if path.suffix in (".png", ".jpg"))
    assert len([path for path in few if path.suffix == ".png"]) == MIN_IMAGES
    for path in few:
        assert path.read_bytes() == (written.folder / path.relative_to(tmp_path / "few")).read_bytes(), path


def test_another_seed_gives_other_images() -> None:
    image = next(iter(class_images(1)))
    assert (draw_class_image(image, 32, 0) != draw_class_image(image, 32, 1)).mean() > 0.9
    assert (draw_original(0, 64, 0) != draw_original(0, 64, 1)).mean() > 0.9


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (0, [70, 55, 0, 91, 64, 12, 174, 202, 133, 97, 122, 94]),
        (7, [60, 74, 34, 51, 82, 39, 198, 88, 138, 64, 138, 124]),
        (17, [134, 173, 151, 126, 107, 73, 229, 217, 148, 85, 111, 110]),
    ],
)
def test_pixels_are_those_of_other_platforms(index: int, expected: list[int]) -> None:
    image = list(class_images(index + 1))[index]
    drawn = draw_class_image(image, 64, 7).astype(int)
    assert np.abs(drawn[5::18, 32].ravel() - expected).max() <= 1


def test_copydays_has_its_folders_and_names(written: Written) -> None:
    copydays = written.folder / "copydays"
    originals = sorted(path.name for path in (copydays / "original").iterdir())
    assert originals == [f"{2000 + index}00.jpg" for index in range(30)]
    assert {path.name for path in copydays.iterdir()} == {"original", "strong", "jpegqual", "crops"}
    assert sorted(int(path.name) for path in (copydays / "jpegqual").iterdir()) == [3, 5, 8, 10, 15, 20, 30, 50, 75]
    assert sorted(int(path.name) for path in (copydays / "crops").iterdir()) == [10, 15, 20, 30, 40, 50, 60, 70, 80]
    for block in [*(copydays / "jpegqual").iterdir(), *(copydays / "crops").iterdir()]:
        assert sorted(path.name for path in block.iterdir()) == originals
    strong = [path.name for path in (copydays / "strong").iterdir()]
    assert len(strong) == sum(num_strong(index) for index in range(30)) == 45
    assert not set(strong) & set(originals)
    assert {name[:4] for name in strong} == {name[:4] for name in originals}
    assert len({name[:4] for name in originals}) == 30


def test_crops_shrink_and_low_qualities_lose(written: Written) -> None:
    copydays = written.folder / "copydays"
    for name in ("200000.jpg", "200200.jpg"):
        original = pixels(copydays / "original" / name)
        assert sorted(original.shape) == [3, 96, 128]
        for percent in (10, 40, 80):
            kept = pixels(copydays / "crops" / str(percent) / name)
            share = kept.shape[0] * kept.shape[1] / (96 * 128)
            assert share == pytest.approx(1 - percent / 100, abs=0.02)
        lost = [
            np.abs(pixels(copydays / "jpegqual" / str(quality) / name).astype(int) - original).mean()
            for quality in (3, 10, 30, 75)
        ]
        assert lost == sorted(lost, reverse=True)
        assert lost[0] > 2 * lost[-1]


@pytest.mark.parametrize(
    ("num_images", "originals", "queries"), [(24, 10, 10), (200, 10, 10), (2000, 100, 20), (9000, 157, 20)]
)
def test_the_other_parts_grow_with_the_classes(num_images: int, originals: int, queries: int) -> None:
    assert (num_originals(num_images), num_queries(num_images)) == (originals, queries)


def test_the_ground_truth_is_whole(written: Written) -> None:
    revisited = written.folder / "revisited"
    truth = json.loads((revisited / "gnd_revisited.json").read_text())
    assert set(truth) == {"imlist", "qimlist", "gnd"}
    assert len(truth["qimlist"]) == len(truth["gnd"]) == 10
    assert not set(truth["imlist"]) & set(truth["qimlist"])
    files = {path.name for path in (revisited / "jpg").iterdir()}
    assert files == {f"{name}.jpg" for name in truth["imlist"] + truth["qimlist"]}
    seen: list[int] = []
    for name, entry in zip(truth["qimlist"], truth["gnd"], strict=True):
        assert {role: len(entry[role]) for role in ("easy", "hard", "junk")} == {"easy": 6, "hard": 6, "junk": 2}
        for role in ("easy", "hard", "junk"):
            assert all(truth["imlist"][at].startswith(f"{name[:8]}_{role}") for at in entry[role])
            seen += entry[role]
        left, top, right, bottom = entry["bbx"]
        assert 0 <= left < right <= 128
        assert 0 <= top < bottom <= 96
    assert len(seen) == len(set(seen)) == 140
    assert len(truth["imlist"]) == 140 + 60


def test_a_bounding_box_is_tight() -> None:
    area, thing = canvas(20, 40), draw_instance(0, 0)
    square = Thing("square", "dots", thing.paint, 0.3, 0.0, None, thing.badge_paint)
    # 8 pixels of side 0.1 around a centre 0.5 to the right of the middle and 0.2 above it.
    box = bounding_box(area, square, Pose(x=0.5, y=-0.2, area=0.64, angle=0.0))
    assert box == (21.0, 4.0, 29.0, 12.0)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
def test_a_board_hides_its_share_of_the_object(share: float) -> None:
    area, thing = canvas(96, 128), draw_instance(1, 0)
    pose = Pose(0.1, 0.0, 1.2, 0.4)
    plain = Picture(area, np.full((96, 128, 3), -5.0))
    for index in range(5):
        hidden = hide(generator(0, Part.VIEW, index), plain, thing, pose, share).colours[..., 0] > -2.5
        assert hidden[silhouette(area, thing.shape, pose)].mean() == pytest.approx(share, abs=0.03)


def test_views_get_harder_by_role() -> None:
    views = {role: [draw_view(generator(0, Part.VIEW, i), role, 1.0) for i in range(200)] for role in ROLES}
    visible = {role: [view.pose.area * (1 - view.hidden) for view in of_role] for role, of_role in views.items()}
    assert min(visible["easy"]) >= 0.9
    assert min(visible["hard"]) > 0.25
    assert max(visible["hard"]) < 0.9
    assert max(visible["junk"]) < 0.2
    assert max(abs(view.pose.angle - 1.0) for view in views["easy"]) < 0.36
    assert {view.hidden > 0 for view in views["hard"]} == {True, False}


@pytest.mark.parametrize(
    ("wrong", "numbers"),
    [
        ({"num_images": 23}, ["23 images", "12 classes", "at least 24"]),
        ({"image_size_px": 31}, ["31 pixels", "at least 32"]),
        ({"image_size_px": 4096}, ["4096 pixels", "2048"]),
        ({"seed": -1}, ["-1", "from 0 up"]),
    ],
)
def test_numbers_out_of_range_are_refused(tmp_path: Path, wrong: dict[str, int], numbers: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        write_dataset(tmp_path / "out", **wrong)  # type: ignore[arg-type]
    assert all(number in str(caught.value) for number in numbers)
    assert list(tmp_path.iterdir()) == []


def test_an_occupied_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match=r"holds 1 entries.*new or empty"):
        write_dataset(tmp_path, num_images=24)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]
    with pytest.raises(DataError, match="is no folder"):
        write_dataset(tmp_path / "mine.txt", num_images=24)


def test_an_interruption_leaves_nothing_behind(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == 30:
            raise KeyboardInterrupt

    (tmp_path / "empty").mkdir()
    for name in ("new", "empty"):
        with pytest.raises(KeyboardInterrupt):
            write_dataset(tmp_path / name, num_images=24, on_image=interrupt)
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("empty", "deep/new"):
        with whole_folder(tmp_path / name) as partial:
            (partial / "part").mkdir()
            assert not (tmp_path / name / "part").exists()
        assert [path.name for path in (tmp_path / name).iterdir()] == ["part"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "empty"]


def test_a_disk_that_fails_is_named(tmp_path: Path) -> None:
    def fill(done: int, total: int) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(DataError, match=r"No space left.*enough space"):
        write_dataset(tmp_path / "out", num_images=24, on_image=fill)
    assert list(tmp_path.iterdir()) == []
