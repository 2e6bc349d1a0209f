"""What a random order gives: the expected value of metrics of rankings, in closed form."""

import numpy as np


def recall_by_chance(num_positives: int, num_candidates: int, k: int) -> float:
    """The probability that a random order has a positive among its first k.

    None of them is one with the hypergeometric probability C(M - R, k) / C(M, k).

    Args:
        num_positives: R, 0 <= R <= M.
        num_candidates: M, at least k.
        k: at least 1.
    """
    places = np.arange(k)
    return float(1 - np.prod((num_candidates - num_positives - places).clip(min=0) / (num_candidates - places)))


def average_precision_by_chance(num_positives: int, num_candidates: int, *, cutoff: int | None = None) -> float:
    """The expected `patchssl.evaluate.search.ranking.average_precision` of a random order.

    Place k holds a positive with probability R / M, and then each of the k - 1 places before it holds one with
    probability (R - 1) / (M - 1), so that with n places and H_n = 1 + 1/2 + … + 1/n

        E = R / (M min(R, n)) · (H_n + (R - 1) / (M - 1) · (n - H_n)).

    Args:
        num_positives: R, 1 <= R <= M.
        num_candidates: M.
        cutoff: how many places count; None for all of them.
    """
    most = num_candidates if cutoff is None else min(cutoff, num_candidates)
    divisor = num_positives if cutoff is None else min(num_positives, cutoff)
    harmonic = float((1 / np.arange(1, most + 1)).sum())
    share_of_others = (num_positives - 1) / max(num_candidates - 1, 1)
    return num_positives / (num_candidates * divisor) * (harmonic + share_of_others * (most - harmonic))


def r_precision_by_chance(num_positives: int, num_candidates: int) -> float:
    """The expected share of positives among the first R places of a random order: R / M."""
    return num_positives / num_candidates
