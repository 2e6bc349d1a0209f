"""Cells: where their pixels come from, and back again."""

import pytest
import torch

from patchssl.cells import from_cells, to_cells
from patchssl.errors import ConfigError


def test_cells_and_back() -> None:
    pixels = torch.arange(2 * 3 * 6 * 6).reshape(2, 3, 6, 6)
    cells = to_cells(pixels, 2)
    assert cells.shape == (18, 3, 2, 2)
    assert torch.equal(cells[9 + 5], pixels[1, :, 2:4, 4:6])
    assert torch.equal(from_cells(cells, 6), pixels)
    assert to_cells(pixels[:0], 2).shape == (0, 3, 2, 2)
    assert from_cells(to_cells(pixels[:0], 2), 6).shape == (0, 3, 6, 6)
    with pytest.raises(ConfigError, match="cells of 4 px do not fill views of 6 px"):
        to_cells(pixels, 4)
