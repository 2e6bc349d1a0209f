"""Live bytes, by hand."""

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from patchssl.live_bytes import LiveBytes


def test_storages_count_once_while_they_live() -> None:
    with LiveBytes() as live:
        first = torch.zeros(100)
        assert live.now == 400
        view = first.view(10, 10)[2:4]
        assert live.now == 400
        second = torch.zeros(50, dtype=torch.bfloat16)
        assert (live.now, live.peak) == (500, 500)
        del first
        assert live.now == 500  # the view holds its memory
        del view
        assert (live.now, live.peak) == (100, 500)
        second.add_(1)
        assert live.now == 100
    del second
    assert live.now == 0


def test_what_was_there_before_is_left_out_with_its_views() -> None:
    weight = torch.zeros(10, 10)
    with LiveBytes([weight]) as live:
        kept = weight.T
        assert live.now == 0
        product = kept @ kept
        assert live.now == 400
    assert product.shape == (10, 10)


def test_windows_and_small_storages_by_hand() -> None:
    with LiveBytes(small_bytes=400) as live:
        small, large = torch.zeros(25), torch.zeros(100)
        assert (live.peak, live.small_at_peak) == (500, 100)
        del large
        assert live.restart() == (500, 100)
        assert (live.peak, live.small_at_peak) == (100, 100)
        more = torch.zeros(10)
        assert live.restart() == (140, 140)
        del small, more
        assert live.restart() == (140, 140)
        assert live.restart() == (0, 0)


def test_tensors_without_memory_count_as_those_with() -> None:
    def work() -> int:
        with LiveBytes() as live:
            hidden = torch.ones(64, 32, requires_grad=True)
            (hidden @ hidden.T).relu().sum().backward()
        peak: int = live.peak
        return peak

    with FakeTensorMode():
        fake = work()
    assert fake == work() > 64 * 32 * 4


def test_nothing_is_nothing() -> None:
    with LiveBytes() as live:
        pass
    assert (live.now, live.peak, live.restart()) == (0, 0, (0, 0))
