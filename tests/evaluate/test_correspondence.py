import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from patchssl.backbones import Backbone, load_backbone
from patchssl.backbones.preprocess import Preprocess
from patchssl.data.images import ArraySource
from patchssl.errors import ConfigError, DataError
from patchssl.evaluate.correspondence import patch_grid, prepare, score_images
from patchssl.structs import Tokens
from patchssl.warps import KINDS

VIEW, PATCH = 24, 4
Describe = Callable[[Tensor], Tensor]


class PatchReader:
    """Describes every patch by a function of the mean colours (B, N, 3) of all patches."""

    def __init__(self, describe: Describe) -> None:
        self.describe = describe

    def num_blocks(self, network: nn.Module) -> int:
        return 1

    def last_blocks(self, network: nn.Module, pixels: Tensor, num: int) -> tuple[Tokens, ...]:
        averaged = nn.functional.avg_pool2d(pixels, PATCH)
        patches = self.describe(averaged.flatten(2).mT)
        return (Tokens(patches.mean(1), patches, (averaged.shape[2], averaged.shape[3])),)

    def attention(self, network: nn.Module, pixels: Tensor) -> Tensor:
        raise NotImplementedError


def backbone(describe: Describe, side: int = VIEW) -> Backbone:
    network = nn.Module()
    network.register_buffer("patch", torch.tensor(PATCH))
    return Backbone.of(
        network,
        PatchReader(describe),
        spec="test",
        family="test",
        arch="patches",
        dim=4,
        patch_px=PATCH,
        preprocess=Preprocess(image_px=side, resize_px=side, mean=(0, 0, 0), std=(1, 1, 1)),
    )


def waves(positions: Tensor) -> Tensor:
    """Positions (..., 2) in [0, 1] → features of which those of nearer points are more similar."""
    return torch.cat([(positions * math.pi).cos(), (positions * math.pi).sin()], dim=-1)


def gradients(num: int = 6) -> ArraySource:
    """Images whose red and green tell the place."""
    rows, columns = (np.indices((96, 128)) + 0.5) * 255 / 128
    pixels = np.stack([columns, rows, np.zeros_like(rows)], axis=-1).round().astype(np.uint8)
    return ArraySource(np.stack([pixels] * num), tuple(f"{n}.png" for n in range(num)), None, (), "drawn", "drawn")


def noise(num: int = 7, side: int = 40) -> ArraySource:
    pixels = np.random.default_rng(0).integers(0, 256, (num, side, side, 3), dtype=np.uint8)
    return ArraySource(pixels, tuple(f"{n}.png" for n in range(num)), None, (), "drawn", "drawn")


def metrics(scored: Any) -> dict[str, float]:
    return {name: metric.value for name, metric in scored.row.metrics.items()}


PLACES = backbone(lambda colours: waves(colours[..., :2]))
COLOURS = backbone(lambda colours: colours - 0.5)


def test_a_network_that_sees_the_place_in_the_image_finds_it_in_every_warp() -> None:
    found = metrics(score_images(PLACES, gradients(), kinds=["crop", "scale", "flip", "perspective"]))
    # Colours tell the place to a fifth of a pixel, which may be the neighbouring patch where it is near a border.
    for name, value in found.items():
        assert value == pytest.approx(1, abs=0.1 if "0.5" in name else 0), name
    assert set(found) == {
        f"acc_at_{radius}{kind}"
        for radius in ("0.5", "1", "2")
        for kind in ("", "@crop", "@scale", "@flip", "@perspective")
    }


def test_a_network_that_only_knows_the_grid_scores_as_the_floor_position() -> None:
    rows, columns = torch.meshgrid(torch.arange(6), torch.arange(6), indexing="ij")
    grid = waves(torch.stack([columns, rows], dim=-1).flatten(0, 1) / 6)
    blind = backbone(lambda colours: grid.expand(len(colours), -1, -1))
    scored = score_images(blind, noise(), views=3)
    for name, value in metrics(scored).items():
        assert value == pytest.approx(scored.row.details["position"][name], abs=1e-6), name
    assert metrics(scored)["acc_at_2"] > 0


