import itertools
from pathlib import Path
from typing import Any

import pytest

from patchssl.errors import ConfigError
from patchssl.evaluate.suites.config import KnnTask, SuiteConfig, load_suite, suite_name, suite_names
from patchssl.evaluate.suites.tasks import check_task, data_key_of
from patchssl.recipes import validate

SUITES = Path(__file__).parents[3] / "configs" / "evaluate"


def suite(**values: Any) -> SuiteConfig:
    return validate(SuiteConfig, values, origin="my.yaml")


def test_tasks_take_what_the_suite_sets_unless_they_set_it() -> None:
    found = suite(
        data="cifar10",
        image_size=64,
        tasks=[
            {"task": "knn", "k": 5, "temperature": 0.1},
            {"task": "knn", "data": "builtin", "image_size": 32, "name": "small", "k": [5, 10], "tokens": "cls+mean"},
            {"task": "linear", "protocol": "dinov2", "learning_rates": 0.1, "blocks": 1},
        ],
    ).resolved()
    assert [(task.name, task.data, task.image_size) for task in found] == [
        ("knn (dino) on cifar10", "cifar10", 64),
        ("small", "builtin", 32),
        ("linear (dinov2) on cifar10", "cifar10", 64),
    ]
    assert [task.options() for task in found] == [
        {"tokens": "cls", "k": (5,), "temperature": 0.1},
        {"tokens": "cls+mean", "k": (5, 10)},
        {"learning_rates": (0.1,), "blocks": 1},
    ]


