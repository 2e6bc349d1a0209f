from pathlib import Path

import pytest

from patchssl.backbones import ModelSpec, parse_spec
from patchssl.errors import ConfigError


def test_accepted_forms(tmp_path: Path) -> None:
    run, file = tmp_path / "run", tmp_path / "step.pt"
    run.mkdir()
    file.write_bytes(b"")
    assert parse_spec(str(run)) == ModelSpec(str(run), "run", str(run), random=False)
    assert parse_spec(f"{file}@random") == ModelSpec(f"{file}@random", "run", str(file), random=True)
    assert parse_spec("timm:vit_x@random") == ModelSpec("timm:vit_x@random", "timm", "vit_x", random=True)


def test_a_path_that_exists_counts_as_it_stands(tmp_path: Path) -> None:
    odd = tmp_path / "run@random"
    odd.mkdir()
    assert not parse_spec(str(odd)).random


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("timm:vit_x", "pretrained weights of timm, which are not supported yet; timm:vit_x@random"),
        ("timm:vit_x@weights.pt", "only timm:NAME@random"),
        ("timm:@random", "only timm:NAME@random"),
        ("torchvision:resnet50", "not supported yet. Accepted: a run folder"),
        ("hf-hub:timm/vit", "not supported yet"),
        ("https://host/file.pt", "not supported yet"),
        ("nowhere/run", "there is no folder or file 'nowhere/run'. Accepted as a model"),
        ("", "there is no folder or file ''"),
        ("@random", "there is no folder or file ''"),
    ],
)
def test_everything_else_is_refused_with_what_is_accepted(spec: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_spec(spec)


def test_files_of_other_kinds_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "dino.pth"
    path.write_bytes(b"")
    with pytest.raises(ConfigError, match=r"is a \.pth. Accepted"):
        parse_spec(str(path))
