"""Packed names are as a tuple of the same."""

import hashlib
import pickle
import random
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchssl.names import Names, names_sha256

# What a file's name may hold: any bytes but zero, as the system's functions show them.
NAME = st.binary(max_size=12).map(lambda name: name.replace(b"\0", b"/").decode(errors="surrogateescape"))


def test_by_hand() -> None:
    names = Names.of(["a/é.jpg", "", "new\nline.png", "\udcff.png"])
    assert names.text == b"a/\xc3\xa9.jpg\0\0new\nline.png\0\xff.png\0"
    assert names.ends.tolist() == [8, 9, 22, 28]
    assert list(names) == ["a/é.jpg", "", "new\nline.png", "\udcff.png"]
    assert names[0] == "a/é.jpg"
    assert names[-1] == names[np.int64(3)] == "\udcff.png"
    assert names[1:3] == ("", "new\nline.png")
    assert names[::-2] == ("\udcff.png", "")
    assert repr(names) == "<4 names: 'a/é.jpg', '', 'new\\nline.png', ...>"
    assert "" in names
    assert "b" not in names
    assert names.index("new\nline.png") == 2


@given(st.lists(NAME), st.slices(8))
def test_as_a_tuple(given_names: list[str], part: slice) -> None:
    names, plain = Names.of(iter(given_names)), tuple(given_names)
    assert len(names) == len(plain)
    assert tuple(names) == plain
    assert names == plain
    assert plain == names
    assert hash(names) == hash(plain)
    assert names[part] == plain[part]
    assert [names[place] for place in range(-len(plain), len(plain))] == [*plain, *plain]
    assert (names == (*plain, "more")) is False
    assert names != list(plain)
    assert pickle.loads(pickle.dumps(names)) == names
    assert names_sha256(names) == names_sha256(plain)
    assert names_sha256(plain) == hashlib.sha256("\0".join(plain).encode(errors="surrogateescape")).hexdigest()


@given(st.lists(NAME, min_size=1))
def test_other_names_are_not_equal(given_names: list[str]) -> None:
    names = Names.of(given_names)
    for place in range(len(names)):
        others = [*given_names[:place], given_names[place] + "x", *given_names[place + 1 :]]
        assert names != Names.of(others)
        assert names != tuple(others)
        assert names_sha256(names) != names_sha256(others)


def test_many_names_beyond_one_chunk() -> None:
    draw = random.Random(0)
    plain = tuple(f"{number:x}" * draw.randrange(4) for number in range(10_000))
    names = Names.of(plain)
    assert names == plain
    assert names[4090:8200] == plain[4090:8200]
    assert names[9_999] == plain[9_999]
    packed = sys.getsizeof(names.text) + names.ends.nbytes
    assert packed < sum(map(len, plain)) + 9 * len(plain) + 100
    assert len(pickle.dumps(names)) < packed + 1000


def test_places_beyond_the_end() -> None:
    for names in (Names.of([]), Names.of(["a", "b"])):
        for place in (len(names), -len(names) - 1):
            with pytest.raises(IndexError):
                names[place]


@pytest.mark.parametrize(
    ("text", "ends"), [(b"ab\0", [1]), (b"abc", [2]), (b"ab\0c\0", [2]), (b"\0", []), (b"a\0\0", [2, 1]), (b"", [0])]
)
def test_parts_that_do_not_belong_together(text: bytes, ends: list[int]) -> None:
    with pytest.raises(ValueError, match=r"end|zero bytes"):
        Names(text, np.array(ends, dtype=np.int64))
