"""The committed rows: readable, and what the README shows of them."""

import re
from pathlib import Path

import pytest

from patchssl.cli.main import main
from patchssl.evaluate.results import Row, parse_row, read_rows


@pytest.fixture(scope="module")
def rows(repository: Path) -> list[Row]:
    found, broken = read_rows(repository / "results" / "rows")
    assert broken == []
    assert found
    return list(found)


def blocks_in(text: str) -> list[tuple[list[str], str]]:
    """The tables of a text, each after the names of the data sets that it shows."""
    found = re.findall(r"<!-- results:([^\n]+?) -->\n(.*?)\n<!-- end -->", text, flags=re.DOTALL)
    return [(names.split(), table.strip()) for names, table in found]


@pytest.mark.parametrize(("name", "num_blocks"), [("README.md", 1), ("results/README.md", 3)])
def test_texts_show_the_tables_of_the_rows_as_they_are(
    name: str, num_blocks: int, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = str(repository / "results" / "rows")
    blocks = blocks_in((repository / name).read_text(encoding="utf-8"))
    assert len(blocks) == num_blocks
    for datasets, table in blocks:
        chosen = [word for dataset in datasets for word in ("--dataset", dataset)]
        cost = ["--cost"] if datasets == ["cifar10"] else []
        assert main(["results", "table", "--results", directory, *chosen, *cost, "--format", "markdown"]) == 0
        assert capsys.readouterr().out.strip() == table


def test_training_beats_the_untrained_network_by_more_than_chance(rows: list[Row]) -> None:
    by_model = {row.model["spec"]: row for row in rows if row.dataset["name"] == "cifar10" and row.task == "knn"}
    trained = by_model["runs/cifar10-cpu"]
    untrained = by_model["runs/cifar10-cpu@random"]
    assert trained.comparability == untrained.comparability
    name = trained.headline
    assert trained.metrics[name].ci95_low > untrained.metrics[name].ci95_high


def test_rows_name_no_place_of_a_machine(rows: list[Row]) -> None:
    for row in rows:
        assert not Path(row.dataset["path_name"]).is_absolute()
        assert not Path(row.model["spec"]).is_absolute()


def test_committed_rows_keep_their_ids(repository: Path, rows: list[Row]) -> None:
    # Outcomes and comparisons name rows by their ids, so that no change of the code may change one.
    assert [row.id for row in rows if row.task == "knn"][:2] == ["f95caae2b04f", "854a2f27ff81"]
    assert len({row.id for row in rows}) == len(rows)
    for row in rows:
        assert parse_row(row.to_json().encode()).id == row.id
