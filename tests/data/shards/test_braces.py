"""Brace patterns stand for what shells make of them."""

import shutil
import subprocess

import pytest

from patchssl.data.shards.braces import expand_braces
from patchssl.errors import DataError


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("plain", ["plain"]),
        ("", [""]),
        ("s-{000..003}.tar", ["s-000.tar", "s-001.tar", "s-002.tar", "s-003.tar"]),
        ("{08..11}", ["08", "09", "10", "11"]),
        ("{3..1}", ["3", "2", "1"]),
        ("{-1..1}", ["-1", "0", "1"]),
        ("{0..10..5}x", ["0x", "5x", "10x"]),
        ("{a,b}{1..2}", ["a1", "a2", "b1", "b2"]),
        ("{a,{b,c}d}e", ["ae", "bde", "cde"]),
        ("{,a}b", ["b", "ab"]),
        ("{a}", ["{a}"]),
        ("{a{1..2}", ["{a1", "{a2"]),
        ("a}b{", ["a}b{"]),
        ("{1..b}", ["{1..b}"]),
        ("{2..2}", ["2"]),
    ],
)
def test_patterns_by_hand(pattern: str, expected: list[str]) -> None:
    assert expand_braces(pattern) == expected
    if (bash := shutil.which("bash")) and pattern:
        done = subprocess.run([bash, "-c", f"printf '%s\\n' {pattern}"], capture_output=True, text=True, check=True)
        assert [line for line in done.stdout.splitlines() if line] == [text for text in expected if text]


def test_a_pattern_of_far_too_many_is_refused_at_once() -> None:
    for pattern in ("{0..999999999999}", "{1..5000}{1..5000}"):
        with pytest.raises(DataError, match=r"stands for more than 100,000 files; give a narrower pattern"):
            expand_braces(pattern)
