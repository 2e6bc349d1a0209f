"""Suites: what is computed together, what comes of each task, and which floors stand beside."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from patchssl.backbones import Backbone, Preprocess, load_backbone
from patchssl.backbones.floors import AveragedPixels, FloorReader
from patchssl.errors import ConfigError, DataError
from patchssl.evaluate.extraction import extract, resolve_precision
from patchssl.evaluate.features import Features
from patchssl.evaluate.outcomes import Scored
from patchssl.evaluate.results import Row
from patchssl.evaluate.scoring import make_row
from patchssl.evaluate.suite import Result, Setting, Skipped, run_suite
from patchssl.evaluate.suites import classification as suite_classification
from patchssl.evaluate.suites.config import AnyTask, SuiteConfig
from patchssl.evaluate.suites.plan import (
    Failure,
    key_of,
    open_data,
    plan,
    rows_by_key,
    untrained_twin,
)
from patchssl.evaluate.suites.structs import Compute, DataKey, Needs, Opened, Sources
from patchssl.evaluate.suites.tasks import check_task, needs_of, prepare
from patchssl.recipes import validate

COMPUTE = Compute(device="cpu", precision="auto", num_workers=0, batch_size=8, max_bad_fraction=0.0, seed=0)
RAW, MEAN = "floor:raw-pixels", "floor:mean-colour"


@dataclass
class Drawn:
    """Noise about one of two colours."""

    num: int
    first: int = 0
    classes: tuple[str, ...] = ("blue", "red")
    name: str = "drawn"
    location: str = "somewhere/drawn"
    ids: Sequence[str] = field(init=False)
    labels: np.ndarray | None = field(init=False)

    def __post_init__(self) -> None:
        self.ids = [f"{self.first + index}.png" for index in range(self.num)]
        self.labels = np.arange(self.num) % 2

    def __len__(self) -> int:
        return self.num

    def read(self, index: int) -> Image.Image:
        colour = ((20, 40, 200), (220, 30, 30))[index % 2]
        noise = np.random.default_rng(self.first + index).normal(colour, 12, (40, 48, 3))
        return Image.fromarray(np.clip(noise, 0, 255).astype(np.uint8))

    def fingerprint(self) -> str:
        return f"print {self.first}"

    def state(self) -> str:
        return f"state {self.first}"


PARTS: Sources = {"train": Drawn(12), "test": Drawn(6, first=100)}


def backbone(
    spec: str, *, family: str = "patchssl", side: int = 2, image_px: int = 32, resize_px: int | None = None
) -> Backbone:
    """A quick backbone: averaged pixels under another name."""
    return Backbone.of(
        AveragedPixels(side),
        FloorReader(),
        spec=spec,
        family=family,
        arch="averaged",
        dim=3 * side * side,
        patch_px=8,
        preprocess=Preprocess(image_px=image_px, resize_px=resize_px or image_px, std=(0.5, 0.5, 0.5)),
    )


def tasks_of(*tasks: dict[str, Any], **values: Any) -> tuple[AnyTask, ...]:
    return validate(SuiteConfig, {"data": "drawn", **values, "tasks": list(tasks)}, origin="s").resolved()


@dataclass
class Lab:
    """Loads what it is given, extracts for real, and remembers both."""

    models: dict[str, Callable[[], Backbone]] = field(default_factory=dict)
    passes: list[tuple[str, int, dict[str, tuple[str, ...]]]] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)

    def load(self, spec: str) -> Backbone:
        self.loaded.append(spec)
        if spec.startswith("floor:"):
            return load_backbone(spec)
        if spec not in self.models:
            raise ConfigError(f"there is no {spec}")
        return self.models[spec]()

    def extract(self, sources: Sources, model: Backbone, needs: Needs) -> Mapping[str, Mapping[str, Features]]:
        self.passes.append((model.spec, model.preprocess.image_px, dict(needs)))
        return {
            part: extract(model, sources[part], tokens=tokens, batch_size=8).features for part, tokens in needs.items()
        }

    def run(
        self, tasks: Sequence[AnyTask], specs: Sequence[str], *, floors: bool = False, **changes: Any
    ) -> list[Result]:
        data = {DataKey("drawn"): Opened(PARTS)}
        values = {"data": data, "load": self.load, "extract": self.extract, "announce": self.said.append}
        setting = Setting(suite="mine", compute=COMPUTE, **{**values, **changes})
        return list(run_suite(plan(tasks), specs, setting, floors=floors))


@pytest.fixture
def lab() -> Lab:
    return Lab({"A": lambda: backbone("A"), "B": lambda: backbone("B", side=4)})


def rows_of(results: Sequence[Result]) -> list[Row]:
    assert not [result for result in results if isinstance(result, Failure)]
    return [result.row for result in results if not isinstance(result, Failure)]


KNN, BY_MEAN = {"task": "knn", "k": 3}, {"task": "knn", "name": "by mean", "tokens": "mean", "k": 1}


def test_a_plan_by_hand() -> None:
    tasks = tasks_of(
        KNN,
        {"task": "knn", "data": "other"},
        {"task": "linear", "protocol": "logistic"},
        {"task": "knn", "image_size": 64, "name": "large"},
        {"task": "knn", "protocol": "leave-one-out"},
    )
    groups = plan(tasks)
    assert [(group.data_key, group.geometry) for group in groups] == [
        (("drawn", "parts", ()), (None,)),
        (("other", "parts", ()), (None,)),
        (("drawn", "parts", ()), (64,)),
        (("drawn", "labelled", ()), (None,)),
    ]
    assert [group.tasks for group in groups] == [(tasks[0], tasks[2]), (tasks[1],), (tasks[3],), (tasks[4],)]


def test_one_pass_for_the_union_of_tokens(lab: Lab) -> None:
    rows = rows_of(lab.run(tasks_of(KNN, BY_MEAN, {**KNN, "name": "again"}), ["A", "B"]))
    union = {"train": ("cls", "mean"), "test": ("cls", "mean")}
    assert lab.passes == [("A", 32, union), ("B", 32, union)]
    assert lab.said == [
        "task 1 of 6: knn (dino) on drawn, A",
        "task 2 of 6: by mean, A",
        "task 3 of 6: again, A",
        "task 4 of 6: knn (dino) on drawn, B",
        "task 5 of 6: by mean, B",
        "task 6 of 6: again, B",
    ]
    assert [(row.model["spec"], row.settings["token"], next(iter(row.metrics))) for row in rows[:3]] == [
        ("A", "cls", "top1@k3"),
        ("A", "mean", "top1@k1"),
        ("A", "cls", "top1@k3"),
    ]
    # Blue and red.
    assert all(row.metrics[row.headline].value == 1 for row in rows)
    assert all(row.seconds["features"] > 0 for row in rows)
    assert rows[0].comparability == rows[2].comparability == rows[3].comparability != rows[1].comparability


def test_each_size_is_a_pass_of_its_own(lab: Lab) -> None:
    tasks = tasks_of({**KNN, "image_size": 16}, {**KNN, "name": "own size"}, {**KNN, "name": "n", "image_size": 16})
    lab.run(tasks, ["A"])
    assert [(spec, size) for spec, size, _ in lab.passes] == [("A", 16), ("A", 32)]


def test_a_task_that_fails_in_the_middle_leaves_the_others(lab: Lab) -> None:
    tasks = tasks_of(KNN, {"task": "knn", "name": "too many", "k": 13}, BY_MEAN)
    first, second, third = lab.run(tasks, ["A"])
    assert isinstance(first, Scored)
    assert isinstance(third, Scored)
    assert isinstance(second, Failure)
    assert (second.tasks, second.model) == (("too many",), "A")
    assert "k is 13; allowed: 1 to 12" in str(second.error)
    assert lab.said[-1] == "task 3 of 3: by mean, A"


def test_a_model_that_does_not_load_fails_all_its_tasks_once(lab: Lab) -> None:
    failure, *others = lab.run(tasks_of(KNN, BY_MEAN), ["nothing", "A"])
    assert failure == Failure(("knn (dino) on drawn", "by mean"), "nothing", failure.error)  # type: ignore[union-attr]
    assert [type(other) for other in others] == [Scored, Scored]
    assert lab.said == ["task 3 of 4: knn (dino) on drawn, A", "task 4 of 4: by mean, A"]


def test_a_pass_that_fails_fails_the_tasks_that_share_it(lab: Lab) -> None:
    def refuse(sources: Sources, model: Backbone, needs: Needs) -> Mapping[str, Mapping[str, Features]]:
        raise RuntimeError("out of memory")

    results = lab.run(tasks_of(KNN, BY_MEAN, {**KNN, "name": "small", "image_size": 16}), ["A"], extract=refuse)
    assert [(result.tasks, str(result.error)) for result in results if isinstance(result, Failure)] == [
        (("knn (dino) on drawn", "by mean"), "out of memory"),
        (("small",), "out of memory"),
    ]
    assert len(results) == 2
    assert lab.said[-1].startswith("task 3 of 3")


def test_a_size_that_a_model_cannot_take_fails_there_only(lab: Lab) -> None:
    lab.models["C"] = lambda: backbone("C", family="other")
    results = lab.run(tasks_of({**KNN, "image_size": 33}, {**KNN, "name": "own"}), ["C"], floors=True)
    failure, *others = results
    assert isinstance(failure, Failure)
    assert "image size 33 is not a multiple" in str(failure.error)
    # Nothing stands at a size at which no model does.
    assert {row.settings["image_px"] for row in rows_of(others)} == {32}


def test_interrupting_is_no_failure(lab: Lab) -> None:
    def interrupt(sources: Sources, model: Backbone, needs: Needs) -> Mapping[str, Mapping[str, Features]]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lab.run(tasks_of(KNN), ["A"], extract=interrupt)


def test_data_that_cannot_be_opened_fail_their_tasks_once_for_all_models(lab: Lab) -> None:
    tasks = tasks_of(
        KNN, {"task": "knn", "data": "gone"}, {"task": "knn", "data": "gone", "image_size": 16, "name": "s"}
    )
    groups = plan(tasks)
    asked: list[DataKey] = []

    def open_one(key: DataKey) -> Opened:
        asked.append(key)
        if key.name == "gone":
            raise DataError("gone does not exist")
        return Opened(PARTS)

    data, failures = open_data(groups, open_one)
    assert asked == [DataKey("drawn"), DataKey("gone")]
    (failure,) = failures
    assert (failure.tasks, failure.model) == (("knn (dino) on gone", "s"), None)
    results = lab.run(tasks, ["A", "B"], data=data)
    assert len(rows_of(results)) == 2
    assert lab.said[-1].startswith("task 2 of 2")


def test_models_may_keep_their_own_crops() -> None:
    copies, scales = tasks_of(
        {"task": "copydetect", "image_size": 64}, {"task": "retrieval", "multiscale": True, "name": "scales"}
    )
    model = backbone("A", image_px=32, resize_px=40)
    assert prepare(copies, model).preprocess.fit == "squash"
    own = prepare(copies, model, own_geometry=True).preprocess
    assert (own.fit, own.image_px, own.resize_px) == ("crop", 64, 80)
    with pytest.raises(ConfigError, match="one scale"):
        prepare(scales, model, own_geometry=True)


def test_floors_stand_in_the_columns_of_the_models(lab: Lab) -> None:
    lab.models["A@random"] = lambda: backbone("A@random", side=3, image_px=64)
    # B sees the same crops as A, C others.
    lab.models["C"] = lambda: backbone("C", family="other", image_px=24, resize_px=28)
    rows = rows_of(lab.run(tasks_of(KNN), ["A", "B", "C"], floors=True, load=_with_twin(lab, "B@random")))
    columns: dict[str, list[str]] = {}
    for row in rows:
        columns.setdefault(row.comparability, []).append(row.model["spec"])
    assert sorted(columns.values()) == [["A", "B", "A@random", "B@random", MEAN, RAW], ["C", MEAN, RAW]]
    assert lab.said[3] == "floor task 1 of 6: knn (dino) on drawn, A@random"
    assert lab.said[-1] == f"floor task 6 of 6: knn (dino) on drawn, {RAW}"
    # Loaded once, used at both sizes, by a normalisation of their own.
    assert lab.loaded == ["A", "B", "C", "A@random", "B@random", MEAN, RAW]
    means = [row for row in rows if row.model["spec"] == MEAN]
    assert [(row.settings["image_px"], row.settings["resize_px"]) for row in means] == [(32, 32), (24, 28)]
    assert {row.settings["std"][0] for row in means} == {0.229}
    assert {row.settings["std"][0] for row in rows if row.model["spec"] == "A@random"} == {0.5}


def _with_twin(lab: Lab, spec: str) -> Callable[[str], Backbone]:
    lab.models[spec] = lambda: backbone(spec, side=1)
    return lab.load


def test_a_floor_that_was_asked_for_as_a_model_is_not_run_again(lab: Lab) -> None:
    lab.models = {
        "timm:x": lambda: backbone("timm:x", family="timm"),
        "timm:x@random": lambda: backbone("timm:x@random"),
    }
    floor = {**KNN, "image_size": 224}
    rows = rows_of(lab.run(tasks_of(floor), [RAW, "timm:x@random", "timm:x"], floors=True))
    # The crops of these models are resized to 224 px, those of the floors by themselves to 256 px.
    assert [(row.model["spec"], row.settings["resize_px"]) for row in rows] == [
        (RAW, 256),
        ("timm:x@random", 224),
        ("timm:x", 224),
        (MEAN, 224),
        (RAW, 224),
    ]
    assert rows_of(lab.run(tasks_of(floor), [RAW], floors=True))[0].model["spec"] == RAW
    assert len(lab.run(tasks_of(floor), [RAW], floors=True)) == 1


@pytest.mark.parametrize(
    ("spec", "family", "twin"),
    [
        ("runs/mine", "patchssl", "runs/mine@random"),
        ("runs/mine@random", "patchssl", None),
        ("timm:resnet18", "timm", "timm:resnet18@random"),
        ("timm:resnet18@file.pth", "timm", "timm:resnet18@random"),
        ("timm:resnet18@random", "timm", None),
        ("torchvision:resnet18", "torchvision", "torchvision:resnet18@random"),
        ("dino.pth", "dino", None),
        (RAW, "floor", None),
    ],
)
def test_twins(spec: str, family: str, twin: str | None) -> None:
    assert untrained_twin(backbone(spec, family=family)) == twin


def test_a_real_twin_and_floors_are_comparable() -> None:
    lab = Lab({})
    spec = "timm:vit_tiny_patch16_224@random"
    rows = rows_of(lab.run(tasks_of({**KNN, "image_size": 32}), [spec], floors=True, load=load_backbone))
    assert [row.model["spec"] for row in rows] == [spec, MEAN, RAW]
    assert len({row.comparability for row in rows}) == 1
    assert len({row.model["weights_sha256"] for row in rows}) == 3


def test_cost_is_measured_once_for_each_size_and_kept(lab: Lab) -> None:
    measured: list[tuple[str, int]] = []

    def cost(model: Backbone) -> dict[str, Any]:
        measured.append((model.spec, model.preprocess.image_px))
        return {"gflops": model.preprocess.image_px / 10, "images_per_s": 5.0}

    tasks = tasks_of(KNN, {**KNN, "name": "small", "image_size": 16}, {**KNN, "name": "same", "image_size": 32})
    rows = rows_of(lab.run(tasks, ["A"], cost=cost))
    assert measured == [("A", 32), ("A", 16)]
    assert [row.details["gflops"] for row in rows] == [3.2, 1.6, 3.2]
    assert rows[0].details["benchmark"]["suite"] == "mine"
    assert rows[0].details["benchmark"]["task"] == "knn (dino) on drawn"
    assert "gflops" not in rows_of(lab.run(tasks, ["A"]))[0].details


def test_a_cost_that_cannot_be_measured_leaves_the_rows(lab: Lab) -> None:
    def cost(model: Backbone) -> dict[str, Any]:
        raise RuntimeError("no counter")

    failure, scored = lab.run(tasks_of(KNN), ["A"], cost=cost)
    assert isinstance(failure, Failure)
    assert (failure.tasks, str(failure.error)) == (("cost at 32 px",), "no counter")
    assert isinstance(scored, Scored)
    assert "gflops" not in scored.row.details


def test_rows_that_are_there_are_not_made_again(lab: Lab) -> None:
    tasks = tasks_of(KNN, BY_MEAN)
    done = rows_by_key(rows_of(lab.run(tasks, ["A"])))
    assert len(done) == 2
    lab.passes.clear()
    # One under another name, one changed, one as it was.
    changed = tasks_of({**KNN, "name": "renamed"}, {**BY_MEAN, "k": 2}, BY_MEAN | {"name": "third"})
    results = lab.run(changed, ["A", "B"], done=done)
    assert [type(result) for result in results] == [Skipped, Skipped, Scored, Scored, Scored, Scored]
    # Only what the changed task needs.
    assert lab.passes[0] == ("A", 32, {"train": ("mean",), "test": ("mean",)})
    assert len(lab.passes) == 2
    assert "task 1 of 6: renamed, A; its row is there already" in lab.said


def test_a_key_follows_from_all_that_a_number_follows_from() -> None:
    model, (task,) = backbone("A"), tasks_of(KNN)
    prints = {"train": "a", "test": "b"}
    key = key_of(task, model, prints, COMPUTE)
    same = [
        (tasks_of({**KNN, "name": "other", "data": "elsewhere"})[0], model, prints, COMPUTE),
        (task, replace(model, spec="moved"), prints, replace(COMPUTE, num_workers=3, batch_size=1)),
        (task, model, prints, replace(COMPUTE, precision=resolve_precision("auto", torch.device("cpu")))),
    ]
    assert {key_of(*arguments) for arguments in same} == {key}
    others = [
        (tasks_of({**KNN, "k": 4})[0], model, prints, COMPUTE),
        (tasks_of({**KNN, "tokens": "mean"})[0], model, prints, COMPUTE),
        (task, backbone("A", side=3), prints, COMPUTE),
        (task, model.at_size(16), prints, COMPUTE),
        (task, model, {**prints, "train": "c"}, COMPUTE),
        (task, model, prints, replace(COMPUTE, precision="fp16")),
        (task, model, prints, replace(COMPUTE, seed=1)),
    ]
    assert len({key, *(key_of(*arguments) for arguments in others)}) == 1 + len(others)


def test_the_newest_row_of_a_key_counts_and_rows_without_are_left_out(lab: Lab) -> None:
    (row,) = rows_of(lab.run(tasks_of(KNN), ["A"]))
    old, new = replace(row, created="2020-01-01T00:00:00+00:00"), replace(row, created="2030-01-01T00:00:00+00:00")
    foreign = [replace(row, details=details) for details in ({}, {"benchmark": 3}, {"benchmark": {"key": None}})]
    assert list(rows_by_key([new, old, *foreign]).values()) == [new]


def fake_linear(calls: list[tuple[Any, ...]]) -> ModuleType:
    """The linear probe's interface: `on-images` trains on crops, `on-features` on features."""
    module = ModuleType("patchssl.evaluate.linear")
    options = ("blocks", "avgpool")
    protocols = {
        "on-images": SimpleNamespace(needs_images=True, options=(*options, "epochs"), defaults={"epochs": 100}),
        "on-features": SimpleNamespace(needs_images=False, options=options, defaults={}),
    }

    def needed_tokens(
        protocol: str, *, num_blocks: int, dim: int, blocks: int | None = None, avgpool: bool | None = None
    ) -> list[str]:
        if (blocks or 1) > num_blocks:
            raise ConfigError(f"blocks is {blocks}")
        return ["cls+mean" if avgpool else "cls"]

    def row(protocol: str, train: Features, test: Features, how: dict[str, Any]) -> Scored:
        return make_row(
            task="linear",
            protocol=protocol,
            parts={"train": train, "test": test},
            values={"top1": np.ones(len(test), dtype=bool)},
            headline="top1",
            meaning={},
            settings={},
            seconds={"features": how["features_s"], "evaluate": 0.0},
            device="cpu",
            seed=how["seed"],
            details={"chance": {"top1": 0.5}},
        )

    def score(train: Mapping[str, Features], test: Mapping[str, Features], *, protocol: str, **how: Any) -> Scored:
        calls.append(("features", protocol, list(train), list(test), how))
        (tokens,) = test
        return row(protocol, train[tokens], test[tokens], how)

    def score_images(
        model: Backbone, sources: Sources, test: Mapping[str, Features], *, protocol: str, **how: Any
    ) -> Scored:
        how.pop("progress")(len(sources["train"]))
        calls.append(("images", protocol, model.spec, list(sources), list(test), how))
        (features,) = test.values()
        return row(protocol, features, features, how)

    vars(module).update(PROTOCOLS=protocols, needed_tokens=needed_tokens, score=score, score_images=score_images)
    return module


