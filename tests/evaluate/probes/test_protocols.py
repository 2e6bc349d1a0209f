import numpy as np
import pytest

from patchssl.errors import ConfigError
from patchssl.evaluate.probes.protocols import PROTOCOLS, feature_sets, foreign_option, needed_tokens, settle


@pytest.mark.parametrize(
    ("protocol", "num_blocks", "dim", "blocks", "avgpool", "tokens"),
    [
        ("dino", 12, 384, None, None, "cls:4"),
        ("dino", 12, 768, None, None, "cls+mean"),
        ("dino", 3, 192, None, None, "cls:3"),
        ("dino", 1, 2048, None, None, "cls+mean"),
        ("dino", 12, 384, 1, None, "cls"),
        ("dino", 12, 384, None, True, "cls:4+mean"),
        ("dino", 12, 768, 2, False, "cls:2"),
        ("dinov2", 12, 768, None, None, "cls:4+mean"),
        ("dinov2", 1, 64, None, None, "cls+mean"),
        ("dinov2", 12, 768, 2, False, "cls:2"),
        ("logistic", 12, 384, None, None, "cls"),
        ("logistic", 12, 768, None, None, "cls"),
        ("logistic", 12, 384, 4, True, "cls:4+mean"),
    ],
)
def test_what_is_read_of_a_backbone(
    protocol: str, num_blocks: int, dim: int, blocks: int | None, avgpool: bool | None, tokens: str
) -> None:
    assert needed_tokens(protocol, num_blocks=num_blocks, dim=dim, blocks=blocks, avgpool=avgpool) == [tokens]


def test_more_blocks_than_there_are_and_unknown_protocols_are_refused() -> None:
    for blocks in (0, 13):
        with pytest.raises(ConfigError, match=f"blocks is {blocks}; the backbone gives 1 to 12"):
            needed_tokens("dino", num_blocks=12, dim=8, blocks=blocks)
    with pytest.raises(ConfigError, match="'probe' is unknown to linear probing; allowed: dino, dinov2, logistic"):
        needed_tokens("probe", num_blocks=12, dim=8)
    with pytest.raises(ConfigError, match="'probe' is unknown"):
        settle("probe", {})


def test_columns_of_the_compared_features_worked_by_hand() -> None:
    # cls-4, cls-3, cls-2, cls-1 and the mean, 10 columns each.
    sets = feature_sets("cls:4+mean", 50)
    assert sets == {"cls": (30, 40), "cls+mean": (30, 50), "cls:4": (0, 40), "cls:4+mean": (0, 50)}
    assert feature_sets("cls:4+mean", 50, blocks=4) == {"cls:4": (0, 40), "cls:4+mean": (0, 50)}
    assert feature_sets("cls:4+mean", 50, avgpool=True) == {"cls+mean": (30, 50), "cls:4+mean": (0, 50)}
    assert feature_sets("cls:2", 20, blocks=2, avgpool=False) == {"cls:2": (0, 20)}
    assert feature_sets("cls+mean", 20) == {"cls": (0, 10), "cls+mean": (0, 20)}
    with pytest.raises(ConfigError, match="features of cls:2 are 21 wide; it must be a multiple of 2"):
        feature_sets("cls:2", 21)


def test_columns_hold_what_the_tokens_say() -> None:
    pieces = {name: np.full((3, 2), value) for value, name in enumerate(("cls-2", "cls-1", "mean"))}
    whole = np.concatenate(list(pieces.values()), axis=1)
    expected = {"cls": ["cls-1"], "cls+mean": ["cls-1", "mean"], "cls:2": ["cls-2", "cls-1"], "cls:2+mean": [*pieces]}
    for name, (start, stop) in feature_sets("cls:2+mean", 6).items():
        wanted = np.concatenate([pieces[piece] for piece in expected[name]], axis=1)
        np.testing.assert_array_equal(whole[:, start:stop], wanted)


def test_defaults_are_those_of_the_originals() -> None:
    assert settle("dino", {}) == {"epochs": 100, "learning_rates": (1e-3,), "train_batch_size": 1024}
    dinov2 = settle("dinov2", {"iterations": None})
    assert len(dinov2["learning_rates"]) == 13
    assert dinov2 | {"learning_rates": ()} == {
        "iterations": 12_500,
        "learning_rates": (),
        "train_batch_size": 128,
        "val_fraction": 0.1,
    }
    assert settle("logistic", {"val_fraction": 0.2}) == {"val_fraction": 0.2}
    assert PROTOCOLS["logistic"].options == ("blocks", "avgpool", "val_fraction")


@pytest.mark.parametrize(
    ("protocol", "given", "words"),
    [
        ("dino", {"iterations": 3}, "iterations is no option of the protocol dino; it is one of dinov2"),
        ("logistic", {"train_batch_size": 3}, "it is one of dino, dinov2"),
        ("dino", {"epochs": 0}, "epochs is 0; it must be at least 1"),
        ("dinov2", {"iterations": -1}, "iterations is -1"),
        ("dinov2", {"learning_rates": (0.1, 0.0)}, "each above 0"),
        ("dinov2", {"learning_rates": ()}, "give at least one"),
        ("dinov2", {"learning_rates": (float("nan"),)}, "each above 0"),
        ("dino", {"learning_rates": (0.1, 0.2)}, "2 learning rates are given; the protocol dino trains one head"),
        ("logistic", {"val_fraction": 1.0}, "val_fraction is 1.0; allowed: above 0 and below 1"),
    ],
)
def test_options_that_cannot_be_used_are_refused(protocol: str, given: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        settle(protocol, given)


def test_foreign_options_are_named_with_the_protocols_that_take_them() -> None:
    assert foreign_option("dino", {"blocks": 2, "iterations": None, "val_fraction": 0.1}) == (
        "val_fraction",
        ("dinov2", "logistic"),
    )
    assert foreign_option("dino", {"blocks": 2, "epochs": 3}) is None
