from pathlib import Path
from typing import Any

import numpy as np
import pytest

from patchssl.errors import ConfigError, DataError
from patchssl.evaluate.search import building as index_building
from patchssl.evaluate.search.building import build_index, parse_parameters
from patchssl.evaluate.search.factory import check_factory, recall, search
from patchssl.evaluate.search.index import CosineIndex, exact_search

DIM = 16


def draw(num: int, seed: int, dim: int = DIM) -> np.ndarray:
    """Features in clusters, of various lengths."""
    centres = np.random.default_rng(0).normal(size=(12, dim))
    generator = np.random.default_rng(seed)
    features = centres[generator.integers(0, 12, num)] + 0.4 * generator.normal(size=(num, dim))
    return (features * generator.uniform(0.5, 2, (num, 1))).astype(np.float32)


DATABASE, QUERIES = draw(700, 1), draw(40, 2)


def test_flat_equals_the_cosine_index_whatever_the_blocks(tmp_path: Path) -> None:
    expected, expected_rows = CosineIndex(DATABASE).search(QUERIES, 30)
    np.save(tmp_path / "database.npy", DATABASE)
    mapped = np.load(tmp_path / "database.npy", mmap_mode="r")
    for database in (DATABASE, mapped, [DATABASE[:1], DATABASE[1:1], DATABASE[1:260], DATABASE[260:]]):
        for block_bytes in (1, 4 * DIM * 7, 4 * DIM * 256, 2**30):
            result = search(QUERIES, database, 30, block_bytes=block_bytes)
            np.testing.assert_array_equal(result.rows, expected_rows)
            np.testing.assert_allclose(result.similarities, expected, atol=1e-6)
            assert result.report is None


@pytest.mark.parametrize("k", [1, 3, 37, 120])
@pytest.mark.parametrize("num_queries", [2, 30])
def test_of_equal_similarities_the_lower_rows_are_kept_across_blocks(k: int, num_queries: int) -> None:
    axes = np.random.default_rng(k).integers(0, 4, 120)
    database = np.eye(4, dtype=np.float32)[axes]
    wanted = np.arange(num_queries) % 4
    for num_rows in (1, 13, 64, 120):
        result = search(np.eye(4, dtype=np.float32)[wanted], database, k, block_bytes=16 * num_rows)
        for query, axis in enumerate(wanted):
            same = (axes == axis).astype(int)
            expected = np.lexsort((np.arange(120), -same))[:k]
            assert result.rows[query].tolist() == expected.tolist()
            assert result.similarities[query].tolist() == same[expected].tolist()


@pytest.mark.parametrize(
    "factory",
    [
        "IVF8,Flat",
        "HNSW8",
        "SQ8",
        "PQ4x4",
        "IVF8,PQ4x4",
        "PCA8,Flat",
        "PCAW8,L2norm,Flat",
        "OPQ4_8,PQ4x4",
        "PQ4x4,RFlat",
    ],
)
def test_other_indexes_find_neighbours_and_tell_what_they_cost(factory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_building, "_BLOCK_BYTES", 4 * DIM * 100)
    result = search(QUERIES, DATABASE, 12, index=factory)
    report = result.report
    assert report is not None
    assert result.similarities.shape == result.rows.shape == (40, 12)
    assert (np.diff(result.similarities) <= 0).all()
    assert (report.num_vectors, report.num_recall_queries) == (700, 40)
    assert report.num_training == (0 if factory == "HNSW8" else 700)
    assert list(report.recall) == [1, 10]
    assert 0.1 < report.recall[10] <= 1  # chance is 0.014
    assert report.build_s > 0
    assert report.queries_per_s > 0
    details = report.as_details()
    assert details["recall@10"] == round(report.recall[10], 6)
    assert details["factory"] == factory


def test_searching_every_list_is_exact_and_fewer_miss() -> None:
    exact = search(QUERIES, DATABASE, 100)
    every = search(QUERIES, DATABASE, 100, index="IVF8,Flat", parameters="nprobe=8")
    np.testing.assert_array_equal(every.rows, exact.rows)
    np.testing.assert_allclose(every.similarities, exact.similarities, atol=1e-6)
    one = search(QUERIES, DATABASE, 100, index="IVF8,Flat")
    assert every.report is not None
    assert one.report is not None
    assert every.report.recall == {1: 1, 10: 1, 100: 1}
    assert one.report.recall[100] < 1
    assert (every.report.parameters, one.report.parameters) == ({"nprobe": 8}, {"nprobe": 1})


