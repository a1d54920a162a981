"""The package without extras: which commands work, and what the others say. A finder hides the packages of extras."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import cv2
import pytest
import torch
import yaml

from tests.unit.media import noise
from yolov7.nn.model import DetectionModel
from yolov7.spec.spec_files import load_spec
from yolov7.weights.weight_files import save_weights

BASE = {
    "models": "",
    "scale": "nano --depth 2",
    "weights list": "",
    "tables": "--check",
    "data check": "set --html page.html",
    "predict": "weights.safetensors set/val --json --csv --coco --yolo --crops --confidence 0.0001",
    "evaluate": "--weights weights.safetensors --data set --out figures",
    "evaluate --predictions": "figures/predictions.json --data set",
    "export": "weights.safetensors --format torchscript",
    "export-weights": "weights.safetensors -o weights.pt",
    "import-weights": "weights.pt -o again.safetensors",
    "resolve": "",
}
NEEDS_PIPELINE = ("train nano", "reparam", "evaluate nano", "tables", "tune --budget 1m", "ui")
RUNNER = """
import contextlib, io, json, sys
from pathlib import Path

class Hide:  # a finder that does not find the packages of extras, as if they were not installed
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in HIDDEN else self.finder.find_spec(name, path, target)

HIDDEN = set(sys.argv[1].split(","))
sys.meta_path[:] = [Hide(finder) for finder in sys.meta_path]
from pipeline.cli.main import main
results = {}
for line in sys.argv[2:]:
    sys.argv = ["yolov7", *line.split()]
    errors = io.StringIO()
    code = 0
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        try:
            main()
        except SystemExit as end:
            code = end.code
    results[line] = (code or 0, errors.getvalue())
Path("results.json").write_text(json.dumps(results))
"""

pytestmark = pytest.mark.slow  # each command is a process that imports torch


def hidden() -> set[str]:
    """The names under which the packages of extras are imported, apart from jinja2, which torch requires."""
    from pipeline.cli.main import _EXTRAS

    return {*_EXTRAS, "PIL"} - {"jinja2"}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str]]:
    folder = tmp_path_factory.mktemp("without extras")
    torch.manual_seed(0)
    model = DetectionModel(load_spec("nano"), num_classes=2)
    save_weights(folder / "weights.safetensors", model, class_names=("cat", "dog"), image_size=64, training={})
    (folder / "set/val").mkdir(parents=True)
    for number in (1, 2):
        cv2.imwrite(str(folder / f"set/val/{number}.jpg"), noise(64, 80))
    content = {
        "images": [{"id": number, "file_name": f"{number}.jpg", "width": 80, "height": 64} for number in (1, 2)],
        "annotations": [
            {
                "id": number,
                "image_id": number,
                "category_id": number,
                "bbox": [5, 5, 40, 30],
                "area": 1200,
                "iscrowd": 0,
            }
            for number in (1, 2)
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }
    (folder / "set/val.json").write_text(json.dumps(content), encoding="utf-8")
    params = {"data": {"path": "set"}, "seeds": [0], "variants": {"nano": {"spec": "nano"}}, "train": {"epochs": 1}}
    (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    lines = [*(f"{name} {rest}".strip() for name, rest in BASE.items()), *NEEDS_PIPELINE, "serve weights.safetensors"]
    done = subprocess.run(
        [sys.executable, "-c", RUNNER, ",".join(sorted(hidden())), *lines],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", BASE)
def test_a_command_of_the_base_package_needs_no_extra(results: dict[str, tuple[int, str]], name: str) -> None:
    code, errors = results[f"{name} {BASE[name]}".strip()]
    assert code == 0, errors


@pytest.mark.parametrize("line", [*NEEDS_PIPELINE, "serve weights.safetensors"])
def test_a_command_without_its_extra_names_it_in_one_line(results: dict[str, tuple[int, str]], line: str) -> None:
    code, errors = results[line]
    extra = "serve" if line.startswith("serve") else "pipeline"
    assert code == 2, errors
    (told,) = errors.strip().splitlines()
    assert re.search(rf"install it with: pip install 'yolov7-pipeline\[{extra}\]'$", told), told
