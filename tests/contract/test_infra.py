"""Check every file of infra/ and every workflow against its schema and its rules, and that mutations are noticed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.contract.infra_files import ROOT, faults, names

CHECKS, GPU = ".github/workflows/checks.yml", ".github/workflows/gpu.yml"
PIPELINE = ".github/workflows/pipeline.yml"
CLUSTER, JOB = "infra/kuberay/raycluster.yaml", "infra/kuberay/rayjob.yaml"
SERVICE = "infra/kuberay/rayservice.yaml"
COMPOSE, DOCKERFILE, LAUNCHER = "infra/compose.yaml", "infra/Dockerfile", "infra/ray-cluster-aws.yaml"

MUTATIONS = [
    (".dockerignore", "*\n!", "!"),
    (".dockerignore", "!yolov7\n", ""),
    (".dockerignore", "!tune\n", "!tunes\n"),
    (DOCKERFILE, "FROM base AS mlflow", "FORM base AS mlflow"),
    (DOCKERFILE, "USER ${UID}\n", ""),
    (DOCKERFILE, "USER ${UID}\n", "USER ${UID}\nUSER root\n"),
    (DOCKERFILE, "USER ${UID}\n", "USER yolov7\n"),
    (DOCKERFILE, "WORKDIR /project", "WORKDIR project"),
    (DOCKERFILE, "--constraint /tmp/constraints.txt torch", "torch"),
    (COMPOSE, "healthcheck:", "health_check:"),
    (COMPOSE, "retries: 12", "retries: [12]"),
    (COMPOSE, "restart: unless-stopped", "restart: [always]"),
    (COMPOSE, "ray-head: {condition: service_healthy}", "ray-heads: {condition: service_healthy}"),
    (COMPOSE, "condition: service_healthy", "condition: service_wealthy"),
    (COMPOSE, "${STORE_SECRET_KEY:?set it in infra/.env}", "hunter2"),
    (COMPOSE, "${MLFLOW_SESSION_KEY:?set it in infra/.env}", "${MLFLOW_SESSION:?set it in infra/.env}"),
    (COMPOSE, ":/project", ":/projects"),
    (COMPOSE, "MLFLOW_TRACKING_USERNAME: pipeline", "MLFLOW_TRACKING_USERNAME: admin"),
    (COMPOSE, "networks: [storage]", "networks: [jobs]"),
    (COMPOSE, "    networks: [storage]\n", ""),
    (COMPOSE, "networks: [jobs]  #", "networks: [jobs, storage]  #"),
    (COMPOSE, "postgres:17.6-alpine", "postgres:latest"),
    (COMPOSE, "chrislusf/seaweedfs:3.97", "chrislusf/seaweedfs"),
    (CLUSTER, "ReadWriteMany", "ReadWriteOnce"),
    (CLUSTER, "storage: 500Gi", "storage: [500Gi]"),
    (CLUSTER, "rayVersion: 2.60.0", "rayVersion: 2.59.0"),
    (CLUSTER, "headGroupSpec:", "headGroup:"),
    (CLUSTER, 'num-cpus: "0"', "num-cpus: 0"),
    (CLUSTER, "mode: token", "mode: tokens"),
    (CLUSTER, "      minReplicas: 0\n", ""),
    (CLUSTER, "upscalingMode: Default", "upscalingMode: Fast"),
    (CLUSTER, "mountPath: /project", "mountPath: /projects"),
    (CLUSTER, "name: project\n            persistent", "name: projects\n            persistent"),
    (CLUSTER, "runAsNonRoot: true", "runAsNonRoot: false"),
    (CLUSTER, "allowPrivilegeEscalation", "allowPrivilege"),
    (JOB, "entrypoint: bash", "entryPoint: bash"),
    (JOB, "ray.io/cluster: yolov7", "ray.io/cluster: yolov8"),
    (JOB, "submissionMode: K8sJobMode", "submissionMode: Job"),
    (JOB, "key: auth_token", "key: token"),
    (JOB, '{"pipeline": 1}', '{"pipelines": 1}'),
    (JOB, "namespace: yolov7", "namespace: default"),
    (JOB, "restartPolicy: Never", "restartPolicies: Never"),
    (SERVICE, "serveConfigV2: |", "serveConfig: |"),
    (SERVICE, "rayVersion: 2.60.0", "rayVersion: 2.59.0"),
    (SERVICE, "namespace: yolov7", "namespace: default"),
    (SERVICE, "claimName: yolov7-project", "claimName: project"),
    (SERVICE, "runAsNonRoot: true", "runAsNonRoot: false"),
    (SERVICE, "import_path: pipeline.ray.serve_application:application", "import_path: pipeline.ray.serve:application"),
    (SERVICE, "weights: /project/", "weights: /home/"),
    (SERVICE, "          max_queue: 64", "          max_queues: 64"),
    (SERVICE, "max_ongoing_requests: 64", "max_ongoing_requests: 100"),
    (SERVICE, "          - name: detector\n            max", "          - name: detectors\n            max"),
    (SERVICE, "num_gpus: 1", "num_gpus: 2"),
    (SERVICE, "max_replicas: 8", "max_replica: 8"),
    (LAUNCHER, "max_workers: 8", "max_workers: eight"),
    (LAUNCHER, "head_node_type: head", "head_node_type: chief"),
    (LAUNCHER, "available_node_types", "node_types"),
    (LAUNCHER, "--volume=/project:/project", "--volume=/project:/projects"),
    (LAUNCHER, "${YOLOV7_EFS}", "${YOLOV7_STORAGE}"),
    (LAUNCHER, "boto3==", "boto3==9."),
    (LAUNCHER, "127.0.0.1:/ /project", "${YOLOV7_EFS}:/ /project"),
    (LAUNCHER, "verifyChain = yes", "verifyChain = no"),
    (CHECKS, "actions/checkout@v5.0.0", "actions/checkout@v5"),
    (CHECKS, "runs-on:", "run-on:"),
    (CHECKS, "make check", "make checks"),
    (CHECKS, "    timeout-minutes: 120\n", ""),
    (CHECKS, '--target "$TARGET"', "--target ${{ matrix.target }}"),
    (PIPELINE, "needs: repro", "needs: reproduce"),
    (PIPELINE, "contents: read", "contents: write"),
    (PIPELINE, "pull_request:", "pull_requests:"),
    (PIPELINE, "actions/cache/save@v4.3.0", "actions/cache/save@v4"),
    (GPU, "workflow_dispatch:", "workflow_despatch:"),
    (GPU, "cancel-in-progress: false", "cancel: false"),
    (GPU, 'yolov7 use "$EXPERIMENT"', "yolov7 use ${{ inputs.experiment }}"),
]


@pytest.mark.parametrize("name", names())
def test_a_file_is_valid(name: str) -> None:
    assert faults(name, (ROOT / name).read_text()) == []


@pytest.mark.parametrize(("name", "old", "new"), MUTATIONS)
def test_a_mutation_is_noticed(name: str, old: str, new: str) -> None:
    text = (ROOT / name).read_text()
    assert old in text
    assert faults(name, text.replace(old, new))


@pytest.mark.parametrize("has_main", [True, False])
def test_a_pull_request_shows_which_figures_differ_from_those_of_main(has_main: bool, tmp_path: Path) -> None:
    steps = yaml.safe_load((ROOT / PIPELINE).read_text())["jobs"]["repro"]["steps"]
    script = next(step["run"] for step in steps if "dvc metrics diff" in step.get("run", ""))
    write_figures(tmp_path / "results", {"nano": 0.51, "deep": 0.6, "new": 0.7})
    (tmp_path / "results" / "tables").mkdir()
    if has_main:
        write_figures(tmp_path / "artifacts", {"nano": 0.5, "deep": 0.6})
    activate = tmp_path / ".venv/bin/activate"
    activate.parent.mkdir(parents=True)
    activate.write_text(f"export PATH='{Path(sys.executable).parent}':$PATH\n")
    environment = os.environ | {"DVC_NO_ANALYTICS": "1"}
    subprocess.run(["bash", "-e", "-c", script], cwd=tmp_path, check=True, env=environment)
    lines = (tmp_path / "results/tables/difference.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.split("|")] for line in lines if "json" in line]
    rows = {row[1]: row[3:6] for row in cells}
    assert rows["evaluate/new/0/metrics.json"] == ["-", "0.7", "-"]
    assert rows["evaluate/nano/0/metrics.json"] == (["0.5", "0.51", "0.01"] if has_main else ["-", "0.51", "-"])
    assert ("evaluate/deep/0/metrics.json" in rows) == (not has_main)


def write_figures(folder: Path, figures: dict[str, float]) -> None:
    for variant, ap in figures.items():
        path = folder / "evaluate" / variant / "0" / "metrics.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"AP": ap}))


def test_every_file_is_checked_and_mutated() -> None:
    prose = {"README.md", ".env.example", ".gitignore"}
    there = {path for folder in ("infra", ".github") for path in (ROOT / folder).rglob("*") if path.is_file()}
    files = {path.relative_to(ROOT).as_posix() for path in there if path.name not in prose | {".env"}}
    assert files | {".dockerignore"} == set(names()) == {name for name, _, _ in MUTATIONS}


def test_ray_itself_reads_the_cluster() -> None:
    """Check what Ray's autoscaler reads from the resource that KubeRay passes to it."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    _, cluster = yaml.safe_load_all((ROOT / CLUSTER).read_text())
    nodes = _derive_autoscaling_config_from_ray_cr(cluster)["available_node_types"]
    assert nodes["headgroup"]["resources"]["CPU"] == 0
    assert nodes["gpu"]["resources"]["GPU"] == 8
    assert nodes["gpu"]["resources"]["pipeline"] == 1


def test_python_versions_are_those_of_the_package() -> None:
    matrix = yaml.safe_load((ROOT / CHECKS).read_text())["jobs"]["checks"]["strategy"]["matrix"]["python"]
    low, high = re.findall(r"\d+\.(\d+)", re.search(r'requires-python = "(.*)"', _pyproject())[1])  # type: ignore[index]
    assert matrix == [f"3.{minor}" for minor in range(int(low), int(high))]


def _pyproject() -> str:
    return (ROOT / "pyproject.toml").read_text()
