"""Find faults in the files of infra/ and in workflows: violations of their schema, and of rules that no schema has."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from jsonschema.protocols import Validator
from jsonschema.validators import validator_for
from referencing import Registry, Resource

ROOT = Path(__file__).parents[2]
SCHEMAS = Path(__file__).parent / "schemas"
PROJECT = "/project"  # the folder that every node sees
_SECRET = re.compile(r"PASSWORD|SECRET|TOKEN|KEY")
_PINNED_IMAGE = re.compile(r"[\w./-]+(:v?\d+\.\d+[\w.-]*)?(@sha256:[0-9a-f]{64})?")
_PINNED_ACTION = re.compile(r"[\w./-]+@(v\d+\.\d+\.\d+|[0-9a-f]{40})")
_UNTRUSTED = re.compile(r"\$\{\{[^}]*\b(inputs|github\.event|github\.head_ref|matrix|secrets)\b")


def faults(name: str, text: str) -> list[str]:
    """Return the faults of a text as the content of a file: those found by its schema, otherwise those of its rules.

    Args:
        name: The path of the file in the project.
        text: The content.

    Returns:
        One sentence per fault.
    """
    check = _checks()[name]
    documents = list(yaml.safe_load_all(text)) if check.schemas else []
    pairs = zip(documents, check.schemas, strict=True)
    by_schema = [fault for document, schema in pairs for fault in _by_schema(document, schema())]
    return by_schema or list(check.rules(text))


def names() -> list[str]:
    """Return the paths of the files that are checked."""
    return list(_checks())


@dataclass(frozen=True)
class _Check:
    """The rules of a file, and a schema for each of its documents."""

    rules: Callable[[str], Iterator[str]]
    schemas: tuple[Callable[[], Mapping[str, Any]], ...] = ()


@cache
def _checks() -> dict[str, _Check]:
    claim, kuberay = {"$ref": "kubernetes.json#/$defs/PersistentVolumeClaim"}, {"$ref": "kuberay.json"}
    workflow = _Check(_workflow, (partial(_vendored, "github-workflows"),))
    workflows = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / ".github/workflows").glob("*.yml"))
    return {
        ".dockerignore": _Check(_dockerignore),
        "infra/Dockerfile": _Check(_dockerfile),
        "infra/compose.yaml": _Check(_compose, (partial(_vendored, "compose-spec"),)),
        "infra/kuberay/raycluster.yaml": _Check(_raycluster, (lambda: claim, lambda: kuberay)),
        "infra/kuberay/rayjob.yaml": _Check(_rayjob, (lambda: kuberay,)),
        "infra/kuberay/rayservice.yaml": _Check(_rayservice, (lambda: kuberay,)),
        "infra/ray-cluster-aws.yaml": _Check(_launcher, (_launcher_schema,)),
        **dict.fromkeys(workflows, workflow),
    }


def _dockerignore(text: str) -> Iterator[str]:
    """Check that an image gets what the stages depend on, and only what is named."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    if lines[0] != "*":
        yield "everything that is not named must be left out"
    named = {line.removeprefix("!") for line in lines if line.startswith("!")}
    stages = yaml.safe_load(_read("dvc.yaml"))["stages"].values()
    needed = {dep.split("/")[0] for stage in stages for dep in stage.get("deps", [])} - {"artifacts", "${data.path}"}
    for name in {"dvc.yaml", "params.yaml", "pyproject.toml", "README.md", *needed} - named:
        yield f"{name} is needed in the image"
    for name in named:
        if not (ROOT / name).exists():
            yield f"{name} does not exist"


def _dockerfile(text: str) -> Iterator[str]:
    run = subprocess.run(
        [Path(sys.executable).with_name("hadolint"), "-"], input=text, capture_output=True, text=True, check=False
    )
    yield from (run.stdout + run.stderr).splitlines()
    for stage in re.split(r"^FROM ", text, flags=re.MULTILINE)[1:]:
        head, users = stage.splitlines()[0], re.findall(r"^USER (\S+)", stage, flags=re.MULTILINE)
        if not head.endswith((" base", " torch-cpu", " torch-cuda")) and users not in (["${UID}"], ["1000"]):
            yield f"{head}: must end as a user other than root, named by number for Kubernetes"
    for line in text.splitlines():
        if "pip install" in line and "--constraint" not in line and "--editable ." not in line:
            yield f"an installation without constraints.txt: {line.strip()}"


