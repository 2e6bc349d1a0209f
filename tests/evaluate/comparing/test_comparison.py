import math
from collections.abc import Callable

import numpy as np
import pytest

from patchssl.errors import DataError
from patchssl.evaluate.comparing.comparison import (
    Difference,
    aligned,
    compare,
    over_draws,
    paired_difference,
    unpaired_difference,
)
from patchssl.evaluate.outcomes import Outcomes
from patchssl.evaluate.results import Metric, Row

MakeRow = Callable[..., Row]


def outcomes(ids: list[str] | None = None, **values: list[float] | np.ndarray) -> Outcomes:
    return Outcomes(
        None if ids is None else np.array(ids),
        {name.replace("_k", "@k"): np.asarray(array, dtype=float) for name, array in values.items()},
    )


def hits(num_both: int, num_a: int, num_b: int, num_none: int) -> tuple[np.ndarray, np.ndarray]:
    """Outcomes of two models, by how many images both, only one or none of them got right."""
    a = [True] * (num_both + num_a) + [False] * (num_b + num_none)
    b = [True] * num_both + [False] * num_a + [True] * num_b + [False] * num_none
    return np.array(a), np.array(b)


def mcnemar(num_a: int, num_b: int) -> float:
    """Exact two-sided p-value of McNemar's test: images that only one got right go to either by a coin."""
    num, few = num_a + num_b, min(num_a, num_b)
    return min(1.0, 2 * sum(math.comb(num, k) for k in range(few + 1)) / float(2**num))


def test_a_table_by_hand() -> None:
    # 40 + 30 of 100 against 40 + 10: 0.7 - 0.5. Of a difference of 1, -1 or 0, its variance is
    # (30 + 10) / 100 - 0.2² = 0.36, so the standard error is 0.06.
    a, b = hits(40, 30, 10, 20)
    found = paired_difference(a, b, seed=0, num_resamples=20_000)
    assert found.value == pytest.approx(0.2)
    assert found.num == 100
    assert found.ci95_low == pytest.approx(0.2 - 1.96 * 0.06, abs=0.006)
    assert found.ci95_high == pytest.approx(0.2 + 1.96 * 0.06, abs=0.006)
    assert found.separable
    assert found.unpaired is None


def test_equals_drawing_images_one_by_one() -> None:
    generator = np.random.default_rng(5)
    a = generator.uniform(size=80) ** 2
    b = np.clip(a + generator.normal(-0.05, 0.2, size=80), 0, 1)
    slow = []
    for _ in range(4000):
        drawn = generator.integers(0, 80, size=80)
        slow.append(np.mean([a[image] for image in drawn]) - np.mean([b[image] for image in drawn]))
    found = paired_difference(a, b, seed=0, num_resamples=4000)
    assert (found.ci95_low, found.ci95_high) == pytest.approx(np.quantile(slow, [0.025, 0.975]), abs=0.008)
    exchanged = []
    for _ in range(4000):
        signs = [1 if coin else -1 for coin in generator.integers(0, 2, size=80)]
        exchanged.append(abs(np.mean([sign * (x - y) for sign, x, y in zip(signs, a, b, strict=True)])))
    assert found.p_value == pytest.approx(np.mean(np.array(exchanged) >= abs(found.value)), abs=0.02)


@pytest.mark.parametrize(("num_a", "num_b"), [(30, 10), (12, 11), (25, 14), (60, 20), (3, 1), (4, 0), (0, 7)])
def test_is_mcnemars_test_for_hits(num_a: int, num_b: int) -> None:
    found = paired_difference(*hits(100, num_a, num_b, 100), seed=1, num_resamples=20_000)
    exact = mcnemar(num_a, num_b)
    assert found.p_value == pytest.approx(exact, abs=0.01)
    assert not found.separable or exact < 0.05
    if exact < 0.01:
        assert found.separable


def test_four_images_separate_no_models() -> None:
    # The bootstrap's interval leaves out 0, because few resamples hold none of the four.
    found = paired_difference(*hits(50, 4, 0, 46), seed=0)
    assert found.ci95_low > 0
    assert found.p_value == pytest.approx(2 / 2**4, abs=0.03)
    assert not found.separable


def test_a_model_against_itself_differs_by_exactly_nothing() -> None:
    values = np.random.default_rng(0).uniform(size=50)
    found = paired_difference(values, values.copy(), seed=3)
    assert (found.value, found.ci95_low, found.ci95_high, found.p_value) == (0.0, 0.0, 0.0, 1.0)
    assert math.copysign(1, found.ci95_low) == 1.0
    assert not found.separable


