"""Everything that was found in a data set, in figures, with the first names of each kind."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from patchssl.data.inspection.collection import ELSEWHERE, Collection
from patchssl.data.inspection.duplicates import Duplicates
from patchssl.data.inspection.facts import VARIED, Facts
from patchssl.data.inspection.groups import Groups
from patchssl.data.inspection.leakage import Leakage, LeakCount
from patchssl.data.inspection.near import NearPairs
from patchssl.data.inspection.summary import Kinds, PartCount, Sizes, count_kinds, count_parts, count_smaller, sizes_of

SCHEMA = 1
_NUM_NAMED = 5


@dataclass(frozen=True, slots=True)
class Findings:
    """What was found, image by image.

    Attributes:
        collection: M images.
        facts: of each.
        duplicates: equal ones.
        near: nearly equal ones, if they were searched.
        leakage: what parts share.
    """

    collection: Collection
    facts: Facts
    duplicates: Duplicates
    near: NearPairs | None
    leakage: Leakage


@dataclass(frozen=True, slots=True)
class Named:
    """An image and its class, None where it has none."""

    image: str
    label: str | None


@dataclass(frozen=True, slots=True)
class NamedLeak:
    """Two images that are equal or nearly so; the other is of the later part."""

    kind: str
    one: Named
    other: Named


@dataclass(frozen=True, slots=True)
class Bad:
    """An image that cannot be read, and why."""

    image: str
    reason: str


@dataclass(frozen=True, slots=True)
class GroupCount:
    """Groups of images, how many are in them, and how many could go so that one of each group stays."""

    num_groups: int
    num_images: int
    num_superfluous: int


@dataclass(frozen=True, slots=True)
class NearCount:
    """Nearly equal pictures.

    Attributes:
        model: the spec.
        threshold: of the cosine.
        num_compared: pictures.
        num_pairs: at or above the threshold.
        listed_above: where these were too many to be listed, the cosine above which they are; groups are of these.
        groups: of connected pictures.
    """

    model: str
    threshold: float
    num_compared: int
    num_pairs: int
    listed_above: float | None
    groups: GroupCount


@dataclass(frozen=True, slots=True)
class Report:
    """What is in a data set.

    Attributes:
        schema: of this record.
        data: where it is.
        num_images: unreadable ones among them.
        num_bytes: of all images as they are stored.
        is_labelled: whether any image has a label.
        num_classes: of all parts together.
        parts: by part.
        num_unreadable: how many images cannot be read or decoded.
        unreadable: the first of them.
        sizes: None where no image can be read.
        view_size_px: side of the crops that are meant.
        num_smaller_than_view: readable images whose shorter side is below it.
        kinds: how images are stored.
        one_colour: the first images of one colour, or nearly.
        same_file: groups of equal files.
        same_picture: groups of equal pixels, those of equal files among them.
        num_same_picture_other_file: such groups whose files are not all equal.
        num_label_conflicts: groups of equal pixels with more than one label.
        conflicting: the images of the first of them.
        leakage: for every two parts.
        leaking: the first of what they share.
        near_duplicates: None where they were not searched.
        warnings: what should be looked into, in words.
    """

    schema: int
    data: str
    num_images: int
    num_bytes: int
    is_labelled: bool
    num_classes: int
    parts: tuple[PartCount, ...]
    num_unreadable: int
    unreadable: tuple[Bad, ...]
    sizes: Sizes | None
    view_size_px: int
    num_smaller_than_view: int
    kinds: Kinds
    one_colour: tuple[str, ...]
    same_file: GroupCount
    same_picture: GroupCount
    num_same_picture_other_file: int
    num_label_conflicts: int
    conflicting: tuple[tuple[Named, ...], ...]
    leakage: tuple[LeakCount, ...]
    leaking: tuple[NamedLeak, ...]
    near_duplicates: NearCount | None
    warnings: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The same as one JSON object; names are as they are."""
        record = asdict(self)
        for part, told in zip(self.parts, record["parts"], strict=True):
            named = {"smallest_class": part.smallest_class, "largest_class": part.largest_class}
            told["num_classes"] = len(part.classes)
            told |= {
                key: None if found is None else {"name": found[0], "num_images": found[1]}
                for key, found in named.items()
            }
        return record