def test_linear_tasks_get_what_they_need_of_the_same_pass(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(suite_classification, "linear", fake_linear(calls))
    tasks = tasks_of(
        {"task": "linear", "protocol": "on-images", "epochs": 2, "avgpool": True},
        KNN,
        {"task": "linear", "protocol": "on-features", "name": "features"},
        {"task": "linear", "protocol": "on-features", "name": "too deep", "blocks": 9},
    )
    for task in tasks:
        check_task(task)
    too_deep, *results = lab.run(tasks, ["A"])
    assert isinstance(too_deep, Failure)
    assert (too_deep.tasks, str(too_deep.error)) == (("too deep",), "blocks is 9")
    rows = rows_of(results)
    assert [row.task for row in rows] == ["linear", "knn", "linear"]
    assert rows[0].details["chance"] == {"top1": 0.5}
    # Training images of the probe on images are cropped anew, so that no features of them are needed for it.
    assert lab.passes == [("A", 32, {"test": ("cls+mean", "cls"), "train": ("cls",)})]
    (first, second) = calls
    seconds = rows[1].seconds["features"]
    assert first[:5] == ("images", "on-images", "A", ["train", "test"], ["cls+mean"])
    assert round(first[5].pop("features_s"), 3) == seconds
    assert first[5] == {
        "batch_size": 8,
        "num_workers": 0,
        "precision": "auto",
        "max_bad_fraction": 0.0,
        "seed": 0,
        "avgpool": True,
        "epochs": 2,
    }
    assert second[:4] == ("features", "on-features", ["cls"], ["cls"])
    assert round(second[4].pop("features_s"), 3) == seconds
    assert second[4] == {"device": "cpu", "seed": 0}


def test_tokens_that_follow_from_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite_classification, "linear", fake_linear([]))
    (with_mean,) = tasks_of({"task": "linear", "protocol": "on-features", "avgpool": True})
    assert needs_of(with_mean, backbone("A"), ("train", "test")) == {"train": ("cls+mean",), "test": ("cls+mean",)}
    (alone,) = tasks_of({"task": "knn", "protocol": "leave-one-out", "tokens": "gem"})
    assert needs_of(alone, backbone("A"), ("labelled",)) == {"labelled": ("gem",)}


def test_what_an_evaluation_does_not_have_is_refused_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite_classification, "linear", fake_linear([]))
    cases: list[tuple[dict[str, Any], str]] = [
        ({"task": "knn", "protocol": "dimo"}, "knn (dimo) on drawn: knn has no protocol 'dimo'; did you mean dino?"),
        ({"task": "knn", "shots": 5}, "knn with the protocol dino takes no shots; allowed: tokens, k, temperature"),
        ({"task": "linear", "protocol": "other"}, "linear has no protocol 'other'; allowed: on-images, on-features"),
        ({"task": "linear", "protocol": "on-features", "epochs": 3}, "takes no epochs; allowed: blocks, avgpool"),
    ]
    for values, words in cases:
        (task,) = tasks_of(values)
        with pytest.raises(ConfigError) as caught:
            check_task(task)
        assert words in str(caught.value)
