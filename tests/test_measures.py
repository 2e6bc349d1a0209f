"""Ranks, prototypes in use and divergences: by hand, by slow second implementations, and what always holds."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from patchssl.measures import TargetSums, below_uniform, effective_rank, perplexity, spread_rows
from patchssl.structs import Projections
from patchssl.targets import Targets
from patchssl.workspace import Workspace

CPU = torch.device("cpu")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(size: int) -> Tensor:
    orthogonal: Tensor = torch.linalg.qr(random(size, size, seed=7)).Q
    return orthogonal


def slow_rank(features: Tensor) -> float:
    """From the eigenvalues of the Gram matrix, one share at a time."""
    values = np.sqrt(np.clip(np.linalg.eigvalsh(features.numpy().T @ features.numpy()), 0, None))
    shares = [value / values.sum() for value in values]
    return math.exp(-sum(share * math.log(share) for share in shares if share > 1e-9))


# What is looked at, and its rank.
RANKS = [
    ([[3.0, 4.0]], 1.0),
    ([[1.0, 2.0], [1.0, 2.0], [-2.0, -4.0]], 1.0),
    ([[2.0, 0.0], [0.0, 2.0]], 2.0),
    # Shares 3/4 and 1/4: exp(3/4 ln 4/3 + 1/4 ln 4).
    ([[3.0, 0.0], [0.0, 1.0]], (4 / 3) ** 0.75 * 4**0.25),
    ([[0.0, 0.0]], 0.0),
]


@pytest.mark.parametrize(("features", "rank"), RANKS)
def test_ranks_by_hand(features: list[list[float]], rank: float) -> None:
    assert effective_rank(torch.tensor(features)) == pytest.approx(rank, rel=1e-5)


@pytest.mark.parametrize("shape", [(40, 6), (5, 20), (64, 64)])
def test_a_rank_equals_its_definition(shape: tuple[int, int]) -> None:
    features = random(*shape) * torch.linspace(0.01, 3, shape[1])
    assert effective_rank(features) == pytest.approx(slow_rank(features), rel=1e-4)


@pytest.mark.parametrize("num", [1, 3, 8])
def test_orthogonal_directions_of_equal_strength_count_one_each(num: int) -> None:
    features = torch.eye(8, dtype=torch.float64)[:num].repeat(5, 1) @ rotation(8)
    assert effective_rank(features) == pytest.approx(num, rel=1e-6)


def test_a_rank_knows_no_rotation_scale_or_order_and_is_at_most_the_smaller_side() -> None:
    features = random(30, 8) * torch.arange(1, 9)
    rank = effective_rank(features)
    assert 1 < rank < 8
    for same in (features * 100, features @ rotation(8), features.flip(0), rotation(30) @ features):
        assert effective_rank(same) == pytest.approx(rank, rel=1e-9)
    assert effective_rank(random(4, 50)) <= 4


def test_a_rank_of_nothing_is_refused_and_one_of_what_is_not_finite_is_none() -> None:
    with pytest.raises(
        ValueError, match=r"features of shape \(0, 4\) came; a rank needs \(M, D\) with M and D above 0"
    ):
        effective_rank(torch.zeros(0, 4))
    with pytest.raises(ValueError, match=r"\(4,\)"):
        effective_rank(torch.ones(4))
    assert math.isnan(effective_rank(torch.tensor([[1.0, math.inf]])))


def test_perplexities_by_hand_and_against_their_definition() -> None:
    assert perplexity(torch.tensor([0.0, 5.0, 0.0])) == pytest.approx(1)
    assert perplexity(torch.full((7,), 0.3)) == pytest.approx(7)
    assert perplexity(torch.tensor([0.75, 0.25])) == pytest.approx((4 / 3) ** 0.75 * 4**0.25)
    masses = random(20).abs()
    shares = (masses / masses.sum()).tolist()
    assert perplexity(masses) == pytest.approx(math.prod(share**-share for share in shares))
    with pytest.raises(ValueError, match="3 masses that sum to 0 are no distribution"):
        perplexity(torch.zeros(3))


def test_distance_from_uniform_by_hand() -> None:
    assert below_uniform(math.log(4096), 4096) == 0
    assert below_uniform(0.0, 4096) == pytest.approx(8.3178, abs=1e-4)
    assert below_uniform(3.0, 8) == pytest.approx(math.log(8) - 3)
    assert below_uniform(3.0, 8) < 0


def test_rows_by_hand() -> None:
    assert spread_rows(3, 5, CPU).tolist() == [0, 1, 2]
    assert spread_rows(0, 5, CPU).tolist() == []
    # 40503 / 65536 is about 0.618: places 0, 0.618, 0.236 and 0.854 within stretches of 10.
    assert spread_rows(40, 4, CPU).tolist() == [0, 16, 22, 38]


@pytest.mark.parametrize(("num_rows", "max_rows"), [(512, 512), (513, 512), (1000, 512), (25088, 512), (1 << 40, 512)])
def test_one_row_of_each_stretch(num_rows: int, max_rows: int) -> None:
    rows = spread_rows(num_rows, max_rows, CPU)
    assert len(rows) == max_rows
    for number, row in enumerate(rows.tolist()):
        assert number * num_rows // max_rows <= row < (number + 1) * num_rows // max_rows


@pytest.mark.parametrize("num_patches", [16, 196, 256])
def test_rows_meet_all_positions_of_a_grid(num_patches: int) -> None:
    # A fixed step would meet 4 of 196 positions here.
    positions = spread_rows(128 * num_patches, 512, CPU) % num_patches
    assert len(positions.unique()) > 0.8 * min(num_patches, 512 * (1 - math.exp(-512 / num_patches)))


def sums_of(logits: Tensor, weights: Tensor, *, temperature: float = 1.0, max_logits: int = 1 << 26) -> TargetSums:
    """Of the distributions that these logits (T, K) say."""
    num = logits.shape[1]
    teacher = Projections(logits, torch.eye(num, dtype=logits.dtype))
    targets = Targets.of(teacher, center=torch.zeros(1, num, dtype=logits.dtype), temperature=temperature)
    # Blocks of a single row.
    return targets.sums(weights, Workspace(16), max_logits=max_logits)


def test_sums_by_hand() -> None:
    # Uniform over two; sure of the third; 3/4 and 1/4.
    logits = torch.tensor([[0.0, 0.0, -1e3], [-1e3, -1e3, 0.0], [math.log(3), 0.0, -1e3]])
    sums = sums_of(logits, torch.tensor([1.0, 2.0, 0.0]))
    quarter = 0.75 * math.log(4 / 3) + 0.25 * math.log(4)
    assert sums.mean_entropy() == pytest.approx((math.log(2) + quarter) / 3)
    # Of the pairs only those with a weight: (1 * ln 2 + 2 * 0) / 3.
    assert sums.kl(1.0) == pytest.approx(1 - math.log(2) / 3)
    assert sums.masses.tolist() == pytest.approx([1.25, 0.75, 1.0])
    assert sums.wins.tolist() == [2, 0, 1]
    assert sums.num_used() == 2
    assert sums.perplexity() == pytest.approx(perplexity(torch.tensor([1.25, 0.75, 1.0])))


def test_sums_equal_their_definition_under_centre_and_temperature() -> None:
    rows, prototypes, center = random(24, 5), random(30, 5, seed=1), random(4, 30, seed=2)
    weights = random(24, seed=3).abs()
    targets = Targets.of(Projections(rows, prototypes), center=center, temperature=0.3)
    sums = targets.sums(weights, Workspace())
    logits = rows @ prototypes.T
    table = torch.stack([torch.softmax((logits[row] - center[row % 4]) / 0.3, 0) for row in range(24)])
    entropies = torch.tensor([-sum(p * math.log(p) for p in row) for row in table.tolist()], dtype=torch.float64)
    assert sums.mean_entropy() == pytest.approx(float(entropies.mean()))
    assert sums.kl(5.0) == pytest.approx(5 - float((entropies * weights).sum() / weights.sum()))
    torch.testing.assert_close(sums.masses, table.sum(0))
    assert sums.num_used() == len({int(row.argmax()) for row in table})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_uniform_and_sure_teachers(dtype: torch.dtype) -> None:
    uniform = sums_of(torch.zeros(6, 1000, dtype=dtype), torch.ones(6))
    assert uniform.mean_entropy() == pytest.approx(math.log(1000), rel=1e-5)
    assert uniform.perplexity() == pytest.approx(1000, rel=1e-4)
    assert uniform.num_used() == 1  # the first of equal ones
    sure = sums_of(torch.eye(6, dtype=dtype) * 100, torch.ones(6))
    assert sure.mean_entropy() == pytest.approx(0, abs=1e-6)
    assert sure.num_used() == 6
    assert sure.perplexity() == pytest.approx(6, rel=1e-4)


def test_a_divergence_is_0_for_equals_and_never_negative() -> None:
    teacher, student = random(50, 9), random(50, 9, seed=1)
    sums = sums_of(teacher, torch.ones(50, dtype=torch.float64))
    targets = torch.softmax(teacher, 1)

    def cross_entropy(logits: Tensor) -> float:
        return float(-(targets * torch.log_softmax(logits, 1)).sum(1).mean())

    assert sums.kl(cross_entropy(teacher)) == pytest.approx(0, abs=1e-9)
    expected = torch.nn.functional.kl_div(torch.log_softmax(student, 1), targets, reduction="batchmean")
    assert sums.kl(cross_entropy(student)) == pytest.approx(float(expected))
    for seed in range(2, 20):
        assert sums.kl(cross_entropy(random(50, 9, seed=seed))) > 0


def test_without_pairs_there_is_no_divergence() -> None:
    with pytest.raises(ValueError, match="no pair learns from these distributions"):
        sums_of(random(4, 3), torch.zeros(4)).kl(1.0)


def test_sums_of_parts_add_up() -> None:
    logits, weights = random(20, 6), random(20, seed=1).abs()
    whole = sums_of(logits, weights)
    parts = sums_of(logits[:7], weights[:7]) + sums_of(logits[7:], weights[7:])
    for name in ("rows", "entropy", "weight", "weighted_entropy", "masses", "wins"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name))
    assert parts.mean_entropy() == pytest.approx(whole.mean_entropy())
    assert parts.num_used() == whole.num_used()


def test_where_there_are_too_many_logits_a_sample_stands_for_all() -> None:
    logits, weights = random(400, 10), torch.ones(400)
    whole, sample = sums_of(logits, weights), sums_of(logits, weights, max_logits=1009)
    assert int(sample.rows) == 100
    assert float(sample.weight) == 100
    assert sample.mean_entropy() == pytest.approx(whole.mean_entropy(), rel=0.05)
    rows = spread_rows(400, 100, CPU)
    torch.testing.assert_close(sample.masses, sums_of(logits[rows], weights[rows]).masses)
    # One row at least.
    assert int(sums_of(logits, weights, max_logits=3).rows) == 1
