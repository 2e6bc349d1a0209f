"""Many models by many tasks: each result as soon as it is there, failures among them."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from patchssl.backbones import Backbone
from patchssl.evaluate.features import Features
from patchssl.evaluate.outcomes import Scored
from patchssl.evaluate.results import Row
from patchssl.evaluate.suites.config import AnyTask
from patchssl.evaluate.suites.plan import (
    DETAILS,
    Failure,
    Floors,
    Group,
    Place,
    key_of,
    name_of,
    num_tasks,
)
from patchssl.evaluate.suites.structs import Compute, DataKey, Material, Needs, Opened, Sources
from patchssl.evaluate.suites.tasks import needs_of, prepare, score_task


@dataclass(frozen=True, slots=True)
class Skipped:
    """A task whose row is there already."""

    row: Row


Result = Scored | Skipped | Failure


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What a suite is run with.

    Attributes:
        suite: its name.
        data: what was opened.
        load: SPEC → backbone.
        extract: images by part, a backbone, tokens by part → features by part and tokens.
        compute: how.
        own_geometry: whether models keep the crops that they were made for, in the place of the protocols'.
        cost: backbone → what to keep of its cost, or None.
        done: rows that need not be made again, by their key.
        announce: told before each task, for instance `task 3 of 8: knn (dino) on cifar10, timm:resnet18`.
    """

    suite: str
    data: Mapping[DataKey, Opened]
    load: Callable[[str], Backbone]
    extract: Callable[[Sources, Backbone, Needs], Mapping[str, Mapping[str, Features]]]
    compute: Compute
    own_geometry: bool = False
    cost: Callable[[Backbone], Mapping[str, Any]] | None = None
    done: Mapping[str, Row] = field(default_factory=dict)
    announce: Callable[[str], None] = lambda text: None


def run_suite(groups: Iterable[Group], specs: Sequence[str], setting: Setting, *, floors: bool) -> Iterator[Result]:
    """Run every task of every model, and give each result as soon as it is there.

    What fails becomes a `Failure` and the rest goes on: a model that does not load fails all its tasks, a pass over the
    images all tasks that share it.

    Args:
        groups: of `plan`; those whose data are not open are left out.
        specs: models.
        setting: with what.
        floors: afterwards run the untrained twin of each trained model, where its SPEC names one, and mean colour and
            raw pixels, on the very crops that the models saw, so that their rows are comparable.
    """
    groups = [group for group in groups if group.data_key in setting.data]
    runner = _Runner(setting, "task", len(specs) * num_tasks(groups))
    beside = Floors()
    for spec in specs:
        # In a function of its own, so that a model is gone before the next one comes.
        yield from _run_model(spec, groups, runner, beside)
    if floors:
        jobs = beside.jobs()
        num_jobs = sum(len(group.tasks) for places in jobs.values() for group, _ in places)
        runner = _Runner(setting, "floor task", num_jobs)
        for spec, places in jobs.items():
            yield from _run_floor(spec, places, runner)


def _run_model(spec: str, groups: Sequence[Group], runner: "_Runner", beside: Floors) -> Iterator[Result]:
    backbone = runner.load(spec, groups)
    if isinstance(backbone, Failure):
        yield backbone
        return
    for group in groups:
        try:
            sized = prepare(group.tasks[0], backbone, own_geometry=runner.setting.own_geometry)
        except Exception as error:
            yield runner.fail(group.tasks, spec, error)
            continue
        beside.note(sized, group)
        yield from runner.run(group, sized)


def _run_floor(spec: str, places: Sequence[Place], runner: "_Runner") -> Iterator[Result]:
    backbone = runner.load(spec, [group for group, _ in places])
    if isinstance(backbone, Failure):
        yield backbone
        return
    for group, preprocess in places:
        yield from runner.run(group, replace(backbone, preprocess=preprocess))


@dataclass(frozen=True, slots=True)
class _Pending:
    task: AnyTask
    key: str
    needs: Needs


