"""Parquet files as a list of images: which column, which rows, and what is said of bad ones."""

import io
import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from patchssl.data.decode import UnreadableImage
from patchssl.data.images import StoredSource
from patchssl.data.loader import Loaded, TrainingBatches, iterate
from patchssl.data.samples import Share
from patchssl.data.shards import parquet_index, parquet_source
from patchssl.data.shards.parquet_source import ParquetSource, bounds
from patchssl.data.sources import open_unlabelled
from patchssl.errors import ConfigError, DataError
from patchssl.structs import CropPlan, SampleKeys

Pictures = list[NDArray[np.uint8]]


class Whole:
    """Instead of views: the images themselves."""

    def plan(self, sizes: torch.Tensor, keys: SampleKeys, reducible: torch.Tensor) -> CropPlan:
        return CropPlan((), (), torch.ones(len(keys), dtype=torch.int64))

    def make(self, images: Pictures, plan: CropPlan) -> Pictures:
        return images


def batches(source: StoredSource, *, num_steps: int = 20, share: Share | None = None) -> TrainingBatches[Pictures]:
    return TrainingBatches(
        source, Whole(), batch_size=8, num_steps=num_steps, seed=1, share=share or Share(), shuffle_buffer=12
    )


def numbers(loaded: Loaded[Pictures], number_of: Callable[[Any], int]) -> list[int]:
    return [number_of(image) for image in loaded.made]


@pytest.fixture
def shards(tmp_path: Path, write_parquet: Callable[..., Path]) -> Path:
    """Three files with 18, 20 and 22 pictures in row groups of 4."""
    start = 0
    for shard, num in enumerate((18, 20, 22)):
        write_parquet(tmp_path / "shards" / "data" / f"train-{shard:05}-of-00003.parquet", range(start, start + num))
        start += num
    return tmp_path / "shards"


def test_a_folder_of_files_is_a_list_of_images(shards: Path, number_of: Callable[[Any], int]) -> None:
    source = open_unlabelled(shards)
    assert isinstance(source, ParquetSource)
    assert [number_of(source.read(index)) for index in range(60)] == list(range(60)) == list(range(len(source)))
    assert source.ids[18] == "train-00001-of-00003.parquet/0"
    assert list(source.ids) == [source.ids[index] for index in range(60)]
    assert source.where(19) == f"{shards}/data/train-00001-of-00003.parquet: row 1"
    assert source.blocks.sizes.tolist() == [4, 4, 4, 4, 2, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 2]
    for pattern in ("data/train-{00000..00002}-of-00003.parquet", "**/*.parquet"):
        assert list(open_unlabelled(f"{shards}/{pattern}").ids) == list(source.ids)


def struct(number: int, picture: Callable[[int], bytes]) -> dict[str, Any]:
    return {"bytes": picture(number), "path": None}


@pytest.mark.parametrize("name", ["image", "img", "jpg", "anything", "with.dot", "é \n"])
@pytest.mark.parametrize("kind", ["struct", "binary", "large_binary"])
def test_the_one_column_that_holds_images_is_found(
    tmp_path: Path,
    write_parquet: Callable[..., Path],
    picture: Callable[[int], bytes],
    number_of: Callable[[Any], int],
    name: str,
    kind: str,
) -> None:
    values = [struct(number, picture) if kind == "struct" else picture(number) for number in range(6)]
    column = values if kind == "struct" else pyarrow.array(values, getattr(pyarrow, kind)())
    path = write_parquet(tmp_path / "x.parquet", **{"label": [1] * 6, name: column, "caption": ["a"] * 6})
    source = open_unlabelled(path)
    assert [number_of(source.read(index)) for index in range(6)] == list(range(6))
    assert source.name == "x"


def columns(picture: Callable[[int], bytes], *names: str) -> dict[str, Any]:
    return {name: [picture(place)] for place, name in enumerate(names)}


