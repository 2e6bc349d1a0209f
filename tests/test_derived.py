"""Derived values: by hand, against DINO's and the measured ones, and within bounds for runs of any size."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from patchssl.config import Config
from patchssl.derived import cache_side, derive, ema_momentum, learning_rate, warmup_fraction
from patchssl.errors import ConfigError
from patchssl.recipes import load_config, parse_config
from patchssl.step_values import scheduled

SIZES = st.integers(1, 65536)
STEPS = st.integers(1, 1_000_000)
WIDTHS = st.integers(1, 4096)


def config(*, width: int | None = 128, **train: Any) -> Config:
    return parse_config({"model": {"width": width, "num_heads": 1}, "train": train})


@pytest.mark.parametrize(
    ("batch_size", "width", "value"),
    [
        (1024, 384, 2e-3),  # DINO's ViT-S
        (1024, 768, 2e-3),  # its ViT-B has 3e-3
        (256, 384, 1e-3),
        (64, 384, 5e-4),  # 2e-3 / 4
        (64, 128, 1.5e-3),  # 2e-3 / 4 * 3
        (64, 96, 2e-3),  # 2e-3 / 4 * 4
        (16, 128, 7.5e-4),
        (4, 384, 1.25e-4),
        (8, 192, 3.54e-4),  # 2e-3 / sqrt(128) * 2 = 3.5355e-4
        (4096, 384, 4e-3),  # the bound: 2e-3 * 2
        (4096, 192, 4e-3),
    ],
)
def test_learning_rate_by_hand(batch_size: int, width: int, value: float) -> None:
    assert learning_rate(batch_size, width).value == value


@pytest.mark.parametrize(
    ("batch_size", "num_steps", "value"),
    [
        (1024, 125_000, 0.996),  # DINO
        (512, 125_000, 0.998),  # sqrt(0.996) = 0.997998
        (2048, 125_000, 0.99202),  # 0.996 ** 2 = 0.992016
        (64, 2_000_000, 0.99975),  # 0.996 ** (1 / 16) = 0.9997495
        (64, 900, 0.9722),  # 1 - 25 / 900
        (64, 4400, 0.99432),  # 1 - 25 / 4400
        (64, 250, 0.9),
        (64, 25, 0.9),
        (64, 1, 0.9),
        (65536, 1_000_000, 0.9),  # 0.996 ** 64 = 0.774
        (1, 1_000_000, 0.999975),  # 1 - 25 / 1e6
    ],
)
def test_momentum_by_hand(batch_size: int, num_steps: int, value: float) -> None:
    assert ema_momentum(batch_size, num_steps).value == value


@pytest.mark.parametrize(
    ("num_steps", "steps_per_epoch", "value", "num_warmup_steps"),
    [
        (125_000, 1250.0, 0.1, 12_500),  # DINO: 10 of 100 epochs
        (1_000_000, 1250.0, 0.0125, 12_500),  # its 800 epochs have 10 as well
        (4400, 781.25, 0.1, 440),
        (39_000, 195.0, 0.05, 1950),  # 200 epochs of CIFAR-10: 10 of them
        (40_000, 2.0, 0.025, 1000),  # 10 epochs are but 20 steps
        (10, 25.0, 0.1, 1),
        (30, 1.6, 0.1, 3),
        (1, 100.0, 0.1, 0),
    ],
)
def test_warmup_by_hand(num_steps: int, steps_per_epoch: float, value: float, num_warmup_steps: int) -> None:
    fraction = warmup_fraction(num_steps, steps_per_epoch).value
    assert fraction == pytest.approx(value, rel=0.005)
    assert round(fraction * num_steps) == pytest.approx(num_warmup_steps, rel=0.005)


def test_the_arithmetic_is_told_and_is_right() -> None:
    derived = derive(config(steps=4400, batch_size=64), 50_000)
    assert derived.told == (
        "train.learning_rate = 0.0015: DINO's 0.002 at a batch of 1,024, times sqrt(64 / 1,024), times 384 / 128 for a "
        "network narrower than ViT-S",
        "train.ema_momentum = 0.99432: DINO's 0.996 at a batch of 1,024, to the power of 64 / 1,024, 0.99975, but at "
        "most 1 - 25 / 4,400, with which the teacher looks back over 1 / 25 of the steps",
        "train.warmup_fraction = 0.1: DINO's 10 of 100 epochs, 440 of 4,400 steps",
    )
    assert 0.002 * math.sqrt(64 / 1024) * 384 / 128 == pytest.approx(0.0015)
    train = derived.config.train
    assert (train.learning_rate, train.ema_momentum, train.warmup_fraction) == (0.0015, 0.99432, 0.1)
    many = derive(config(steps=1_000_000, batch_size=16384), 5_000_000).told
    assert many[0].endswith("times 384 / 128 for a network narrower than ViT-S, 0.024, but at most 0.004")
    assert many[1].endswith("to the power of 16,384 / 1,024")
    assert many[2] == (
        "train.warmup_fraction = 0.00305: 3,052 of 1,000,000 steps, the longer of 10 epochs (3,052 steps) and 1,000 "
        "steps, as 0.1 of all would be 100,000"
    )
    assert (
        derive(config(steps=30, batch_size=64), 100)
        .told[1]
        .endswith("1 / 25 of the steps, and at least 0.9, over 10 steps")
    )


def test_momentum_in_words_matches_its_own_number() -> None:
    derived = ema_momentum(32768, 1_000_000)
    assert derived.value == 0.9
    assert (
        derived.derivation
        == "DINO's 0.996 at a batch of 1,024, to the power of 32,768 / 1,024, and at least 0.9, over 10 steps"
    )


@pytest.mark.parametrize(
    ("global_size", "least_scale", "value"),
    [
        (224, 0.4, 355),  # 354.2
        (224, 0.25, 448),
        (224, 0.49, 320),  # 224 / 0.7 in floating point is a little more
        (224, 1.0, 224),
        (32, 0.4, 51),  # 50.6
        (96, 0.05, 430),  # 429.3
    ],
)
def test_cached_images_by_hand(global_size: int, least_scale: float, value: int) -> None:
    assert cache_side(global_size, least_scale).value == value
    # The box of the least area still has a pixel for each of the view.
    assert value * math.sqrt(least_scale) >= global_size - 1e-9
    assert (value - 1) * math.sqrt(least_scale) < global_size


def test_the_size_of_cached_images_is_derived_only_where_there_is_a_cache() -> None:
    with_cache = derive(parse_config({"data": {"cache_images": "cache"}, "train": {"steps": 9}}), 100)
    assert with_cache.config.data.cache_side == 355
    assert with_cache.told[-1] == (
        "data.cache_side = 355: views.global_size 224 px / sqrt(0.4), the least of views.global_scale"
    )
    given = derive(parse_config({"data": {"cache_images": "cache", "cache_side": 99}, "train": {"steps": 9}}), 100)
    assert given.config.data.cache_side == 99
    without = derive(parse_config({"train": {"steps": 9}}), 100)
    assert without.config.data.cache_side is None
    assert len(given.told) == len(without.told) == len(with_cache.told) - 1


@pytest.mark.parametrize("name", ["learning_rate", "ema_momentum", "warmup_fraction"])
def test_what_is_given_stays_and_is_not_told(name: str) -> None:
    derived = derive(parse_config({"train": {"steps": 100, name: 0.5}}), 1000)
    assert getattr(derived.config.train, name) == 0.5
    assert len(derived.told) == 2
    assert not any(line.startswith(f"train.{name} ") for line in derived.told)


def test_a_width_that_is_not_given_is_the_archs() -> None:
    tiny = parse_config({"model": {"arch": "vit_tiny_patch16_224"}, "train": {"batch_size": 64}})
    state = torch.random.get_rng_state()
    derived = derive(tiny, 1000)
    assert derived.config.train.learning_rate == 1e-3  # 2e-3 / 4 * 384 / 192
    assert derived.config == derive(derived.config, 1000).config
    assert torch.equal(torch.random.get_rng_state(), state)
    with pytest.raises(ConfigError, match=r"'vit_nano_patch16' is unknown to timm"):
        derive(parse_config({"model": {"arch": "vit_nano_patch16"}}), 1000)


@pytest.mark.parametrize(("recipe", "num_images"), [("demo", 3200), ("cifar10-cpu", 50_000)])
def test_close_to_what_short_runs_did_best_with(recipe: str, num_images: int) -> None:
    given = load_config(recipe)
    train = derive(
        load_config(recipe, ["train.learning_rate=null", "train.ema_momentum=null"]), num_images
    ).config.train
    assert given.train.learning_rate is not None
    assert train.learning_rate == pytest.approx(given.train.learning_rate, rel=0.35)
    assert given.train.ema_momentum is not None
    assert train.ema_momentum == pytest.approx(given.train.ema_momentum, abs=0.015)


@given(SIZES, STEPS, WIDTHS, st.integers(1, 10_000_000))
def test_derived_values_are_valid_for_a_run_of_any_size(
    batch: int, num_steps: int, width: int, num_images: int
) -> None:
    derived = derive(config(steps=num_steps, batch_size=batch, width=width), num_images)
    train = derived.config.train
    assert parse_config(derived.config.model_dump()) == derived.config
    assert train.learning_rate is not None
    assert train.ema_momentum is not None
    assert train.warmup_fraction is not None
    assert 6e-5 < train.learning_rate <= 4e-3
    assert 0.9 <= train.ema_momentum < 1
    assert train.ema_momentum == 0.9 or 1 / (1 - train.ema_momentum) <= num_steps / 25 * 1.01
    assert 0 < train.warmup_fraction <= 0.1
    assert num_steps < 10 or round(train.warmup_fraction * num_steps) >= 1
    peak = scheduled(derived.config, round(train.warmup_fraction * num_steps), num_steps)
    assert num_steps < 10 or peak.learning_rate == pytest.approx(train.learning_rate)
    again = derive(derived.config, num_images)
    assert again.config == derived.config
    assert again.told == ()


@given(SIZES, SIZES, WIDTHS, STEPS)
def test_larger_batches_never_lower_the_rate_or_raise_the_momentum(one: int, other: int, width: int, num: int) -> None:
    small, large = sorted((one, other))
    assert learning_rate(small, width).value <= learning_rate(large, width).value
    assert ema_momentum(small, num).value >= ema_momentum(large, num).value


@given(STEPS, STEPS, SIZES, st.floats(1e-3, 1e6))
def test_longer_runs_never_have_a_shorter_memory_nor_a_larger_part_of_warmup(
    one: int, other: int, batch: int, steps_per_epoch: float
) -> None:
    short, long = sorted((one, other))
    assert ema_momentum(batch, short).value <= ema_momentum(batch, long).value
    assert warmup_fraction(short, steps_per_epoch).value >= warmup_fraction(long, steps_per_epoch).value
