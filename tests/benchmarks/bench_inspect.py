"""How fast a data set is inspected; run by hand: `python tests/benchmarks/bench_inspect.py [FOLDER]`.

The yardstick of the pass is decoding each image once and doing nothing with it, in one process. Everything after the
pass is timed on the facts of a million made-up images, half of them in groups of equal ones.
"""

import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from patchssl.data.images import FileSource, StoredSource
from patchssl.data.inspection.collection import Collection
from patchssl.data.inspection.duplicates import find_duplicates
from patchssl.data.inspection.facts import FACTS, Facts
from patchssl.data.inspection.leakage import find_leakage
from patchssl.data.inspection.reading import read_facts
from patchssl.data.inspection.report import Findings, make_report
from patchssl.data.inspection.writing import write_report
from patchssl.data.sources import open_unlabelled
from patchssl.data.synth.copies import draw_original

NUM_PHOTOS, SIDE_PX = 200, 384
NUM_MANY = 1_000_000


def draw_photos(folder: Path) -> StoredSource:
    for number in range(NUM_PHOTOS):
        Image.fromarray(np.asarray(draw_original(number, SIDE_PX, 0))).save(folder / f"{number}.jpg", quality=90)
    return open_unlabelled(folder)


def time_the_pass(source: StoredSource) -> None:
    start = time.perf_counter()
    for index in range(len(source)):
        source.read(index)
    plain = time.perf_counter() - start
    print(f"decoding alone:       {len(source) / plain:7.0f} images/s")
    for workers in (0, 2):
        start = time.perf_counter()
        read_facts(source, workers=workers)
        seconds = time.perf_counter() - start
        speed, ratio = len(source) / seconds, seconds / plain
        print(f"facts, {workers} processes:   {speed:7.0f} images/s, {ratio:.2f} x the time of decoding alone")


def many() -> tuple[Collection, Facts]:
    rng = np.random.default_rng(0)
    table = np.zeros(NUM_MANY, FACTS)
    table["is_readable"] = True
    table["width"], table["height"] = rng.integers(100, 800, (2, NUM_MANY))
    table["format"], table["colours"] = b"JPEG", b"RGB"
    words = rng.integers(0, 2**63, (NUM_MANY, 2), dtype=np.uint64)
    equals = rng.integers(NUM_MANY // 4, size=NUM_MANY // 2)
    words[NUM_MANY // 2 :] = words[equals]
    table["file"] = table["pixels"] = words
    ids = tuple(f"train/class-{number % 1000:04d}/{number:07d}.jpg" for number in range(NUM_MANY))
    source = FileSource(Path("/nowhere"), ids, None, (), "many", "many", True)
    labels = np.arange(NUM_MANY) % 1000
    classes = tuple(f"class-{number:04d}" for number in range(1000))
    return Collection(source, ("train", "val"), rng.integers(2, size=NUM_MANY).astype(np.int8), classes, labels), Facts(
        table, {}
    )


def time_the_rest(folder: Path) -> None:
    collection, facts = many()
    before, start = _peak_mib(), time.perf_counter()
    duplicates = find_duplicates(facts)
    print(f"duplicates:           {time.perf_counter() - start:7.1f} s, {len(duplicates.pictures):,} groups")
    start = time.perf_counter()
    findings = Findings(collection, facts, duplicates, None, find_leakage(collection, duplicates, None))
    print(f"leakage:              {time.perf_counter() - start:7.1f} s, {len(findings.leakage.leaks):,} images")
    start = time.perf_counter()
    report = make_report(findings, view_size_px=224)
    print(f"report:               {time.perf_counter() - start:7.1f} s")
    start = time.perf_counter()
    write_report(folder / "report", report, findings, overwrite=False, num_drawn=100, seed=0)
    print(f"tables and sheets:    {time.perf_counter() - start:7.1f} s")
    print(f"memory besides names and facts: {_peak_mib() - before:,.0f} MiB")


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        photos = Path(name) / "photos"
        photos.mkdir()
        time_the_pass(open_unlabelled(sys.argv[1]) if len(sys.argv) > 1 else draw_photos(photos))
        time_the_rest(Path(name))


if __name__ == "__main__":
    main()
