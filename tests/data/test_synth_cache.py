from pathlib import Path
from typing import Any

import pytest

from patchssl.data.synth import cache, write_dataset
from patchssl.errors import DataError


def test_drawn_once_and_found_again(tmp_path: Path) -> None:
    first = cache.cached_dataset(tmp_path, num_images=24, image_size_px=32, seed=0)
    assert first.is_relative_to(tmp_path)
    assert len(list((first / "folder").rglob("*.png"))) == 24
    mark = first / "untouched"
    mark.touch()
    assert cache.cached_dataset(tmp_path, num_images=24, image_size_px=32, seed=0) == first
    assert mark.is_file()
    other = cache.cached_dataset(tmp_path, num_images=24, image_size_px=32, seed=1)
    assert other != first
    same = [folder / "folder" / "train" for folder in (first, other)]
    names = [sorted(path.relative_to(folder) for path in folder.rglob("*.png")) for folder in same]
    assert names[0] == names[1]
    assert any((same[0] / name).read_bytes() != (same[1] / name).read_bytes() for name in names[0])


def test_drawings_of_other_code_are_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = cache.cached_dataset(tmp_path, num_images=24, image_size_px=32, seed=0)
    monkeypatch.setattr(cache, "_code_digest", lambda: "other")
    assert cache.cached_dataset(tmp_path, num_images=24, image_size_px=32, seed=0) != first


def test_one_that_another_process_drew_meanwhile_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def twice(folder: Path, **values: Any) -> None:
        write_dataset(folder, **values)
        write_dataset(folder, **values)

    monkeypatch.setattr(cache, "write_dataset", twice)
    assert (cache.cached_dataset(tmp_path, num_images=24, image_size_px=32, seed=0) / "folder").is_dir()


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "synth").write_text("no folder")
    with pytest.raises(DataError, match="Cannot write"):
        cache.cached_dataset(tmp_path, num_images=24, image_size_px=32, seed=0)
