"""Tensors of which each process holds a share (fully sharded training), and whole ones made of them and cut up again.

A checkpoint holds whole tensors, so that a run can go on with other processes.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from patchssl import ranks


def local(tensor: Tensor) -> Tensor:
    """The share of this process, which is part of the same memory; a tensor that is not shared out, itself."""
    share: Tensor = cast("Any", tensor).to_local() if _is_shared(tensor) else tensor
    return share


def tensor_norms(tensors: Sequence[Tensor]) -> Tensor:
    """(T,) Euclidean norms of T >= 1 tensors, of the whole ones where they are shared out."""
    norms = torch.stack(list(torch._foreach_norm([local(tensor) for tensor in tensors])))
    if not any(map(_is_shared, tensors)):
        return norms
    return ranks.summed(norms.square()).sqrt()


def whole(value: Any) -> Any:
    """Containers with whole tensors in place of those that are shared out, in the memory of the main process's CPU.

    All processes have to call it; those besides the main one get None for each such tensor.
    """
    if isinstance(value, Mapping):
        return {key: whole(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(whole(part) for part in value)
    if isinstance(value, Tensor) and _is_shared(value):
        full = cast("Any", value).full_tensor()
        return full.cpu() if ranks.is_main() else None
    return value


def cut_like(state: Mapping[str, Any], module: nn.Module) -> dict[str, Any]:
    """The state of a module with whole tensors, each cut up as the module's own is.

    Args:
        state: by the names of the module's state; a tensor of another shape stays whole, for the module to refuse.
        module: whose parameters may be shared out.
    """
    own = module.state_dict()
    return {name: _cut(value, own.get(name)) for name, value in state.items()}


def cut_optimizer_state(state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state of an optimizer with whole tensors, those of a parameter's shape cut up as the parameter is."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments = {
        number: {name: _cut(value, parameters[number]) for name, value in of_parameter.items()}
        for number, of_parameter in state["state"].items()
        if number < len(parameters)
    }
    return {**state, "state": moments}


def _cut(value: Any, like: Tensor | None) -> Any:
    if like is None or not _is_shared(like) or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    # Every process has read the whole; the main one's counts.
    return distribute_tensor(value.to(like.device), cast("Any", like).device_mesh, cast("Any", like).placements)


def _is_shared(tensor: Tensor) -> bool:
    # Importing the class takes seconds, and without several processes there is nothing of it.
    return ranks.world_size() > 1 and hasattr(tensor, "full_tensor")
