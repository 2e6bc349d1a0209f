"""Tensors that processes share out: norms, whole ones, and shares again."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.distributed.fsdp
import torch.distributed.tensor
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from patchssl.ranks import is_main, rank
from patchssl.shards import cut_like, cut_optimizer_state, local, tensor_norms, whole


def network() -> nn.Module:
    """A tensor of one row, which one of two processes holds, and one of three, which they share unevenly."""
    found = nn.Sequential(nn.Linear(3, 1, bias=False), nn.Linear(1, 3))
    with torch.no_grad():
        for number, parameter in enumerate(found.parameters()):
            parameter.copy_(torch.arange(parameter.numel()).view_as(parameter) + 10.0 * number)
    return found


def shared_out() -> nn.Module:
    mesh = init_device_mesh("cpu", (2,))
    found = network()
    torch.distributed.fsdp.fully_shard(found, mesh=mesh)
    return found


def test_norms_by_hand() -> None:
    tensors = [torch.tensor([3.0, 4.0]), torch.tensor([[1.0, 2.0], [2.0, 0.0]]), torch.zeros(2), torch.empty(0, 3)]
    assert tensor_norms(tensors).tolist() == [5, 3, 0, 0]


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_norms_of_what_is_not_finite_are_not_finite(value: float) -> None:
    assert not tensor_norms([torch.tensor([1.0, value]), torch.ones(1)])[0].isfinite()


def test_alone_nothing_is_shared_out() -> None:
    tensor = torch.ones(2)
    found = whole({"a": [tensor, 3], "b": {"c": (1, None)}})
    assert found["a"][0] is tensor
    assert found["b"] == {"c": (1, None)}
    assert local(tensor) is tensor


def test_shares_make_a_whole_and_the_whole_is_cut_up_again(
    in_two_processes: Callable[[Callable[[], None]], list[int]],
) -> None:
    plain = network()
    parameters = list(plain.parameters())

    def run() -> None:
        shared = shared_out()
        shares = list(shared.parameters())
        assert [local(share).numel() for share in shares] == ([3, 2, 2] if rank() == 0 else [0, 1, 1])
        torch.testing.assert_close(tensor_norms(shares), tensor_norms(parameters))
        found = whole({"weights": dict(shared.state_dict()), "step": 3})
        assert found["step"] == 3
        for name, value in plain.state_dict().items():
            assert torch.equal(found["weights"][name], value) if is_main() else found["weights"][name] is None
        doubled = {name: 2 * value for name, value in plain.state_dict().items()}
        shared.load_state_dict(cut_like(doubled, shared))
        torch.testing.assert_close(tensor_norms(list(shared.parameters())), 2 * tensor_norms(parameters))

    assert in_two_processes(run) == [0, 0]


def test_moments_of_an_optimizer_are_cut_up_and_steps_are_not(
    in_two_processes: Callable[[Callable[[], None]], list[int]],
) -> None:
    plain = network()

    def stepped(of: nn.Module) -> torch.optim.Optimizer:
        optimizer = torch.optim.AdamW(of.parameters(), lr=0.1, fused=True)
        of(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        return optimizer

    expected = stepped(plain).state_dict()

    def run() -> None:
        shared = shared_out()
        optimizer = torch.optim.AdamW(shared.parameters(), lr=0.5, fused=True)
        optimizer.load_state_dict(cut_optimizer_state(expected, optimizer))
        found = whole(optimizer.state_dict())
        assert found["param_groups"][0]["lr"] == 0.1
        for number, of_parameter in expected["state"].items():
            assert found["state"][number]["step"].item() == 1
            for name in ("exp_avg", "exp_avg_sq"):
                assert not is_main() or torch.equal(found["state"][number][name], of_parameter[name])

    assert in_two_processes(run) == [0, 0]


def test_what_does_not_fit_stays_for_the_module_to_refuse(
    in_two_processes: Callable[[Callable[[], None]], list[int]],
) -> None:
    def run() -> None:
        shared = shared_out()
        other = {**network().state_dict(), "1.bias": torch.ones(4)}
        with pytest.raises(RuntimeError, match=r"1\.bias"):
            shared.load_state_dict(cut_like(other, shared))

    assert in_two_processes(run) == [0, 0]
