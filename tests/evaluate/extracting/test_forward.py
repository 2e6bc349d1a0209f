from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from patchssl.backbones import Backbone
from patchssl.backbones.preprocess import Preprocess
from patchssl.evaluate.extracting.forward import Work, forward, plan_work
from patchssl.pooling import Part
from patchssl.structs import Tokens

CLS, MEAN = Part("cls", 1), Part("mean", 1)


@pytest.mark.parametrize(
    ("lacking", "batch_size", "expected"),
    [
        ([], 4, []),
        # A batch fits into a shard: each is by itself, so that batches do not depend on what is missing.
        ([(0, (CLS,)), (1, (CLS,))], 4, [(0, 1, (CLS,)), (1, 2, (CLS,))]),
        ([(0, (CLS,)), (1, (CLS,))], 7, [(0, 1, (CLS,)), (1, 2, (CLS,))]),
        # A batch of two shards takes two neighbours …
        ([(0, (CLS,)), (1, (CLS,)), (2, (CLS,))], 8, [(0, 2, (CLS,)), (2, 3, (CLS,))]),
        # … and neither others nor neighbours that lack something else.
        ([(0, (CLS,)), (2, (CLS,))], 8, [(0, 1, (CLS,)), (2, 3, (CLS,))]),
        ([(0, (CLS,)), (1, (CLS, MEAN))], 8, [(0, 1, (CLS,)), (1, 2, (CLS, MEAN))]),
    ],
)
def test_shards_go_together_where_a_batch_needs_several(
    lacking: list[tuple[int, tuple[Part, ...]]], batch_size: int, expected: list[tuple[int, int, tuple[Part, ...]]]
) -> None:
    found = plan_work(lacking, shard_images=4, batch_size=batch_size)
    assert found == [Work(range(start, stop), parts) for start, stop, parts in expected]


class MeanAndMax(nn.Module):
    """mean(x) @ a + max(x) @ b over all pixels."""

    def __init__(self) -> None:
        super().__init__()
        drawn = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
        self.a, self.b = nn.Parameter(drawn[0]), nn.Parameter(drawn[1])

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels.mean(dim=(2, 3)) @ self.a + pixels.amax(dim=(2, 3)) @ self.b


class WholeImage:
    """The network's vector as class token and as the only patch; remembers the sizes that it saw."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, ...]] = []

    def num_blocks(self, network: MeanAndMax) -> int:
        return 1

    def last_blocks(self, network: MeanAndMax, pixels: Tensor, num: int) -> tuple[Tokens, ...]:
        self.seen.append(tuple(pixels.shape))
        vectors = network(pixels)
        return (Tokens(vectors, vectors[:, None], (1, 1)),)

    def attention(self, network: MeanAndMax, pixels: Tensor) -> Tensor:
        raise NotImplementedError


def toy(reader: WholeImage | None = None, **preprocess: Any) -> Backbone:
    given: dict[str, Any] = {"image_px": 64, "resize_px": 64, "fit": "long-side", **preprocess}
    return Backbone.of(
        MeanAndMax(),
        reader or WholeImage(),
        spec="toy",
        family="toy",
        arch="toy",
        dim=5,
        patch_px=8,
        preprocess=Preprocess(**given),
    )


def pictures(*sizes: tuple[int, int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8) for size in sizes]


def test_images_of_several_sizes_come_out_in_their_order() -> None:
    reader = WholeImage()
    backbone, images = toy(reader), pictures((64, 48), (32, 64), (64, 48), (16, 64), (32, 64))
    alone = torch.cat([forward(backbone, image[None], [CLS], "fp32")[CLS] for image in images])
    torch.testing.assert_close(forward(backbone, images, [CLS], "fp32")[CLS], alone)
    assert reader.seen[-3:] == [(2, 3, 64, 48), (2, 3, 32, 64), (1, 3, 16, 64)]


def test_sizes_are_cut_to_whole_patches_and_enlarged_to_at_least_one() -> None:
    reader = WholeImage()
    forward(toy(reader), pictures((63, 50), (5, 64)), [CLS], "fp32")
    assert reader.seen == [(1, 3, 56, 48), (1, 3, 8, 64)]


def test_what_is_cut_off_lies_at_the_right_and_below() -> None:
    image = pictures((60, 61))[0]
    found = forward(toy(), [image, image[:, :8, :8]], [CLS], "fp32")[CLS]
    torch.testing.assert_close(found[0], forward(toy(), image[None, :, :56, :56], [CLS], "fp32")[CLS][0])


@pytest.mark.parametrize("unit_scales", [False, True])
def test_scales_by_their_definition(unit_scales: bool) -> None:
    scales = (1.0, 2**-0.5, 0.5)
    backbone, images = toy(scales=scales, unit_scales=unit_scales), pictures((64, 48), (40, 64))
    found = forward(backbone, images, [CLS], "fp32")[CLS]
    for image, descriptor in zip(images, found, strict=True):
        pixels = backbone.preprocess.normalise(image[None])
        vectors = []
        for scale in scales:
            scaled = pixels if scale == 1 else functional.interpolate(pixels, scale_factor=scale, mode="bilinear")
            height, width = (side // 8 * 8 for side in scaled.shape[-2:])
            vector = backbone.network(scaled[..., :height, :width])[0]
            vectors.append(vector / vector.norm() if unit_scales else vector)
        torch.testing.assert_close(descriptor, torch.stack(vectors).mean(dim=0))