def make_report(findings: Findings, *, view_size_px: int) -> Report:
    """Put the figures together.

    Args:
        findings: image by image.
        view_size_px: side of the crops that are meant.
    """
    collection, facts, duplicates = findings.collection, findings.facts, findings.duplicates
    conflicts = duplicates.conflicts(collection.labels)
    plain = facts.readable[facts.table["evenness"][facts.readable] != VARIED]
    name = collection.source.ids.__getitem__

    def named(index: int) -> Named:
        return Named(name(index), collection.label(index))

    parts = count_parts(collection, facts)
    return Report(
        schema=SCHEMA,
        data=collection.source.location,
        num_images=len(collection),
        num_bytes=int(facts.table["num_bytes"].sum()),
        is_labelled=collection.is_labelled,
        num_classes=len(collection.classes),
        parts=parts,
        num_unreadable=len(facts.reasons),
        unreadable=tuple(Bad(name(index), reason) for index, reason in _first(facts.reasons.items())),
        sizes=sizes_of(facts),
        view_size_px=view_size_px,
        num_smaller_than_view=count_smaller(facts, view_size_px),
        kinds=count_kinds(facts),
        one_colour=tuple(name(index) for index in plain[:_NUM_NAMED].tolist()),
        same_file=_counted(duplicates.files),
        same_picture=_counted(duplicates.pictures),
        num_same_picture_other_file=duplicates.num_other_files,
        num_label_conflicts=len(conflicts),
        conflicting=tuple(
            tuple(named(index) for index in members.tolist()[:_NUM_NAMED]) for members in conflicts[:_NUM_NAMED]
        ),
        leakage=findings.leakage.counts,
        leaking=tuple(
            NamedLeak(leak.kind, named(leak.one), named(leak.other)) for leak in _first(findings.leakage.leaks)
        ),
        near_duplicates=None if findings.near is None else _count_near(findings.near, len(collection)),
        warnings=tuple(_warnings(findings, parts, len(conflicts))),
    )


def _first(items: Iterable[Any]) -> list[Any]:
    return [item for item, _ in zip(items, range(_NUM_NAMED), strict=False)]


def _counted(groups: Groups) -> GroupCount:
    return GroupCount(len(groups), groups.num_members, groups.num_superfluous)


def _count_near(near: NearPairs, num_images: int) -> NearCount:
    groups = _counted(near.groups(num_images))
    return NearCount(near.spec, near.threshold, near.num_compared, near.num_found, near.above, groups)


def _warnings(findings: Findings, parts: tuple[PartCount, ...], num_conflicts: int) -> Iterator[str]:
    facts, near = findings.facts, findings.near
    if not len(facts.readable):
        yield "no image can be read"
    for leak in findings.leakage.counts:
        if leak.num_all:
            yield _leak_warning(leak)
    if num_conflicts:
        yield f"{num_conflicts} pictures stand in several classes"
    for part in parts:
        if part.name == ELSEWHERE:
            yield f"{part.num_images} images lie outside of the parts; evaluations leave them out, pretraining does not"
        elif part.classes and part.num_unlabelled:
            yield f"{part.num_unlabelled} images of {part.name} have no class; evaluations refuse that"
    if near is not None and near.above is not None:
        yield (
            f"{near.num_found} pairs reach a cosine of {near.threshold:g}, too many to be told apart; only the "
            f"{len(near.one)} above {near.above:.6f} are listed and grouped: raise the threshold, or take a model that "
            "has learned more"
        )


def _leak_warning(leak: LeakCount) -> str:
    earlier, later = leak.parts
    near = f", {leak.num_near} pairs are near-duplicates" if leak.num_near else ""
    labels = f"; {leak.num_disagreeing} of these have other labels there" if leak.num_disagreeing else ""
    exact = leak.num_same_file + leak.num_same_picture
    return f"{later} is not apart from {earlier}: {exact} of its images are there as well{near}{labels}"
