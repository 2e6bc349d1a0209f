"""The report on a data set on stdout: as lines for people, or as JSON, CSV or Markdown."""

import csv
import io
import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from patchssl.cli.text_tables import markdown

if TYPE_CHECKING:
    from patchssl.data.inspection.report import GroupCount, Named, Report
    from patchssl.data.inspection.summary import PartCount, Spread

_NUM_NAMED = 5
_UNITS = ("bytes", "kB", "MB", "GB", "TB")

Lines = Iterator[tuple[str, str]]


def render(report: "Report", output_format: str) -> str:
    """The report as text; `json` is one object with names as they are, the others have them escaped.

    Args:
        report: what was found.
        output_format: table, json, csv or markdown.
    """
    if output_format == "json":
        return json.dumps(report.as_json(), indent=2)
    lines = list(_lines(report))
    if output_format == "markdown":
        return markdown([("fact", "value"), *lines], num_left=2)
    if output_format == "csv":
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows([("fact", "value"), *lines])
        return buffer.getvalue().rstrip("\n")
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in lines)


def _lines(report: "Report") -> Lines:
    from patchssl.data.inspection.names import shown

    yield "data", shown(report.data)
    yield "images", f"{report.num_images:,}, {_bytes(report.num_bytes)}"
    yield "labels", f"yes, {report.num_classes:,} classes" if report.is_labelled else "no"
    for part in report.parts:
        yield from _part_lines(part, len(report.parts) > 1)
    yield (
        "unreadable",
        _named(f"{report.num_unreadable:,}", (f"{shown(bad.image)} {shown(bad.reason)}" for bad in report.unreadable)),
    )
    yield from _size_lines(report)
    yield from _kind_lines(report)
    yield from _duplicate_lines(report)
    yield from _leakage_lines(report)
    for warning in report.warnings:
        yield "warning", shown(warning)


def _part_lines(part: "PartCount", is_one_of_many: bool) -> Lines:
    from patchssl.data.inspection.names import shown

    if is_one_of_many:
        bad = f", {part.num_unreadable:,} unreadable" if part.num_unreadable else ""
        yield part.name, f"{part.num_images:,} images, {_bytes(part.num_bytes)}{bad}"
    if part.smallest_class is None or part.largest_class is None:
        return
    name = f"{part.name} classes" if is_one_of_many else "classes"
    (least, num_least), (most, num_most) = part.smallest_class, part.largest_class
    sizes = f"{num_least:,} images ({shown(least)}) to {num_most:,} ({shown(most)})"
    yield name, f"{len(part.classes):,}; {sizes if num_least < num_most else f'{num_least:,} images each'}"
    if part.missing_classes:
        yield f"{name} missing", _named(f"{len(part.missing_classes):,}", map(shown, part.missing_classes))


def _size_lines(report: "Report") -> Lines:
    if report.sizes is None:
        return
    yield "width", _spread(report.sizes.width_px, " px")
    yield "height", _spread(report.sizes.height_px, " px")
    yield "shorter side", _spread(report.sizes.shorter_side_px, " px")
    yield "aspect ratio", _spread(report.sizes.aspect_ratio, "")
    yield f"below {report.view_size_px} px", f"{report.num_smaller_than_view:,} images would be enlarged by crops"


def _kind_lines(report: "Report") -> Lines:
    from patchssl.data.inspection.names import shown

    kinds = report.kinds
    for name, counts in (("formats", kinds.formats), ("colours", kinds.colours)):
        if counts:
            yield name, ", ".join(f"{count:,} {kind}" for kind, count in counts.items())
    yield "16 bit", f"{kinds.num_16_bit:,}"
    yield "transparency", f"{kinds.num_with_alpha:,}"
    yield "turned by EXIF", f"{kinds.num_exif_turned:,}"
    counted = f"{kinds.num_one_colour:,}, and {kinds.num_nearly_one_colour:,} nearly"
    yield "of one colour", _named(counted, map(shown, report.one_colour))


def _duplicate_lines(report: "Report") -> Lines:
    from patchssl.data.inspection.names import shown

    yield "same file", _groups(report.same_file)
    others = f"{report.num_same_picture_other_file:,} of the groups in files that differ"
    yield "same picture", f"{_groups(report.same_picture)}; {others}"
    if report.is_labelled:
        named = (" = ".join(map(_told, members)) for members in report.conflicting)
        yield "in several classes", _named(f"{report.num_label_conflicts:,} pictures", named)
    near = report.near_duplicates
    if near is not None:
        listed = "" if near.listed_above is None else f", of which those above {near.listed_above:.6f}"
        yield (
            "near-duplicates",
            f"{near.num_pairs:,} pairs of cosine {near.threshold:g} or more among {near.num_compared:,} pictures"
            f"{listed} form {near.groups.num_groups:,} groups of {near.groups.num_images:,} pictures "
            f"({shown(near.model)})",
        )


def _leakage_lines(report: "Report") -> Lines:

    for count in report.leakage:
        earlier, later = count.parts
        near = "" if count.num_near is None else f", {count.num_near:,} near-duplicate pairs"
        yield (
            f"{earlier} and {later}",
            f"share {count.num_same_file:,} files, {count.num_same_picture:,} pictures in other files{near}; "
            f"{count.num_disagreeing:,} with other labels",
        )
    for leak in report.leaking:
        yield f"shared: {leak.kind}", f"{_told(leak.one)} and {_told(leak.other)}"


def _told(named: "Named") -> str:
    from patchssl.data.inspection.names import shown

    return shown(named.image) + ("" if named.label is None else f" ({shown(named.label)})")


def _groups(count: "GroupCount") -> str:
    return f"{count.num_groups:,} groups of {count.num_images:,} images; {count.num_superfluous:,} superfluous"


def _spread(spread: "Spread", unit: str) -> str:
    return f"{spread.min:,.6g} to {spread.max:,.6g}{unit}, median {spread.median:,.6g}"


def _named(counted: str, names: Iterable[str]) -> str:
    """A count with the first names behind it."""
    first = [name for name, _ in zip(names, range(_NUM_NAMED), strict=False)]
    return f"{counted}: {'; '.join(first)}" if first else counted


def _bytes(num: int) -> str:
    size, place = float(num), 0
    while size >= 1000 and place < len(_UNITS) - 1:
        size, place = size / 1000, place + 1
    return f"{num:,} bytes" if place == 0 else f"{size:.1f} {_UNITS[place]}"