def _compose(text: str) -> Iterator[str]:
    document = yaml.safe_load(text)
    required = set(re.findall(r"\$\{([A-Z_]+):\?", text)) | {s["environment"] for s in document["secrets"].values()}
    example = set(re.findall(r"^([A-Z_]+)=$", _read("infra/.env.example"), flags=re.MULTILINE))
    if required != example:
        yield f"infra/.env.example must name what is required: {sorted(required ^ example)}"
    for where, value in _leaves(document):
        if _SECRET.search(where[-1]) and not str(value).startswith(("${", "/run/secrets/")):
            yield f"{'.'.join(where)}: a secret must come from the environment"
    services = document["services"]
    for name, service in services.items():
        yield from _service(name, service, services=services)
    yield from _separated(services)


def _service(name: str, service: Mapping[str, Any], *, services: Mapping[str, Any]) -> Iterator[str]:
    for other in service.get("depends_on", {}):
        if other not in services:
            yield f"{name} depends on {other}, which does not exist"
        elif not _networks(service) & _networks(services[other]):
            yield f"{name} depends on {other}, but shares no network with it"
    if "healthcheck" not in service and service["image"] != "yolov7-mlflow":  # whose image has one
        yield f"{name} has no health check"
    if "build" not in service and not service["image"].startswith("yolov7-") and not _is_pinned(service["image"]):
        yield f"{name}: {service['image']} must have an exact version or a digest"
    if name.startswith("ray-") and not any(v.endswith(f":{PROJECT}") for v in service["volumes"]):
        yield f"{name} does not see the project's folder"


def _separated(services: Mapping[str, Any]) -> Iterator[str]:
    """Check that services reach what they depend on, and that jobs reach neither database nor object store.

    Jobs must not be administrators of MLflow either.
    """
    for name, service in services.items():
        for other in service.get("depends_on", {}):
            if other in services and not _networks(service) & _networks(services[other]):
                yield f"{name} cannot reach {other}, on which it depends"
    for name in (name for name in services if name.startswith("ray-")):
        service = services[name]
        for other in ("postgres", "store"):
            if _networks(service) & _networks(services[other]):
                yield f"{name} shares a network with {other}"
        if service["environment"]["MLFLOW_TRACKING_USERNAME"] == "admin":
            yield f"{name} is an administrator of MLflow"


def _networks(service: Mapping[str, Any]) -> set[str]:
    return set(service.get("networks", ["default"]))


def _is_pinned(image: str) -> bool:
    match = _PINNED_IMAGE.fullmatch(image)
    return match is not None and any(match.groups())


def _raycluster(text: str) -> Iterator[str]:
    claim, cluster = yaml.safe_load_all(text)
    if claim["spec"]["accessModes"] != ["ReadWriteMany"]:
        yield "several nodes must write into the project's folder"
    if f"ray=={cluster['spec']['rayVersion']}" not in _read("constraints.txt").splitlines():
        yield "rayVersion must be that of constraints.txt"
    groups = [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]
    for group in groups:
        yield from _pod(group["template"]["spec"], claim=claim["metadata"]["name"])


def _pod(spec: Mapping[str, Any], *, claim: str) -> Iterator[str]:
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    mounts = {mount["mountPath"]: mount["name"] for mount in spec["containers"][0]["volumeMounts"]}
    for name in set(mounts.values()) - set(volumes):
        yield f"the volume {name} is mounted, but does not exist"
    project = volumes.get(mounts.get(PROJECT, ""), {})
    if project.get("persistentVolumeClaim", {}).get("claimName") != claim:
        yield "a pod does not see the project's folder"
    yield from _confined(spec)


