from collections.abc import Callable

import pytest

from patchssl.evaluate.comparing.columns import columns_of, differing, kind_of, labels_of, model_key, newest
from patchssl.evaluate.results import Row

MakeRow = Callable[..., Row]


def test_rows_of_unequal_comparability_never_share_a_column(make_row: MakeRow) -> None:
    rows = [
        make_row("a"),
        make_row("a", settings={"image_px": 32}),
        make_row("b"),
        make_row("a", protocol="dinov2"),
        make_row("a", task="linear"),
        make_row("a", dataset={"name": "other", "fingerprint": "g"}),
    ]
    columns = columns_of(rows)
    assert sorted(row.id for column in columns for row in column.rows) == sorted(row.id for row in rows)
    for column in columns:
        assert {row.comparability for row in column.rows} == {column.comparability}
    assert len(columns[0].rows) == 2


def test_columns_are_told_apart_in_words(make_row: MakeRow) -> None:
    rows = [make_row(), make_row(settings={"image_px": 32})]
    assert [column.words for column in columns_of(rows)] == ["image_px 224", "image_px 32"]
    assert [column.name for column in columns_of(rows)][1] == "knn (dino) on tiny, image_px 32"
    assert [column.words for column in columns_of(rows[:1])] == [""]
    # A protocol stands in the column's name, so that nothing else has to tell it.
    assert [column.words for column in columns_of([make_row(), make_row(protocol="dinov2")])] == ["", ""]


def test_only_what_differs_is_told_and_only_where_it_can_be_the_cause(make_row: MakeRow) -> None:
    rows = [
        make_row("a", settings={"temperature": 0.07}, uncompared={"precision": "bf16", "index": "Flat"}),
        make_row("b", settings={"temperature": 0.07}, uncompared={"index": "IVF8,Flat"}),
        make_row("a", settings={"temperature": 0.2}, uncompared={"index": "IVF8,Flat", "k": [20, 5]}),
    ]
    assert [column.words for column in columns_of(rows)] == ["temperature 0.07", "temperature 0.2"]
    assert differing(rows[:2], rows[2:]) == "temperature 0.07 against 0.2"


def test_a_setting_that_one_lacks_and_values_of_all_kinds_are_told(make_row: MakeRow) -> None:
    first = make_row(settings={"whitening": None, "crop_queries": True, "blocks": [1, 4], "sizes": {"a": 1}})
    second = make_row(settings={"whitening": "pca", "crop_queries": False, "blocks": [1], "sizes": {"a": 2}})
    assert differing([first], [second]) == (
        "whitening none against pca, crop_queries yes against no, blocks 1,4 against 1, sizes a 1 against a 2"
    )
    assert differing([make_row()], [make_row(settings={"extra": 3})]) == "extra none against 3"


def test_other_images_of_the_same_name_are_told_by_place_or_hash(make_row: MakeRow) -> None:
    other = {"fingerprint": "0123456789", "path_name": "other/tiny"}
    assert differing([make_row()], [make_row(dataset=other)]) == "path data/tiny against other/tiny"
    other["path_name"] = "data/tiny"
    assert differing([make_row()], [make_row(dataset=other)]) == "images f against 01234567"
    # The same images in another place or by another name are the same.
    moved = [make_row("a"), make_row("b", dataset={"path_name": "moved/small", "name": "small"})]
    (column,) = columns_of(moved)
    assert column.dataset == "tiny"
    small = make_row("b", settings={"image_px": 32}, dataset={"name": "small"})
    assert [one.name for one in columns_of([*moved, small])] == [
        "knn (dino) on tiny, image_px 224",
        "knn (dino) on tiny, image_px 32",
    ]
    fewer = make_row(dataset={"splits": {"train": 9, "test": 50}})
    assert differing([make_row()], [fewer]) == "test images 100 against 50"


def test_what_no_setting_explains_is_told_by_its_hash(make_row: MakeRow) -> None:
    rows = [make_row(settings={"precision": "fp32"}), make_row(settings={"precision": "bf16"})]
    for row, column in zip(rows, columns_of(rows), strict=True):
        assert column.words == f"a setting that the rows do not hold, comparability {row.comparability[:8]}"


def test_the_newest_row_of_each_model_and_column_is_taken(make_row: MakeRow) -> None:
    old = make_row("a", 0.1, created="2026-01-01T00:00:00+00:00")
    new = make_row("a", 0.2, created="2026-01-02T00:00:00+00:00")
    second = make_row("a", 0.3, created="2026-01-02T00:00:00+00:00")
    others = [
        make_row("b"),
        make_row("a", settings={"image_px": 32}),
        make_row("a", weights="retrained"),
        make_row("a", task="linear"),
    ]
    assert newest([new, *others, old]) == [new, *others]
    assert newest([new, second]) == [second]
    assert newest([]) == []


def test_models_of_one_spec_are_labelled_by_what_tells_them_apart(make_row: MakeRow) -> None:
    def labels(*rows: Row) -> list[str]:
        names = labels_of(rows)
        return [names[model_key(row)] for row in rows]

    assert labels(make_row("a"), make_row("b"), make_row("a")) == ["a", "b", "a"]
    assert labels(
        make_row("a", weights="1", uncompared={"checkpoint_key": "teacher"}),
        make_row("a", weights="2", uncompared={"checkpoint_key": "student"}),
    ) == ["a (teacher)", "a (student)"]
    assert labels(make_row("a@random", weights="1"), make_row("a@random", weights="2", seed=7)) == [
        "a@random (seed 0)",
        "a@random (seed 7)",
    ]
    assert labels(make_row("a", weights="0123456789"), make_row("a", weights="abcdefghij", seed=7)) == [
        "a (weights 01234567)",
        "a (weights abcdefgh)",
    ]


@pytest.mark.parametrize(
    ("spec", "family", "kind"),
    [
        ("runs/a", "patchssl", "model"),
        ("runs/a@random", "patchssl", "untrained"),
        ("timm:vit@random", "timm", "untrained"),
        ("floor:raw-pixels", "floor", "floor"),
    ],
)
def test_floors_are_known_by_family_and_spec(spec: str, family: str, kind: str, make_row: MakeRow) -> None:
    assert kind_of(make_row(spec, family=family)) == kind
