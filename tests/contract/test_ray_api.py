"""The pipeline uses only what Ray documents as public, so that it does not depend on one version of Ray."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "pipeline").rglob("*.py"))


def private_uses(source: str) -> list[str]:
    """Return the private names of Ray in a module: imported modules and names, texts that name one, and attributes.

    A private attribute of an object that is not `self` or `cls` counts, if the module imports Ray.
    """
    tree = ast.parse(source)
    nodes = list(ast.walk(tree))
    imported = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    imported += [
        f"{node.module}.{alias.name}" for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names
    ]
    texts = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    from_ray = [name for name in imported if name.split(".")[0] == "ray"]
    found = [name for name in from_ray + [t for t in texts if t.startswith("ray.")] if _has_private_part(name)]
    if from_ray:
        found += [
            ast.unparse(node)
            for node in nodes
            if isinstance(node, ast.Attribute)
            and node.attr.startswith("_")
            and not node.attr.startswith("__")
            and not (isinstance(node.value, ast.Name) and node.value.id in {"self", "cls"})
        ]
    return found


def _has_private_part(name: str) -> bool:
    return any(part.startswith("_") for part in name.split("."))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_private_part_of_ray_is_used(path: Path) -> None:
    assert private_uses(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from ray._private.state import jobs", ["ray._private.state.jobs"]),
        ("import ray.train.v2._internal.constants", ["ray.train.v2._internal.constants"]),
        ("from ray.train import _checkpoint", ["ray.train._checkpoint"]),
        ("import ray\nray._private.worker.node", ["ray._private"]),
        ("from ray.train.torch import TorchTrainer\nTorchTrainer()._get()", ["TorchTrainer()._get"]),
        ("import importlib\nimportlib.import_module('ray._private')", ["ray._private"]),
        ("import ray\nclass A:\n  def f(self): return self._x, ray.nodes()", []),
        ("class A:\n  def f(self, other): return other._x", []),
    ],
)
def test_private_uses_are_found(source: str, found: list[str]) -> None:
    assert private_uses(source) == found
