from typing import Any

import pytest
import torch
from torch import nn

from patchssl.backbones.report import LoadReport, fill
from patchssl.errors import CheckpointError


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Linear(2, 3), nn.Linear(3, 1), nn.BatchNorm1d(3)


WHOLE = {name: value + 1 for name, value in Network().state_dict().items()}
WANTED: dict[str, Any] = {"origin": "FILE", "arch": "ARCH", "advice": "take another"}


def without(*names: str) -> dict[str, torch.Tensor]:
    return {name: value for name, value in WHOLE.items() if name not in names}


def test_a_file_that_fits_fills_everything() -> None:
    network = Network()
    report = fill(network, WHOLE, **WANTED, dropped=["head.weight"], resampled=["a.weight"])
    assert all(torch.equal(value, WHOLE[name]) for name, value in network.state_dict().items())
    assert report == LoadReport(
        matched=tuple(sorted(WHOLE)), dropped=("head.weight",), resampled=("a.weight",), partial=False
    )


def test_a_counter_of_training_is_no_weight() -> None:
    report = fill(Network(), without("norm.num_batches_tracked"), **WANTED)
    assert (report.missing, report.partial) == ((), False)


def test_what_does_not_fit_is_counted_and_named() -> None:
    weights = {**without("a.bias"), "b.weight": torch.zeros(2, 3), "more": torch.zeros(1)}
    words = (
        r"FILE does not fit ARCH: of 8 backbone weights 7 match; 1 missing \(a.bias\); 1 unexpected \(more\); "
        r"1 of another shape \(b.weight: 2x3 in the file, 1x3 here\); take another; --allow-partial accepts what fits"
    )
    with pytest.raises(CheckpointError, match=words):
        fill(Network(), weights, **WANTED)


@pytest.mark.parametrize("name", ["a.weight", "norm.running_mean"])
def test_a_single_missing_or_superfluous_weight_is_enough(name: str) -> None:
    network = Network()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(CheckpointError, match=f"1 missing .{name}."):
        fill(network, without(name), **WANTED)
    with pytest.raises(CheckpointError, match=r"1 unexpected .x."):
        fill(network, {**WHOLE, "x": torch.zeros(1)}, **WANTED)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_partial_fills_what_fits_and_says_so() -> None:
    network = Network()
    own = network.b.weight.detach().clone()
    report = fill(network, {**without("a.bias"), "b.weight": torch.zeros(2, 3)}, **WANTED, allow_partial=True)
    assert (report.missing, report.reshaped, report.partial) == (("a.bias",), ("b.weight",), True)
    assert torch.equal(network.a.weight, WHOLE["a.weight"])
    assert torch.equal(network.b.weight, own)


def test_nothing_that_fits_is_refused_even_if_partial_is_allowed() -> None:
    with pytest.raises(CheckpointError, match="of 8 backbone weights 0 match"):
        fill(Network(), {"x": torch.zeros(1)}, **WANTED, allow_partial=True)


def test_brief_has_counts_and_names_where_there_are_few() -> None:
    report = LoadReport(matched=("a",) * 9, missing=("b",), dropped=("c",) * 6)
    assert report.brief() == {
        "matched": 9,
        "missing": 1,
        "unexpected": 0,
        "reshaped": 0,
        "resampled": 0,
        "dropped": 6,
        "partial": False,
        "names": {"missing": ["b"]},
    }
