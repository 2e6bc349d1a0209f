"""What the optimizer is given, and what is done to gradients before it."""

import torch
from torch import Tensor, nn

from patchssl.shards import local, tensor_norms


def weight_decay_groups(network: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The trainable parameters with and without weight decay; biases and 1-D parameters have none, as in DINO."""
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            (free if name.endswith(".bias") or parameter.ndim <= 1 else decayed).append(parameter)
    return decayed, free


def clip_gradients(network: nn.Module, largest_norm: float, *, mode: str) -> Tensor:
    """Scale gradients down to a largest norm and return the norm over all of them before.

    Args:
        network: its gradients are changed in place.
        largest_norm: above 0.
        mode: "global" clips the norm over all tensors; "tensor" clips each tensor by itself (DINO, PW-Self).
    """
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    norms = tensor_norms(gradients)  # (T,)
    total: Tensor = torch.linalg.vector_norm(norms)
    shares = [local(gradient) for gradient in gradients]
    # As PyTorch's clip_grad_norm_, which clips all tensors as one.
    if mode == "global":
        torch._foreach_mul_(shares, (largest_norm / (total + 1e-6)).clamp(max=1.0))
    else:
        for share, scale in zip(shares, (largest_norm / (norms + 1e-6)).clamp(max=1.0), strict=True):
            share.mul_(scale)
    return total
