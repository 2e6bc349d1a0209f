"""The projection head against DINO's, and its names."""

from pathlib import Path

import numpy as np
import pytest
import torch

from patchssl.heads import ProjectionHead, head_state_from_dino

GOLDEN = Path(__file__).parent / "golden"


def golden_head() -> tuple[ProjectionHead, dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    golden = np.load(GOLDEN / "dino_head.npz")
    state = {key.removeprefix("state."): torch.from_numpy(golden[key]) for key in golden if key.startswith("state.")}
    head = ProjectionHead(40, 192, hidden=64, bottleneck=16)
    return head, state, torch.from_numpy(golden["input"]), torch.from_numpy(golden["output"])


def test_equals_dino() -> None:
    head, state, tokens, output = golden_head()
    head.load_state_dict(state)
    logits = head(tokens) @ head.last_layer().T
    torch.testing.assert_close(logits, output, atol=1e-5, rtol=1e-5)


def test_writes_and_reads_dinos_names() -> None:
    head, state, _, _ = golden_head()
    assert set(head.state_dict()) == set(state)
    newer = {
        "module.head."
        + key.replace("weight_g", "parametrizations.weight.original0").replace(
            "weight_v", "parametrizations.weight.original1"
        ): value
        for key, value in state.items()
    }
    head.load_state_dict(head_state_from_dino(newer))
    torch.testing.assert_close(head.state_dict(), state)


def test_rows_have_unit_length_and_so_have_prototypes() -> None:
    head = ProjectionHead(8, 5, hidden=6, bottleneck=4)
    rows = head(torch.randn(3, 8, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(head.last_layer().norm(dim=1), torch.ones(5))
    assert head(torch.zeros(0, 8)).shape == (0, 4)


def test_only_free_norms_are_trained() -> None:
    fixed, free = (ProjectionHead(8, 5, hidden=6, bottleneck=4, fixed_norm=value) for value in (True, False))
    assert not fixed.last_layer.weight_g.requires_grad
    assert free.last_layer.weight_g.requires_grad


@pytest.mark.parametrize("num_prototypes", [1, 5, 5000])
def test_prototypes_and_their_gradients_equal_the_plain_formula(num_prototypes: int) -> None:
    generator = torch.Generator().manual_seed(0)
    layer = ProjectionHead(8, num_prototypes, hidden=6, bottleneck=4, fixed_norm=False).last_layer
    with torch.no_grad():
        layer.weight_g.uniform_(0.5, 2, generator=generator)
        layer.weight_v.normal_(generator=generator)
    wanted = torch.randn(num_prototypes, 4, generator=generator)
    plain = layer.weight_g * layer.weight_v / layer.weight_v.norm(dim=1, keepdim=True)
    expected = torch.autograd.grad((plain * wanted).sum(), [layer.weight_g, layer.weight_v])
    weight = layer()
    torch.testing.assert_close(weight, plain)
    found = torch.autograd.grad((weight * wanted).sum(), [layer.weight_g, layer.weight_v])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_prototypes_come_in_the_precision_of_products_and_their_gradients_in_that_of_the_weights() -> None:
    layer = ProjectionHead(8, 5, hidden=6, bottleneck=4).last_layer
    with torch.autocast("cpu", dtype=torch.bfloat16):
        weight = layer()
    assert weight.dtype == torch.bfloat16
    weight.sum().backward()
    assert layer.weight_v.grad is not None
    assert layer.weight_v.grad.dtype == torch.float32
    assert layer.weight_g.grad is None