def test_where_an_index_finds_fewer_the_rest_is_minus_one() -> None:
    result = search(QUERIES, DATABASE, 300, index="IVF8,Flat")
    missing = result.rows < 0
    assert missing.any()
    assert (result.similarities[missing] == -np.inf).all()
    assert np.isfinite(result.similarities[~missing]).all()
    for found in result.rows:
        there = found[found >= 0]
        assert len(set(there.tolist())) == len(there)
        assert (found[len(there) :] == -1).all()


def test_bytes_are_what_the_vectors_and_the_rest_take() -> None:
    def size(factory: str) -> float:
        report = search(QUERIES, DATABASE, 1, index=factory).report
        assert report is not None
        return report.bytes_per_vector

    assert 4 * DIM < size("L2norm,Flat") < 4 * DIM + 1  # the header is shared by 700
    assert DIM < size("SQ8") < DIM + 1
    assert 4 * DIM + 8 < size("IVF8,Flat") < 4 * DIM + 8 + 3  # with ids, and 8 centroids
    assert size("HNSW8") > 4 * DIM + 8 * 4


def test_pca_is_fitted_on_the_training_vectors() -> None:
    generator = np.random.default_rng(0)
    # The training vectors vary in the first two dimensions only, the database in the last ones.
    training = np.zeros((300, DIM), np.float32)
    training[:, :2] = generator.normal(size=(300, 2))
    database = np.zeros((200, DIM), np.float32)
    database[:, 0] = np.repeat([1, -1], 100)
    database[:, 5:] = generator.normal(size=(200, DIM - 5))
    query = np.zeros((1, DIM), np.float32)
    query[0, 0] = 1
    query[0, 5:] = database[150, 5:]
    fitted = search(query, database, 100, index="PCAW2,L2norm,Flat", training=training)
    assert set(fitted.rows[0].tolist()) == set(range(100))
    assert fitted.report is not None
    assert fitted.report.num_training == 300
    own = search(query, database, 100, index="PCAW2,L2norm,Flat")
    assert set(own.rows[0].tolist()) != set(range(100))
    assert search(query, database, 1).rows[0, 0] == 150
    # The exact neighbour by cosine is the one that the whitened index does not find first.
    assert fitted.report.recall[1] == 0


def test_whitening_equals_its_definition() -> None:
    units = DATABASE / np.linalg.norm(DATABASE, axis=1, keepdims=True)
    centred = units - units.mean(0)
    values, vectors = np.linalg.eigh(centred.T @ centred / len(units))
    whitened = centred @ vectors[:, ::-1][:, :6] / np.sqrt(values[::-1][:6])
    whitened /= np.linalg.norm(whitened, axis=1, keepdims=True)
    result = search(DATABASE[:20], DATABASE, 5, index="PCAW6,L2norm,Flat")
    expected = -np.sort(-(whitened[:20] @ whitened.T), axis=1)[:, :5]
    np.testing.assert_allclose(result.similarities, expected, atol=1e-3)


@pytest.mark.parametrize("factory", ["PQ4x4", "IVF8,PQ4x4", "PQ4x4,RFlat"])
def test_centroids_are_numbered_for_hamming_distances_only_where_these_are_asked_for(factory: str) -> None:
    def neighbours(parameters: str | None) -> list[list[float]]:
        found: list[list[float]] = search(QUERIES, DATABASE, 5, index=factory, parameters=parameters).rows.tolist()
        return found

    plain, numbered = (index_building.make_index(factory, DIM, parameters) for parameters in (None, "ht=16"))
    inner = index_building._innermost
    assert (inner(plain).do_polysemous_training, inner(numbered).do_polysemous_training) == (False, True)
    if "RFlat" not in factory:
        assert neighbours(None) == neighbours("ht=16")  # 16 bits may differ, which are all of them


