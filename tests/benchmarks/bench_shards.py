"""What shards cost and save; run by hand: `python tests/benchmarks/bench_shards.py`.

The same images as files, in tar files and in parquet files: opening them for the first time and again, and fetching all
of them in the order of an epoch, without decoding. The yardsticks are the folder of files, and for the order the plain
permutation of as many images.
"""

import io
import os
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet

from patchssl.data.lanes import Blocks, lane_order
from patchssl.data.order import epoch_order
from patchssl.data.sources import open_unlabelled

NUM_IMAGES, NUM_SHARDS, IMAGE_BYTES = 40_000, 40, 10_000
NUM_ORDERED = 10_000_000


def timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def write(root: Path) -> dict[str, Path]:
    rng, per_shard = np.random.default_rng(0), NUM_IMAGES // NUM_SHARDS
    places = {kind: root / kind for kind in ("files", "tar", "parquet")}
    for shard in range(NUM_SHARDS):
        contents = {f"{shard * per_shard + number:08}.jpg": rng.bytes(IMAGE_BYTES) for number in range(per_shard)}
        for place in places.values():
            place.mkdir(parents=True, exist_ok=True)
        folder = places["files"] / f"{shard:03}"
        folder.mkdir()
        with tarfile.open(places["tar"] / f"{shard:03}.tar", "w") as archive:
            for name, content in contents.items():
                (folder / name).write_bytes(content)
                about = tarfile.TarInfo(name)
                about.size = len(content)
                archive.addfile(about, io.BytesIO(content))
        table = pyarrow.table({"image": list(contents.values())})
        pyarrow.parquet.write_table(table, places["parquet"] / f"{shard:03}.parquet", row_group_size=100)
    return places


def fetch_all(place: Path, shuffle_buffer: int) -> None:
    source = open_unlabelled(place)
    order = epoch_order(source, seed=0, epoch=0, shuffle_buffer=shuffle_buffer, batch_size=512)
    for index in order.tolist():
        source.fetch(index)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        os.environ["PATCHSSL_CACHE"] = f"{name}/cache"
        places = write(Path(name) / "data")
        yardstick: dict[str, float] = {}
        for kind, place in places.items():
            seconds = {
                "opened first": timed(lambda place=place: open_unlabelled(place)),  # type: ignore[misc]
                "opened again": timed(lambda place=place: open_unlabelled(place)),  # type: ignore[misc]
                "fetched": timed(lambda place=place: fetch_all(place, 4096)),  # type: ignore[misc]
            }
            yardstick = yardstick or seconds
            told = [
                f"{what} {NUM_IMAGES / s:9,.0f} images/s ({s / yardstick[what]:.2f})" for what, s in seconds.items()
            ]
            print(f"{kind:8} {', '.join(told)}")
    rng = np.random.default_rng(0)
    plain = timed(lambda: rng.permutation(NUM_ORDERED))
    for num_blocks in (1000, 100_000):
        blocks = Blocks(np.full(num_blocks, NUM_ORDERED // num_blocks), np.arange(num_blocks))
        lanes = timed(lambda told=blocks: lane_order(told, shuffle_buffer=4096, batch_size=1024, in_batch=0, rng=rng))  # type: ignore[misc]
        print(
            f"order of {NUM_ORDERED:,} images in {num_blocks:,} blocks: {lanes:.1f} s, {lanes / plain:.1f} permutations"
        )


if __name__ == "__main__":
    main()
