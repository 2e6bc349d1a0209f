"""The order of images in shards: every image once, shuffled, and read shard by shard."""

from itertools import groupby

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from patchssl.data.images import ArraySource
from patchssl.data.lanes import MAX_LANES, Blocks, lane_order
from patchssl.data.order import epoch_order


def blocks(*sizes: int, shards: list[int] | None = None, **limits: int) -> Blocks:
    return Blocks(np.array(sizes, dtype=np.int64), np.array(shards or range(len(sizes)), dtype=np.int64), **limits)


def order(
    told: Blocks, *, buffer: int = 1, batch_size: int = 64, in_batch: int = 0, seed: int = 0
) -> NDArray[np.int64]:
    rng = np.random.default_rng(seed)
    return lane_order(told, shuffle_buffer=buffer, batch_size=batch_size, in_batch=in_batch, rng=rng)


def block_of(told: Blocks, indices: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.searchsorted(np.cumsum(told.sizes), indices, side="right")


@given(
    sizes=st.lists(st.integers(0, 30), max_size=12),
    buffer=st.integers(1, 200),
    batch_size=st.integers(1, 40),
    in_batch=st.integers(0, 39),
    seed=st.integers(0, 9),
)
@settings(max_examples=150, deadline=None)
def test_every_image_comes_once(sizes: list[int], buffer: int, batch_size: int, in_batch: int, seed: int) -> None:
    got = order(blocks(*sizes), buffer=buffer, batch_size=batch_size, in_batch=in_batch % batch_size, seed=seed)
    assert sorted(got.tolist()) == list(range(sum(sizes)))


def test_one_lane_by_hand() -> None:
    """A batch of one image has one lane; without a buffer that is the shards one after another."""
    got = order(blocks(2, 3, 1), batch_size=1).tolist()
    shards = [[0, 1], [2, 3, 4], [5]]
    assert [list(part) for _, part in groupby(got, lambda index: [0, 0, 1, 1, 1, 2][index])] in [
        [shards[a], shards[b], shards[c]]
        for a, b, c in [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    ]


def test_lanes_advance_evenly_by_hand() -> None:
    """Two lanes of 4 and 2 images, in batches of 3: two of the one and one of the other, lane by lane."""
    got = order(blocks(4, 2), batch_size=3).tolist()
    assert sorted(got[:3]) == [0, 1, 4]
    assert sorted(got[3:]) == [2, 3, 5]
    assert [index >= 4 for index in got[:3]] == [index >= 4 for index in got[3:]]


def slow_order(told: Blocks, *, buffer: int, batch_size: int, in_batch: int, seed: int) -> list[int]:
    """The same image by image, from the description."""
    rng = np.random.default_rng(seed)
    shard_ranks = rng.permutation(int(told.shards.max()) + 1)
    draws = rng.random(len(told.sizes))
    starts = np.cumsum(told.sizes) - told.sizes
    sequence = sorted(range(len(draws)), key=lambda block: (shard_ranks[told.shards[block]], draws[block]))
    sequence = [block for block in sequence if told.sizes[block]]
    num_lanes = min(len(sequence), 64, told.max_lanes, batch_size)
    lanes: list[list[int]] = [[] for _ in range(num_lanes)]
    for block in sequence:
        lane = min(lanes, key=len)
        lane += range(starts[block], starts[block] + told.sizes[block])
    total = sum(map(len, lanes))
    merged = []
    for number, lane in enumerate(lanes):
        keys = [place + draw * buffer * len(lane) / total for place, draw in enumerate(rng.random(len(lane)))]
        shuffled = [index for _, index in sorted(zip(keys, lane, strict=True))]
        merged += [((place + 0.5) / len(lane), number, index) for place, index in enumerate(shuffled)]
    merged.sort()
    found: list[int] = []
    for _, batch in groupby(enumerate(merged, in_batch), lambda item: item[0] // batch_size):
        found += [index for _, (_, _, index) in sorted(batch, key=lambda item: item[1][1])]
    return found


@pytest.mark.parametrize("seed", range(6))
def test_it_is_what_the_description_says(seed: int) -> None:
    rng = np.random.default_rng(100 + seed)
    sizes = rng.integers(0, 40, 30).tolist()
    told = blocks(*sizes, shards=sorted(rng.integers(0, 9, 30).tolist()), max_lanes=int(rng.integers(1, 12)))
    given = {"buffer": int(rng.integers(1, 300)), "batch_size": int(rng.integers(1, 50)), "seed": seed}
    in_batch = int(rng.integers(0, given["batch_size"]))
    assert order(told, **given, in_batch=in_batch).tolist() == slow_order(told, **given, in_batch=in_batch)


@pytest.mark.parametrize("buffer", [1, 50, 400, 4000])
def test_no_image_moves_by_more_than_the_buffer_in_its_lane(buffer: int) -> None:
    """With one lane, whose undisturbed order is that of a buffer of one."""
    told = blocks(*[100] * 20, max_lanes=1)
    before, after = order(told, buffer=1), order(told, buffer=buffer)
    place = np.empty(2000, dtype=np.int64)
    place[before] = np.arange(2000)
    moved = np.abs(place[after] - np.arange(2000))
    assert moved.max() < buffer
    assert buffer == 1 or moved.max() > buffer / 4


def test_a_small_buffer_keeps_images_of_a_shard_together() -> None:
    """Of 200 shards 16 are in use at a time, and a few more while one passes over to the next."""
    told = blocks(*[50] * 200)
    near = [
        len(np.unique(block_of(told, order(told, buffer=160, batch_size=16)[at : at + 320])))
        for at in range(0, 9000, 500)
    ]
    assert max(near) <= 3 * 16
    far = [
        len(np.unique(block_of(told, order(told, buffer=10000, batch_size=16)[at : at + 320]))) for at in (3000, 5000)
    ]
    assert min(far) > 100


def test_images_of_a_file_with_several_row_groups_come_at_about_the_same_time() -> None:
    told = blocks(*[10] * 400, shards=[number // 20 for number in range(400)])
    got = order(told, buffer=64, batch_size=8)
    files = told.shards[block_of(told, got)]
    assert max(len(np.unique(files[at : at + 200])) for at in range(0, 3800, 200)) <= 4


def test_a_buffer_that_holds_all_shuffles_as_a_folder_is_shuffled() -> None:
    source = of_blocks(blocks(*[10] * 30))
    plain = of_blocks(None)
    for buffer in (300, 1000, None):
        got = epoch_order(source, seed=5, epoch=2, shuffle_buffer=buffer, batch_size=7)
        assert np.array_equal(got, epoch_order(plain, seed=5, epoch=2))
    assert not np.array_equal(epoch_order(source, seed=5, epoch=2, shuffle_buffer=299, batch_size=7), got)


def test_the_larger_the_buffer_the_nearer_are_shards_to_the_middle_of_the_epoch() -> None:
    """Only their beginnings and ends are left, where a buffer has nothing to take from on one side."""
    told = blocks(*[100] * 50, max_lanes=1)
    spread = []
    for buffer in (50, 2500, 4999):
        place = np.empty(5000)
        place[order(told, buffer=buffer)] = np.arange(5000)
        spread.append(place.reshape(50, 100).mean(axis=1).std())
    assert spread[0] > spread[1] > spread[2]
    assert spread[2] < 0.8 * spread[0]


class _OfBlocks(ArraySource):
    blocks: Blocks | None


def of_blocks(told: Blocks | None) -> ArraySource:
    source = _OfBlocks(np.zeros((300, 1, 1, 3), np.uint8), tuple(map(str, range(300))), None, (), "made", "memory")
    object.__setattr__(source, "blocks", told)
    return source


def test_seed_and_epoch_change_the_order() -> None:
    source = of_blocks(blocks(*[10] * 30))
    given = {"shuffle_buffer": 20, "batch_size": 8}
    one = epoch_order(source, seed=0, epoch=0, **given)
    assert np.array_equal(one, epoch_order(source, seed=0, epoch=0, **given))
    for other in ({"seed": 1, "epoch": 0}, {"seed": 0, "epoch": 1}):
        assert not np.array_equal(one, epoch_order(source, **other, **given))


def test_a_source_may_bound_the_buffer(caplog: pytest.LogCaptureFixture) -> None:
    from patchssl.data.order import tell_smaller_buffer

    bounded = of_blocks(blocks(*[10] * 30, max_buffer=20))
    free = of_blocks(blocks(*[10] * 30))
    assert np.array_equal(
        epoch_order(bounded, seed=0, epoch=0, shuffle_buffer=4096, batch_size=8),
        epoch_order(free, seed=0, epoch=0, shuffle_buffer=20, batch_size=8),
    )
    tell_smaller_buffer(bounded, 20)
    tell_smaller_buffer(free, 4096)
    assert not caplog.records
    tell_smaller_buffer(bounded, 4096)
    assert "data.shuffle_buffer is 4,096; of memory only 20 images" in caplog.text


@pytest.mark.parametrize("num_ranks", [2, 4, 8])
def test_processes_read_shards_of_their_own(num_ranks: int) -> None:
    """In each window of 16 batches a process finds most of its images in shards that no other reads in that time."""
    told = blocks(*np.random.default_rng(0).integers(80, 120, 256).tolist())
    batch_size = 128
    got = order(told, buffer=1024, batch_size=batch_size, in_batch=37)[(-37) % batch_size :]
    whole = got[: len(got) // batch_size * batch_size].reshape(-1, num_ranks, batch_size // num_ranks)
    shards = block_of(told, whole)
    alone = []
    for start in range(0, len(shards) - 16, 16):
        window = shards[start : start + 16].swapaxes(0, 1).reshape(num_ranks, -1)
        for rank in range(num_ranks):
            others = np.unique(np.delete(window, rank, axis=0))
            alone.append(1 - np.isin(window[rank], others).mean())
    assert np.mean(alone) > {2: 0.9, 4: 0.8, 8: 0.7}[num_ranks]
    # In the order of a folder every process reads nearly every shard.
    shuffled = block_of(told, np.random.default_rng(0).permutation(int(told.sizes.sum()))[: 16 * batch_size])
    parts = shuffled.reshape(16, num_ranks, -1)
    assert np.isin(parts[:, 0], np.unique(parts[:, 1:])).mean() > 0.9


@pytest.mark.parametrize(
    ("told", "batch_size", "num"),
    [
        (blocks(*[10] * 192), 640, MAX_LANES),
        (blocks(*[10] * 200), 16, 16),
        (blocks(*[10] * 200, max_lanes=5), 15, 5),
        (blocks(*[10] * 3), 3, 3),
    ],
)
def test_as_many_shards_are_read_side_by_side_as_there_are_lanes(told: Blocks, batch_size: int, num: int) -> None:
    assert len(np.unique(block_of(told, order(told, batch_size=batch_size)[:batch_size]))) == num