def test_one_size_for_all_tasks_replaces_theirs() -> None:
    tasks = [{"task": "knn", "data": "a", "image_size": 32}, {"task": "knn", "data": "b"}]
    assert [task.image_size for task in suite(tasks=tasks).resolved()] == [32, None]
    assert [task.image_size for task in suite(tasks=tasks).at_size(48).resolved()] == [48, 48]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"tasks": [{"task": "kn", "data": "x"}]},
            "tasks.0.task is 'kn'; did you mean knn? allowed: knn, linear",
        ),
        ({"tasks": [{"data": "x"}]}, "tasks.0 lacks the key task"),
        (
            {"tasks": [{"task": "knn", "data": "x", "temprature": 3}]},
            "unknown key tasks.0.knn.temprature; did you mean",
        ),
        ({"tasks": [{"task": "linear", "data": "x", "k": 3}]}, "unknown key tasks.0.linear.k; allowed: task, protocol"),
        ({"builtin": {"num_image": 24}, "tasks": []}, "unknown key builtin.num_image; did you mean num_images?"),
        (
            {"builtin": {"num_images": 23}, "tasks": []},
            "builtin.num_images: Input should be greater than or equal to 24",
        ),
        ({"task": [{"task": "knn", "data": "x"}]}, "unknown key task; did you mean tasks?"),
        ({"tasks": []}, "tasks is empty; give at least one"),
        ({"tasks": [{"task": "knn"}]}, "1 tasks (knn) name no data"),
        ({"tasks": [{"task": "knn", "data": "x"}] * 2}, "several tasks are called 'knn (dino) on x'"),
        ({"tasks": [{"task": "knn", "data": "x", "tokens": "clss"}]}, "tokens 'clss' cannot be read"),
        ({"tasks": [{"task": "knn", "data": "x", "tokens": "patches"}]}, "patches are many vectors of an image"),
        ({"tasks": [{"task": "knn", "data": "x", "k": [10, 0]}]}, "tasks.0.knn.k.1: Input should be greater than or"),
        ({"tasks": [{"task": "knn", "data": "x", "k": []}]}, "k is empty"),
        ({"tasks": [{"task": "knn", "data": "x", "temperature": 0}]}, "greater than 0 (it is 0)"),
        ({"tasks": [{"task": "linear", "data": "x", "val_fraction": 1}]}, "less than 1 (it is 1)"),
    ],
)
def test_what_is_wrong_is_named_with_what_is_allowed(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        suite(**values)
    assert str(caught.value).startswith("my.yaml: ")
    assert message in str(caught.value)


def test_files_and_names(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("data: cifar10\ntasks:\n  - task: knn\n    k: 7\n")
    (task,) = load_suite(str(path)).resolved()
    assert isinstance(task, KnnTask)
    assert task.k == (7,)
    assert (suite_name(str(path)), suite_name("quick")) == ("mine", "quick")
    with pytest.raises(ConfigError, match="'quik' is neither a file nor a suite; suites: cifar10, demo, paper, photos"):
        load_suite("quik")
    path.write_text("- task: knn\n")
    with pytest.raises(ConfigError, match="holds a list"):
        load_suite(str(path))


@pytest.mark.parametrize("name", suite_names())
def test_every_suite_is_valid_and_says_how_it_is_run_and_what_came_out(name: str) -> None:
    assert load_suite(name).resolved()
    lines = (SUITES / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    header = list(itertools.takewhile(lambda line: line.startswith("#"), lines))
    for word in ("Command:", "Hardware:", "Time:", "Metric:"):
        assert any(word in line for line in header), word


def test_the_suites_of_the_package() -> None:
    assert suite_names() == ["cifar10", "demo", "paper", "photos", "quick"]
    assert {task.data for task in load_suite("quick").resolved()} == {"builtin"}
    assert {(task.task, task.data) for task in load_suite("paper").resolved()} == {
        *((task, data) for task in ("knn", "linear") for data in ("cifar10", "imagenet100", "imagenet1k")),
        ("copydetect", "copydays"),
        ("retrieval", "roxford5k"),
        ("retrieval", "rparis6k"),
    }
    assert {task.task for task in load_suite("demo").resolved()} == {
        "knn", "linear", "copydetect", "retrieval", "correspondence",
    }  # fmt: skip


def test_options_of_tasks_that_search() -> None:
    config = {
        "data": "d",
        "tasks": [
            {"task": "copydetect", "whitening_images": "w", "distractors": "x"},
            {"task": "retrieval", "crop_queries": False, "distractors": "x"},
            {"task": "retrieval", "protocol": "class"},
            {"task": "correspondence", "kinds": ["flip"], "views": 2},
        ],
    }
    copies, places, classes, patches = SuiteConfig.model_validate(config).resolved()
    assert copies.how() == {"distractors": "x", "whitening": "w", "protocol": "dino"}
    assert places.how() == {"protocol": "official", "crop_queries": "no", "distractors": "x"}
    assert patches.options() == {"kinds": ("flip",), "views": 2}
    for task in (copies, places, classes, patches):
        check_task(task)
    keys = [data_key_of(task) for task in (copies, places, classes, patches)]
    assert [key.layout for key in keys] == ["copies", "revisited", "classes", "pictures"]
    assert len({task.geometry() for task in (copies, places, classes, patches)}) == 4


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"task": "retrieval", "protocol": "class", "multiscale": True}, "takes no multiscale; allowed: tokens"),
        ({"task": "retrieval", "protocol": "dine"}, "did you mean dino"),
        ({"task": "copydetect", "protocol": "sccd"}, "did you mean sscd"),
        ({"task": "correspondence", "protocol": "wraps"}, "did you mean warps"),
    ],
)
def test_what_a_search_does_not_have_is_refused(task: dict[str, Any], message: str) -> None:
    (resolved,) = SuiteConfig.model_validate({"data": "d", "tasks": [task]}).resolved()
    with pytest.raises(ConfigError, match=message):
        check_task(resolved)


def test_further_data_are_named_and_change_no_key() -> None:
    given = {"task": "copydetect", "distractors": "x", "whitening_images": "w"}
    (copies,) = SuiteConfig.model_validate({"data": "d", "tasks": [given]}).resolved()
    (knn,) = SuiteConfig.model_validate({"data": "d", "tasks": [{"task": "knn"}]}).resolved()
    assert (copies.further_data(), knn.further_data()) == (("x", "w"), ())
