"""Plain data come out of a pickle, and nothing in it runs."""

import io
import os
import pickle
import pickletools
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from patchssl.data.plain_pickle import load_plain_pickle
from patchssl.errors import DataError

PLAIN = {
    "imlist": ["a", "b"],
    "gnd": [{"bbx": [1.5, 2, 3, 4], "easy": np.array([3, 1]), "junk": (), "none": None, "yes": True, "raw": b"\xff"}],
    "matrix": np.asfortranarray(np.arange(6, dtype=">f4").reshape(2, 3)),
    "number": np.float64(0.1),
    "words": np.array(["x", "yz"]),
    "nothing": np.zeros((0, 4), np.int32),
    "objects": np.array([1, "a", None], dtype=object),
}


def load(content: bytes, folder: Path) -> Any:
    (folder / "x.pkl").write_bytes(content)
    return load_plain_pickle(folder / "x.pkl")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_and_arrays_of_every_protocol_come_back(protocol: int, tmp_path: Path) -> None:
    found = load(pickle.dumps(PLAIN, protocol), tmp_path)
    assert found["imlist"] == ["a", "b"]
    gnd = found["gnd"][0]
    np.testing.assert_array_equal(gnd.pop("easy"), [3, 1])
    assert gnd == {"bbx": [1.5, 2, 3, 4], "junk": (), "none": None, "yes": True, "raw": b"\xff"}
    np.testing.assert_array_equal(found["matrix"], PLAIN["matrix"])
    assert found["number"] == 0.1
    assert found["words"].tolist() == ["x", "yz"]
    assert found["nothing"].shape == (0, 4)
    assert found["objects"] == [1, "a", None]


def test_what_stands_twice_is_made_once(tmp_path: Path) -> None:
    shared = np.arange(3)
    first, second = load(pickle.dumps([shared, shared]), tmp_path)
    assert first is second
    # 60 lists, each of which holds the one before twice: 2^60 numbers, had each to be made anew.
    nested: list[Any] = [1]
    for _ in range(60):
        nested = [nested, nested]
    assert load(pickle.dumps(nested), tmp_path)[0] is not None


def python_2_array(values: list[int]) -> bytes:
    """An int64 array as Python 2 with NumPy 1.x wrote it by protocol 2: its bytes are a `str`, here SHORT_BINSTRING."""
    raw = struct.pack(f"<{len(values)}q", *values)
    return (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        + b"(K\x01K" + bytes([len(values)]) + b"\x85"
        + b"cnumpy\ndtype\nU\x02i8K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        + b"\x89U" + bytes([len(raw)]) + raw + b"tb"
    )  # fmt: skip


def test_pickles_of_python_2_load(tmp_path: Path) -> None:
    content = b"\x80\x02}(U\x06imlist](U\x05all_1U\x06caf\xe9_2eU\x04easy" + python_2_array([200, 7]) + b"u."
    pickletools.dis(content, out=io.StringIO())
    found = load(content, tmp_path)
    assert found["imlist"] == ["all_1", "café_2"]
    np.testing.assert_array_equal(found["easy"], [200, 7])
    assert found["easy"].dtype == np.int64


class Payload:
    def __init__(self, call: Any, *arguments: Any) -> None:
        self.result = call, arguments

    def __reduce__(self) -> Any:
        return self.result


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_payload_is_refused_by_name_and_does_not_run(protocol: int, tmp_path: Path) -> None:
    target = tmp_path / "ran"
    content = pickle.dumps({"imlist": [Payload(os.mkdir, str(target))]}, protocol)
    pickle.loads(content)
    assert target.is_dir()  # the payload works
    target.rmdir()
    with pytest.raises(DataError, match=r"x\.pkl is refused: it asks for (posix|nt)\.mkdir\. .*as \.json"):
        load(content, tmp_path)
    assert not target.exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (pickle.dumps(Payload(eval, "1")), "asks for builtins.eval"),
        (pickle.dumps(Payload(getattr, "a", "b")), "asks for builtins.getattr"),
        (pickle.dumps(np.save), "asks for numpy"),
        (pickle.dumps({1, 2}), "holds a set"),
        (pickle.dumps(np.array([(1, 2.0)], dtype="i4,f4")), "of the type 'V8'"),
        (pickle.dumps(Path("a")), "asks for pathlib"),
        (pickle.dumps(np.array("2020", dtype="M8[D]")), "of the type 'M8'"),
        (b"cnumpy\ndtype\n.", "holds a type"),
        (b"cnumpy\nndarray\n.", "holds a type"),
        (b"c_codecs\nencode\n(Vabc\nVrot13\ntR.", "encoding 'rot13'"),
        (b"c_codecs\nencode\n(Vabc\nVlatin1\ntR}b.", "gives a state to bytes"),
        # An object's type with a forged byte order or flags, which NumPy itself would believe.
        (b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(VO8\ntRVabcdefgh\ntR.", "number of the type object"),
    ],
)
def test_everything_else_is_refused(content: bytes, words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is refused") as caught:
        load(content, tmp_path)
    assert words in str(caught.value)


def test_what_contains_itself_is_refused(tmp_path: Path) -> None:
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(DataError, match="contains itself"):
        load(pickle.dumps(circle), tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        pickle.dumps(PLAIN)[:-20],
        pickle.dumps(np.arange(1000))[:-500] + b".",
        # An array of a shape that its bytes do not fill.
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntVb\ntR"
        b"(I1\n(I1000000000000\ntcnumpy\ndtype\n(Vi8\ntRI00\nVabcdefgh\ntb.",
    ],
)
def test_damaged_files_are_told(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no readable pickle, or damaged"):
        load(content, tmp_path)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: No such file"):
        load_plain_pickle(tmp_path / "none.pkl")
