"""Scores that can be compared between queries: less what a query's nearest unrelated images score.

SSCD (Pizzi et al., CVPR 2022, §4.4; disc_eval.py): s'(q, r) = s(q, r) - β · mean of s(q, n_i) over i in [first, last],
where n_i is the i-th nearest of training images, which are copies of nothing. The order of a query's references stays;
only metrics over the pairs of all queries change. There it is done by appending
-bias to a query and 1 to every reference, which is the same as taking the bias from each score.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from patchssl.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ScoreNormalisation:
    """Which neighbours count, and how much.

    Attributes:
        beta: the weight of their mean.
        first: the place of the first of them, from 0.
        last: the place of the last, itself included.
    """

    beta: float = 1.0
    first: int = 0
    last: int = 2

    def __post_init__(self) -> None:
        if not 0 <= self.first <= self.last:
            raise ConfigError(f"neighbours {self.first} to {self.last} cannot be; needed: 0 <= first <= last")
        if not np.isfinite(self.beta) or self.beta < 0:
            raise ConfigError(f"beta is {self.beta}; it must be a number from 0 up")

    @property
    def num_neighbours(self) -> int:
        """How many neighbours are searched for."""
        return self.last + 1

    def biases(self, similarities: NDArray[np.float32]) -> NDArray[np.float64]:
        """What to take from all scores of each query.

        Args:
            similarities: (Q, K) to the nearest training images, best first; K at least `num_neighbours`.

        Returns:
            (Q,).

        Raises:
            ConfigError: there are fewer neighbours.
        """
        if similarities.shape[1] < self.num_neighbours:
            raise ConfigError(
                f"neighbours {self.first} to {self.last} are asked for, and there are {similarities.shape[1]} training "
                "images; name fewer"
            )
        chosen = similarities[:, self.first : self.last + 1].astype(np.float64)
        means: NDArray[np.float64] = chosen.mean(axis=1)
        return self.beta * means
