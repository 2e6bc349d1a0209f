"""Square views ↔ square cells."""

from torch import Tensor

from patchssl.errors import ConfigError


def check_cells(side_px: int, cell_px: int) -> None:
    """Refuse cells that would not fill a view of that side, with a ConfigError."""
    if side_px % cell_px:
        raise ConfigError(f"cells of {cell_px} px do not fill views of {side_px} px; take a divisor of {side_px}")


def to_cells(pixels: Tensor, cell_px: int) -> Tensor:
    """Cut square views into square cells.

    Args:
        pixels: (M, C, side, side).
        cell_px: side of a cell.

    Returns:
        (M * cells, C, cell_px, cell_px), the cells of a view row-major.

    Raises:
        ConfigError: the cells would not fill the view.
    """
    check_cells(pixels.shape[-1], cell_px)
    num = pixels.shape[-1] // cell_px
    cells = pixels.reshape(*pixels.shape[:2], num, cell_px, num, cell_px)
    return cells.permute(0, 2, 4, 1, 3, 5).reshape(-1, pixels.shape[1], cell_px, cell_px)


def from_cells(cells: Tensor, side: int) -> Tensor:
    """Put the cells (M * cells, C, cell_px, cell_px) of `to_cells` together again, to (M, C, side, side)."""
    num_channels, cell_px = cells.shape[1:3]
    num = side // cell_px
    pixels = cells.reshape(len(cells) // num**2, num, num, num_channels, cell_px, cell_px)
    return pixels.permute(0, 3, 1, 4, 2, 5).reshape(-1, num_channels, side, side)
