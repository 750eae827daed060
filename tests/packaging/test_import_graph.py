"""Imports run one way: no circle between modules or between folders, and no package knows the ones above it."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("mikernels", "pruning", "benchmarks")  # from below to above


def module_name(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(file): file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))}


def imports(module: str) -> set[str]:
    """Every module of the repository that `module` imports, at its top or within a function."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    # A package's own `__init__` is what is imported only if no submodule of that name is.
    return {
        name for name in found if name in MODULES and name != module and not module.startswith(f"{name}.")
    }


def test_no_circle_between_modules():
    graph = {module: imports(module) for module in MODULES}
    list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


@pytest.mark.parametrize("package", PACKAGES)
def test_no_circle_between_the_folders_of_a_package(package):
    def room(module: str) -> str:
        return ".".join(module.split(".")[:2])

    graph: dict[str, set[str]] = {}
    for module in MODULES:
        if module.startswith(f"{package}."):
            used = {room(name) for name in imports(module) if name.startswith(f"{package}.")}
            graph.setdefault(room(module), set()).update(used - {room(module)})
    list(TopologicalSorter(graph).static_order())


def test_no_package_imports_one_above_it():
    def level(module: str) -> int:
        return PACKAGES.index(module.partition(".")[0])

    upward = [(module, name) for module in MODULES for name in imports(module) if level(name) > level(module)]
    assert not upward
