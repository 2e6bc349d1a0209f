"""Imports point downward: the contract in pyproject.toml holds, and every module stands in it."""

import re
import subprocess
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LINT = "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())"


def lint(root: Path, config: Path, environment: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", LINT, "--config", str(config), "--no-cache"]
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)


def layered(repository: Path) -> list[str]:
    """The modules and packages that the contract names."""
    config = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))
    (contract,) = config["tool"]["importlinter"]["contracts"]
    return [name for layer in contract["layers"] for name in re.split(r"\s*[|:]\s*", layer)]


def test_imports_point_downward(unpacked: Path, repository: Path, installed_environment: dict[str, str]) -> None:
    done = lint(unpacked, repository / "pyproject.toml", installed_environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Contracts: 1 kept, 0 broken." in done.stdout


def test_an_upward_import_is_noticed(
    unpacked: Path, repository: Path, installed_environment: dict[str, str], tmp_path: Path
) -> None:
    for path in unpacked.rglob("*.py"):
        copy = tmp_path / path.relative_to(unpacked)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    with (tmp_path / "patchssl" / "errors.py").open("a") as file:
        file.write("\n\ndef late() -> None:\n    import patchssl.cli.main\n")
    done = lint(tmp_path, repository / "pyproject.toml", {**installed_environment, "PYTHONPATH": str(tmp_path)})
    assert done.returncode == 1, done.stdout + done.stderr
    assert "patchssl.errors is not allowed to import patchssl.cli" in " ".join(done.stdout.split())


def test_every_module_stands_in_a_layer(unpacked: Path, repository: Path) -> None:
    names = layered(repository)
    modules = {
        ".".join(path.relative_to(unpacked).with_suffix("").parts).removesuffix(".__init__")
        for path in unpacked.rglob("*.py")
    }
    # The two packages whose own files import nothing of patchssl.
    outside = {module for module in modules if not any(f"{module}.".startswith(f"{name}.") for name in names)}
    assert outside == {"patchssl", "patchssl.evaluate"}
