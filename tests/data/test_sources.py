"""Folders and tables of images: what is found, in which order, and what is said when nothing is."""

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from patchssl.data.images import FileSource, ImageSource
from patchssl.data.sources import open_classes, open_labelled, open_unlabelled
from patchssl.errors import DataError


def draw(path: Path, *, side: int = 2, colour: str = "red") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (side, side), colour).save(path, format="PNG")
    return path


def write_csv(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_text(text, encoding=encoding)
    return path


def labels(source: ImageSource) -> list[str]:
    assert source.labels is not None
    return [source.classes[label] for label in source.labels]


def test_every_depth_and_suffix_in_sorted_order(tmp_path: Path) -> None:
    names = [
        "b.jpg",
        "a/x.PNG",
        "a/deep/er/still/y.JpEg",
        "a.bmp",
        "Z.webp",
        "with space.gif",
        "日本/ü.tif",
        "new\nline.png",
    ]
    for name in names:
        draw(tmp_path / name)
    for name in ("a.txt", "jpg", "b.jpg.part", ".hidden.jpg", "._b.jpg", ".git/c.jpg", "a/.d/e.jpg"):
        draw(tmp_path / name)
    source = open_unlabelled(tmp_path)
    assert list(source.ids) == sorted(names)
    assert len(source) == len(names)
    assert source.labels is None
    assert source.classes == ()
    assert source.name == tmp_path.name
    assert all(source.read(index).size == (2, 2) for index in range(len(source)))


def test_a_folder_with_an_images_name_is_a_folder(tmp_path: Path) -> None:
    draw(tmp_path / "x.jpg" / "inside.png")
    assert list(open_unlabelled(tmp_path).ids) == ["x.jpg/inside.png"]


def test_linked_folders_are_followed(tmp_path: Path) -> None:
    draw(tmp_path / "elsewhere" / "a.png")
    data = tmp_path / "data"
    draw(data / "own" / "b.png")
    (data / "linked").symlink_to(tmp_path / "elsewhere")
    (data / "again").symlink_to(tmp_path / "elsewhere")
    (data / "c.png").symlink_to(tmp_path / "elsewhere" / "a.png")
    source = open_unlabelled(data)
    assert list(source.ids) == ["again/a.png", "c.png", "linked/a.png", "own/b.png"]
    assert all(source.read(index).size == (2, 2) for index in range(4))


def test_links_that_lead_back_up_end(tmp_path: Path) -> None:
    """To itself, to the root, and two folders that hold links to each other."""
    draw(tmp_path / "a" / "one.png")
    draw(tmp_path / "b" / "two.png")
    (tmp_path / "root").symlink_to(tmp_path)
    (tmp_path / "a" / "self").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "to_b").symlink_to(tmp_path / "b")
    (tmp_path / "b" / "to_a").symlink_to(tmp_path / "a")
    assert list(open_unlabelled(tmp_path).ids) == ["a/one.png", "a/to_b/two.png", "b/to_a/one.png", "b/two.png"]