def test_the_seed_draws_the_training_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_building, "_LEAST_SAMPLE", 100)

    def similarities(seed: int) -> list[list[float]]:
        result = search(QUERIES, DATABASE, 100, index="IVF4,Flat", seed=seed)
        assert result.report is not None
        assert result.report.num_training == 256  # 64 for each list
        found: list[list[float]] = result.similarities.tolist()
        return found

    assert similarities(0) == similarities(0)
    assert similarities(0) != similarities(1)


def test_recall_is_taken_over_a_sample_of_many_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("patchssl.evaluate.search.factory._RECALL_QUERIES", 7)
    report = search(QUERIES, DATABASE, 3, index="IVF8,Flat", parameters="nprobe=8").report
    assert report is not None
    assert report.num_recall_queries == 7
    assert report.recall == {1: 1, 10: 1}  # ten, though three were asked for


def test_recall_by_hand() -> None:
    # Cosines to (1, 0):  1      0.8     0.8     0.6     0
    rows = np.array([[1, 0], [4, 3], [4, -3], [3, 4], [0, 1]], np.float32)
    query = np.array([[2, 0]], np.float32)
    exact = np.array([[0, 1, 2, 3]])
    for found, expected in [
        ([0, 1, 2, 3], {1: 1, 2: 1, 4: 1}),
        ([0, 2, 1, 3], {1: 1, 2: 1, 4: 1}),  # row 2 is as good as row 1
        ([1, 2, 0, 3], {1: 0, 2: 1, 4: 1}),
        ([4, 3, 2, 1], {1: 0, 2: 0, 4: 0.75}),
        ([0, -1, -1, -1], {1: 1, 2: 0.5, 4: 0.25}),
        ([-1, -1, -1, -1], {1: 0, 2: 0, 4: 0}),
    ]:
        assert recall(query, [rows[:2], rows[2:]], np.array([found]), exact, (1, 2, 4)) == expected


def test_recall_of_copies_is_whole_whichever_are_found() -> None:
    database = np.repeat(draw(3, 5), 60, axis=0)
    result = search(database[:4], database, 10, index="IVF1,Flat")
    assert result.report is not None
    assert result.report.recall == {1: 1, 10: 1}


