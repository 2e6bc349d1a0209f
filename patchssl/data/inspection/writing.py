"""The folder of a report, which appears whole or not at all."""

import json
from pathlib import Path

from patchssl.data.inspection import sheets, tables
from patchssl.data.inspection.report import Findings, Report
from patchssl.data.synth.files import refuse_occupied, whole_folder

REPORT = "report.json"
FILES = (
    REPORT,
    tables.UNREADABLE,
    tables.DUPLICATES,
    tables.NEAR,
    tables.LEAKAGE,
    tables.ONE_COLOUR,
    sheets.CONTACT_SHEET,
    sheets.DUPLICATE_SHEET,
)
_HINT = ", or take --overwrite if it holds an earlier report"


def refuse_folder(output: Path, *, overwrite: bool) -> None:
    """Raise DataError unless a report may be written to a folder.

    Args:
        output: the folder, which need not be there.
        overwrite: whether it may hold a report, which is all that it may hold then.
    """
    refuse_occupied(output, replaceable=FILES if overwrite else (), hint="" if overwrite else _HINT)


def write_report(
    output: Path, report: Report, findings: Findings, *, overwrite: bool, num_drawn: int, seed: int
) -> None:
    """Write the report, tables and sheets.

    Args:
        output: a folder as of `refuse_folder`.
        report: the figures.
        findings: what they were made of.
        overwrite: replace an earlier report.
        num_drawn: images on the contact sheet.
        seed: by which they are drawn.

    Raises:
        DataError: the folder is taken, or cannot be written.
    """
    refuse_folder(output, overwrite=overwrite)
    collection, facts = findings.collection, findings.facts
    with whole_folder(output, replaceable=FILES if overwrite else ()) as folder:
        tables.write_unreadable(folder, collection, facts)
        tables.write_one_colour(folder, collection, facts)
        tables.write_duplicates(folder, collection, facts, findings.duplicates)
        tables.write_leakage(folder, collection, findings.leakage)
        if findings.near is not None:
            tables.write_near(folder, collection, findings.near)
        sheets.write_contact_sheet(folder, collection, sheets.drawn_images(facts, num_drawn, seed))
        sheets.write_duplicate_sheet(folder, collection, findings.duplicates, findings.near)
        (folder / REPORT).write_text(json.dumps(report.as_json(), indent=2) + "\n", encoding="utf-8")
