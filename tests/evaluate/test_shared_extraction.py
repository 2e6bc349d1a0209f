"""Two processes extract one set of features."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from patchssl.backbones import Backbone, load_backbone
from patchssl.data.decode import UnreadableImage
from patchssl.errors import DataError
from patchssl.evaluate.extracting.store import FeatureStore
from patchssl.evaluate.extraction import extract
from patchssl.ranks import FailedElsewhereError, is_main, rank

NUM, SHARD_IMAGES = 22, 4
InTwo = Callable[[Callable[[], None]], list[int]]
TOKENS = ("cls", "cls:2+mean")


class Noise:
    """Images of noise; which of them are read stands in a file of each process."""

    name, location, labels, classes = "noise", "noise", None, ()
    ids = tuple(f"{index}.png" for index in range(NUM))

    def __init__(self, folder: Path, *, die_at: int | None = None, bad: range = range(0), print_: str = "") -> None:
        self.folder, self.die_at, self.bad, self.print = folder, die_at, bad, print_

    def __len__(self) -> int:
        return NUM

    def read(self, index: int) -> Image.Image:
        if index == self.die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if index in self.bad:
            raise UnreadableImage(self.ids[index], "is truncated")
        with (self.folder / f"read-{rank()}.txt").open("a") as file:
            file.write(f"{index}\n")
        return Image.fromarray(np.random.default_rng(index).integers(0, 256, (40, 48, 3), dtype=np.uint8))

    def fingerprint(self) -> str:
        return f"print {self.print}"

    def state(self) -> str:
        # As the times of files do where each host has a copy.
        return f"state of process {rank()}"


@pytest.fixture(scope="module")
def vit() -> Backbone:
    return load_backbone("timm:vit_tiny_patch16_224@random").at_size(32)


def extract_to(folder: Path, vit: Backbone, source: Noise) -> None:
    """Write the features of the process that has some; extract in whole shards, whatever the number of processes."""
    store = FeatureStore(folder, shard_images=SHARD_IMAGES)
    found = extract(vit, source, tokens=TOKENS, batch_size=4, precision="fp32", store=store)
    assert bool(found.features) == is_main()
    if is_main():
        arrays: dict[str, Any] = {name: part.features for name, part in found.features.items()}
        np.savez(folder / "features.npz", allow_pickle=False, **arrays)


def read_indices(folder: Path) -> list[list[int]]:
    return [[int(line) for line in path.read_text().split()] for path in sorted(folder.glob("read-*.txt"))]


def test_two_processes_share_the_shards_and_equal_one_bit_for_bit(
    in_two_processes: InTwo, tmp_path: Path, vit: Backbone
) -> None:
    assert in_two_processes(lambda: extract_to(tmp_path, vit, Noise(tmp_path))) == [0, 0]
    first, second = read_indices(tmp_path)
    assert [index for index in range(NUM) if index // 4 % 2 == 0] == first
    assert [index for index in range(NUM) if index // 4 % 2 == 1] == second
    (tmp_path / "one").mkdir()
    extract_to(tmp_path / "one", vit, Noise(tmp_path / "one"))
    with np.load(tmp_path / "features.npz") as found, np.load(tmp_path / "one" / "features.npz") as expected:
        assert set(found.files) == set(TOKENS)
        for name in TOKENS:
            np.testing.assert_array_equal(found[name], expected[name])


def test_after_one_was_killed_the_other_ends_and_only_the_missing_shards_are_computed(
    in_two_processes: InTwo, tmp_path: Path, vit: Backbone
) -> None:
    # The second process computes shards 1, 3 and 5; it dies in its second one, and the first ends with an error.
    codes = in_two_processes(lambda: extract_to(tmp_path, vit, Noise(tmp_path, die_at=13)))
    assert codes == [1, -signal.SIGKILL]
    assert not (tmp_path / "features.npz").exists()
    kept = {int(path.stem) for path in tmp_path.rglob("cls-1/*.safetensors")}
    assert kept == {0, 1, 2, 4}
    for log in tmp_path.glob("read-*.txt"):
        log.unlink()
    assert in_two_processes(lambda: extract_to(tmp_path, vit, Noise(tmp_path))) == [0, 0]
    assert read_indices(tmp_path) == [[12, 13, 14, 15], [20, 21]]
    with np.load(tmp_path / "features.npz") as found:
        expected = extract(vit, Noise(tmp_path), tokens=TOKENS, batch_size=4, precision="fp32")
        for name in TOKENS:
            np.testing.assert_array_equal(found[name], expected.features[name].features)


def test_too_many_unreadable_images_of_one_process_end_both(
    in_two_processes: InTwo, tmp_path: Path, vit: Backbone
) -> None:
    def run() -> None:
        # Images 4 and 5 are of the second process.
        with pytest.raises(
            FailedElsewhereError if is_main() else DataError, match=r"process 1 of 2 failed|2 of the fi"
        ):
            extract_to(tmp_path, vit, Noise(tmp_path, bad=range(4, 6)))

    assert in_two_processes(run) == [0, 0]


def test_processes_that_see_different_data_refuse(in_two_processes: InTwo, tmp_path: Path, vit: Backbone) -> None:
    def run() -> None:
        with pytest.raises(DataError, match="not the same for all 2 processes"):
            extract_to(tmp_path, vit, Noise(tmp_path, print_=str(rank())))

    assert in_two_processes(run) == [0, 0]
