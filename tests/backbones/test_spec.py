from pathlib import Path

import pytest

from patchssl.backbones import ModelSpec, parse_spec
from patchssl.errors import ConfigError


def test_accepted_forms(tmp_path: Path) -> None:
    run, file = tmp_path / "run", tmp_path / "step.pt"
    run.mkdir()
    file.write_bytes(b"")
    assert parse_spec(str(run)) == ModelSpec(str(run), "path", str(run), random=False)
    assert parse_spec(f"{file}@random") == ModelSpec(f"{file}@random", "path", str(file), random=True)
    for library in ("timm", "torchvision"):
        assert parse_spec(f"{library}:x") == ModelSpec(f"{library}:x", library, "x", random=False)
        assert parse_spec(f"{library}:x@random") == ModelSpec(f"{library}:x@random", library, "x", random=True)
        spec = f"{library}:x@{file}"
        assert parse_spec(spec) == ModelSpec(spec, library, "x", random=False, weights=file)


@pytest.mark.parametrize("name", ["dino.pth", "model.safetensors", "pytorch_model.bin", "weights"])
def test_files_of_any_suffix_are_accepted(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(b"")
    assert parse_spec(str(path)).kind == "path"


def test_a_path_that_exists_counts_as_it_stands(tmp_path: Path) -> None:
    odd = tmp_path / "run@random"
    odd.mkdir()
    assert not parse_spec(str(odd)).random


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("timm:vit_x@nowhere.pt", "there is no file 'nowhere.pt'; timm:NAME@random is the untrained network"),
        ("torchvision:x@nowhere.pt", "there is no file 'nowhere.pt'; torchvision:NAME@random"),
        ("timm:@random", "names no model; timm:NAME, timm:NAME@random or timm:NAME@FILE"),
        ("timm:", "names no model"),
        ("torchvision:resnet50@", "names no model"),
        ("hf-hub:timm/vit", "is an address; download the file first"),
        ("https://host/file.pt", "is an address; download the file first"),
        ("nowhere/run", "there is no folder or file 'nowhere/run'. Accepted as a model: a run folder"),
        ("", "there is no folder or file ''"),
        ("@random", "there is no folder or file ''"),
    ],
)
def test_everything_else_is_refused_with_what_is_accepted(spec: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_spec(spec)