def test_constant_features_score_nothing() -> None:
    scored = score_images(backbone(torch.ones_like), noise())
    assert set(metrics(scored).values()) == {0.0}
    assert scored.row.details["chance"]["acc_at_1"] > 0.02


def test_batches_and_workers_change_nothing() -> None:
    expected = score_images(COLOURS, noise(), views=2)
    changes: list[dict[str, Any]] = [
        {"batch_size": 1},
        {"batch_size": 9},
        {"batch_size": 500},
        {"num_workers": 2, "batch_size": 20},
    ]
    for changed in changes:
        again = score_images(COLOURS, noise(), views=2, **changed)
        assert metrics(again) == metrics(expected)
        for name, values in again.outcomes.values.items():
            np.testing.assert_array_equal(values, expected.outcomes.values[name])
        assert again.row.details == expected.row.details


def test_kinds_are_scored_apart_and_their_order_does_not_matter() -> None:
    whole = score_images(COLOURS, noise())
    some, turned = (
        score_images(COLOURS, noise(), kinds=kinds) for kinds in (["crop", "flip"], ["flip", "crop", "flip"])
    )
    assert metrics(some) == metrics(turned)
    assert some.row.comparability == turned.row.comparability != whole.row.comparability
    for name, value in metrics(some).items():
        if "@" in name:
            assert metrics(whole)[name] == value
    assert metrics(some)["acc_at_1"] == pytest.approx(
        (metrics(some)["acc_at_1@crop"] + metrics(some)["acc_at_1@flip"]) / 2
    )


def test_the_row() -> None:
    seen: list[int] = []
    scored = score_images(COLOURS, noise(), views=2, batch_size=10, seed=3, progress=seen.append)
    row = scored.row
    assert (row.task, row.protocol, row.headline) == ("correspondence", "warps", "acc_at_1")
    assert row.dataset["splits"] == {"images": 7}
    assert row.dataset["fingerprint"]
    wanted = {"kinds": list(KINDS), "views": 2, "grid": [6, 6], "image_px": VIEW, "precision": "fp32"}
    assert wanted.items() <= {**row.settings, "precision": "fp32"}.items()
    assert "max_images" not in row.settings
    assert row.model["weights_sha256"] == COLOURS.weights_sha256
    assert sum(seen) == 14
    for floor in ("chance", "position", "raw_patches"):
        assert set(row.details[floor]) == set(row.metrics)
        assert all(0 <= value <= 1 for value in row.details[floor].values())
    assert set(row.details["num_patches"]) == set(KINDS)
    assert scored.outcomes.ids is not None
    assert scored.outcomes.ids.tolist() == [f"{index}.png" for index in range(7)]
    assert row.metrics["acc_at_1"].num == 7
    assert metrics(score_images(COLOURS, noise(), views=2, seed=4)) != metrics(scored)


def test_fewer_images_are_those_of_all() -> None:
    whole, some = score_images(COLOURS, noise()), score_images(COLOURS, noise(), max_images=3)
    assert some.outcomes.ids is not None
    rows = [int(name.removesuffix(".png")) for name in some.outcomes.ids]
    assert len(rows) == 3
    for name, values in some.outcomes.values.items():
        np.testing.assert_array_equal(values, whole.outcomes.values[name][rows])
    assert some.row.settings["max_images"] == 3
    assert some.row.comparability != whole.row.comparability
    assert score_images(COLOURS, noise(), max_images=7).row.comparability == whole.row.comparability


def test_images_without_a_patch_that_counts_leave_the_mean() -> None:
    # On 2 x 2 patches a second view may show no centre of the first.
    scored = score_images(backbone(lambda colours: colours - 0.5, side=8), noise(60), kinds=["crop", "all"])
    values = scored.outcomes.values
    alone = np.isnan(values["acc_at_1@all"])
    assert 0 < alone.sum() < 60
    assert not np.isnan(values["acc_at_1@crop"]).all()
    np.testing.assert_array_equal(np.isnan(values["acc_at_1"]), alone | np.isnan(values["acc_at_1@crop"]))
    metric = scored.row.metrics["acc_at_1@all"]
    assert metric.num == 60 - alone.sum()
    assert metric.value == pytest.approx(np.nanmean(values["acc_at_1@all"]))


