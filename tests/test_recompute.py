"""Activations that are computed again: the same gradients to the last bit, and less that is kept."""

from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from patchssl.backbones.vit import build_vit, recompute_activations, recompute_blocks, vit_tokens
from patchssl.config import ModelConfig
from patchssl.derived import derive
from patchssl.draws import uniforms
from patchssl.recipes import parse_config
from patchssl.step_values import scheduled
from patchssl.structs import Boxes, SampleKeys, ViewGroup
from patchssl.student_teacher import StudentTeacher
from patchssl.trainer import Trainer

NUM_IMAGES = 4


def trainer(precision: str = "fp32", **train: Any) -> Trainer:
    """Of networks with stochastic depth, equal weights at every call."""
    model = {"arch": "vit_tiny_patch16_224", "patch_size": 4, "width": 24, "depth": 3, "num_heads": 2, "drop_path": 0.5}
    heads = {"head_hidden": 16, "head_bottleneck": 8, "cls_prototypes": 12, "patch_prototypes": 10}
    config = parse_config(
        {
            "views": {"global_size": 16, "local_size": 8, "num_local": 3},
            "model": model | heads,
            "train": {"steps": 10, "batch_size": NUM_IMAGES, **train},
        }
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Trainer(StudentTeacher(derive(config, 100).config), device="cpu", precision=precision)


def batch() -> tuple[list[ViewGroup], SampleKeys]:
    """Two global and three local views of each image, uint8."""
    keys = SampleKeys(torch.zeros(NUM_IMAGES, dtype=torch.int64), torch.arange(NUM_IMAGES))

    def group(stream: int, num_views: int, side: int, extent: float) -> ViewGroup:
        numbers = uniforms(0, keys, stream, num_views * (4 + 3 * side * side))
        corners, pixels = numbers.tensor_split([num_views * 4], dim=1)
        corners = corners.view(NUM_IMAGES, num_views, 4).double() * 6
        corners[..., 2:] += extent
        boxes = Boxes(corners, torch.zeros(NUM_IMAGES, num_views, dtype=torch.bool))
        return ViewGroup((pixels.reshape(NUM_IMAGES, num_views, 3, side, side) * 255).byte(), boxes)

    return [group(500, 2, 16, 20.0), group(501, 3, 8, 8.0)], keys


def gradients(trained: Trainer) -> dict[str, Tensor]:
    decoded, keys = batch()
    trained.losses(decoded, keys, scheduled(trained.config, 5, 10))
    found = {name: p.grad for name, p in trained.networks.student.named_parameters() if p.grad is not None}
    assert len(found) > 50
    return found


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_blocks_that_are_computed_again_change_no_gradient(precision: str, accumulate: int) -> None:
    plain, lean = (
        gradients(trainer(precision, checkpoint_activations=again, accumulate=accumulate)) for again in (False, True)
    )
    torch.testing.assert_close(lean, plain, rtol=0, atol=0)


def vit(depth: int, *, again: bool) -> VisionTransformer:
    model = ModelConfig(arch="vit_tiny_patch16_224", width=48, num_heads=3, depth=depth, patch_size=8)
    network = build_vit(model, 32)
    recompute_activations(network)
    if again:
        recompute_blocks(network)
    return network


def kept_bytes(network: VisionTransformer, pixels: Tensor) -> int:
    """What is kept for the backward pass, besides the parameters."""
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        tokens = vit_tokens(network, pixels)
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in kept}
    parameters = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    assert tokens.cls.requires_grad
    return sum(num for pointer, num in storages.items() if pointer not in parameters)


def test_each_block_keeps_its_input_and_nothing_else() -> None:
    pixels = torch.zeros(2, 3, 32, 32)
    tokens_bytes = 2 * (1 + 16) * 48 * 4
    found = {again: [kept_bytes(vit(depth, again=again), pixels) for depth in (2, 6)] for again in (False, True)}
    assert found[True][1] - found[True][0] == 4 * tokens_bytes
    # Else two norms with their inputs, queries, keys and values, what attention gives, and 4 D of the MLP.
    assert found[False][1] - found[False][0] > 10 * 4 * tokens_bytes
    assert found[True][1] < 0.15 * found[False][1]
