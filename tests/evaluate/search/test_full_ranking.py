from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from patchssl.errors import DataError
from patchssl.evaluate.search.full_ranking import full_ranks
from patchssl.evaluate.search.ranking import trapezoid_ap

GOLDEN = Path(__file__).parents[2] / "golden"


def slow_ranks(
    queries: np.ndarray,
    database: np.ndarray,
    listed: Sequence[np.ndarray],
    ignored: Sequence[np.ndarray],
    own: np.ndarray | None = None,
) -> list[list[int]]:
    """A sort of the whole ranking of each query, listed rows last among equals."""
    found = []
    for query, features in enumerate(queries):
        unit = features / np.linalg.norm(features)
        left_out = {*ignored[query].tolist(), *([] if own is None else [own[query]])}
        wanted = set(listed[query].tolist())
        ranking = []
        for row, other in enumerate(database):
            if row not in left_out:
                # One sum a row, which is the same for equal rows.
                cosine = np.float32(sum((unit * other / np.linalg.norm(other)).tolist()))
                ranking.append((-cosine, row in wanted, row))
        ranking.sort()
        found.append([rank for rank, (_, is_listed, _) in enumerate(ranking) if is_listed])
    return found


def draw(num: int, dim: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(num, dim)).astype(np.float32)


def as_lists(ranks: Sequence[np.ndarray]) -> list[list[int]]:
    return [found.tolist() for found in ranks]


