"""When a run is said to have collapsed, from lines written by hand."""

import math
from collections.abc import Sequence
from typing import Any

import pytest

from patchssl.collapse import CollapseAdviser
from patchssl.config import Config
from patchssl.recipes import parse_config

NUM_STEPS = 1000
LN_4096 = math.log(4096)

# What a healthy run says of one kind of token.
HEALTHY = {
    "loss": 7.9,
    "teacher_entropy": 6.0,
    "below_uniform": LN_4096 - 7.9,
    "prototypes_used": 60.0,
    "prototypes_perplexity": 3000.0,
    "rank": 20.0,
}
UNIFORM = {"loss": 8.3178, "teacher_entropy": 8.317, "below_uniform": 0.0, "prototypes_perplexity": 4095.0}
ONE = {
    "loss": 0.01,
    "teacher_entropy": 0.0,
    "below_uniform": 8.3,
    "prototypes_used": 1.0,
    "prototypes_perplexity": 1.0,
}
FLAT = {"rank": 1.2}
ABOVE = {"loss": 9.5, "below_uniform": LN_4096 - 9.5}


def config(**sections: dict[str, Any]) -> Config:
    train = {"batch_size": 64, "learning_rate": 0.02, "warmup_fraction": 0.1, "ema_momentum": 0.99}
    model = {"cls_prototypes": 4096, "patch_prototypes": 4096}
    return parse_config(
        {**sections, "train": train | sections.get("train", {}), "model": model | sections.get("model", {})}
    )


def line(step: int, cls: dict[str, Any] | None = None, patch: dict[str, Any] | None = None) -> dict[str, float]:
    """A line in which all is well but for what is given."""
    kinds = {"cls": cls or {}, "patch": patch or {}}
    values = {f"{name}_{kind}": value for kind, given in kinds.items() for name, value in (HEALTHY | given).items()}
    return {"step": step, "loss": 8.0, **values}


def lines(steps: Sequence[int], **kinds: dict[str, Any]) -> list[dict[str, float]]:
    return [line(step, **kinds) for step in steps]


def told(adviser: CollapseAdviser, given: Sequence[dict[str, float]]) -> list[tuple[float, str]]:
    """The steps at which something was said, and what."""
    return [(line["step"], words) for line in given for words in adviser(line)]


def adviser(settings: Config | None = None, **options: Any) -> CollapseAdviser:
    return CollapseAdviser(settings or config(), NUM_STEPS, **options)


@pytest.mark.parametrize("kind", ["cls", "patch"])
@pytest.mark.parametrize(
    ("values", "words"),
    [
        (UNIFORM, "the loss sits at ln K, 8.3178 with ln 4,096 = 8.3178, and so does the teacher's entropy, 8.3170."),
        (ONE, "the teacher gives everything the same prototype: 1 of 4,096 in use, entropy 0.0000, loss 0.0100."),
        (FLAT, "the effective rank of the teacher's features is 1.20, of up to 20.0 so far:"),
        (ABOVE, "the loss is 9.5000, 1.18 above ln K (ln 4,096 = 8.3178): the student does worse than"),
    ],
    ids=["uniform", "one", "flat", "above"],
)
def test_each_collapse_is_named_for_its_kind_of_token(kind: str, values: dict[str, float], words: str) -> None:
    said = told(adviser(), lines(range(0, 150, 10)) + lines(range(150, 400, 10), **{kind: values}))
    # Once, when it has lasted 50 steps.
    ((step, found),) = said
    assert step == 200
    assert found.startswith({"cls": "class tokens: ", "patch": "patches: "}[kind] + words)
    assert ". Try " in found
    assert "\n" not in found


def test_a_healthy_run_is_left_alone() -> None:
    assert told(adviser(), lines(range(0, 1000, 10))) == []
    # Values of short healthy runs, at the edges of what was seen.
    edge = {"loss": LN_4096, "teacher_entropy": 0.975 * LN_4096, "below_uniform": 0.0, "rank": 2.8}
    assert told(adviser(), lines(range(0, 1000, 10), cls=edge, patch={"rank": 10.0})) == []


