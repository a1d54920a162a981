"""A training that joins a running Ray cluster instead of starting its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.nodes import cluster
from tests.integration.project import SMALL, Project

pytestmark = pytest.mark.slow


def test_a_training_joins_the_cluster_of_ray_address(tmp_path: Path) -> None:
    project = Project(tmp_path / "project", git=False)
    project.write(SMALL | {"variants": {"nano": {"spec": "nano"}}})
    project.run("yolov7", "prepare")
    with cluster(tmp_path) as nodes:
        project.run("yolov7", "train", "nano", "--jobs", "0", **nodes.environment | {"PYTHONPATH": str(project.folder)})
        assert project.json("train/nano/0/train.json")["epochs"] == 1
        assert nodes.is_up()  # the training does not stop a cluster that it has joined