def rows(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


# Cosines to (1, 0):       1       0.8     0.6     0       0.8     -1      1 (of another length)
BY_HAND = np.array([[1, 0], [4, 3], [3, 4], [0, 1], [8, -6], [-1, 0], [7, 0]], np.float32)


@pytest.mark.parametrize(
    ("listed", "ignored", "expected"),
    [
        (rows(), rows(), []),
        (rows(5), rows(), [6]),
        (rows(0), rows(), [1]),  # row 6 is as similar and no positive, so it comes first
        (rows(0, 6), rows(), [0, 1]),
        (rows(1), rows(), [3]),
        (rows(1, 4), rows(), [2, 3]),
        (rows(4), rows(1), [2]),
        (rows(3, 1), rows(), [3, 5]),
        (rows(3, 1), rows(0, 5), [2, 4]),
        (rows(2), rows(0, 1, 3, 4, 5, 6), [0]),
        (rows(0, 1, 2, 3, 4, 5, 6), rows(), [0, 1, 2, 3, 4, 5, 6]),
    ],
)
def test_by_hand(listed: np.ndarray, ignored: np.ndarray, expected: list[int]) -> None:
    query = np.array([[2, 0]], np.float32)
    for size in (1, 2, 6, 1000):
        assert as_lists(full_ranks(query, BY_HAND, [listed], [ignored], block_values=size)) == [expected]


def test_the_query_itself_does_not_count() -> None:
    listed = [rows(6), rows(), rows(1)]
    own = rows(0, -1, 2)
    found = full_ranks(BY_HAND[:3], BY_HAND, listed, own=own)
    assert as_lists(found) == [[0], [], [0]]
    assert as_lists(full_ranks(BY_HAND[:3], BY_HAND, listed)) == [[1], [], [1]]


@pytest.mark.parametrize("block_values", [1, 7, 40, 333, 10**6])
def test_equals_a_full_sort_with_ties_in_every_block(block_values: int) -> None:
    generator = np.random.default_rng(3)
    dim, num = 7, 120
    # 30 vectors, each about four times, of several lengths: ties lie in different blocks.
    database = draw(30, dim, 0)[generator.integers(0, 30, num)] * generator.choice([1, 2, 8], (num, 1))
    queries = np.concatenate([draw(9, dim, 1), database[:4]]).astype(np.float32)
    listed, ignored = [], []
    for _ in queries:
        mixed = generator.permutation(num)
        listed.append(mixed[: generator.integers(0, 20)])
        ignored.append(mixed[20 : 20 + generator.integers(0, 20)])
    own = np.array([-1] * 9 + [num - 1] * 4)
    listed = [found[found != num - 1] for found in listed]
    expected = slow_ranks(queries, database, listed, ignored, own)
    assert sum(map(len, expected)) > 50
    found = full_ranks(queries, database.astype(np.float32), listed, ignored, own=own, block_values=block_values)
    assert as_lists(found) == expected


def test_copies_of_a_positive_in_other_blocks_come_before_it_in_wide_features() -> None:
    dim, num = 384, 500
    database = draw(num, dim, 0)
    database[rows(3, 77, 250, 499)] = database[10]
    database[rows(4, 78)] = 4 * database[10]
    query = draw(1, dim, 1)
    units = database.astype(np.float64) / np.linalg.norm(database.astype(np.float64), axis=1, keepdims=True)
    before = int((units @ query[0] > units[10] @ query[0] + 1e-6).sum())
    for num_rows in (1, 3, 64, 97, 500):
        found = full_ranks(query, database, [rows(10)], block_values=num_rows * dim)
        assert as_lists(found) == [[before + 6]], num_rows


@pytest.mark.parametrize("dim", [3, 384, 1001])
def test_constant_features_put_every_positive_last(dim: int) -> None:
    num = 300
    database = np.repeat(draw(1, dim, 5), num, axis=0)
    queries = draw(25, dim, 6)
    for num_rows in (1, 17, 128, num):
        found = full_ranks(queries, database, [rows(0, 150, 299)] * 25, block_values=num_rows * dim)
        assert as_lists(found) == [[num - 3, num - 2, num - 1]] * 25


def test_features_of_zeros_are_equally_dissimilar_and_never_help() -> None:
    assert as_lists(full_ranks(np.zeros((1, 2), np.float32), BY_HAND, [rows(0, 6)])) == [[5, 6]]
    assert as_lists(full_ranks(BY_HAND[:1], np.zeros((4, 2), np.float32), [rows(1)])) == [[3]]


def test_a_database_in_several_matrices_and_on_disk_gives_the_same(tmp_path: Path) -> None:
    database, queries = draw(90, 5, 0), draw(6, 5, 1)
    generator = np.random.default_rng(0)
    listed = [generator.choice(90, 10, replace=False) for _ in queries]
    expected = as_lists(full_ranks(queries, database, listed))
    assert expected == slow_ranks(queries, database, listed, [rows()] * 6)
    np.save(tmp_path / "database.npy", database)
    mapped = np.load(tmp_path / "database.npy", mmap_mode="r")
    assert as_lists(full_ranks(queries, mapped, listed, block_values=64)) == expected
    parts = [database[:40], database[40:40], database[40:41], database[41:]]
    assert as_lists(full_ranks(queries, parts, listed, block_values=64)) == expected


@pytest.mark.parametrize("block_values", [1000, 10**6])
def test_golden_average_precision_of_revisited_ground_truth(block_values: int) -> None:
    with np.load(GOLDEN / "revisited_map.npz", allow_pickle=False) as file:
        golden = {name: file[name] for name in file.files}
    similarity = golden["similarity"]  # (M, Q)
    num = similarity.shape[1]
    # Unit vectors whose products with the axes are as the similarities, by one factor.
    scaled = similarity / (1.01 * np.linalg.norm(similarity, axis=1).max())
    rest = np.sqrt(1 - (scaled**2).sum(axis=1, keepdims=True))
    database = np.concatenate([scaled, rest], axis=1).astype(np.float32)
    queries = np.eye(num, num + 1, dtype=np.float32)

    def rows_of(*kinds: str) -> list[np.ndarray]:
        split = [np.split(golden[f"gnd_{kind}_flat"], golden[f"gnd_{kind}_offsets"][1:-1]) for kind in kinds]
        return [np.concatenate(parts) for parts in zip(*split, strict=True)]

    for level, listed, ignored in (
        ("easy", rows_of("easy"), rows_of("junk", "hard")),
        ("medium", rows_of("easy", "hard"), rows_of("junk")),
        ("hard", rows_of("hard"), rows_of("junk", "easy")),
    ):
        ranks = full_ranks(queries, database, listed, ignored, block_values=block_values)
        found = [trapezoid_ap(each, len(each)) if len(each) else np.nan for each in ranks]
        np.testing.assert_allclose(found, golden[f"{level}_ap"], rtol=1e-12)


def test_lists_of_rows_may_be_plain_and_empty() -> None:
    assert as_lists(full_ranks(BY_HAND[:2], BY_HAND, [[], [1]], [[], []])) == [[], [0]]  # type: ignore[list-item]


def test_no_queries_give_no_ranks() -> None:
    assert full_ranks(np.empty((0, 2), np.float32), BY_HAND, []) == []


NAN = BY_HAND.copy()
NAN[5, 1] = np.nan


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"queries": np.ones((1, 3), np.float32)}, r"queries have the shape \(1, 3\), the database is 2 wide"),
        ({"database": np.empty((0, 2), np.float32)}, "the database is empty"),
        ({"database": []}, "the database is empty"),
        ({"database": [BY_HAND, np.ones((2, 3), np.float32)]}, r"shapes \[\(7, 2\), \(2, 3\)\]; needed: .* one width"),
        ({"database": NAN}, "1 of 2 database features hold NaN .*, the first of them row 5"),
        ({"queries": NAN[5:6]}, "1 of 1 query features hold NaN"),
        ({"listed": []}, "listed rows are given for 0 queries; there are 1"),
        ({"listed": [np.array([2.0])]}, r"rows are of type float64 and shape \(1,\)"),
        ({"listed": [np.array([[2]])]}, r"rows are of type int64 and shape \(1, 1\)"),
        ({"listed": [rows(7)]}, "query 0 has listed rows from 7 to 7; allowed: 0 to 6"),
        ({"listed": [rows(-1, 2)]}, "query 0 has listed rows from -1 to 2"),
        ({"listed": [rows(2, 2, 2)]}, "query 0 lists 2 rows more than once"),
        ({"ignored": [rows(7)]}, "query 0 has ignored rows from 7 to 7"),
        ({"ignored": [rows(1, 2)]}, "query 0 lists 1 rows that are to be ignored"),
        ({"own": rows(2)}, "query 0 lists 1 rows that are to be ignored, or are the query itself"),
        ({"own": rows(7)}, "own rows are 7 to 7; allowed: 0 to 6, or -1"),
        ({"own": rows(1, 2)}, "own rows are given for 2 queries; there are 1"),
    ],
)
def test_what_cannot_be_ranked_is_refused(changes: dict[str, object], words: str) -> None:
    given = {"queries": BY_HAND[:1], "database": BY_HAND, "listed": [rows(2)], "block_values": 4, **changes}
    with pytest.raises(DataError, match=words):
        full_ranks(**given)  # type: ignore[arg-type]
