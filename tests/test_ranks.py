import math
import os
import re
import socket
from collections.abc import Callable
from datetime import timedelta

import pytest
import torch

from patchssl.errors import ConfigError, DataError
from patchssl.koleo import koleo
from patchssl.ranks import (
    FailedElsewhereError,
    LostContactError,
    averaged,
    fail_together,
    failing_alike,
    failing_together,
    from_main,
    gather,
    gathered,
    is_lost_contact,
    is_main,
    log_summed_exp,
    lost_contact,
    process_group,
    rank,
    summed,
    world_size,
)
from patchssl.structs import Projections
from patchssl.targets import sinkhorn_center


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


def test_what_all_fail_of_is_said_by_one(in_two_processes: Callable[[Callable[[], None]], list[int]]) -> None:
    def run() -> None:
        error = DataError("the same")
        with pytest.raises(DataError if is_main() else FailedElsewhereError), failing_together():
            raise error
        with pytest.raises(DataError if is_main() else FailedElsewhereError), failing_alike():
            raise error
        with pytest.raises(DataError, match=f"of {rank()}"), failing_together():
            raise DataError(f"of {rank()}")

    assert in_two_processes(run) == [0, 0]


def test_sums_over_processes_by_hand(in_two_processes: Callable[[Callable[[], None]], list[int]]) -> None:
    def run() -> None:
        own = torch.tensor([1.0, 10.0]) if is_main() else torch.tensor([3.0, -10.0])
        assert summed(own).tolist() == [4, 0]
        assert averaged(own).tolist() == [2, 0]
        logs = torch.tensor([math.log(1.0), 200.0, -math.inf] if is_main() else [math.log(3.0), 200.0, 5.0])
        torch.testing.assert_close(log_summed_exp(logs), torch.tensor([math.log(4), 200 + math.log(2), 5.0]))
        assert own.tolist() == ([1, 10] if is_main() else [3, -10])

    assert in_two_processes(run) == [0, 0]


def test_what_is_computed_from_gathered_rows_has_the_gradient_of_the_whole(
    in_two_processes: Callable[[Callable[[], None]], list[int]],
) -> None:
    rows = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    (expected,) = torch.autograd.grad(koleo(rows), rows)

    def run() -> None:
        own = rows.detach().unflatten(0, (2, 3))[rank()].clone().requires_grad_()
        share = koleo(gathered(own)) / world_size()
        share.backward()
        torch.testing.assert_close(summed(share.detach()), koleo(rows).detach())
        torch.testing.assert_close(own.grad, expected.unflatten(0, (2, 3))[rank()])
        assert gathered(own).tolist() == rows.tolist()

    assert in_two_processes(run) == [0, 0]


def test_sinkhorn_takes_its_columns_over_all_processes(
    in_two_processes: Callable[[Callable[[], None]], list[int]],
) -> None:
    generator = torch.Generator().manual_seed(0)
    rows, prototypes = torch.randn(8, 4, generator=generator), torch.randn(5, 4, generator=generator)
    expected = sinkhorn_center(Projections(rows, prototypes), temperature=0.1, num_iterations=3)

    def run() -> None:
        own = Projections(rows.unflatten(0, (2, 4))[rank()], prototypes)
        found = sinkhorn_center(own, temperature=0.1, num_iterations=3, over_all=log_summed_exp)
        torch.testing.assert_close(found, expected)
        alone = sinkhorn_center(own, temperature=0.1, num_iterations=3)
        assert not torch.allclose(alone, expected, atol=1e-3)

    assert in_two_processes(run) == [0, 0]


def test_alone_tensors_are_themselves() -> None:
    own = torch.tensor([[1.0, 2.0]])
    assert all(function(own) is own for function in (summed, averaged, log_summed_exp, gathered))
    assert not is_lost_contact(RuntimeError("Connection closed by peer"))


def test_a_process_that_ends_is_noticed_and_named(in_two_processes: Callable[[Callable[[], None]], list[int]]) -> None:
    def run() -> None:
        if rank() == 1:
            os._exit(3)
        with pytest.raises(RuntimeError) as caught:
            summed(torch.ones(1))
        assert is_lost_contact(caught.value)
        lost = lost_contact(caught.value, "do this")
        assert re.fullmatch(r"process 0 of 2 lost another one \(connection \w+ by peer\); do this", str(lost), re.I)
        assert "do that" in str(lost_contact(lost, "do that"))
        assert not is_lost_contact(RuntimeError("shapes do not fit"))
        with pytest.raises(LostContactError):
            gather(1)

    assert in_two_processes(run) == [0, 3]


def test_who_cannot_join_says_where_the_others_should_be(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("MASTER_PORT", str(taken.getsockname()[1]))
        words = r"process 0 of 2 cannot join the others at 127.0.0.1:\d+: .*take another MASTER_PORT"
        with pytest.raises(ConfigError, match=words), process_group(timeout=timedelta(seconds=5)):
            pytest.fail("it has joined")
