"""Start a tracking server as teams run it: MLflow with authentication, PostgreSQL and an S3-compatible store."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

BUCKET = "mlflow"
ADMIN, USER = "admin", "someone"
PASSWORD = secrets.token_hex(16)
_START_SECONDS = 180.0


def missing() -> str | None:
    """Return what has to be installed before the servers can be started, or None."""
    if _postgres_folder() is None:
        return "PostgreSQL is not installed: on Debian and Ubuntu, `apt-get install postgresql`"
    return None


class TrackingServer:
    """MLflow's server with its database and object store."""

    def __init__(self, folder: Path, *, database: str, store: str) -> None:
        self.database, self.store = database, store
        self._folder = folder
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def environment(self) -> dict[str, str]:
        """Return what a client needs to write, which includes no key of the object store."""
        return {
            "MLFLOW_TRACKING_URI": self.url,
            "MLFLOW_TRACKING_USERNAME": USER,
            "MLFLOW_TRACKING_PASSWORD": PASSWORD,
        }

    def bucket(self) -> Any:
        """Return the bucket as the object store shows it, without MLflow."""
        import boto3

        return boto3.resource(
            "s3", endpoint_url=self.store, region_name="us-east-1", aws_access_key_id="k", aws_secret_access_key="s"
        ).Bucket(BUCKET)

    def start(self) -> None:
        config = self._folder / "auth.ini"
        config.write_text(
            f"[mlflow]\ndefault_permission = READ\ndatabase_uri = {self.database}\nadmin_username = {ADMIN}\n"
            "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\nauth_cache_ttl_seconds = 60\n"
        )
        options = ["--backend-store-uri", self.database, "--artifacts-destination", f"s3://{BUCKET}"]
        command = [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--workers", "1", *options]
        environment = os.environ | {
            "MLFLOW_AUTH_CONFIG_PATH": str(config),
            "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(16),
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_S3_ENDPOINT_URL": self.store,
            "AWS_ACCESS_KEY_ID": "k",
            "AWS_SECRET_ACCESS_KEY": "s",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        self._process = _start([*command, "--port", str(self._port)], self._folder, env=environment)
        _wait(lambda: urllib.request.urlopen(f"{self.url}/health", timeout=5), self._process, self._folder)

    def freeze(self) -> None:
        """Accept connections without answering, until `thaw`."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def add_user(self) -> None:
        """Add a user who is not an administrator."""
        body = f'{{"username": "{USER}", "password": "{PASSWORD}"}}'.encode()
        request = urllib.request.Request(f"{self.url}/api/2.0/mlflow/users/create", body, method="POST")
        passwords = urllib.request.HTTPPasswordMgrWithPriorAuth()
        passwords.add_password(None, self.url, ADMIN, PASSWORD, is_authenticated=True)
        request.add_header("Content-Type", "application/json")
        urllib.request.build_opener(urllib.request.HTTPBasicAuthHandler(passwords)).open(request, timeout=30)


@contextmanager
def tracking_server() -> Iterator[TrackingServer]:
    """Start all three, on ports and in folders of their own."""
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="tracking-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        database = stack.enter_context(_postgres(folder / "postgres"))
        server = TrackingServer(folder, database=database, store=stack.enter_context(object_store()))
        server.bucket().create()
        server.start()
        stack.callback(server.stop)
        server.add_user()
        yield server


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def object_store() -> Iterator[str]:
    """Start an S3-compatible object store, and yield its address."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@contextmanager
def _postgres(folder: Path) -> Iterator[str]:
    """Start PostgreSQL and yield its address; it refuses to run as root, and then runs as another user."""
    binaries = _postgres_folder()
    assert binaries is not None
    folder.mkdir()
    (folder.parent).chmod(0o755)
    user = "nobody" if os.geteuid() == 0 else None
    if user:
        shutil.chown(folder, user)
    password, port = folder.with_suffix(".password"), free_port()
    password.write_text(PASSWORD)
    password.chmod(0o644)
    options = ["--username=mlflow", "--auth=scram-sha-256", f"--pwfile={password}", "--no-sync", "--encoding=UTF8"]
    make = [binaries / "initdb", f"--pgdata={folder / 'data'}", *options]
    subprocess.run(make, user=user, cwd="/", check=True, capture_output=True)
    command = [
        binaries / "postgres",
        "-D",
        folder / "data",
        "-h",
        "127.0.0.1",
        "-p",
        port,
        "-k",
        folder,
        "-c",
        "fsync=off",
    ]
    process = _start([str(part) for part in command], folder.parent, user=user)
    address = f"mlflow:{PASSWORD}@127.0.0.1:{port}/postgres"
    try:
        _wait(lambda: _connect(f"postgresql://{address}"), process, folder.parent)
        yield f"postgresql+psycopg://{address}"
    finally:
        _kill(process, signal.SIGQUIT)


def _connect(address: str) -> None:
    import psycopg

    psycopg.connect(address).close()


def _postgres_folder() -> Path | None:
    found = shutil.which("initdb")
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    return Path(found).parent if found else debian[-1].parent if debian else None


def _start(command: Sequence[str], folder: Path, **how: Any) -> subprocess.Popen[bytes]:
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, start_new_session=True, **how)


def _wait(look: Any, process: subprocess.Popen[bytes], folder: Path) -> None:
    until = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < until:
        try:
            look()
        except Exception:
            time.sleep(0.2)
        else:
            return
    _kill(process, signal.SIGKILL)
    raise RuntimeError(f"{process.args} did not start:\n{(folder / 'log.txt').read_text()[-3000:]}")


def _kill(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)
    process.wait(30)
