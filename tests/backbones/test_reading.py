import argparse
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from patchssl.backbones import load_backbone
from patchssl.backbones.reading import read_file
from patchssl.errors import CheckpointError

WEIGHTS = {"a.weight": torch.arange(600.0).view(20, 30), "b": torch.tensor(2.0, dtype=torch.float16)}


def equal(found: Any, expected: dict[str, torch.Tensor]) -> bool:
    return list(found) == list(expected) and all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".safetensors", ""])
@pytest.mark.parametrize("writer", ["zip", "legacy", "safetensors"])
def test_what_is_written_is_read_whatever_the_suffix(suffix: str, writer: str, tmp_path: Path) -> None:
    if suffix == ".safetensors" and writer != "safetensors":
        pytest.skip("the suffix promises safetensors")
    path = tmp_path / f"weights{suffix}"
    if writer == "safetensors":
        save_file(WEIGHTS, path)
    else:
        torch.save(WEIGHTS, path, _use_new_zipfile_serialization=writer == "zip")
    assert equal(dict(sorted(read_file(path).items())), WEIGHTS)


def test_options_and_numbers_of_training_scripts_are_harmless(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth"
    options = argparse.Namespace(arch="vit_small", lr=np.float64(0.1), epochs=np.int64(3))
    torch.save({"model": WEIGHTS, "args": options, "best": np.float32(0.5)}, path)
    content = read_file(path)
    assert content["args"].arch == "vit_small"
    assert content["args"].lr == 0.1
    assert content["best"] == 0.5


class Harm:
    """Would make a file if it were unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("writer", ["torch", "torch legacy", "pickle"])
def test_files_that_would_run_code_are_refused_and_do_not_run(writer: str, tmp_path: Path) -> None:
    path, trace = tmp_path / "checkpoint.pth", tmp_path / "it-ran"
    content = {"model": WEIGHTS, "harm": Harm(trace)}
    if writer == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=writer == "torch")
    with pytest.raises(CheckpointError) as caught:
        read_file(path)
    assert not trace.exists()
    if writer != "pickle":
        assert "reading it would call posix.mkdir, so it is refused and nothing of it was run" in str(caught.value)
    # The trap is a real one.
    pickle.loads(pickle.dumps(Harm(trace)))
    assert trace.is_dir()


@pytest.mark.parametrize("kept", [1, 7, 8, 9, 64, 0.3, 0.5, 0.9, 0.99, -1])
@pytest.mark.parametrize("writer", ["zip", "legacy", "safetensors"])
def test_files_that_are_cut_are_told(kept: float, writer: str, tmp_path: Path) -> None:
    path = tmp_path / ("w.safetensors" if writer == "safetensors" else "w.pth")
    if writer == "safetensors":
        save_file(WEIGHTS, path)
    else:
        torch.save(WEIGHTS, path, _use_new_zipfile_serialization=writer == "zip")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if 0 < kept < 1 else int(kept)])
    with pytest.raises(CheckpointError) as caught:
        load_backbone(str(path))
    assert str(path) in str(caught.value)
    assert f"({path.stat().st_size:,} bytes)" in str(caught.value)


def test_what_is_no_weight_file_is_named(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.pth", format="JPEG")
    (tmp_path / "text.pth").write_text("Entry not found — try the other address\n" * 3)
    (tmp_path / "page.safetensors").write_text("<html>404</html>")
    (tmp_path / "empty.pth").write_bytes(b"")
    torch.save([1, 2], tmp_path / "list.pth")
    (tmp_path / "pickled.pth").write_bytes(pickle.dumps([1, 2]))
    np.save(tmp_path / "array.npy", np.zeros(3))
    with zipfile.ZipFile(tmp_path / "archive.pth", "w") as archive:
        archive.writestr("readme.txt", "no weights")
    (tmp_path / "noise.pth").write_bytes(bytes(range(200, 256)))
    (tmp_path / "folder").mkdir()
    told = {
        "photo.pth": r"bytes\) is a JPEG image, no weight file; needed: weights by name",
        "text.pth": "is text, no weight file",
        "page.safetensors": "is cut, damaged or no safetensors file",
        "empty.pth": r"is empty \(0 bytes\); copy or download it again",
        "list.pth": "holds a list, no weights by name",
        "pickled.pth": "is cut, damaged or no weight file",
        "array.npy": "is a NumPy array, no weight file",
        "archive.pth": "is cut, damaged or no weight file",
        "noise.pth": "is of an unknown kind, no weight file",
        "folder": "holds no checkpoint: neither checkpoints/latest nor",
    }
    for name, words in told.items():
        with pytest.raises(CheckpointError, match=words):
            load_backbone(str(tmp_path / name))


@pytest.mark.parametrize("content", [{}, {"epoch": 3, "args": None}, {"model": {"epoch": 3}}])
def test_files_without_weights_list_what_they_hold(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=r"c.pth holds no weights; it holds: (nothing|epoch, args|model)"):
        load_backbone(str(tmp_path / "c.pth"))
