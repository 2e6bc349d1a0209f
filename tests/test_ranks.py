from collections.abc import Callable

import pytest

from patchssl.errors import DataError
from patchssl.ranks import FailedElsewhereError, fail_together, from_main, gather, is_main, rank, world_size


def test_messages_reach_everyone(in_two_processes: Callable[[Callable[[], None]], list[int]]) -> None:
    def run() -> None:
        assert world_size() == 2
        assert gather(f"of {rank()}") == ["of 0", "of 1"]
        assert from_main(10 + rank()) == 10
        fail_together(None)
        with pytest.raises(FailedElsewhereError if is_main() else DataError, match=r"process 1 of 2|wrong here"):
            fail_together(DataError("wrong here") if rank() == 1 else None)

    assert in_two_processes(run) == [0, 0]


def test_alone_nothing_happens() -> None:
    assert (rank(), is_main(), gather(3), from_main(4)) == (0, True, [3], 4)
    fail_together(None)
    with pytest.raises(DataError, match="wrong"):
        fail_together(DataError("wrong"))