def test_all_that_is_wrong_is_said() -> None:
    said = told(adviser(), lines(range(0, 300, 10), cls=UNIFORM | FLAT, patch=ONE))
    assert [words[:30] for _, words in said] == [
        "class tokens: the loss sits at",
        "class tokens: the effective ra",
        "patches: the teacher gives eve",
    ]


@pytest.mark.parametrize(
    ("train", "loss", "first"),
    [
        # 50 steps after the first 5 %, the warm-up, the frozen prototypes, or for patches the warm-up of their weight.
        ({"warmup_fraction": 0.0}, {}, {"class": 100, "patch": 100}),
        ({"warmup_fraction": 0.3}, {}, {"class": 350, "patch": 350}),
        ({"warmup_fraction": 0.0, "freeze_last_layer_fraction": 0.2}, {}, {"class": 250, "patch": 250}),
        ({}, {"patch_weight_warmup_fraction": 0.5}, {"class": 150, "patch": 550}),
    ],
)
def test_the_beginning_is_not_judged(train: dict[str, Any], loss: dict[str, Any], first: dict[str, int]) -> None:
    settings = config(train=train, loss=loss)
    said = told(adviser(settings), lines(range(0, 1000, 10), cls=UNIFORM, patch=UNIFORM))
    assert {words[:5]: step for step, words in said} == {kind[:5]: step for kind, step in first.items()}


@pytest.mark.parametrize(("every", "first"), [(1, 150), (10, 150), (25, 200), (100, 500)])
def test_enough_lines_and_enough_steps(every: int, first: int) -> None:
    # Five lines over at least 50 steps, from step 100 on.
    ((step, _),) = told(adviser(), lines(range(0, 1000, every), cls=ONE))
    assert step == first


def test_noise_is_no_collapse() -> None:
    given = [line(step, cls=ONE if step % 50 else None) for step in range(0, 1000, 10)]
    assert told(adviser(), given) == []


def test_what_comes_again_after_it_has_ended_is_told_again() -> None:
    def run(*gap: int) -> list[float]:
        return [
            step for step, _ in told(adviser(), [line(s, cls=None if s in gap else ONE) for s in range(0, 600, 10)])
        ]

    assert run() == [150]
    # A line or a few in between are no end.
    assert run(300, 310, 320) == [150]
    assert run(*range(300, 360, 10)) == [150, 410]


def test_values_that_are_missing_are_passed_over() -> None:
    whole = lines(range(0, 300, 10), cls=ONE)
    for number in range(0, 30, 2):
        whole[number]["loss_cls"] = math.nan
        del whole[number]["prototypes_used_cls"]
    whole[17]["teacher_entropy_cls"] = None  # type: ignore[assignment]
    # Lines 11, 13, 15, 19 and 21, from step 110 to 210, are known.
    assert [step for step, _ in told(adviser(), whole)] == [210]
    assert told(adviser(), [{"step": step, "loss": 1.0} for step in range(0, 300, 10)]) == []


def test_few_tokens_may_agree_and_be_of_low_rank() -> None:
    settings = config(train={"batch_size": 2})
    said = told(adviser(settings), lines(range(0, 300, 10), cls=ONE | FLAT, patch=ONE | FLAT))
    assert {words.split(":")[0] for _, words in said} == {"patches"}


def test_a_rank_is_held_against_the_largest_so_far() -> None:
    tall = lines(range(0, 100, 10), patch={"rank": 120.0})
    assert told(adviser(), tall + lines(range(100, 300, 10), patch={"rank": 12.5})) == []
    ((_, words),) = told(adviser(), tall + lines(range(100, 300, 10), patch={"rank": 11.5}))
    assert "is 11.50, of up to 120.0 so far" in words


def test_a_loss_above_uniform_that_falls_is_on_its_way() -> None:
    def falling(by: float) -> list[dict[str, float]]:
        excess = [by ** (step / 10) * 4 for step in range(0, 300, 10)]
        return [line(10 * n, cls={"loss": LN_4096 + e, "below_uniform": -e}) for n, e in enumerate(excess)]

    assert told(adviser(), falling(0.95)) == []
    assert [step for step, _ in told(adviser(), falling(0.99))] == [150]
    assert [step for step, _ in told(adviser(), falling(1.02))] == [150]


