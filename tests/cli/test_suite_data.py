"""Data sets of suites: every layout of the built-in images, names, and what else a task says about opening."""

from pathlib import Path

import pytest

from patchssl.cli.suite_data import open_suite_data
from patchssl.data.synth import write_dataset
from patchssl.errors import DataError
from patchssl.evaluate.suites.config import BUILTIN, Builtin
from patchssl.evaluate.suites.structs import DataKey

DRAWN = Builtin(num_images=24, image_size=32)
PARTS = {
    "parts": ["train", "test"],
    "labelled": ["labelled"],
    "classes": ["labelled"],
    "copies": ["references", "queries"],
    "revisited": ["database", "queries"],
    "pictures": ["pictures"],
}
HOW = {"copies": (("protocol", "dino"),), "revisited": (("protocol", "official"),)}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "images"
    write_dataset(folder, num_images=24, image_size_px=32)
    return folder


def test_the_builtin_images_open_in_every_layout() -> None:
    for layout, parts in PARTS.items():
        opened = open_suite_data(DataKey(BUILTIN, layout, HOW.get(layout, ())), DRAWN, {})
        assert list(opened.sources) == parts
        assert {source.name for source in opened.sources.values()} == {BUILTIN}
        assert {source.location for source in opened.sources.values()} == {"builtin: 24 images of 32 px, seed 0"}
        assert (opened.truth is not None) == (layout in HOW)


def test_data_are_called_what_the_suite_calls_them(drawn: Path) -> None:
    path = str(drawn / "folder" / "val")
    (named,) = open_suite_data(DataKey("mine", "classes"), DRAWN, {"mine": path}).sources.values()
    assert (named.name, named.location) == ("mine", path)
    (by_path,) = open_suite_data(DataKey(path, "classes"), DRAWN, {}).sources.values()
    assert by_path.name == "folder-val"


def test_queries_are_cut_as_protocol_or_task_say(drawn: Path) -> None:
    places = {"r": str(drawn / "revisited")}
    sizes = {}
    for told, how in {
        "official": (("protocol", "official"),),
        "dino": (("protocol", "dino"),),
        "cut": (("protocol", "dino"), ("crop_queries", "yes")),
    }.items():
        sizes[told] = open_suite_data(DataKey("r", "revisited", how), DRAWN, places).sources["queries"].read(0).size
    assert sizes["dino"] == (64, 48)
    assert sizes["official"] == sizes["cut"] != sizes["dino"]


def test_further_data_have_places_of_their_own(drawn: Path) -> None:
    how = (("distractors", "more"), ("protocol", "official"))
    places = {"r": str(drawn / "revisited"), "more": str(drawn / "folder")}
    opened = open_suite_data(DataKey("r", "revisited", how), DRAWN, places)
    assert list(opened.sources) == ["database", "distractors", "queries"]
    assert len(opened.sources["distractors"]) == 24


def test_what_cannot_be_opened_says_how_to_name_its_place(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="say where it lies: --data nowhere=PATH"):
        open_suite_data(DataKey("nowhere", "copies", HOW["copies"]), DRAWN, {})