def test_unreadable_images_are_left_out_up_to_the_limit() -> None:
    pixels = noise().pixels
    broken = Holed(pixels, noise().ids, None, (), "drawn", "drawn")
    scored = score_images(COLOURS, broken, max_bad_fraction=0.5)
    assert scored.row.dataset["splits"] == {"images": 6}
    assert scored.row.dataset["num_unreadable"] == 1
    assert scored.outcomes.ids is not None
    assert "2.png" not in scored.outcomes.ids
    with pytest.raises(DataError, match=r"1 of 7 images are unreadable"):
        score_images(COLOURS, broken)
    with pytest.raises(DataError, match="holds no readable image"):
        score_images(COLOURS, noise(2, side=9), max_bad_fraction=1)


class Holed(ArraySource):
    """The third image cannot be read."""

    def read(self, index: int) -> Any:
        from patchssl.data.decode import UnreadableImage

        if index == 2:
            raise UnreadableImage("2.png", "is broken")
        return super().read(index)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kinds": ["crop", "twist"]}, "'twist' are unknown; allowed: crop, scale, flip"),
        ({"kinds": []}, "no kind of warp is given"),
        ({"views": 0}, "views is 0; it must be at least 1"),
        ({"max_images": 0}, "max_images is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"protocol": "other"}, "no protocol 'other'; allowed: warps"),
        ({"precision": "int3"}, "precision 'int3' is unknown"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        score_images(COLOURS, noise(), **options)


def test_networks_without_a_grid_are_refused() -> None:
    with pytest.raises(ConfigError, match="floor:raw-pixels makes 1 x 1 patches of an image of 224 px"):
        patch_grid(load_backbone("floor:raw-pixels"))
    assert patch_grid(COLOURS) == (6, 6)


def test_broken_features_are_refused() -> None:
    with pytest.raises(DataError, match="NaN or infinite"):
        score_images(backbone(lambda colours: colours / 0), noise())


def test_preparation() -> None:
    assert prepare(COLOURS).preprocess.image_px == VIEW
    assert prepare(COLOURS, image_size=48).preprocess.image_px == 48
    vit = load_backbone("timm:vit_tiny_patch16_224@random")
    assert prepare(replace(vit, keeps_geometry=True), image_size=32).preprocess.image_px == 32
    with pytest.raises(ConfigError, match="no protocol 'x'"):
        prepare(COLOURS, "x")


@pytest.mark.parametrize(
    ("spec", "grid"), [("timm:vit_tiny_patch16_224@random", [4, 4]), ("timm:resnet18@random", [2, 2])]
)
def test_vision_transformers_and_networks_of_stages(spec: str, grid: list[int]) -> None:
    scored = score_images(prepare(load_backbone(spec), image_size=64), noise(8), precision="fp32", views=2)
    assert scored.row.settings["grid"] == grid
    again = score_images(
        prepare(load_backbone(spec), image_size=64), noise(8), precision="fp32", views=2, batch_size=5, num_workers=1
    )
    assert metrics(again) == pytest.approx(metrics(scored), abs=0.01)


def test_noise_takes_what_pixels_tell_down_to_chance() -> None:
    rows = [score_images(COLOURS, noise(), views=2, noise=amount).row for amount in (0.0, 0.2, 1.0)]
    values = [row.metrics["acc_at_0.5"].value for row in rows]
    pixels = [row.details["raw_patches"]["acc_at_0.5"] for row in rows]
    assert values[0] > values[1] > values[2]
    assert pixels[0] > pixels[1] > pixels[2]
    assert pixels[2] == pytest.approx(rows[2].details["chance"]["acc_at_0.5"], abs=0.06)
    assert "noise" not in rows[0].settings
    assert rows[1].settings["noise"] == 0.2
    assert len({row.comparability for row in rows}) == 3


@pytest.mark.parametrize("amount", [-0.1, 1.5])
def test_noise_out_of_range(amount: float) -> None:
    with pytest.raises(ConfigError, match="allowed: 0 to 1"):
        score_images(COLOURS, noise(), noise=amount)