def test_a_resumed_run_goes_on_with_its_lines() -> None:
    before = lines(range(0, 50, 10), cls={"rank": 100.0}) + lines(range(50, 180, 10), cls={"rank": 5.0})
    # Step 150 and what follows are done again.
    said = told(adviser(past=before), lines(range(150, 160, 10), cls={"rank": 5.0}))
    assert [(step, words[:32]) for step, words in said] == [(150, "class tokens: the effective rank")]
    assert "of up to 100.0 so far" in said[0][1]
    assert told(adviser(past=before), lines(range(130, 140, 10), cls={"rank": 5.0})) == []


@pytest.mark.parametrize(
    ("loss", "values", "wanted", "unwanted"),
    [
        (
            {"teacher_temperature": 0.5, "teacher_temperature_start": 0.5},
            UNIFORM,
            ["Try loss.teacher_temperature 0.02 to 0.07 (it is 0.5,", "train.learning_rate (it is 0.02;"],
            ["sinkhorn"],
        ),
        (
            {},
            UNIFORM,
            ["Try loss.center sinkhorn with loss.teacher_temperature 0.02 (they are kind and 0.04)", "(it is 0.9)"],
            [],
        ),
        ({"center": "sinkhorn"}, UNIFORM, ["Try a lower loss.teacher_temperature (it is 0.04);"], ["sinkhorn"]),
        # What is flat cannot be sharpened.
        ({}, UNIFORM | FLAT, ["Try a lower train.learning_rate (it is 0.02; null"], []),
        ({"center_momentum": 1.0}, ONE, ["Try loss.center_momentum 0.9 (it is 1,", "higher loss.teacher_temp"], []),
        ({}, ONE, ["Try loss.center sinkhorn (it is kind)"], []),
        ({"center": "sinkhorn", "teacher_temperature": 0.07, "teacher_temperature_start": 0.07}, ONE,
         ["Try a lower train.learning_rate"], ["sinkhorn", "higher loss.teacher_temp"]),
        ({}, FLAT, ["loss.center sinkhorn (it is kind)", "train.final_weight_decay", "nearer to 1 (it is 0.99)"], []),
        ({}, ABOVE, ["train.warmup_fraction (it is 0.1)", "train.clip_gradient (it is 3)"], ["student_temperature"]),
        ({"student_temperature": 0.02}, ABOVE, ["loss.student_temperature 0.1 (it is 0.02)"], []),
    ],
    ids=str,
)  # fmt: skip
def test_the_words_name_what_to_try(
    loss: dict[str, Any], values: dict[str, float], wanted: list[str], unwanted: list[str]
) -> None:
    given = lines(range(0, 100, 10)) + lines(range(100, 160, 10), patch=values)
    words = told(adviser(config(loss=loss)), given)[0][1]
    assert all(part in words for part in wanted), words
    assert not any(part in words for part in unwanted), words


def test_settings_that_are_named_exist() -> None:
    named = set()
    for loss in ({}, {"center": "sinkhorn"}, {"center_momentum": 1.0}, {"student_temperature": 0.01}):
        for values in (UNIFORM, ONE, FLAT, ABOVE):
            for _, words in told(adviser(config(loss=loss)), lines(range(0, 300, 10), cls=values)):
                named |= {part.strip("(),;.") for part in words.split() if part.startswith(("loss.", "train."))}
    assert len(named) >= 8
    for name in named:
        section, _, key = name.partition(".")
        assert hasattr(getattr(config(), section), key), name


def test_means_of_patches_and_dino_are_called_what_they_are() -> None:
    pooled = config(model={"pooling": "mean"}, loss={"patch_weight": 0.0})
    ((_, words),) = told(adviser(pooled), lines(range(0, 300, 10), cls=ONE, patch=ONE))
    assert words.startswith("means of patches: ")
