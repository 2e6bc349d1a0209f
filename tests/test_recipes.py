"""Configurations: what is accepted, what is refused and in which words, recipes and their bases."""

import itertools
from pathlib import Path

import pytest
import yaml

from patchssl.config import Config
from patchssl.errors import ConfigError
from patchssl.recipes import dump_config, load_config, parse_config, recipe_names

CONFIGS = Path(__file__).parents[1] / "configs" / "pretrain"


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_valid_and_survives_writing(name: str) -> None:
    config = load_config(name)
    assert parse_config(yaml.safe_load(dump_config(config))) == config


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_says_how_it_is_run_and_what_came_out(name: str) -> None:
    lines = (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    header = list(itertools.takewhile(lambda line: line.startswith("#"), lines))
    for word in ("Command:", "Hardware:", "Time:", "Metric:"):
        assert any(word in line for line in header), word


TWINS = [name for name in recipe_names() if name.partition("-")[0] in ("dino", "authors")]


def test_without_a_recipe_it_is_pwself() -> None:
    assert load_config(None) == load_config("pwself")


def test_every_recipe_for_training_has_both_twins() -> None:
    recipes = {name for name in recipe_names() if name != "demo"} - set(TWINS)
    twins = {f"{kind}-{name}".removesuffix("-pwself") for kind in ("dino", "authors") for name in recipes}
    assert twins == set(TWINS)


@pytest.mark.parametrize("name", TWINS)
def test_twins_differ_from_their_recipe_in_named_lines_only(name: str) -> None:
    kind, _, recipe = name.partition("-")
    twin, base = load_config(name).model_dump(), load_config(recipe or "pwself").model_dump()
    differing = {
        f"{section}.{key}" for section in base for key in base[section] if base[section][key] != twin[section][key]
    }
    allowed = {
        "dino": {"loss.patch_weight"},
        "authors": {
            "loss.average",
            "loss.matching",
            "loss.center",
            "model.shared_head",
            "model.patch_prototypes",
            "train.clip_mode",
            "views.shared_geometry",
        },
    }
    assert differing <= allowed[kind]
    assert differing


def repeated_lines(name: str) -> list[str]:
    """The lines of a recipe that give a key the value that it has in its base already."""
    own = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
    base = load_config(own.pop("base")).model_dump(mode="json")
    written = load_config(name).model_dump(mode="json")
    keys = ((section, key) for section, values in own.items() for key in values)
    return [f"{section}.{key}" for section, key in keys if written[section][key] == base[section][key]]


@pytest.mark.parametrize("name", [n for n in recipe_names() if "\nbase:" in (CONFIGS / f"{n}.yaml").read_text()])
def test_every_line_of_a_recipe_with_a_base_changes_something(name: str) -> None:
    assert repeated_lines(name) == []


def test_overrides_are_yaml_and_win() -> None:
    config = load_config(None, ["train.steps=7", "views.global_scale=[0.3, 1.0]", "model.width=null"])
    assert config.train.steps == 7
    assert config.views.global_scale == (0.3, 1.0)
    assert config.model.width is None


def test_a_file_may_build_on_a_recipe_and_on_a_file_beside_it(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("base: cifar10-cpu\ntrain: {steps: 5}\n")
    (tmp_path / "other.yaml").write_text("base: mine.yaml\ntrain: {batch_size: 8}\n")
    config = load_config(str(tmp_path / "other.yaml"))
    assert (config.train.steps, config.train.batch_size) == (5, 8)
    assert config.model == load_config("cifar10-cpu").model


def test_a_base_that_names_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "loop.yaml").write_text("base: loop.yaml\n")
    with pytest.raises(ConfigError, match="nested more than 8 deep"):
        load_config(str(tmp_path / "loop.yaml"))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.learning_rat=1", ["unknown key train.learning_rat", "did you mean learning_rate?", "batch_size"]),
        ("trian.epochs=1", ["unknown key trian", "did you mean train?"]),
        ("train.batch_size=0", ["train.batch_size", "greater than or equal to 1", "it is 0"]),
        ("train.learning_rate=.nan", ["train.learning_rate", "finite"]),
        ("train.epochs=many", ["train.epochs", "number", "'many'"]),
        ("views.global_size=30", ["views.global_size is 30 px", "patch of 16 px", "take 16 or 32"]),
        ("views.local_size=8", ["views.local_size is 8 px", "take 16"]),
        ("views.local_scale=[0.5, 0.1]", ["local_scale is [0.5, 0.1]", "low <= high"]),
        ("model.arch=resnet50", ["'resnet50' does not tell the patch size", "model.patch_size"]),
        ("model.shared_head=true", ["shared_head needs patch_prototypes (8192) equal to cls_prototypes (65536)"]),
        ("model.init_heads=true", ["init_heads is true and init names no model", "init_heads: false"]),
        (
            "loss.patch_weight_start=0.5",
            ["patch_weight_start is 0.5 and patch_weight_warmup_fraction 0", "is 1.0 from"],
        ),
        (
            "loss.teacher_temperature_start=0.02",
            ["teacher_temperature_start is 0.02 and teacher_temperature_warmup_fraction 0", "is 0.04 from the first"],
        ),
        ("train.steps", ["'train.steps' is not of the form section.key=value"]),
        ("train=3", ["not of the form section.key=value"]),
        (
            "photometric.patch_probability=[0.5, 0.5]",
            ["patch_probability: holds 2 values, [0.5, 0.5]", "give 3 probabilities from 0 to 1, for first global"],
        ),
        ("photometric.patch_probability=1.5", ["patch_probability: is 1.5; give 3 probabilities from 0 to 1"]),
        ("photometric.patch_probability=[0.5, 0.5, -1]", ["patch_probability.2", "or equal to 0", "it is -1"]),
        (
            "photometric.teacher_patch_probability=[1, 0, 0]",
            ["teacher_patch_probability: holds 3 values, [1, 0, 0]", "give 2", "first global, other global views"],
        ),
        ("photometric.teacher_patch_probability=some", ["teacher_patch_probability: is 'some'; give 2"]),
    ],
)
def test_what_is_wrong_is_named_with_what_is_allowed(override: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, [override])
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["loss.patch_weight=0", "loss.patch_weight_warmup_fraction=0.2"],
            ["patch_weight is 0", "patch_weight_warmup_fraction (0.2)"],
        ),
        (
            ["loss.average=flat", "loss.patch_weight=0"],
            ["average: flat has no patch_weight of its own", "it is 0.0"],
        ),
        (
            ["loss.average=flat", "loss.patch_weight_warmup_fraction=0.3"],
            ["average: flat has no patch_weight of its own", "patch_weight_warmup_fraction to 0 (it is 0.3)"],
        ),
        (
            ["loss.koleo_weight=0.1", "train.batch_size=1"],
            ["loss.koleo_weight is 0.1 and train.batch_size 1", "at least 2"],
        ),
        (
            ["loss.center=sinkhorn", "train.batch_size=1"],
            ["loss.center is sinkhorn and train.batch_size 1", "at least 2"],
        ),
    ],
)
def test_settings_that_contradict_each_other_are_both_named(overrides: list[str], words: list[str]) -> None:
    for alone in overrides:
        if alone != "loss.average=flat":  # fits the defaults as well
            assert load_config(None, [alone])
    with pytest.raises(ConfigError) as caught:
        load_config(None, overrides)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "overrides",
    [
        ["loss.patch_weight_start=1.0"],
        ["loss.teacher_temperature=0.07", "loss.teacher_temperature_start=0.07"],
        ["loss.patch_weight_start=0.5", "loss.patch_weight_warmup_fraction=0.1"],
        ["loss.koleo_weight=0.1", "loss.center=sinkhorn", "train.batch_size=2"],
        ["model.init=timm:vit_small_patch16_224", "model.init_heads=true"],
        ["model.shared_head=true", "model.patch_prototypes=65536", "loss.patch_weight=0"],
    ],
)
def test_what_contradicts_nothing_is_accepted_and_survives_writing(overrides: list[str]) -> None:
    config = load_config(None, overrides)
    assert parse_config(yaml.safe_load(dump_config(config))) == config