def test_of_several_columns(
    tmp_path: Path, write_parquet: Callable[..., Path], picture: Callable[[int], bytes], number_of: Callable[[Any], int]
) -> None:
    def opened(*names: str, column: str | None = None, marked: tuple[str, ...] = ()) -> int:
        table = pyarrow.table(columns(picture, *names))
        if marked:
            features = {name: {"_type": "Image" if name in marked else "Audio"} for name in names}
            about = json.dumps({"info": {"features": features}})
            table = table.replace_schema_metadata({"huggingface": about})
        pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
        return number_of(open_unlabelled(tmp_path / "x.parquet", image_column=column).read(0))

    assert opened("mask", "image") == 1
    assert opened("other", "jpg") == 1
    assert opened("jpg", "png", column="png") == 1
    assert opened("sound", "scan", marked=("scan",)) == 1
    assert opened("image", "scan", marked=("scan",)) == 1
    assert opened("image", "scan", marked=("image", "scan")) == 0
    for names in (("jpg", "png"), ("one", "other")):
        with pytest.raises(
            DataError, match=rf"{names[0]}, {names[1]} may hold images; columns: {names[0]} \(binary\), "
        ):
            opened(*names)


def test_without_such_a_column_the_error_lists_what_there_is(
    tmp_path: Path, write_parquet: Callable[..., Path], picture: Callable[[int], bytes]
) -> None:
    path = write_parquet(tmp_path / "x.parquet", text=["a"], path=["b.png"], size=[1])
    with pytest.raises(
        DataError,
        match=r"x\.parquet: no column holds images; columns: text \(string\), path \(string\), size \(int64\)\. .* "
        r"--set data\.image_column=NAME$",
    ):
        open_unlabelled(path)
    with pytest.raises(DataError, match=r"has no column 'picture' \(data\.image_column\), but text \(string\), "):
        open_unlabelled(path, image_column="picture")
    with pytest.raises(DataError, match=r"the column 'text' \(data\.image_column\) holds no bytes of images"):
        open_unlabelled(path, image_column="text")


def test_all_files_need_the_column(shards: Path, write_parquet: Callable[..., Path]) -> None:
    write_parquet(shards / "other.parquet", text=["a"])
    with pytest.raises(DataError, match=r"other\.parquet: no column holds images"):
        open_unlabelled(shards)


def test_a_column_for_what_has_none_is_refused(tmp_path: Path, picture: Callable[[int], bytes]) -> None:
    (tmp_path / "a.png").write_bytes(picture(1))
    with pytest.raises(ConfigError, match=r"data\.image_column is 'image', and .* holds no parquet files"):
        open_unlabelled(tmp_path, image_column="image")


def test_rows_without_bytes(
    tmp_path: Path, write_parquet: Callable[..., Path], picture: Callable[[int], bytes], number_of: Callable[[Any], int]
) -> None:
    rows = [
        {"bytes": picture(0), "path": "0.png"},
        {"bytes": None, "path": "/photos/1.png"},
        {"bytes": None, "path": None},
        None,
        {"bytes": b"", "path": "4.png"},
        {"bytes": b"no image", "path": "5.png"},
    ]
    path = write_parquet(tmp_path / "x.parquet", image=rows)
    made = batches(open_unlabelled(path), num_steps=1)[0]
    assert {error.path: error.reason for error in made.bad} == {
        f"{path}: row 1": "holds no bytes, only the path /photos/1.png; store images in the file",
        f"{path}: row 2": "holds no image",
        f"{path}: row 3": "holds no image",
        f"{path}: row 4": "is empty (0 bytes)",
        f"{path}: row 5": "is not an image of a known format (JPEG, PNG, GIF, BMP, DIB, PPM, TIFF, WEBP)",
    }
    assert set(numbers(made, number_of)) == {0}


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3")
@pytest.mark.parametrize(("workers", "first_step"), [(0, 7), (1, 0), (3, 5)])
def test_workers_and_resuming_change_nothing(
    shards: Path, number_of: Callable[[Any], int], workers: int, first_step: int
) -> None:
    expected = [numbers(batches(open_unlabelled(shards))[step], number_of) for step in range(20)]
    flat = [number for step in expected for number in step]
    assert sorted(flat[:60]) == sorted(flat[60:120]) == list(range(60))
    made = iterate(batches(open_unlabelled(shards)), first_step=first_step, workers=workers, pin_memory=False)
    assert [numbers(each, number_of) for each in made] == expected[first_step:]
    parts = [batches(open_unlabelled(shards), share=Share(rank, 2)) for rank in range(2)]
    for step in (0, 7, 19):
        assert [number for part in parts for number in numbers(part[step], number_of)] == expected[step]


