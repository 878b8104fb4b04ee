"""pyproject.toml, requirements.lock, environment.yml and what the code imports agree."""

import ast
import importlib.metadata
import re
import sys
import tomllib

import nbformat
import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from fa_utils.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
DECLARED = [Requirement(line) for line in PROJECT["dependencies"] + sum(EXTRAS.values(), [])]
LOCK = {canonicalize_name(line.partition("==")[0]): line.partition("==")[2]
        for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")}
# onnx2torch and torchattacks ask for torchvision and use it only in parts that the project does not touch.
LEFT_OUT = {"torchvision"}


def test_the_lock_pins_exact_versions():
    assert len(LOCK) > 100
    assert all(Version(version) for version in LOCK.values())
    assert LOCK["torch"] == "2.13.0"
    assert LOCK["jupyter-book"] == "1.0.4.post1"
    assert not LEFT_OUT & set(LOCK)
    assert not [name for name in LOCK if name.startswith(("nvidia", "triton", "cuda"))]


@pytest.mark.parametrize("requirement", DECLARED, ids=lambda requirement: requirement.name)
def test_the_lock_holds_what_pyproject_asks_for(requirement):
    assert LOCK[canonicalize_name(requirement.name)] in requirement.specifier


def _requirements(name: str) -> list[Requirement]:
    found = map(Requirement, importlib.metadata.requires(name) or [])
    here = default_environment() | {"extra": ""}
    return [requirement for requirement in found if requirement.marker is None or requirement.marker.evaluate(here)]


def test_the_lock_is_complete():
    """It is installed without dependencies, so it must hold all that its packages need."""
    missing = [f"{name} needs {requirement}" for name in LOCK for requirement in _requirements(name)
               if canonicalize_name(requirement.name) not in LEFT_OUT
               and LOCK.get(canonicalize_name(requirement.name), "0") not in requirement.specifier
               # The CUDA libraries that some builds of torch ask for are torch's own business.
               and name != "torch"]
    assert missing == []


def test_what_is_installed_is_what_the_lock_says():
    installed = {name: Version(importlib.metadata.version(name)).public for name in LOCK}
    assert installed == {name: Version(version).public for name, version in LOCK.items()}


def test_conda_installs_the_project_with_both_extras():
    wanted = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert f"python={PROJECT['requires-python'].removeprefix('>=')}" in wanted
    (pip,) = [entry["pip"] for entry in wanted if isinstance(entry, dict)]
    assert pip == [f"-e .[{','.join(sorted(EXTRAS))}]"]


def test_pyproject_pins_nothing():
    assert [str(requirement) for requirement in DECLARED if "==" in str(requirement.specifier)] == []


def _imports(source: str) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def _code(folder: str) -> str:
    parts = [path.read_text() for path in sorted((ROOT / folder).rglob("*.py"))]
    for path in sorted((ROOT / folder).glob("*.ipynb")):
        cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        parts += [re.sub(r"^\s*[%!].*$", "", source, flags=re.MULTILINE) for source in cells]
    return "\n".join(part.replace("from __future__ import annotations", "") for part in parts)


@pytest.mark.parametrize(("folder", "declared"), [
    ("fa_utils", PROJECT["dependencies"]),
    ("notebooks", PROJECT["dependencies"]),
    ("benchmarks", PROJECT["dependencies"] + EXTRAS["test"]),
    ("tests", PROJECT["dependencies"] + EXTRAS["test"] + EXTRAS["book"]),
])
def test_what_is_imported_is_declared(folder, declared):
    providers = importlib.metadata.packages_distributions()
    known = {canonicalize_name(Requirement(line).name) for line in declared} | {"fa-utils"}
    own = {path.stem for path in (ROOT / folder).glob("*.py")} | {"fa_utils"}
    outside = _imports(_code(folder)) - set(sys.stdlib_module_names) - own
    undeclared = {name for name in outside if not known & {canonicalize_name(p) for p in providers.get(name, [])}}
    assert undeclared == set()
