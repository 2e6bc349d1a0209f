import numpy as np
import pytest
import torch
from PIL import Image

from patchssl.data.decode import UnreadableImage
from patchssl.data.images import ArraySource
from patchssl.data.loader import iterate
from patchssl.evaluate.probes.crops import AugmentedCrops, Piece


def source(num: int = 11, side: int = 24) -> ArraySource:
    pixels = np.random.default_rng(0).integers(0, 256, (num, side, side, 3), dtype=np.uint8)
    return ArraySource(pixels, tuple(f"{index}.png" for index in range(num)), None, (), "drawn", "drawn")


def crops(images: ArraySource | None = None, **changed: int) -> AugmentedCrops:
    settings = {"side": 8, "batch_size": 4, "piece_size": 3, "num_epochs": 2, "seed": 5, **changed}
    return AugmentedCrops(source() if images is None else images, **settings)


def test_pieces_worked_by_hand() -> None:
    made = crops()
    # 11 images in batches of 4, 4 and 3, each in pieces of at most 3.
    assert made.bounds == [(0, 3), (3, 4), (4, 7), (7, 8), (8, 11)]
    assert len(made) == 10
    assert made.piece(1) == Piece(0, 3, 4, ends_batch=True, ends_epoch=False)
    assert made.piece(5) == Piece(1, 0, 3, ends_batch=False, ends_epoch=False)
    assert made.piece(9) == Piece(1, 8, 11, ends_batch=True, ends_epoch=True)
    assert crops(batch_size=100, piece_size=100).bounds == [(0, 11)]
    assert crops(batch_size=4, piece_size=8).bounds == [(0, 4), (4, 8), (8, 11)]


def by_key(made: AugmentedCrops) -> dict[tuple[int, int], torch.Tensor]:
    found = {}
    for pixels, keys, bad in (made[step] for step in range(len(made))):
        assert not bad
        for row, key in enumerate(zip(keys.epoch.tolist(), keys.index.tolist(), strict=True)):
            found[key] = pixels[row]
    return found


def test_a_crop_follows_from_seed_epoch_and_index_alone() -> None:
    one = by_key(crops())
    assert sorted(one) == [(epoch, index) for epoch in range(2) for index in range(11)]
    other = by_key(crops(batch_size=11, piece_size=7, num_epochs=3))
    assert all(torch.equal(pixels, other[key]) for key, pixels in one.items())
    assert not torch.equal(one[0, 3], one[1, 3])
    assert not torch.equal(one[0, 3], by_key(crops(seed=6))[0, 3])
    first, second = (torch.cat([crops()[step][1].index for step in range(begin, begin + 5)]) for begin in (0, 5))
    assert first.tolist() != second.tolist()


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_and_resuming_change_nothing(workers: int) -> None:
    expected = [crops()[step] for step in range(10)]
    got = list(iterate(crops(), first_step=5, workers=workers, pin_memory=False))
    for (pixels, keys, _), (wanted, wanted_keys, _) in zip(got, expected[5:], strict=True):
        assert torch.equal(pixels, wanted)
        assert torch.equal(keys.index, wanted_keys.index)


def test_crops_cover_the_areas_and_ratios_that_are_told_and_half_are_mirrored() -> None:
    # A picture of its own coordinates: red grows to the right, green downwards.
    ramp = np.linspace(0, 255, 256).astype(np.uint8)
    pixels = np.zeros((400, 256, 256, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = ramp[None, None, :], ramp[None, :, None]
    images = ArraySource(pixels, tuple(map(str, range(400))), None, (), "ramp", "ramp")
    side = 16
    found, _, _ = crops(images, side=side, batch_size=400, piece_size=400, num_epochs=1)[0]
    across = found[:, 0].float().mean(dim=1)  # (400, side)
    down = found[:, 1].float().mean(dim=2)
    width = (across[:, -1] - across[:, 0]).abs() * side / (side - 1)
    height = (down[:, -1] - down[:, 0]) * side / (side - 1)
    area, ratio = (width * height / 256**2).clamp(max=1), width / height
    assert area.min() > 0.07
    assert area.max() > 0.9
    assert area.mean().item() == pytest.approx(0.5, abs=0.06)
    assert ratio.min() > 0.7
    assert ratio.max() < 1.4
    mirrored = (across[:, 0] > across[:, -1]).float().mean().item()
    assert mirrored == pytest.approx(0.5, abs=0.08)


class Damaged(ArraySource):
    """Every third image cannot be read."""

    def read(self, index: int) -> Image.Image:
        if index % 3 == 0:
            raise UnreadableImage(self.ids[index], "is truncated")
        return super().read(index)


def test_unreadable_images_are_left_out_of_their_piece() -> None:
    whole = source()
    damaged = Damaged(whole.pixels, whole.ids, None, (), "drawn", "drawn")
    made, all_ = crops(damaged, piece_size=1), by_key(crops())
    num_bad = 0
    for step in range(len(made)):
        pixels, keys, bad = made[step]
        assert len(pixels) + len(bad) == 1
        num_bad += len(bad)
        if len(pixels):
            assert torch.equal(pixels[0], all_[int(keys.epoch[0]), int(keys.index[0])])
        else:
            assert pixels.shape == (0, 3, 8, 8)
    assert num_bad == 2 * 4
