"""DINO's copy detection and retrieval from image files to numbers, against a second way through the same weights.

The second way goes image by image: torchvision's and Pillow's transforms, torch's matrix product and `topk` or
`argsort`, and the rules of the protocols written out as they are told.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torchvision.transforms import Compose, InterpolationMode, Normalize, Resize, ToTensor

from patchssl.backbones import Backbone, load_backbone
from patchssl.cli.main import main
from patchssl.data.synth import write_dataset

SIDE = 40
CHECKPOINT = Path(__file__).parents[1] / "golden" / "dino_training_checkpoint.pth"
TO_PIXELS = Compose([ToTensor(), Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "images"
    write_dataset(folder, num_images=24, image_size_px=32)
    return folder


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone(str(CHECKPOINT))


def row_of(capsys: pytest.CaptureFixture[str], task: str, *arguments: str | Path) -> dict[str, Any]:
    command = ["eval", task, *map(str, arguments), "--model", str(CHECKPOINT), "--image-size", str(SIDE)]
    code = main([*command, "--precision", "fp32", "--workers", "0", "--no-record", "--format", "json"])
    out, err = capsys.readouterr()
    assert code == 0, err
    row: dict[str, Any] = json.loads(out)
    return row


def trapezoids(ranks: list[int], num_positives: int) -> float:
    area = 0.0
    for found, rank in enumerate(ranks):
        before = 1.0 if rank == 0 else found / rank
        after = (found + 1) / (rank + 1)
        area += (before + after) / 2 / num_positives
    return area


def copy_descriptors(files: list[Path], backbone: Backbone) -> Tensor:
    squash = Compose([Resize((SIDE, SIDE), interpolation=InterpolationMode.BICUBIC), TO_PIXELS])
    rows = []
    for file in files:
        with torch.inference_mode():
            tokens = backbone.forward(squash(Image.open(file).convert("RGB"))[None])
        height, width = tokens.grid
        grid = tokens.patches.transpose(1, 2).unflatten(2, (height, width)).clamp(min=1e-6)
        gem = functional.avg_pool2d(grid.pow(4), (height, width)).pow(1 / 4).flatten(1)
        rows.append(torch.cat([tokens.cls, gem], dim=1))
    return torch.cat(rows)


def whitened(fit: Tensor, *parts: Tensor) -> list[Tensor]:
    values, vectors = np.linalg.eigh((fit.T @ fit / len(fit)).numpy())
    values = np.maximum(values, values.max() * 1e-5)
    project = torch.from_numpy(np.diag(values**-0.5) @ vectors.T).float()
    return [(part - fit.mean(dim=0)) @ project.T for part in parts]


@pytest.mark.parametrize("with_whitening", [False, True])
def test_copydays(
    drawn: Path, backbone: Backbone, with_whitening: bool, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    data, others = drawn / "copydays", drawn / "revisited" / "jpg"
    originals = sorted((data / "original").glob("*.jpg"))
    blocks = {
        "strong_map": sorted((data / "strong").glob("*.jpg")),
        "jpegqual_10_map": sorted((data / "jpegqual" / "10").glob("*.jpg")),
        "crops_50_map": sorted((data / "crops" / "50").glob("*.jpg")),
    }
    distractors = sorted(others.glob("*_easy*.jpg"))
    folder = tmp_path / "distractors"
    folder.mkdir()
    for file in distractors:
        (folder / file.name).symlink_to(file)
    database = copy_descriptors([*originals, *distractors], backbone)
    queries = {name: copy_descriptors(files, backbone) for name, files in blocks.items()}
    arguments: list[str | Path] = [data, "--protocol", "dino", "--distractors", folder]
    if with_whitening:
        learned = copy_descriptors(sorted(others.glob("*.jpg")), backbone)
        database, *found = whitened(learned, database, *queries.values())
        queries = dict(zip(queries, found, strict=True))
        arguments += ["--whitening", others]
    metrics = row_of(capsys, "copydetect", *arguments)["metrics"]
    for name, files in blocks.items():
        similarity = functional.normalize(queries[name]) @ functional.normalize(database).T
        best = similarity.topk(20).indices.tolist()
        aps = []
        for number, file in enumerate(files):
            if name == "strong_map":
                positives = [row for row, original in enumerate(originals) if original.name[:4] == file.name[:4]]
            else:
                positives = [number]
            ranks = [rank for rank, row in enumerate(best[number]) if row in positives]
            aps.append(trapezoids(ranks, len(positives)))
        assert metrics[name]["value"] == pytest.approx(np.mean(aps), abs=1e-6), name
        assert metrics[name]["num"] == len(files)


def place_descriptors(files: list[Path], backbone: Backbone, scales: tuple[float, ...]) -> Tensor:
    rows = []
    for file in files:
        image = Image.open(file).convert("RGB")
        image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        pixels = TO_PIXELS(image)[None]
        found = []
        for scale in scales:
            scaled = pixels if scale == 1 else functional.interpolate(pixels, scale_factor=scale, mode="bilinear")
            # The convolution of the original leaves out what is not a whole patch.
            height, width = (side // backbone.patch_px * backbone.patch_px for side in scaled.shape[-2:])
            with torch.inference_mode():
                found.append(backbone.forward(scaled[..., :height, :width]).cls)
        rows.append(torch.stack(found).mean(dim=0))
    return functional.normalize(torch.cat(rows))


@pytest.mark.parametrize("scales", [(1.0,), (1.0, 1 / math.sqrt(2), 0.5)])
def test_revisited(
    drawn: Path, backbone: Backbone, scales: tuple[float, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    data = drawn / "revisited"
    truth = json.loads((data / "gnd_revisited.json").read_text())
    files = {part: [data / "jpg" / f"{name}.jpg" for name in truth[part]] for part in ("imlist", "qimlist")}
    database, queries = (place_descriptors(names, backbone, scales) for names in files.values())
    ranking = torch.argsort(-(database @ queries.T), dim=0).numpy()
    more = ["--multiscale"] if len(scales) > 1 else []
    metrics = row_of(capsys, "retrieval", data, "--protocol", "dino", *more)["metrics"]
    for difficulty, right, ignored in (("medium", ("easy", "hard"), ("junk",)), ("hard", ("hard",), ("junk", "easy"))):
        aps: list[float] = []
        precisions: dict[int, list[float]] = {1: [], 5: [], 10: []}
        for query, entry in enumerate(truth["gnd"]):
            positives = {row for grade in right for row in entry[grade]}
            left_out = {row for grade in ignored for row in entry[grade]}
            kept = [row for row in ranking[:, query].tolist() if row not in left_out]
            ranks = [rank for rank, row in enumerate(kept) if row in positives]
            aps.append(trapezoids(ranks, len(positives)))
            for k, values in precisions.items():
                places = min(max(ranks) + 1, k)
                values.append(sum(rank < places for rank in ranks) / places)
        assert metrics[f"map_{difficulty}"]["value"] == pytest.approx(np.mean(aps), abs=1e-6)
        for k, values in precisions.items():
            assert metrics[f"mp_at_{k}_{difficulty}"]["value"] == pytest.approx(np.mean(values), abs=1e-6)
