"""Activations that are computed again for the backward pass instead of being kept."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, is_grad_enabled, nn
from torch.utils.checkpoint import checkpoint


def activate_and_project(activation: nn.Module, linear: nn.Module, hidden: Tensor) -> Tensor:
    """Linear map of the activation of hidden (..., D), keeping for the backward pass what went in and nothing between.

    An activation takes far less time than the products around it and as much memory as their input. Only the activation
    is computed twice: PyTorch's checkpointing stops as soon as it has what the linear map has to know.
    """
    return recomputed(_activate_and_project, activation, linear, hidden)


def recomputed(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """The function of its arguments, the last of which is a tensor, keeping nothing but these for the backward pass.

    It is called again there, under the precision that it was called with; so it must not draw random numbers, nor
    depend on what may have changed by then. Calls inside each other are meant. Without gradients it is called once.
    """
    if not (is_grad_enabled() and arguments[-1].requires_grad):
        return function(*arguments)
    result: Tensor = checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)
    return result


def _activate_and_project(activation: nn.Module, linear: nn.Module, hidden: Tensor) -> Tensor:
    projected: Tensor = linear(activation(hidden))
    return projected
