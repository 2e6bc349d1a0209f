"""The self-test of a backbone: it passes what is sound and names what is not."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from patchssl.backbones import Backbone, Preprocess
from patchssl.backbones.sizes import Sizes
from patchssl.evaluate.self_test import FAILED, OK, REFUSED, check_forward, run_tasks
from patchssl.evaluate.suites.structs import Compute
from patchssl.structs import Tokens

COMPUTE = Compute(device="cpu", precision="fp32", num_workers=0, batch_size=8, max_bad_fraction=0.0, seed=0)


class Averages(nn.Module):
    """Means of 4 x 4 cells, and a parameter that does nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, pixels: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(pixels, 4) * self.weight  # (B, 3, 4, 4)


class Reader:
    """The cells as patches, all of them as class token, after something was done to them."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        self.change = change

    def num_blocks(self, network: Averages) -> int:
        return 1

    def last_blocks(self, network: Averages, pixels: Tensor, num: int) -> tuple[Tokens, ...]:
        cells = self.change(network(pixels))
        return (Tokens(cells.flatten(1), cells.flatten(2).transpose(1, 2), (4, 4)),)

    def attention(self, network: Averages, pixels: Tensor) -> Tensor:
        raise NotImplementedError


def backbone(change: Callable[[Tensor], Tensor] = lambda cells: cells, **more: Any) -> Backbone:
    return Backbone.of(
        Averages(),
        Reader(change),
        spec="averages",
        family="toy",
        arch="averages",
        patch_px=8,
        preprocess=Preprocess(image_px=32, resize_px=32),
        **{"dim": 48, **more},
    )


def with_nan(cells: Tensor) -> Tensor:
    changed = cells.clone()
    changed[0, 0, 0, 0] = torch.nan
    return changed


def failed(found: Backbone) -> dict[str, str]:
    return {check.name: check.told for check in check_forward(found) if check.status == FAILED}


def test_a_sound_network_passes() -> None:
    assert failed(backbone()) == {}


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (with_nan, {"finite"}),
        (lambda cells: cells + torch.rand(1), {"deterministic"}),
        (lambda cells: cells - cells.mean(dim=0, keepdim=True), {"independent of the batch"}),
        (lambda cells: cells * 0 + 1, {"tells images apart"}),
    ],
)
def test_what_is_wrong_is_named(change: Callable[[Tensor], Tensor], names: set[str]) -> None:
    assert names <= set(failed(backbone(change)))


def test_a_wrong_width_is_named() -> None:
    assert failed(backbone(dim=40)) == {"width": "class token 48, patches 4 x 4 of 3"}


def test_every_task_runs() -> None:
    checks = run_tasks(backbone(), COMPUTE)
    # Its patches are narrower than its class token, which that sweep does not take.
    assert {check.name for check in checks if check.status != OK} == {"linear (dinov2)"}
    assert {check.name.split()[0] for check in checks} == {"knn", "linear", "copydetect", "retrieval", "correspondence"}


def test_what_a_network_cannot_do_is_refused_with_the_reason() -> None:
    fixed = backbone(sizes=Sizes(multiple_px=8, min_px=8, fixed_px=32))
    found = {check.name: check for check in run_tasks(fixed, COMPUTE)}
    assert found["knn (dino)"].status == OK
    refused = found["retrieval (official)"]
    assert refused.status == REFUSED
    assert "takes images of 32 x 32 px only" in refused.told


def test_a_task_that_goes_wrong_fails() -> None:
    checks = run_tasks(backbone(with_nan), COMPUTE)
    assert {check.name: check.status for check in checks}["knn (dino)"] == FAILED
