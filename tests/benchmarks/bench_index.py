"""How much memory exact rankings of a large database need, and what other indexes gain and miss.

    python tests/benchmarks/bench_index.py memory [--num N]                  about 3 min on two cores, 1.6 GB of disk
    python tests/benchmarks/bench_index.py indexes [--num N] [--features FILE.npz]      minutes; seconds for N = 5000

`memory` ranks 70 queries over 1,000,000 features of width 384 in a file: full ranks of 20 listed rows each, and the
100 nearest, beside a plain ranking that reads the file, forms the matrix of all similarities and sorts it. Each runs in
a process of its own, whose peak of resident memory (`ru_maxrss`, with the pages of mapped files) is told. Exits with 1
where one of ours needs 4 GB or more, or disagrees with the plain one.

`indexes` searches the 10 nearest of 1,000 queries in `Flat` and in other indexes. With --features the last 1,000 rows
of a feature file are the queries and the rows before them the database; otherwise both are drawn, so that they resemble
features of images: the directions are rotated at random, their variances fall as 1 / i, and 1,000 groups of Zipf sizes
hold 20 subgroups each; the offsets of groups, of subgroups and of single vectors are equally large.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

DIM, NUM_QUERIES, NUM_LISTED, NUM_NEAREST = 384, 70, 20, 100
NUM_GROUPS, NUM_SUBGROUPS = 1000, 20
MOST_GB = 4.0
BLOCK_ROWS = 20_000
SEARCHES, NUM_SEARCHED = 1000, 10
ROWS_PER_LIST = 40


class Generator:
    """Draws features of a width, the same groups for every call."""

    def __init__(self, dim: int) -> None:
        generator = np.random.default_rng(0)
        self.scales = (1 / np.sqrt(np.arange(1, dim + 1))).astype(np.float32)
        self.rotation = np.linalg.qr(generator.normal(size=(dim, dim)))[0].astype(np.float32)
        self.groups = generator.normal(size=(NUM_GROUPS, dim)).astype(np.float32)
        self.subgroups = generator.normal(size=(NUM_GROUPS * NUM_SUBGROUPS, dim)).astype(np.float32)
        weights = 1 / np.arange(1, NUM_GROUPS + 1)
        self.weights = weights / weights.sum()

    def draw(self, num: int, seed: int) -> np.ndarray:
        """Features (num, D)."""
        generator = np.random.default_rng([1, seed])
        group = generator.choice(NUM_GROUPS, num, p=self.weights)
        subgroup = group * NUM_SUBGROUPS + generator.integers(0, NUM_SUBGROUPS, num)
        own = generator.standard_normal((num, len(self.scales)), dtype=np.float32)
        features: np.ndarray = ((self.groups[group] + self.subgroups[subgroup] + own) * self.scales) @ self.rotation
        return features

    def blocks(self, num: int) -> Iterator[np.ndarray]:
        """Features in blocks, together (num, D)."""
        for number, start in enumerate(range(0, num, BLOCK_ROWS)):
            yield self.draw(min(BLOCK_ROWS, num - start), number)


def write(path: Path, num: int) -> None:
    """A feature file that is never held in memory."""
    with zipfile.ZipFile(path, "w") as archive, archive.open("features.npy", "w", force_zip64=True) as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (num, DIM)}
        np.lib.format.write_array_header_1_0(file, header)
        for block in Generator(DIM).blocks(num):
            file.write(block.tobytes())


def listed_rows(num: int) -> list[np.ndarray]:
    """The rows whose ranks are wanted."""
    generator = np.random.default_rng(5)
    return [np.sort(generator.choice(num, NUM_LISTED, replace=False)) for _ in range(NUM_QUERIES)]


def rank_fully(path: Path) -> Any:
    """Our ranks."""
    from patchssl.evaluate.features import load_features
    from patchssl.evaluate.search.full_ranking import full_ranks

    database = load_features(path).features
    queries = Generator(DIM).draw(NUM_QUERIES, 10**6)
    return [ranks.tolist() for ranks in full_ranks(queries, database, listed_rows(len(database)))]


def search_exactly(path: Path) -> Any:
    """Our nearest rows."""
    from patchssl.evaluate.features import load_features
    from patchssl.evaluate.search.factory import search

    queries = Generator(DIM).draw(NUM_QUERIES, 10**6)
    return search(queries, load_features(path).features, NUM_NEAREST).rows.tolist()


def sort_everything(path: Path) -> Any:
    """Both in the plain way."""
    with np.load(path) as file:
        database = file["features"]
    database = database / np.linalg.norm(database, axis=1, keepdims=True)
    queries = Generator(DIM).draw(NUM_QUERIES, 10**6)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    ranking = np.argsort(-(queries @ database.T), axis=1, kind="stable")
    listed = listed_rows(len(database))
    ranks = [np.flatnonzero(np.isin(found, wanted)) for found, wanted in zip(ranking, listed, strict=True)]
    return [found.tolist() for found in ranks], ranking[:, :NUM_NEAREST].tolist()


RANKINGS: dict[str, Callable[[Path], Any]] = {
    "full_ranks": rank_fully,
    "search Flat": search_exactly,
    "plain": sort_everything,
}


def run_alone(name: str, path: Path) -> None:
    """Print peak of memory, time and outcome as JSON."""
    start = time.perf_counter()
    outcome = RANKINGS[name](path)
    took = time.perf_counter() - start
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(json.dumps({"peak_gb": peak_gb, "seconds": took, "outcome": outcome}))


def in_own_process(*arguments: str) -> str:
    """What this file prints as another process. A process begins with the peak of memory of the one that starts it."""
    command = [sys.executable, __file__, *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def compare_memory(num: int) -> int:
    """Print the table of memory."""
    found: dict[str, Any] = {}
    with TemporaryDirectory() as folder:
        path = Path(folder) / "features.npz"
        in_own_process("write", str(path), "--num", str(num))
        told(
            f"{NUM_QUERIES} queries over {num:,} x {DIM} float32 features, a file of {path.stat().st_size / 1e9:.2f} GB"
        )
        told("| ranking | peak GB | seconds |")
        told("|---|---|---|")
        for name in RANKINGS:
            found[name] = json.loads(in_own_process("alone", name, str(path)))
            told(f"| {name} | {found[name]['peak_gb']:.2f} | {found[name]['seconds']:.1f} |")
    ranks, nearest = found["plain"]["outcome"]
    # Plain similarities are float32, so that rows whose similarities differ by less change places.
    off = np.abs(np.subtract(found["full_ranks"]["outcome"], ranks)).max()
    same = np.mean(np.equal(found["search Flat"]["outcome"], nearest))
    told(f"ranks differ by at most {off} places of {num:,}, {same:.2%} of the nearest are the same rows")
    too_large = any(found[name]["peak_gb"] >= MOST_GB for name in RANKINGS if name != "plain")
    return int(too_large or off > 1e-4 * num or same < 0.99)


def contestants(num: int, dim: int) -> list[tuple[str, str | None]]:
    """Indexes and their parameters, with as many lists as there are vectors to train them on."""
    lists = min(1024, num // ROWS_PER_LIST)
    parts = max(number for number in range(1, 49) if dim % number == 0)
    return [
        (f"IVF{lists},Flat", "nprobe=16"),
        (f"IVF{lists},PQ{parts}", "nprobe=16"),
        (f"IVF{lists},PQ{parts}x4fs,RFlat", "nprobe=16,k_factor_rf=16"),
        ("HNSW32", "efSearch=64"),
    ]


def compare_indexes(num: int, features: Path | None) -> int:
    """Print the table of indexes."""
    from patchssl.evaluate.features import load_features
    from patchssl.evaluate.search.factory import search

    if features is None:
        generator = Generator(DIM)
        database, queries = np.concatenate(list(generator.blocks(num))), generator.draw(SEARCHES, 10**6)
    else:
        every = load_features(features).features
        database, queries = every[:-SEARCHES][:num], every[-SEARCHES:]
    num, dim = database.shape
    source = "drawn" if features is None else f"of {features.name}"
    told(f"{SEARCHES:,} queries in {num:,} x {dim} features ({source}), the {NUM_SEARCHED} nearest")

    def flat_per_s() -> float:
        start = time.perf_counter()
        search(queries, database, NUM_SEARCHED)
        return len(queries) / (time.perf_counter() - start)

    flats, reports = [flat_per_s(), flat_per_s()], []
    for factory, parameters in contestants(num, dim):
        report = search(queries, database, NUM_SEARCHED, index=factory, parameters=parameters).report
        assert report is not None
        reports.append((f"{factory} {parameters or ''}", report))
        told(f"{factory} took {report.build_s:.1f} s to build")
    flat = max(*flats, flat_per_s())  # what else runs on the machine only slows it down
    told(f"| index | recall@{NUM_SEARCHED} | queries/s | times Flat | bytes/vector | build s |")
    told("|---|---|---|---|---|---|")
    told(f"| Flat | 1.000 | {flat:,.0f} | 1.0 | {4 * dim:,} | - |")
    for name, report in reports:
        told(
            f"| {name} | {report.recall[NUM_SEARCHED]:.3f} | {report.queries_per_s:,.0f} | "
            f"{report.queries_per_s / flat:.1f} | {report.bytes_per_vector:,.0f} | {report.build_s:.1f} |"
        )
    return 0


def told(line: str) -> None:
    """Print at once."""
    print(line, flush=True)


def main() -> int:
    """Print a table."""
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    memory = commands.add_parser("memory")
    memory.add_argument("--num", type=int, default=1_000_000, help="features in the file")
    indexes = commands.add_parser("indexes")
    indexes.add_argument("--num", type=int, default=200_000, help="at most so many vectors")
    indexes.add_argument("--features", type=Path, help="a feature file, instead of drawn features")
    alone = commands.add_parser("alone", help="one ranking, as `memory` starts it")
    alone.add_argument("name", choices=RANKINGS)
    alone.add_argument("path", type=Path)
    writing = commands.add_parser("write", help="the file, as `memory` starts it")
    writing.add_argument("path", type=Path)
    writing.add_argument("--num", type=int, required=True)
    given = parser.parse_args()
    if given.command == "memory":
        return compare_memory(given.num)
    if given.command == "indexes":
        return compare_indexes(given.num, given.features)
    if given.command == "write":
        write(given.path, given.num)
    else:
        run_alone(given.name, given.path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