def test_it_travels_to_other_processes(shards: Path) -> None:
    source = open_unlabelled(shards)
    expected = source.fetch(40)
    assert len(pickle.dumps(source)) < 10_000  # without what is decoded
    assert pickle.loads(pickle.dumps(source)).fetch(40) == expected
    child = os.fork()
    if child == 0:
        os._exit(0 if source.fetch(40) == expected and source.fetch(0) != expected else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_the_fingerprint_is_that_of_names_and_sizes(shards: Path, tmp_path: Path) -> None:
    shutil.copytree(shards, tmp_path / "elsewhere")
    here, there = open_unlabelled(shards), open_unlabelled(tmp_path / "elsewhere")
    assert here.fingerprint() == there.fingerprint()
    assert here.state() != there.state()
    assert here.state() == open_unlabelled(shards).state()


def test_row_groups_are_decoded_once_in_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With as little memory as lanes and buffer are made for; none is kept for longer than that."""
    rng = np.random.default_rng(0)
    table = pyarrow.table({"image": [rng.bytes(1000) for _ in range(640)]})
    path = tmp_path / "x.parquet"
    pyarrow.parquet.write_table(table, path, row_group_size=8, use_dictionary=False, write_statistics=False)
    monkeypatch.setattr(parquet_source, "_KEPT_BYTES", 120_000)
    source = open_unlabelled(path)
    assert isinstance(source, ParquetSource)
    assert source.blocks.max_lanes == 3
    assert source.blocks.max_buffer == 59
    decoded, most = [], 0
    read = parquet_source._read

    def counted(file: Any, group: int, *others: Any) -> Any:
        decoded.append(group)
        return read(file, group, *others)

    monkeypatch.setattr(parquet_source, "_read", counted)
    made = TrainingBatches(source, Whole(), batch_size=16, num_steps=40, seed=0, shuffle_buffer=4096)
    for step in range(40):
        for index in made.samples.of_step(step).index.tolist():
            source.fetch(index)
            most = max(most, sum(group.num_bytes for group in source._groups.values()))
    assert sorted(set(decoded)) == list(range(80))
    assert len(decoded) <= 1.1 * 80
    assert most <= 120_000


def test_bounds_by_hand() -> None:
    gib, mib = 1 << 30, 1 << 20
    hundred = np.array([100, 100], dtype=np.int64)
    # 10 MiB: a half of 1 GiB holds two of each of 25 lanes, the other half 5,120 images of 0.1 MiB.
    kept, lanes, buffer = bounds(hundred, np.array([10 * mib, 10 * mib]))
    assert (kept, lanes, buffer) == (gib, 25, int(gib / 2 / (10 * mib / 100)))
    # 300 MiB: six of them.
    assert bounds(hundred, np.array([mib, 300 * mib]))[:2] == (1800 * mib, 1)
    assert bounds(np.array([], dtype=np.int64), np.array([], dtype=np.int64))[1] == 64


def test_large_row_groups_are_told_and_too_large_ones_refused(
    shards: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(parquet_source, "_KEPT_BYTES", 100)
    open_unlabelled(shards)
    assert "has row groups of up to" in caplog.text
    monkeypatch.setattr(parquet_index, "MAX_GROUP_BYTES", 300)
    with pytest.raises(DataError, match=r"has a row group of 4 rows .*write_table\(table, path, row_group_size=1\)$"):
        open_unlabelled(shards)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda content: b"", r"is empty \(0 bytes\); fetch it again"),
        (lambda content: content[: len(content) // 2], r"is not a whole parquet file \(.*\); fetch it again"),
        (lambda content: b"<html>" * 300, r"is not a whole parquet file"),
        (lambda content: content[:-12] + b"\xff" * 4 + content[-8:], r"is not a whole parquet file"),
        (lambda content: content[:-8] + b"\xff\xff\xff\x7fPAR1", r"is not a whole parquet file"),
        (lambda content: content[:-200] + bytes(150) + content[-50:], r"is not a whole parquet file"),
        (lambda content: b"PAR1", r"is not a whole parquet file"),
    ],
)
def test_files_that_are_no_good(shards: Path, damage: Callable[[bytes], bytes], words: str) -> None:
    path = shards / "data" / "train-00001-of-00003.parquet"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=rf"train-00001-of-00003\.parquet {words}"):
        open_unlabelled(shards)


def test_damaged_row_groups_are_unreadable_images(shards: Path, number_of: Callable[[Any], int]) -> None:
    path = shards / "data" / "train-00001-of-00003.parquet"
    content = bytearray(path.read_bytes())
    content[4:40] = b"\xff" * 36  # the head of the first page
    path.write_bytes(content)
    source = open_unlabelled(shards)
    for index in (18, 19, 20, 21):
        with pytest.raises(UnreadableImage, match=r"parquet: row \d: its row group cannot be read: "):
            source.fetch(index)
    assert number_of(source.read(22)) == 22


def test_empty_files(tmp_path: Path, write_parquet: Callable[..., Path], number_of: Callable[[Any], int]) -> None:
    empty = pyarrow.array([], pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())]))
    write_parquet(tmp_path / "a.parquet", image=empty)
    with pytest.raises(DataError, match="has no rows in 1 parquet files"):
        open_unlabelled(tmp_path)
    write_parquet(tmp_path / "b.parquet", range(6))
    write_parquet(tmp_path / "c.parquet", image=empty)
    source = open_unlabelled(tmp_path)
    assert [number_of(source.read(index)) for index in range(6)] == list(range(6))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("change", "words"), [(Path.unlink, "is no longer there"), (lambda path: os.truncate(path, 900), "has changed: it")]
)
def test_a_file_that_is_lost_in_the_middle_of_an_epoch_ends_the_run(
    shards: Path, monkeypatch: pytest.MonkeyPatch, workers: int, change: Callable[[Path], None], words: str
) -> None:
    monkeypatch.setattr(parquet_source, "_KEPT_BYTES", 1)
    source = open_unlabelled(shards)
    source._kept_bytes = 1  # type: ignore[attr-defined] # so that nothing is kept for long
    made = iterate(batches(source, num_steps=300), first_step=0, workers=workers, pin_memory=False)
    assert next(made).bad == []
    change(shards / "data" / "train-00001-of-00003.parquet")

    def rest() -> None:
        for each in made:
            assert each.bad == []

    with pytest.raises(DataError, match=rf"train-00001-of-00003\.parquet {words}.*; put it back as it was"):
        rest()


def test_without_pyarrow_one_line_says_what_to_install(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(
        ConfigError, match=r"^parquet files need the package pyarrow, .*; pip install 'patchssl\[shards\]'$"
    ):
        open_unlabelled(shards)


def test_photographs_are_turned_upright(tmp_path: Path, write_parquet: Callable[..., Path]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.new("RGB", (8, 4)).save(file, "JPEG", exif=exif)
    path = write_parquet(tmp_path / "x.parquet", image=[file.getvalue()])
    assert open_unlabelled(path).read(0).size == (4, 8)
    assert open_unlabelled(path, apply_exif=False).read(0).size == (8, 4)
