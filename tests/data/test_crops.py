import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from patchssl.data.crops import read_crops
from patchssl.data.decode import UnreadableImage
from patchssl.data.images import ArraySource

PIXELS = np.random.default_rng(0).integers(0, 256, (7, 6, 5, 3), dtype=np.uint8)


class Some(ArraySource):
    """The second and third image, and the last, are unreadable."""

    def read(self, index: int) -> Image.Image:
        if index in (1, 2, 6):
            raise UnreadableImage(f"{index}.png", "is truncated")
        return super().read(index)


def crop(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[:, :4, :4]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_come_in_order_without_what_cannot_be_read(num_workers: int) -> None:
    source = Some(PIXELS, tuple("abcdefg"), None, (), "some", "somewhere")
    batches = [range(3), range(5, 7), range(1, 3), range(3, 4)]
    found = list(read_crops(source, crop, batches, num_workers=num_workers, pin_memory=False))
    assert [batch.indices for batch in found] == [[0], [5], [], [3]]
    bad = [[(1, "1.png", "is truncated"), (2, "2.png", "is truncated")], [(6, "6.png", "is truncated")]]
    assert [batch.unreadable for batch in found] == [bad[0], bad[1], bad[0], []]
    for batch in found:
        assert isinstance(batch.pixels, Tensor)
        expected = PIXELS[batch.indices][:, :4, :4].transpose(0, 3, 1, 2)
        if batch.indices:
            np.testing.assert_array_equal(batch.pixels.numpy(), expected)
            assert batch.pixels.is_shared() == (num_workers > 0)
        assert batch.pixels.dtype == torch.uint8
        assert len(batch.pixels) == len(batch.indices)


def test_a_worker_computes_with_one_thread() -> None:
    source = ArraySource(PIXELS, tuple("abcdefg"), None, (), "some", "somewhere")

    def threads(image: Image.Image) -> Tensor:
        return torch.tensor([torch.get_num_threads()], dtype=torch.uint8)

    (batch,) = read_crops(source, threads, [range(2)], num_workers=1, pin_memory=False)
    assert isinstance(batch.pixels, Tensor)
    assert batch.pixels.tolist() == [[1], [1]]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_crops_of_several_sizes_stay_apart(num_workers: int) -> None:
    source = ArraySource(PIXELS, tuple("abcdefg"), None, (), "some", "somewhere")

    def by_content(image: Image.Image) -> Tensor:
        side = 2 if np.array_equal(np.asarray(image), PIXELS[0]) else 4
        return torch.full((3, side, 4), side, dtype=torch.uint8)

    mixed, equal = read_crops(source, by_content, [range(3), range(1, 3)], num_workers=num_workers, pin_memory=False)
    assert [tuple(crop.shape) for crop in mixed.pixels] == [(3, 2, 4), (3, 4, 4), (3, 4, 4)]
    assert isinstance(equal.pixels, Tensor)
    assert equal.pixels.shape == (2, 3, 4, 4)


def test_reading_leaves_the_global_generator_alone() -> None:
    source = ArraySource(PIXELS, tuple("abcdefg"), None, (), "some", "somewhere")
    before = torch.get_rng_state()
    list(read_crops(source, crop, [range(7)], num_workers=1, pin_memory=False))
    assert torch.equal(torch.get_rng_state(), before)


def test_nothing_to_read_is_no_batch() -> None:
    source = ArraySource(PIXELS, tuple("abcdefg"), None, (), "some", "somewhere")
    assert list(read_crops(source, crop, [], num_workers=0, pin_memory=False)) == []
