"""Random numbers: known answers, a second implementation, and what they may and may not depend on."""

from collections.abc import Sequence

import pytest
import torch

from patchssl.draws import philox, uniforms
from patchssl.structs import SampleKeys

# Published with Random123, the reference implementation: counter, key, output.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def slow_philox(counter: Sequence[int], key: Sequence[int]) -> list[int]:
    """Philox 4x32-10 as the paper defines it, in Python's unbounded integers."""
    first, second, third, fourth = counter
    left, right = key
    for _ in range(10):
        high0, low0 = divmod(first * 0xD2511F53, 2**32)
        high1, low1 = divmod(third * 0xCD9E8D57, 2**32)
        first, second, third, fourth = high1 ^ second ^ left, low1, high0 ^ fourth ^ right, low0
        left, right = (left + 0x9E3779B9) % 2**32, (right + 0xBB67AE85) % 2**32
    return [first, second, third, fourth]


def keys_of(indices: Sequence[int], epoch: int = 0) -> SampleKeys:
    index = torch.tensor(indices, dtype=torch.int64)
    return SampleKeys(torch.full_like(index, epoch), index)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_gives_the_published_answers(counter: str, key: str, expected: str) -> None:
    c0, c1, c2, c3 = (torch.tensor(word) for word in words(counter))
    k0, k1 = words(key)
    assert [int(word) for word in philox((c0, c1, c2, c3), (k0, k1))] == words(expected)
    assert slow_philox(words(counter), words(key)) == words(expected)


def test_philox_equals_the_slow_implementation() -> None:
    counters = torch.randint(2**32, (100, 4), generator=torch.Generator().manual_seed(0))
    keys = torch.randint(2**32, (2,), generator=torch.Generator().manual_seed(1)).tolist()
    c0, c1, c2, c3 = counters.unbind(1)
    drawn = torch.stack(philox((c0, c1, c2, c3), (keys[0], keys[1])), dim=1)
    assert drawn.tolist() == [slow_philox(counter, keys) for counter in counters.tolist()]


def test_uniforms_are_the_words_of_philox_in_order() -> None:
    seed, epoch, index, stream = 2**40 + 5, 3, 2**33 + 17, 6
    drawn = uniforms(seed, keys_of([index], epoch), stream, 7)
    low, high = index % 2**32, index // 2**32
    slow = [
        word
        for block in range(2)
        for word in slow_philox((block, stream, low, (high << 24) + epoch), (seed % 2**32, seed // 2**32))
    ]
    assert drawn.tolist() == [[(word >> 8) / 2**24 for word in slow[:7]]]


def test_no_samples_and_no_numbers() -> None:
    assert uniforms(0, keys_of([]), 0, 5).shape == (0, 5)
    assert uniforms(0, keys_of([1, 2]), 0, 0).shape == (2, 0)


def test_a_sample_does_not_depend_on_batch_order_or_how_many_numbers_are_drawn() -> None:
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    drawn = uniforms(7, keys_of(list(range(50))), 3, 11)
    assert torch.equal(uniforms(7, keys_of(order.tolist()), 3, 11), drawn[order])
    assert torch.equal(uniforms(7, keys_of([23]), 3, 11), drawn[23:24])
    assert torch.equal(uniforms(7, keys_of([23]), 3, 2), drawn[23:24, :2])


def test_a_stream_per_sample_equals_one_call_per_stream() -> None:
    keys = keys_of([4, 4, 9])
    drawn = uniforms(7, keys, torch.tensor([1, 2, 1]), 6)
    assert torch.equal(drawn[:1], uniforms(7, keys[:1], 1, 6))
    assert torch.equal(drawn[1:2], uniforms(7, keys[1:2], 2, 6))
    assert torch.equal(drawn[2:], uniforms(7, keys[2:], 1, 6))


@pytest.mark.parametrize(
    "other",
    [
        uniforms(8, keys_of(list(range(500))), 3, 8),
        uniforms(7 + 2**32, keys_of(list(range(500))), 3, 8),
        uniforms(7, keys_of(list(range(500)), epoch=1), 3, 8),
        uniforms(7, keys_of(list(range(1, 501))), 3, 8),
        uniforms(7, keys_of(list(range(2**32, 2**32 + 500))), 3, 8),
        uniforms(7, keys_of(list(range(500))), 4, 8),
    ],
    ids=["seed", "high word of the seed", "epoch", "index", "high word of the index", "stream"],
)
def test_everything_they_are_for_changes_them(other: torch.Tensor) -> None:
    drawn = uniforms(7, keys_of(list(range(500))), 3, 8)
    correlation = float(torch.corrcoef(torch.stack((drawn.flatten(), other.flatten())))[0, 1])
    assert (drawn == other).float().mean() < 0.001
    assert abs(correlation) < 4 / 4000**0.5


@pytest.mark.parametrize("along", ["samples", "positions", "epochs", "streams"])
def test_numbers_are_uniform(along: str) -> None:
    """Chi-square of 64 cells against its 0.999 quantile, 103.4 with 63 degrees of freedom."""
    if along == "samples":
        drawn = uniforms(1, keys_of(list(range(20000))), 0, 1)
    elif along == "positions":
        drawn = uniforms(1, keys_of([0]), 0, 20000)
    elif along == "epochs":
        drawn = uniforms(1, SampleKeys(torch.arange(20000), torch.zeros(20000, dtype=torch.int64)), 0, 1)
    else:
        drawn = uniforms(1, SampleKeys(*torch.zeros(2, 20000, dtype=torch.int64)), torch.arange(20000), 1)
    counts = torch.histc(drawn, bins=64, min=0, max=1)
    assert float(((counts - 20000 / 64) ** 2 / (20000 / 64)).sum()) < 103.4
    assert 0 <= float(drawn.min()) <= float(drawn.max()) < 1


def test_neighbouring_numbers_are_independent() -> None:
    """Chi-square of 8 x 8 cells of pairs, 103.4 as above: of positions of a sample, and of neighbouring samples."""
    drawn = uniforms(2, keys_of(list(range(10001))), 5, 2)
    for first, second in ((drawn[:, 0], drawn[:, 1]), (drawn[:-1, 0], drawn[1:, 0])):
        counts = torch.bincount((first * 8).long() * 8 + (second * 8).long(), minlength=64)
        expected = len(first) / 64
        assert float(((counts - expected) ** 2 / expected).sum()) < 103.4
