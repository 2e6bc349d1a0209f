import pytest

from patchssl.errors import ConfigError
from patchssl.evaluate.patches.protocols import PROTOCOLS, choose_images, choose_kinds, find_protocol
from patchssl.warps import KINDS


def test_the_protocol() -> None:
    assert find_protocol("warps") is PROTOCOLS["warps"]
    assert PROTOCOLS["warps"].kinds == tuple(KINDS)
    assert PROTOCOLS["warps"].headline_radius in PROTOCOLS["warps"].radii
    with pytest.raises(ConfigError, match="no protocol 'other'; allowed: warps"):
        find_protocol("other")


def test_kinds_stand_once_and_in_their_order() -> None:
    assert choose_kinds(["all", "crop", "crop"]) == ("crop", "all")
    assert choose_kinds(list(reversed(KINDS))) == tuple(KINDS)
    with pytest.raises(ConfigError, match="'x', 'y' are unknown; allowed: crop, scale"):
        choose_kinds(["x", "crop", "y"])


def test_which_images_are_chosen() -> None:
    small, large = choose_images(100, 5, seed=0), choose_images(100, 20, seed=0)
    assert len(large) == 20
    assert set(small) < set(large) < set(range(100))
    assert small.tolist() == sorted(small)
    assert small.tolist() != choose_images(100, 5, seed=1).tolist()
    assert choose_images(4, None, seed=0).tolist() == choose_images(4, 9, seed=0).tolist() == [0, 1, 2, 3]