class _Runner:
    """Runs tasks one after the other and counts them."""

    def __init__(self, setting: Setting, word: str, total: int) -> None:
        self.setting, self.word, self.total = setting, word, total
        self.number = 0
        self._prints: dict[DataKey, dict[str, str]] = {}
        self._costs: dict[tuple[str, int], Mapping[str, Any]] = {}

    def load(self, spec: str, groups: Iterable[Group]) -> Backbone | Failure:
        """The backbone, or the failure of all its tasks."""
        try:
            return self.setting.load(spec)
        except Exception as error:
            return self.fail([task for group in groups for task in group.tasks], spec, error)

    def fail(self, tasks: Sequence[AnyTask], spec: str, error: Exception, *, num_begun: int = 0) -> Failure:
        """The failure of tasks, of which those that have not begun are counted here."""
        self.number += len(tasks) - num_begun
        return Failure(tuple(map(name_of, tasks)), spec, error)

    def run(self, group: Group, backbone: Backbone) -> Iterator[Result]:
        """Run the tasks of a group on a backbone at their image size, after one pass over the images."""
        pending: list[_Pending] = []
        parts = tuple(self.setting.data[group.data_key].sources)
        for task in group.tasks:
            try:
                key = key_of(task, backbone, self._fingerprints(group.data_key), self.setting.compute)
                if key not in self.setting.done:
                    pending.append(_Pending(task, key, needs_of(task, backbone, parts)))
                    continue
            except Exception as error:
                yield self.fail([task], backbone.spec, error)
                continue
            self._begin(task, backbone, "; its row is there already")
            yield Skipped(self.setting.done[key])
        if pending:
            yield from self._measure(backbone)
            yield from self._score_all(pending, group, backbone)

    def _score_all(self, pending: Sequence[_Pending], group: Group, backbone: Backbone) -> Iterator[Result]:
        material: Material | None = None
        for index, one in enumerate(pending):
            self._begin(one.task, backbone)
            if material is None:
                try:
                    material = self._material(pending, group, backbone)
                except Exception as error:
                    yield self.fail([left.task for left in pending[index:]], backbone.spec, error, num_begun=1)
                    return
            try:
                scored = score_task(one.task, material, self.setting.compute)
            except Exception as error:
                yield self.fail([one.task], backbone.spec, error, num_begun=1)
            else:
                yield self._with_details(scored, one, backbone)

    def _begin(self, task: AnyTask, backbone: Backbone, more: str = "") -> None:
        self.number += 1
        self.setting.announce(f"{self.word} {self.number} of {self.total}: {name_of(task)}, {backbone.spec}{more}")

    def _material(self, pending: Iterable[_Pending], group: Group, backbone: Backbone) -> Material:
        """One pass for the union of what the tasks need."""
        tokens: dict[str, dict[str, None]] = {}
        for one in pending:
            for part, names in one.needs.items():
                tokens.setdefault(part, {}).update(dict.fromkeys(names))
        opened = self.setting.data[group.data_key]
        since = time.perf_counter()
        needs = {part: tuple(names) for part, names in tokens.items()}
        features = self.setting.extract(opened.sources, backbone, needs) if needs else {}
        return Material(
            backbone=backbone,
            sources=opened.sources,
            truth=opened.truth,
            features=features,
            features_s=time.perf_counter() - since,
        )

    def _measure(self, backbone: Backbone) -> Iterator[Failure]:
        """Measure the cost at this image size, once; a failure leaves the rows without it."""
        place = backbone.weights_sha256, backbone.preprocess.image_px
        if self.setting.cost is None or place in self._costs:
            return
        self._costs[place] = {}
        try:
            self._costs[place] = self.setting.cost(backbone)
        except Exception as error:
            yield Failure((f"cost at {backbone.preprocess.image_px} px",), backbone.spec, error)

    def _with_details(self, scored: Scored, one: _Pending, backbone: Backbone) -> Scored:
        cost = self._costs.get((backbone.weights_sha256, backbone.preprocess.image_px), {})
        about = {"suite": self.setting.suite, "task": name_of(one.task), "key": one.key}
        return replace(scored, row=replace(scored.row, details={**scored.row.details, **cost, DETAILS: about}))

    def _fingerprints(self, key: DataKey) -> dict[str, str]:
        if key not in self._prints:
            opened = self.setting.data[key]
            self._prints[key] = {part: source.fingerprint() for part, source in opened.sources.items()}
            if opened.truth is not None:
                self._prints[key]["truth"] = opened.truth.fingerprint()
        return self._prints[key]