@pytest.mark.parametrize("seed", range(4))
def test_exchanging_the_models_changes_the_sign_and_nothing_else(seed: int) -> None:
    generator = np.random.default_rng(seed)
    pairs = [generator.uniform(size=(2, 40)), generator.uniform(size=(2, 40)) < 0.5]
    pairs.append(np.array([[1.0, 0.0, 0.5, 0.25], [0.0, 0.5, 0.5, 0.75]]))  # differences that sum to 0
    for a, b in pairs:
        found, other = paired_difference(a, b, seed=seed), paired_difference(b, a, seed=seed)
        assert (found.value, found.ci95_low, found.ci95_high) == (-other.value, -other.ci95_high, -other.ci95_low)
        assert found.p_value == other.p_value
        assert found.separable == other.separable


def test_images_that_do_not_count_for_one_are_left_out_of_both() -> None:
    nan = float("nan")
    a = np.array([1.0, nan, 0.5, 0.25, 1.0])
    b = np.array([0.5, 1.0, nan, 0.5, 0.0])
    found = paired_difference(a, b, seed=0)
    assert found == paired_difference(np.array([1.0, 0.25, 1.0]), np.array([0.5, 0.5, 0.0]), seed=0)
    assert found.num == 3
    assert found.value == pytest.approx((0.5 - 0.25 + 1.0) / 3)


def test_order_and_constants_of_the_images_do_not_matter() -> None:
    generator = np.random.default_rng(2)
    a, b = generator.integers(0, 65, size=(2, 60)) / 64
    order = generator.permutation(60)
    assert paired_difference(a[order], b[order], seed=0) == paired_difference(a, b, seed=0)
    # What is difficult for both widens the intervals of both, and not that of their difference.
    hard = generator.integers(0, 640, size=60) / 64
    apart = paired_difference(a + hard, b + hard, seed=0)
    assert apart.ci95_high - apart.ci95_low == pytest.approx(
        paired_difference(a, b, seed=0).ci95_high - paired_difference(a, b, seed=0).ci95_low, rel=1e-6
    )


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        ([1.0], [1.0, 0.0], "cannot be paired"),
        ([], [], "none of 0 images"),
        ([float("nan"), 1.0], [1.0, float("nan")], "none of 2 images"),
        ([float("inf"), 1.0], [1.0, 0.0], "not finite"),
    ],
)
def test_what_cannot_be_paired_is_refused(a: list[float], b: list[float], words: str) -> None:
    with pytest.raises(DataError, match=words):
        paired_difference(np.array(a), np.array(b), seed=0)


def metric(value: float, half: float) -> Metric:
    return Metric(value=value, ci95_low=value - half, ci95_high=value + half, num=100)


def test_unpaired_by_hand() -> None:
    # Halves of 0.03 and 0.04 make one of 0.05.
    found = unpaired_difference(metric(0.7, 0.03), metric(0.6, 0.04), reason="no outcomes")
    assert (found.value, found.ci95_low, found.ci95_high) == pytest.approx((0.1, 0.05, 0.15))
    # 0.1 / (0.05 / 1.96) = 3.92 standard errors: 2 * (1 - Φ(3.92)) = 8.85e-5.
    assert found.p_value == pytest.approx(8.85e-5, rel=0.01)
    assert found.separable
    assert (found.num, found.unpaired) == (None, "no outcomes")


def test_unpaired_without_any_width() -> None:
    exact = unpaired_difference(metric(1.0, 0.0), metric(1.0, 0.0), reason="r")
    assert (exact.value, exact.p_value, exact.separable) == (0.0, 1.0, False)
    apart = unpaired_difference(metric(1.0, 0.0), metric(0.5, 0.0), reason="r")
    assert (apart.p_value, apart.separable) == (0.0, True)


def test_draws_widen_an_interval_by_hand() -> None:
    difference = Difference(value=0.1, ci95_low=0.06, ci95_high=0.13, p_value=0.001, num=100)
    a, b = np.array([0.5, 0.7, 0.6]), np.array([0.4, 0.5, 0.6])
    # Differences 0.1, 0.2, 0.0 have the variance 0.01, their mean a standard error of 0.1 / √3.
    half = 1.959964 * 0.1 / math.sqrt(3)
    found = over_draws(difference, a, b, shared=True)
    assert found.ci95_low == pytest.approx(0.1 - math.hypot(0.04, half), abs=1e-6)
    assert found.ci95_high == pytest.approx(0.1 + math.hypot(0.03, half), abs=1e-6)
    assert not found.separable
    assert found.p_value > 0.05
    assert found.num_draws == 3
    # Of draws of their own, both variances (0.01 each) count.
    apart = over_draws(difference, a, b, shared=False)
    assert apart.ci95_high == pytest.approx(0.1 + math.hypot(0.03, half * math.sqrt(2)), abs=1e-6)
    same = over_draws(difference, a, a, shared=True)
    assert (same.ci95_low, same.ci95_high) == pytest.approx((0.06, 0.13))


