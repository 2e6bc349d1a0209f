"""A suite's plan: which tasks are computed together, which floors stand beside, and what names a result."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from patchssl import __version__
from patchssl.backbones import Backbone, Preprocess
from patchssl.backbones.floors import FAMILY, FLOORS, PREFIX, floor_preprocess
from patchssl.evaluate.extraction import resolve_precision
from patchssl.evaluate.results import Row, canonical_hash
from patchssl.evaluate.suites.config import FURTHER_DATA, AnyTask
from patchssl.evaluate.suites.structs import PICTURES, Compute, DataKey, Opened
from patchssl.evaluate.suites.tasks import data_key_of

DETAILS = "benchmark"
_UNTRAINED = "@random"
_REGISTRIES = ("timm:", "torchvision:")


@dataclass(frozen=True, slots=True)
class Group:
    """Tasks that share one pass over the images.

    Attributes:
        data_key: which opened data they run on.
        geometry: what their images come to the backbone by, the same for all.
        tasks: in the suite's order.
    """

    data_key: DataKey
    geometry: tuple[Any, ...]
    tasks: tuple[AnyTask, ...]

    @property
    def task_names(self) -> tuple[str, ...]:
        """What the tasks are called."""
        return tuple(map(name_of, self.tasks))


@dataclass(frozen=True, slots=True)
class Failure:
    """What went wrong.

    Attributes:
        tasks: the names of the tasks that have no row because of it.
        model: the SPEC, or None for all models.
        error: why.
    """

    tasks: tuple[str, ...]
    model: str | None
    error: Exception


def plan(tasks: Iterable[AnyTask]) -> tuple[Group, ...]:
    """Put tasks together that need the same images in the same way, in the order of their first."""
    groups: dict[tuple[DataKey, tuple[Any, ...]], list[AnyTask]] = {}
    for task in tasks:
        groups.setdefault((data_key_of(task), task.geometry()), []).append(task)
    return tuple(Group(*key, tuple(members)) for key, members in groups.items())


def open_data(
    groups: Iterable[Group], open_one: Callable[[DataKey], Opened]
) -> tuple[dict[DataKey, Opened], list[Failure]]:
    """Open each data set once; one that cannot be opened fails its tasks for all models."""
    names: dict[DataKey, list[str]] = {}
    for group in groups:
        names.setdefault(group.data_key, []).extend(group.task_names)
    opened: dict[DataKey, Opened] = {}
    failures = []
    for key, tasks in names.items():
        try:
            opened[key] = open_one(key)
        except Exception as error:
            failures.append(Failure(tuple(tasks), None, error))
    return opened, failures


def untrained_twin(backbone: Backbone) -> str | None:
    """The SPEC of the same architecture with fresh weights; None where there is none or it is untrained itself."""
    spec = backbone.spec
    if spec.endswith(_UNTRAINED):
        return None
    if spec.startswith(_REGISTRIES):
        return spec.partition("@")[0] + _UNTRAINED
    return spec + _UNTRAINED if backbone.family == "patchssl" else None


Place = tuple[Group, Preprocess]


class Floors:
    """Which floors belong beside the models that have run, each on each kind of crops once."""

    def __init__(self) -> None:
        self._ran: set[tuple[str, Group, Preprocess]] = set()
        self._wanted: dict[tuple[str, Group, Preprocess], None] = {}

    def note(self, backbone: Backbone, group: Group) -> None:
        """Note a model at the image size of a group."""
        self._ran.add((backbone.spec, group, backbone.preprocess))
        if backbone.family == FAMILY:
            return
        twin = untrained_twin(backbone)
        if twin is not None:
            self._wanted.setdefault((twin, group, backbone.preprocess))
        # Floors have no patches to find again; what raw pixels give there stands in the models' own rows.
        for name in () if group.data_key.layout == PICTURES else FLOORS:
            self._wanted.setdefault((PREFIX + name, group, floor_preprocess(backbone.preprocess)))

    def jobs(self) -> dict[str, list[Place]]:
        """By SPEC, twins first; what has run as a model is left out."""
        found: dict[str, list[Place]] = {}
        for spec, group, preprocess in sorted(self._wanted, key=lambda job: job[0].startswith(PREFIX)):
            if (spec, group, preprocess) not in self._ran:
                found.setdefault(spec, []).append((group, preprocess))
        return found


def key_of(task: AnyTask, backbone: Backbone, fingerprints: Mapping[str, str], compute: Compute) -> str:
    """Hash everything that a task's numbers follow from, this version of the code included.

    Args:
        task: its name and where its data lie do not count.
        backbone: at the task's image size.
        fingerprints: of each part of the data.
        compute: of it the precision and the seed; all else changes a number by rounding only.
    """
    return canonical_hash(
        {
            "patchssl": __version__,
            "task": task.model_dump(mode="json", exclude={"name", "data", "image_size", *FURTHER_DATA}),
            "data": dict(fingerprints),
            "weights": backbone.weights_sha256,
            "pooling": backbone.pooling,
            "preprocess": asdict(backbone.preprocess),
            "precision": resolve_precision(compute.precision, backbone.device),
            "seed": compute.seed,
        }
    )


def rows_by_key(rows: Iterable[Row]) -> dict[str, Row]:
    """Rows of benchmarks by their key, the newest of each."""
    found: dict[str, Row] = {}
    for row in rows:
        about = row.details.get(DETAILS)
        key = about.get("key") if isinstance(about, Mapping) else None
        if isinstance(key, str) and (key not in found or row.created >= found[key].created):
            found[key] = row
    return found


def name_of(task: AnyTask) -> str:
    """What a task is called."""
    assert task.name is not None
    return task.name


def num_tasks(groups: Iterable[Group]) -> int:
    """How many tasks the groups have in all."""
    return sum(len(group.tasks) for group in groups)