def test_a_dangling_link_is_an_unreadable_image(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to(tmp_path / "gone.png")
    source = open_unlabelled(tmp_path)
    with pytest.raises(DataError, match=r"a\.png: No such file or directory"):
        source.read(0)
    assert source.fingerprint()


def test_a_folder_that_cannot_be_listed_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    draw(tmp_path / "a.png")
    draw(tmp_path / "locked" / "b.png")
    scandir = __import__("os").scandir

    def refuse(path: str) -> object:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr("os.scandir", refuse)
    with caplog.at_level(logging.WARNING, logger="patchssl"):
        assert list(open_unlabelled(tmp_path).ids) == ["a.png"]
    assert f"folder left out: {tmp_path / 'locked'}: Permission denied" in caplog.text


def test_exif_choice_reaches_the_decoder(tmp_path: Path) -> None:
    image = Image.new("RGB", (4, 2))
    exif = image.getexif()
    exif[0x112] = 6
    image.save(tmp_path / "a.png", exif=exif)
    assert open_unlabelled(tmp_path, apply_exif=True).read(0).size == (2, 4)
    assert open_unlabelled(tmp_path, apply_exif=False).read(0).size == (4, 2)
    table = write_csv(tmp_path / "t.csv", "path\na.png\n")
    assert open_unlabelled(table, apply_exif=True).read(0).size == (2, 4)
    assert open_unlabelled(table, apply_exif=False).read(0).size == (4, 2)


def test_nothing_there(tmp_path: Path) -> None:
    for missing in (tmp_path / "nowhere", tmp_path / "nowhere.csv"):
        with pytest.raises(DataError, match=f"{missing} does not exist; give a folder of images, .* or a CSV file"):
            open_unlabelled(missing)
    (tmp_path / "a.zip").write_bytes(b"")
    with pytest.raises(DataError, match=r"a\.zip is a file but no \.csv; give a folder"):
        open_labelled(tmp_path / "a.zip")


def test_a_folder_without_images_says_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no image files \(it is empty\); suffixes read: \.bmp \.gif .*\.webp"):
        open_unlabelled(tmp_path)
    for name in ("a.txt", "b.txt", "deep/c.txt", "d.heic", "README", ".hidden.jpg", ".git/x.jpg"):
        draw(tmp_path / name)
    with pytest.raises(DataError, match=r"\(it holds 3 \.txt, 2 hidden, 1 \.heic, 1 without a suffix\)") as caught:
        open_unlabelled(tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("test_name", ["val", "test"])
def test_labelled_folder(test_name: str, tmp_path: Path) -> None:
    """Both parts count the classes of both, and a label is the first folder."""
    for name in ("train/dog/1.png", "train/cat/deep/2.png", "train/ant/3.png"):
        draw(tmp_path / name)
    for name in ("dog/4.png", "cow/5.png"):
        draw(tmp_path / test_name / name)
    parts = open_labelled(tmp_path)
    assert list(parts) == ["train", "test"]
    assert parts["train"].classes == parts["test"].classes == ("ant", "cat", "cow", "dog")
    assert list(parts["train"].ids) == ["ant/3.png", "cat/deep/2.png", "dog/1.png"]
    assert labels(parts["train"]) == ["ant", "cat", "dog"]
    assert labels(parts["test"]) == ["cow", "dog"]
    assert parts["test"].read(1).size == (2, 2)


def test_val_is_preferred_to_test(tmp_path: Path) -> None:
    for name in ("train/a/1.png", "val/a/2.png", "test/a/3.png"):
        draw(tmp_path / name)
    assert list(open_labelled(tmp_path)["test"].ids) == ["a/2.png"]


def test_a_missing_or_empty_part_is_named(tmp_path: Path) -> None:
    draw(tmp_path / "train" / "a" / "1.png")
    with pytest.raises(
        DataError, match=r"must hold train/ and val/ \(or test/\) with a folder per class; found: train"
    ):
        open_labelled(tmp_path)
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "a.txt").write_text("")
    with pytest.raises(DataError, match=r"val holds no image files \(it holds 1 \.txt\)"):
        open_labelled(tmp_path)


def test_images_outside_a_class_folder_are_counted_and_named(tmp_path: Path) -> None:
    for name in ("train/a/1.png", "val/a/2.png", "val/3.png", "val/4.png"):
        draw(tmp_path / name)
    with pytest.raises(DataError, match=r"val: 2 images lie outside a class folder, for instance 3\.png"):
        open_labelled(tmp_path)


def test_unlabelled_table(tmp_path: Path) -> None:
    """Paths count from the table's folder, or are absolute; other columns do not matter."""
    outside = draw(tmp_path / "outside.png", side=3)
    draw(tmp_path / "data" / "in, side.png")
    rows = ["path,note", '"in, side.png",x', f"{outside},", "../outside.png,x,too,many", "missing.png,"]
    table = write_csv(tmp_path / "data" / "list.csv", "\n".join(rows))
    source = open_unlabelled(table)
    assert source.name == "list"
    assert [source.read(index).width for index in range(3)] == [2, 3, 3]
    with pytest.raises(DataError, match=r"missing\.png: No such file or directory"):
        source.read(3)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_labelled_table(encoding: str, tmp_path: Path) -> None:
    for name in "abcd":
        draw(tmp_path / f"{name}.png")
    rows = "label,path,split\ndog,a.png,train\ncat,b.png,val\nähre,c.png,test\n\ncat,d.png,train\n"
    parts = open_labelled(write_csv(tmp_path / "t.csv", rows, encoding))
    assert parts["train"].classes == parts["test"].classes == ("cat", "dog", "ähre")
    assert list(parts["train"].ids) == ["a.png", "d.png"]
    assert labels(parts["train"]) == ["dog", "cat"]
    assert list(parts["test"].ids) == ["b.png", "c.png"]
    assert labels(parts["test"]) == ["cat", "ähre"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "",
            r"has the columns \(none\); needed, separated by commas: path, label, split \(missing: path, label, split",
        ),
        ("path;label;split\n", r"has the columns path;label;split; needed, separated by commas"),
        ("path,label\na.png,x\n", r"has the columns path, label; needed.* \(missing: split\)"),
        ("path,label,split\n", "has a header but no rows"),
        ("path,label,split\na.png,x,train\nb.png,,val\n", "line 3: label is empty"),
        ("path,label,split\na.png,x,train\n\n\n ,x\n", "line 5: path, split is empty"),
        ("path,label,split\na.png,x,train\nb.png,x,dev\n", "line 3: split is 'dev'; allowed: train, val, test"),
        ("path,label,split\na.png,x,train\n", "has no row of the split val or test"),
        ("path,label,split\na.png,x,test\n", "has no row of the split train"),
    ],
)
def test_tables_that_cannot_be_used(text: str, words: str, tmp_path: Path) -> None:
    table = write_csv(tmp_path / "t.csv", text)
    with pytest.raises(DataError, match=words) as caught:
        open_labelled(table)
    assert str(caught.value).startswith(str(table))
    assert "\n" not in str(caught.value)


