"""What is installed is what the tree holds, under the import names that the documentation gives."""

import ast
import re
import stat
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LINKS = ("evaluate", "configs", "results")
# The folders of the package that hold data and no code.
DATA_FOLDERS = ["patchssl.configs", "patchssl.results"]
# Where the import name is not the distribution's.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "faiss": "faiss-cpu",
    "huggingface_hub": "huggingface-hub",
    "lightning_fabric": "lightning-fabric",
    "sklearn": "scikit-learn",
    "yaml": "PyYAML",
}


def tree_files(repository: Path) -> set[str]:
    """The package's files, by their place in an installation."""
    files = {
        path.relative_to(repository)
        for folder in ("patchssl", *LINKS)
        for path in (repository / folder).rglob("*")
        if path.suffix in (".py", ".yaml", ".typed", ".csv") and not path.is_symlink()
    }
    # Until Python 3.13 rglob follows no links; where it does, the same files would come by two paths.
    files = {path for path in files if path.parts[:2] not in [("patchssl", name) for name in LINKS]}
    return {path.as_posix() if path.parts[0] == "patchssl" else f"patchssl/{path.as_posix()}" for path in files}


def project(repository: Path) -> dict[str, Any]:
    return tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))


def run(code: str, *, cwd: Path, env: dict[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, env=env, capture_output=True, text=True)


def test_wheel_holds_exactly_the_tree(wheel: Path, repository: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if not name.split("/")[0].endswith(".dist-info")}
        modes = [info.external_attr >> 16 for info in archive.infolist()]
    assert held == tree_files(repository)
    assert not any(stat.S_ISLNK(mode) for mode in modes)
    assert "patchssl/evaluate/__init__.py" in held


def test_wheel_holds_the_recipes_and_the_licence(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert [name for name in names if re.fullmatch(r"patchssl/configs/pretrain/[\w-]+\.yaml", name)]
    assert [name for name in names if re.fullmatch(r"patchssl-[\w.]+\.dist-info/licenses/LICENSE", name)]


def test_packages_are_those_of_the_tree(repository: Path) -> None:
    listed = project(repository)["tool"]["setuptools"]["packages"]
    with_code = {str(Path(name).parent).replace("/", ".") for name in tree_files(repository) if name.endswith(".py")}
    assert listed == sorted(with_code | set(DATA_FOLDERS))


def test_every_package_has_an_init_except_data(repository: Path) -> None:
    files = tree_files(repository)
    packages = project(repository)["tool"]["setuptools"]["packages"]
    without = [name for name in packages if f"{name.replace('.', '/')}/__init__.py" not in files]
    assert without == DATA_FOLDERS


def test_links_are_relative_and_lead_to_the_folders(repository: Path) -> None:
    for name in LINKS:
        link = repository / "patchssl" / name
        assert link.is_symlink()
        assert link.readlink() == Path("..", name)


@pytest.mark.parametrize("place", ["checkout", "wheel"])
def test_recipes_are_found_by_name(
    place: str, repository: Path, installed_environment: dict[str, str], tmp_path: Path
) -> None:
    code = (
        "from importlib import resources; folder = resources.files('patchssl.configs') / 'pretrain'; "
        "print(*sorted(f.name for f in folder.iterdir() if f.name.endswith('.yaml') and f.read_text()))"
    )
    in_checkout = place == "checkout"
    done = run(code, cwd=repository if in_checkout else tmp_path, env=None if in_checkout else installed_environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == sorted(path.name for path in (repository / "configs" / "pretrain").glob("*.yaml"))


@pytest.mark.parametrize("place", ["checkout", "wheel"])
def test_published_figures_are_found(
    place: str, repository: Path, installed_environment: dict[str, str], tmp_path: Path
) -> None:
    code = "from patchssl.evaluate.comparing.published import read_published; print(len(read_published()))"
    in_checkout = place == "checkout"
    done = run(code, cwd=repository if in_checkout else tmp_path, env=None if in_checkout else installed_environment)
    assert done.returncode == 0, done.stderr
    lines = (repository / "results" / "published.csv").read_text(encoding="utf-8").splitlines()
    assert int(done.stdout) == len(lines) - 1 > 100


def test_installed_package_runs_outside_of_the_checkout(
    unpacked: Path, installed_environment: dict[str, str], repository: Path, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "patchssl", "--version"],
        cwd=tmp_path,
        env=installed_environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (version,) = re.findall(r'__version__ = "(.+)"', (repository / "patchssl" / "__init__.py").read_text())
    assert done.stdout.split() == ["patchssl,", "version", version]
    assert (unpacked / f"patchssl-{version}.dist-info").is_dir()

    done = run(
        "import patchssl.evaluate, patchssl; print(patchssl.__file__); print(patchssl.evaluate.__file__)",
        cwd=tmp_path,
        env=installed_environment,
    )
    assert done.stdout.split() == [
        str(unpacked / "patchssl" / "__init__.py"),
        str(unpacked / "patchssl" / "evaluate" / "__init__.py"),
    ]


def test_another_package_called_evaluate_stays_importable(
    unpacked: Path, installed_environment: dict[str, str], tmp_path: Path
) -> None:
    assert not (unpacked / "evaluate").exists()
    other = tmp_path / "site" / "evaluate"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("OWNER = 'another distribution'\n")
    env = {**installed_environment, "PYTHONPATH": f"{unpacked}:{other.parent}"}
    done = run(
        "import evaluate, patchssl.evaluate; assert evaluate is not patchssl.evaluate; print(evaluate.OWNER)",
        cwd=tmp_path,
        env=env,
    )
    assert done.stdout == "another distribution\n", done.stderr


def test_import_under_the_wrong_name_says_the_right_one(repository: Path) -> None:
    done = run("import evaluate", cwd=repository)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ImportError: ")
    assert "`import patchssl.evaluate`" in last


def test_console_script_is_the_main_function(unpacked: Path) -> None:
    (entry_points,) = unpacked.glob("*.dist-info/entry_points.txt")
    assert "patchssl = patchssl.cli.main:main" in entry_points.read_text()


def test_every_import_is_declared(repository: Path) -> None:
    about = project(repository)["project"]
    lines = [*about["dependencies"], *about["optional-dependencies"]["log"], *about["optional-dependencies"]["shards"]]
    declared = {re.split(r"[<>=]", line)[0] for line in lines}
    undeclared = {
        f"{path.relative_to(repository)}: {name}"
        for folder in ("patchssl", "evaluate")
        for path in (repository / folder).rglob("*.py")
        for name in _imported(path)
        if DISTRIBUTIONS.get(name, name) not in declared | {"patchssl"} | sys.stdlib_module_names
    }
    assert not undeclared


def _imported(path: Path) -> set[str]:
    """The top-level names that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names