def test_cells_must_fill_views_and_hold_whole_patches() -> None:
    with pytest.raises(ConfigError, match=r"cell_size is 24 px, which is no multiple of the patch, 16 px"):
        load_config(None, ["photometric.patch_probability=0.5", "photometric.cell_size=24"])
    with pytest.raises(ConfigError, match=r"views.local_size is 96 px, which photometric.cell_size, 64 px"):
        load_config(None, ["photometric.patch_probability=0.5", "photometric.cell_size=64", "views.global_size=128"])


def test_files_that_are_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"neither a file nor a recipe; recipes: .*cifar10"):
        load_config("no-such-recipe")
    for text, words in (("- 1\n", "holds a list"), ("a: [1", "not valid YAML")):
        file = tmp_path / "broken.yaml"
        file.write_text(text)
        with pytest.raises(ConfigError, match=words):
            load_config(str(file))


@pytest.mark.parametrize(
    ("epochs", "steps", "num_images", "expected"), [(2, None, 100, 20), (2, 7, 100, 7), (0.001, None, 3, 1)]
)
def test_number_of_steps(epochs: float | None, steps: int | None, num_images: int, expected: int) -> None:
    config = Config.model_validate({"train": {"epochs": epochs, "steps": steps, "batch_size": 10}})
    assert config.train.num_steps(num_images) == expected


def test_an_override_of_train_leaves_the_length() -> None:
    assert load_config(None, ["train.batch_size=8"]).train.epochs == 100


def test_without_a_length_it_says_what_to_give() -> None:
    with pytest.raises(ConfigError, match=r"give train.epochs or train.steps"):
        load_config(None, ["train.epochs=null"])