def test_rows_of_several_draws_are_compared_with_room_for_them(make_row: MakeRow) -> None:
    a, b = hits(40, 30, 10, 20)
    of_a, of_b = outcomes(top1_k20=a), outcomes(top1_k20=b)
    rows = [
        make_row(name, values, details={"draws": {"top1@k20": draws}})
        for name, values, draws in (("a", 0.7, [0.9, 0.6, 0.6]), ("b", 0.5, [0.3, 0.6, 0.6]))
    ]
    plain = compare(make_row("a", 0.7), make_row("b", 0.5), (of_a, of_b), seed=0)["top1@k20"]
    found = compare(rows[0], rows[1], (of_a, of_b), seed=0)["top1@k20"]
    assert (plain.num_draws, found.num_draws) == (None, 3)
    assert found.value == plain.value
    assert plain.separable
    assert not found.separable


def test_names_align_images_and_positions_stand_in_for_them() -> None:
    a = outcomes(["x", "y", "z"], m=[1, 2, 3])
    b = outcomes(["z", "x", "w"], m=[4, 5, 6])
    places = aligned(a, b)
    assert not isinstance(places, str)
    assert a.values["m"][places[0]].tolist() == [1, 3]
    assert b.values["m"][places[1]].tolist() == [5, 4]
    for other in (outcomes(None, m=[7, 8, 9]), a):
        places = aligned(a, other)
        assert not isinstance(places, str)
        assert places[0].tolist() == places[1].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        (outcomes(None, m=[1, 2]), outcomes(None, m=[1]), "2 and 1 images without names"),
        (outcomes(["x"], m=[1]), outcomes(["y"], m=[1]), "no image has the same name"),
        (outcomes(["x", "x"], m=[1, 2]), outcomes(["x", "y"], m=[1, 2]), "some images have the same name"),
    ],
)
def test_what_cannot_be_aligned_is_told(a: Outcomes, b: Outcomes, words: str) -> None:
    found = aligned(a, b)
    assert isinstance(found, str)
    assert words in found


def test_every_metric_of_both_rows_is_compared(make_row: MakeRow) -> None:
    a, b = hits(40, 30, 10, 20)
    rows = (
        make_row("a", {"top1@k20": 0.7, "top5@k20": 1.0, "only_a": 0.1}),
        make_row("b", {"top5@k20": 0.5, "top1@k20": 0.5}),
    )
    ones = np.ones(100)
    of_both = outcomes(top1_k20=a, top5_k20=ones), outcomes(top1_k20=b, top5_k20=b)
    found = compare(*rows, of_both, seed=0)
    assert list(found) == ["top1@k20", "top5@k20"]
    assert found["top1@k20"] == paired_difference(a, b, seed=0)
    assert found["top5@k20"] == paired_difference(ones, b, seed=0)


def test_outcomes_that_are_missing_or_of_another_row_leave_a_pair_unpaired(make_row: MakeRow) -> None:
    a, b = hits(40, 30, 10, 20)
    rows = make_row("a", 0.7), make_row("b", 0.5)
    kept = outcomes(top1_k20=a), outcomes(top1_k20=b)
    cases = {
        "no outcomes of each image were kept of row " + rows[1].id: (kept[0], None),
        "is not a mean over images": (kept[0], outcomes(top5_k20=b)),
        f"the outcomes kept of row {rows[0].id} do not give its top1@k20": (kept[1], kept[1]),
    }
    for words, given in cases.items():
        found = compare(*rows, given, seed=0)["top1@k20"]
        assert found.unpaired is not None
        assert words in found.unpaired
        assert found.value == pytest.approx(0.2)
    assert compare(*rows, kept, seed=0)["top1@k20"].unpaired is None


def test_rows_of_unequal_comparability_are_refused(make_row: MakeRow) -> None:
    with pytest.raises(DataError, match="unequal comparability"):
        compare(make_row(), make_row(settings={"image_px": 32}), (None, None), seed=0)
