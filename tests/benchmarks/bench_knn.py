"""How fast k-NN classification is beside a plain loop and beside its bare matrix product.

    python tests/benchmarks/bench_knn.py [--rounds N]      about 90 s a round on two cores

Ours is checks, normalisation, search, votes and ranks for all k. The loop searches anew for every k in 100 chunks of
queries and votes by scattering one-hot classes, as reference scripts do. The bare product is the least that an exact
search in torch does: one matrix product and one top-k for the largest k, in the fastest of three chunk sizes, without
votes. All three use the same number of threads and take turns, so that what else runs on the machine meets all alike.

Exits with 1 where ours is less than 3 times as fast as the loop, or takes more than 1.15 times the bare product.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch

from patchssl.evaluate.features import Features
from patchssl.evaluate.knn import evaluate
from patchssl.evaluate.search.index import normalise_rows

NUM_TRAIN, NUM_TEST, DIM, NUM_CLASSES = 50_000, 10_000, 384, 1000
KS, TEMPERATURE = (10, 20, 100, 200), 0.07
LOOP_CHUNKS = 100
BARE_CHUNK_SIZES = (100, 250, 500)
LEAST_RATIO, MOST_RATIO = 3.0, 1.15
MOST_DISAGREEMENT = 1e-3

Hits = dict[int, np.ndarray]


def draw(num: int, seed: int) -> Features:
    """Random L2-normalised features, labels at random."""
    generator = np.random.default_rng(seed)
    features = normalise_rows(generator.standard_normal((num, DIM), dtype=np.float32))
    return Features(features, generator.integers(0, NUM_CLASSES, num))


def run_ours(train: Features, test: Features) -> Hits:
    """Top-1 hits (Q,) for every k."""
    hits = evaluate(train, test, ks=KS, temperature=TEMPERATURE).hits
    return {k: hits[k].top1 for k in KS}


def run_loop(train: Features, test: Features) -> Hits:
    """The same, with a search and a dense vote of its own for every k and chunk."""
    bank, queries = torch.from_numpy(train.features).T, torch.from_numpy(test.features)
    labels, targets = torch.from_numpy(train.labels), torch.from_numpy(test.labels)
    size = NUM_TEST // LOOP_CHUNKS
    hits: Hits = {}
    for k in KS:
        found = []
        for start in range(0, NUM_TEST, size):
            similarities, rows = torch.mm(queries[start : start + size], bank).topk(k)
            one_hot = torch.zeros(size * k, NUM_CLASSES).scatter_(1, labels[rows].view(-1, 1), 1)
            weights = (similarities / TEMPERATURE).exp().view(size, k, 1)
            votes = (one_hot.view(size, k, NUM_CLASSES) * weights).sum(1)  # (q, C)
            order = votes.sort(1, descending=True).indices
            found.append(order[:, 0] == targets[start : start + size])
        hits[k] = torch.cat(found).numpy()
    return hits


def run_bare(train: Features, test: Features, chunk_size: int) -> None:
    """Matrix product and top-k."""
    bank, queries = torch.from_numpy(train.features).T, torch.from_numpy(test.features)
    for start in range(0, NUM_TEST, chunk_size):
        torch.mm(queries[start : start + chunk_size], bank).topk(max(KS))


@dataclass(frozen=True, slots=True)
class Run:
    """What one run took, and gave."""

    seconds: float
    peak_mib: float
    result: Any


def measure(run: Callable[[], Any]) -> Run:
    """Seconds, and by how much the peak of resident memory lies above what was in use before; NaN outside Linux."""
    before = reset_peak_mib()
    start = time.perf_counter()
    result = run()
    took = time.perf_counter() - start
    return Run(took, status_mib("VmHWM") - before, result)


def reset_peak_mib() -> float:
    """Forget the peak of resident memory, and return what is in use."""
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")
    return status_mib("VmRSS")


def status_mib(name: str) -> float:
    """A line of the process's status."""
    if sys.platform != "linux":
        return float("nan")
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024


def told(line: str) -> None:
    """Print at once."""
    print(line, flush=True)


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3, help="each runs the loop once, the others twice")
    rounds = parser.parse_args().rounds
    if torch.get_num_threads() != faiss.omp_get_max_threads():
        told(f"torch has {torch.get_num_threads()} threads, FAISS {faiss.omp_get_max_threads()}: no fair comparison")
        return 1
    train, test = draw(NUM_TRAIN, 0), draw(NUM_TEST, 1)
    told(f"{NUM_TRAIN:,} x {NUM_TEST:,} x {DIM}, {NUM_CLASSES} classes, k = {KS}, {torch.get_num_threads()} threads")
    tried = {size: measure(lambda size=size: run_bare(train, test, size)).seconds for size in BARE_CHUNK_SIZES}  # type: ignore[misc]
    chunk_size = min(tried, key=lambda size: tried[size])
    told("bare by chunk size: " + ", ".join(f"{size}: {took:.2f} s" for size, took in tried.items()))
    contestants: dict[str, Callable[[], Any]] = {
        "ours": lambda: run_ours(train, test),
        "bare": lambda: run_bare(train, test, chunk_size),
        "loop": lambda: run_loop(train, test),
    }
    runs: dict[str, list[Run]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name in ("ours", "bare", "loop", "bare", "ours"):
            runs[name].append(measure(contestants[name]))
            told(f"{name} {runs[name][-1].seconds:8.2f} s, peak +{runs[name][-1].peak_mib:.0f} MiB")
    ours, loop = runs["ours"][0].result, runs["loop"][0].result
    if any(np.mean(ours[k] != loop[k]) > MOST_DISAGREEMENT for k in KS):
        told("ours and the loop disagree")
        return 1
    medians = {name: statistics.median(run.seconds for run in found) for name, found in runs.items()}
    told("medians: " + ", ".join(f"{name} {median:.2f} s" for name, median in medians.items()))
    faster, share = medians["loop"] / medians["ours"], medians["ours"] / medians["bare"]
    told(f"ours is {faster:.2f} times as fast as the loop (at least {LEAST_RATIO})")
    told(f"ours takes {share:.3f} times the bare product in chunks of {chunk_size} (at most {MOST_RATIO})")
    return int(faster < LEAST_RATIO or share > MOST_RATIO)


if __name__ == "__main__":
    sys.exit(main())