def _confined(spec: Mapping[str, Any]) -> Iterator[str]:
    if not spec["securityContext"].get("runAsNonRoot"):
        yield "a pod may run as root"
    if spec["containers"][0]["securityContext"].get("allowPrivilegeEscalation") is not False:
        yield "a container may become root"


def _rayjob(text: str) -> Iterator[str]:
    job = yaml.safe_load(text)
    claim, cluster = yaml.safe_load_all(_read("infra/kuberay/raycluster.yaml"))
    name = cluster["metadata"]["name"]
    if job["spec"].get("clusterSelector") != {"ray.io/cluster": name}:
        yield f"the job must run on the cluster {name}"
    if len({document["metadata"]["namespace"] for document in (job, claim, cluster)}) > 1:
        yield "cluster and job must be in one namespace"
    spec = job["spec"].get("submitterPodTemplate", {}).get("spec")
    if not spec:
        yield "the submitter needs the token"
        return
    env = {variable["name"]: variable for variable in spec["containers"][0].get("env", [])}
    token = env.get("RAY_AUTH_TOKEN", {}).get("valueFrom", {}).get("secretKeyRef")
    if token != {"name": name, "key": "auth_token"}:  # as the operator names it
        yield f"the token must come from the secret {name}"
    wanted = json.loads(job["spec"]["entrypointResources"])
    offered = [group["rayStartParams"].get("resources", "") for group in cluster["spec"]["workerGroupSpecs"]]
    if not any(all(f'\\"{key}\\"' in text for key in wanted) for text in offered):
        yield f"no worker offers {wanted}"
    yield from _confined(spec)


def _rayservice(text: str) -> Iterator[str]:
    """Check the cluster as that of raycluster.yaml, and the application as Ray Serve itself does."""
    from pydantic import ValidationError
    from ray.serve.schema import ServeDeploySchema

    service = yaml.safe_load(text)
    claim, _ = yaml.safe_load_all(_read("infra/kuberay/raycluster.yaml"))
    if service["metadata"]["namespace"] != claim["metadata"]["namespace"]:
        yield "service and volume must be in one namespace"
    cluster = service["spec"]["rayClusterConfig"]
    if f"ray=={cluster['rayVersion']}" not in _read("constraints.txt").splitlines():
        yield "rayVersion must be that of constraints.txt"
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        yield from _pod(group["template"]["spec"], claim=claim["metadata"]["name"])
    try:
        config = ServeDeploySchema.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"]))
    except ValidationError as error:
        yield f"serveConfigV2: {error}"
        return
    for application in config.applications:
        yield from _serve_application(application, cluster=cluster)