@pytest.mark.parametrize(
    ("index", "parameters", "words"),
    [
        (
            "Flatt",
            None,
            "FAISS cannot make index 'Flatt' for 16 dimensions: could not parse .*Flatt; take one such as Flat",
        ),
        ("", None, "could not parse index string"),
        ("BIVF8", None, "could not parse index string BIVF8"),
        ("IVF8,PQ3", None, "cuts 16 dimensions into 3 parts; .* must divide them: 1, 2, 4, 8, 16"),
        ("OPQ3,PQ3", None, "cuts 16 dimensions into 3 parts"),
        ("PCA12,PQ8", None, "cuts 12 dimensions into 8 parts; .*: 1, 2, 3, 4, 6, 12"),
        ("PCAW32,Flat", None, "makes 32 dimensions of features that have 16; allowed are 1 to 16"),
        ("LSH", None, "for 16 dimensions: metric == METRIC_L2 does not hold"),
        ("HNSW8_PQ4", None, "no search by inner product"),
        ("IVF8,Flat", "nprobes=3", "has no parameter 'nprobes'; there are nprobe=16"),
        ("IVF8,Flat", "efSearch=3", "has no parameter 'efSearch'"),
        ("IVF8,Flat", "nprobe", "'nprobe' cannot be used; give each once as NAME=NUMBER"),
        ("Flat", "nprobe=3", "exact and has no parameters; 'nprobe=3' came"),
    ],
)
def test_what_faiss_does_not_have_is_refused_before_the_work(index: str, parameters: str | None, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_factory(index, DIM, parameters)
    with pytest.raises(ConfigError, match=words):
        search(QUERIES, DATABASE, 1, index=index, parameters=parameters)


def test_parameters_are_read() -> None:
    assert parse_parameters(None) == {}
    assert parse_parameters("nprobe=16, k_factor_rf=1.5") == {"nprobe": 16, "k_factor_rf": 1.5}


@pytest.mark.parametrize("given", ["", "nprobe=", "=3", "nprobe=0", "nprobe=-1", "nprobe=1.5", "nprobe=inf", "a=1,a=2"])
def test_parameters_that_faiss_would_misread_are_refused(given: str) -> None:
    with pytest.raises(ConfigError, match="cannot be used"):
        parse_parameters(given)


@pytest.mark.parametrize(
    ("index", "num", "words"),
    [
        ("IVF64,Flat", 63, r"at least 64 training vectors \(64 lists\), and 63 came"),
        ("PQ4", 255, r"at least 256 training vectors \(2\^8 centroids of each part of the PQ\), and 255 came"),
        ("IVF8,PQ4x5", 31, r"at least 32 training vectors \(2\^5 centroids"),
        ("OPQ4,SQ8", 31, r"at least 256 training vectors \(centroids of its k-means\), and 31 came"),
        ("PCA12,Flat", 11, r"at least 12 training vectors \(PCA to 12 dimensions\)"),
        ("PCAW12,L2norm,Flat", 12, r"at least 13 training vectors \(PCA to 12 dimensions\), and 12 came"),
    ],
)
def test_too_few_training_vectors_are_told(index: str, num: int, words: str) -> None:
    with pytest.raises(DataError, match=words):
        search(QUERIES, DATABASE[:num], 1, index=index)
    with pytest.raises(DataError, match=words):
        search(QUERIES, DATABASE, 1, index=index, training=DATABASE[:num])


def test_training_vectors_that_do_not_vary_cannot_whiten() -> None:
    with pytest.raises(DataError, match="cannot whiten 40 training vectors to 12 dimensions"):
        search(QUERIES, DATABASE, 1, index="PCAW12,Flat", training=np.repeat(DATABASE[:1], 40, axis=0))


def test_an_index_that_takes_no_rows_is_told() -> None:
    with pytest.raises(ConfigError, match="'IDMap,Flat' cannot be built: add does not make sense"):
        search(QUERIES, DATABASE, 1, index="IDMap,Flat")


BROKEN = DATABASE.copy()
BROKEN[450, 3] = np.nan


@pytest.mark.parametrize("index", ["Flat", "IVF8,Flat", "HNSW8"])
@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"database": BROKEN}, DataError, "hold NaN or infinite values, the first of them row 450"),
        (
            {"queries": BROKEN[430:460]},
            DataError,
            "query features hold NaN or infinite values, the first of them row 20",
        ),
        ({"database": DATABASE[:0]}, DataError, "the database is empty"),
        (
            {"queries": QUERIES[:0]},
            DataError,
            r"queries have the shape \(0, 16\); needed: at least one row, and 16 wide",
        ),
        ({"queries": QUERIES[:, :9]}, DataError, r"queries have the shape \(40, 9\)"),
        ({"training": QUERIES[:, :9]}, DataError, r"training vectors have the shape \(40, 9\)"),
        ({"training": QUERIES[:0]}, DataError, "the training set is empty"),
        ({"k": 0}, ConfigError, "k is 0; allowed: 1 to 700"),
        ({"k": 701}, ConfigError, "k is 701; allowed: 1 to 700"),
    ],
)
def test_what_cannot_be_searched_is_refused(index: str, changes: dict[str, Any], error: type, words: str) -> None:
    training = {} if index == "Flat" or "training" in changes else {"training": DATABASE}
    given = {"queries": QUERIES, "database": DATABASE, "k": 3, "index": index, **training, **changes}
    with pytest.raises(error, match=words):
        search(**given)


def test_exact_search_says_which_k_is_possible() -> None:
    with pytest.raises(ValueError, match="allowed: 1 to 700"):
        exact_search(QUERIES, DATABASE, 701)


def test_an_index_is_filled_with_every_block_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_building, "_BLOCK_BYTES", 4 * DIM * 64)
    built = build_index("L2norm,Flat", [DATABASE[:100], DATABASE[100:]])
    assert built.index.ntotal == 700
    kept = built.index.index.reconstruct_n(0, 700)
    np.testing.assert_allclose(kept, DATABASE / np.linalg.norm(DATABASE, axis=1, keepdims=True), atol=1e-6)