def test_tables_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes("path\nü.png\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"t\.csv is not a CSV file in UTF-8: "):
        open_unlabelled(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text("path\n" + "x" * 200_000)
    with pytest.raises(DataError, match=r"not a CSV file in UTF-8: field larger than field limit"):
        open_unlabelled(tmp_path / "t.csv")


def labelled_folder(root: Path) -> Path:
    for name in ("train/cat/1.png", "train/dog/2.png", "val/cat/3.png"):
        draw(root / name)
    return root


def test_the_fingerprint_does_not_depend_on_the_place(tmp_path: Path) -> None:
    here = labelled_folder(tmp_path / "here")
    there = tmp_path / "elsewhere" / "under another name"
    shutil.copytree(here, there)
    for part in ("train", "test"):
        assert open_labelled(here)[part].fingerprint() == open_labelled(there)[part].fingerprint()
    assert open_unlabelled(here).fingerprint() == open_unlabelled(there).fingerprint()
    assert open_labelled(here)["train"].fingerprint() != open_labelled(here)["test"].fingerprint()


def test_the_fingerprint_changes_with_size_name_and_label(tmp_path: Path) -> None:
    data = labelled_folder(tmp_path)

    def fingerprint() -> str:
        return open_labelled(data)["train"].fingerprint()

    seen = [fingerprint()]
    draw(data / "train/cat/1.png", side=99)
    seen.append(fingerprint())
    (data / "train/cat/1.png").rename(data / "train/cat/one.png")
    seen.append(fingerprint())
    (data / "train/dog").rename(data / "train/wolf")
    seen.append(fingerprint())
    draw(data / "train/wolf/5.png")
    seen.append(fingerprint())
    (data / "train/cat/one.png").unlink()
    seen.append(fingerprint())
    assert len(set(seen)) == len(seen)
    draw(data / "val/ant/9.png")  # renumbers the labels, which mean the same
    assert fingerprint() == seen[-1]


def test_the_fingerprint_of_a_table_holds_its_labels(tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    rows = "path,label,split\na.png,{},train\nb.png,x,val\n"
    first = open_labelled(write_csv(tmp_path / "t.csv", rows.format("cat")))["train"].fingerprint()
    second = open_labelled(write_csv(tmp_path / "t.csv", rows.format("dog")))["train"].fingerprint()
    assert first != second


def test_the_fingerprint_takes_names_that_are_no_unicode(tmp_path: Path) -> None:
    name = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    source = FileSource(tmp_path, (name,), np.array([0]), ("x",), "n", "l", apply_exif=False)
    assert len(source.fingerprint()) == 64


def test_class_folders_without_parts(tmp_path: Path) -> None:
    for name in ("dog/1.png", "cat/deep/2.png", "train/3.png", ".hidden/4.png"):
        draw(tmp_path / name)
    (tmp_path / "notes.txt").write_text("")
    source = open_classes(tmp_path)
    assert source.classes == ("cat", "dog", "train")  # a class may be called so
    assert list(source.ids) == ["cat/deep/2.png", "dog/1.png", "train/3.png"]
    assert labels(source) == ["cat", "dog", "train"]
    assert source.name == tmp_path.name
    assert source.location == str(tmp_path)
    assert source.read(1).size == (2, 2)


def test_a_table_without_splits(tmp_path: Path) -> None:
    for name in "ab":
        draw(tmp_path / f"{name}.png")
    source = open_classes(write_csv(tmp_path / "t.csv", "label,path\ndog,a.png\ncat,b.png\n"))
    assert source.classes == ("cat", "dog")
    assert labels(source) == ["dog", "cat"]
    assert source.read(0).size == (2, 2)


@pytest.mark.parametrize("test_name", ["val", "test"])
def test_parts_are_not_taken_for_classes(test_name: str, tmp_path: Path) -> None:
    for part in ("train", test_name):
        for name in ("a", "b"):
            draw(tmp_path / part / name / "1.png")
    with pytest.raises(DataError, match=rf"has train/ and {test_name}/; leave-one-out is for .* give .*train or .*"):
        open_classes(tmp_path)
    assert open_classes(tmp_path / test_name).classes == ("a", "b")


def test_data_without_two_classes_are_told(tmp_path: Path) -> None:
    draw(tmp_path / "train" / "a" / "1.png")
    with pytest.raises(DataError, match="must hold a folder per class, at least two with images; found: train"):
        open_classes(tmp_path)
    (tmp_path / "train" / "b").mkdir()
    with pytest.raises(DataError, match="at least two with images; found: a, b"):
        open_classes(tmp_path / "train")
    draw(tmp_path / "train" / "2.png")
    with pytest.raises(DataError, match=r"1 images lie outside a class folder, for instance 2\.png"):
        open_classes(tmp_path / "train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty holds no image files \(it is empty\)"):
        open_classes(tmp_path / "empty")
    (tmp_path / "cifar").mkdir()
    (tmp_path / "cifar" / "data_batch_1").write_bytes(b"")
    with pytest.raises(DataError, match="has a training and a test part; leave-one-out is for data without"):
        open_classes(tmp_path / "cifar")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("path,label,split\na.png,x,train\nb.png,y,val\n", "has a column split; leave-one-out is for images without"),
        ("path,label\na.png,x\nb.png,x\n", "has one label only, x; at least two classes are needed"),
        ("path,label\na.png,x\nb.png,y\n./a.png,y\n", r"1 images stand in more than one row \(a\.png\); an image"),
        ("path\na.png\n", r"needed, separated by commas: path, label \(missing: label\)$"),
    ],
)
def test_tables_that_leave_one_out_cannot_use(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=words):
        open_classes(write_csv(tmp_path / "t.csv", text))


def test_an_image_in_two_rows_of_a_table_is_refused(tmp_path: Path) -> None:
    rows = "path,label,split\n" + "".join(f"{n}.png,x,{split}\n" for n in range(7) for split in ("train", "test"))
    with pytest.raises(DataError, match=r"7 images stand in more than one row \(0\.png, .*4\.png, …\); .* keep one"):
        open_labelled(write_csv(tmp_path / "t.csv", rows))
    rows = "path,label,split\na.png,x,train\na.png,y,train\nb.png,x,val\n"
    with pytest.raises(DataError, match=r"1 images stand in more than one row \(a\.png\)"):
        open_labelled(write_csv(tmp_path / "t.csv", rows))


def test_who_has_no_splits_learns_of_leave_one_out(tmp_path: Path) -> None:
    draw(tmp_path / "a" / "1.png")
    with pytest.raises(DataError, match="Class folders without such parts are for eval knn --protocol leave-one-out"):
        open_labelled(tmp_path)
    with pytest.raises(DataError, match=r"\(missing: split\); images without splits are for .* leave-one-out"):
        open_labelled(write_csv(tmp_path / "t.csv", "path,label\na/1.png,x\n"))


def test_a_part_of_a_data_set_bears_the_name_of_both(tmp_path: Path) -> None:
    for part in ("train", "val"):
        for name in ("a", "b"):
            folder = tmp_path / "birds" / part / name
            folder.mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(folder / "1.png")
    assert open_classes(tmp_path / "birds" / "val").name == "birds-val"
    assert open_unlabelled(tmp_path / "birds" / "train").name == "birds-train"
    assert open_unlabelled(tmp_path / "birds").name == "birds"
    assert open_labelled(tmp_path / "birds")["test"].name == "birds"