def _serve_application(config: Any, *, cluster: Mapping[str, Any]) -> Iterator[str]:
    from ray.serve.config import AutoscalingConfig

    from pipeline.serving.settings import serving_settings
    from yolov7.errors import SettingError

    module, _, name = config.import_path.partition(":")
    path = ROOT / f"{module.replace('.', '/')}.py"
    if not path.is_file() or f"def {name}(" not in path.read_text(encoding="utf-8"):
        yield f"{config.import_path} does not exist"
    try:
        settings = serving_settings(config.args)
    except SettingError as error:
        yield f"args: {error}"
        return
    if not settings.weights.startswith(f"{PROJECT}/"):
        yield "the weights must be in the project's folder"
    limits = cluster["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["resources"]["limits"]
    for deployment in config.deployments:
        for unknown in set(deployment.autoscaling_config or {}) - set(AutoscalingConfig.model_fields):
            yield f"autoscaling_config has no setting {unknown}"
        if deployment.name != "detector":
            yield f"the application has no deployment {deployment.name}"
        if deployment.max_ongoing_requests != settings.max_queue:
            yield "max_ongoing_requests must be max_queue, beyond which a replica refuses requests"
        options = deployment.ray_actor_options
        if options.num_cpus > int(limits["cpu"]) or options.num_gpus > int(limits["nvidia.com/gpu"]):
            yield "a replica does not fit into a worker"


def _launcher(text: str) -> Iterator[str]:
    config = yaml.safe_load(text)
    if config["head_node_type"] not in config["available_node_types"]:
        yield "head_node_type must be one of available_node_types"
    if f"--volume={PROJECT}:{PROJECT}" not in config["docker"].get("run_options", []):
        yield "a container does not see the project's folder"
    mounts = [line for line in config["initialization_commands"] if "mount -t nfs" in line]
    if not mounts or not all("127.0.0.1:/" in line for line in mounts) or "verifyChain = yes" not in text:
        yield "the file system must be mounted through TLS"
    for boto in set(re.findall(r"boto3==[\d.]+", text)) - set(re.findall(r"boto3==[\d.]+", _read("infra/Dockerfile"))):
        yield f"{boto} is not the version in the Dockerfile"
    readme = _read("infra/README.md")
    for variable in re.findall(r"\$\{([A-Z0-9_]+)\}", text):
        if f"export {variable}=" not in readme:
            yield f"infra/README.md does not explain {variable}"


def _launcher_schema() -> dict[str, Any]:
    return _schema_in("ray", "autoscaler/ray-schema.json")


def _workflow(text: str) -> Iterator[str]:
    document = yaml.safe_load(text)
    if document.get("permissions") != {"contents": "read"}:
        yield "a workflow may only read; a job that writes needs permissions of its own"
    for name, job in document["jobs"].items():
        yield from (f"{name}: {fault}" for fault in _job(job, jobs=document["jobs"]))


def _job(job: Mapping[str, Any], *, jobs: Mapping[str, Any]) -> Iterator[str]:
    if "timeout-minutes" not in job:
        yield "it has no time limit"
    for action in (step["uses"] for step in job["steps"] if "uses" in step):
        if not _PINNED_ACTION.fullmatch(action):
            yield f"{action} must have an exact version or a commit"
    targets = set(re.findall(r"^([^\s:#]+):", _read("Makefile"), flags=re.MULTILINE)) | {".venv/.ready"}
    for script in (step["run"] for step in job["steps"] if "run" in step):
        if _UNTRUSTED.search(script):
            yield "pass values from outside through env, where the shell does not read them as commands"
        for target in re.findall(r"\bmake (\S+)", script):
            if target not in targets:
                yield f"the Makefile has no {target}"
    for needed in [job["needs"]] if isinstance(job.get("needs"), str) else job.get("needs", []):
        if needed not in jobs:
            yield f"it needs {needed}, which does not exist"


def _by_schema(document: Any, schema: Mapping[str, Any]) -> Iterator[str]:
    for error in _validator(json.dumps(schema)).iter_errors(_as_json(document)):
        yield f"{'.'.join(str(part) for part in error.absolute_path)}: {error.message[:200]}"


@cache
def _validator(schema: str) -> Validator:
    content = json.loads(schema)
    kubernetes = json.loads((SCHEMAS / "kubernetes.json").read_text(encoding="utf-8"))
    kuberay = yaml.safe_load((SCHEMAS / "kuberay.yaml").read_text(encoding="utf-8"))
    registry: Registry[Any] = Registry().with_resources(
        [(known["$id"], Resource.from_contents(known)) for known in (kubernetes, kuberay)]
    )
    return validator_for(content, default=validator_for(kubernetes))(content, registry=registry)


def _vendored(name: str) -> dict[str, Any]:
    """A schema that check-jsonschema brings."""
    return _schema_in("check_jsonschema", f"builtin_schemas/vendor/{name}.json")


def _schema_in(package: str, path: str) -> dict[str, Any]:
    """Without importing the package."""
    found = find_spec(package)
    assert found is not None
    assert found.origin is not None
    schema: dict[str, Any] = json.loads((Path(found.origin).parent / path).read_text(encoding="utf-8"))
    return schema


def _as_json(document: Any) -> Any:
    """YAML 1.1 reads the key `on` as true."""
    if isinstance(document, dict):
        return {"on" if key is True else key: _as_json(value) for key, value in document.items()}
    return [_as_json(value) for value in document] if isinstance(document, list) else document


def _leaves(value: Any, where: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, (*where, str(key)))
    elif not isinstance(value, list) and where:
        yield where, value


def _read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")
