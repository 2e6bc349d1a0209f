"""Activations that are computed again for the backward pass instead of being kept."""

from torch import Tensor, is_grad_enabled, nn
from torch.utils.checkpoint import checkpoint


def activate_and_project(activation: nn.Module, linear: nn.Module, hidden: Tensor) -> Tensor:
    """Linear map of the activation of hidden (..., D), keeping for the backward pass what went in and nothing between.

    An activation takes far less time than the products around it and as much memory as their input. Only the activation
    is computed twice: PyTorch's checkpointing stops as soon as it has what the linear map has to know.
    """
    if not (is_grad_enabled() and hidden.requires_grad):
        return _activate_and_project(activation, linear, hidden)
    projected: Tensor = checkpoint(
        _activate_and_project, activation, linear, hidden, use_reentrant=False, preserve_rng_state=False
    )
    return projected


def _activate_and_project(activation: nn.Module, linear: nn.Module, hidden: Tensor) -> Tensor:
    projected: Tensor = linear(activation(hidden))
    return projected
