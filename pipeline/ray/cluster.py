"""Join the Ray cluster of RAY_ADDRESS, or start one on this machine for the time of a command."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.params import RaySettings
from pipeline.ray.environment import NO_DASHBOARD, cluster_address, set_ray_environment
from pipeline.ray.errors import ClusterError
from pipeline.ray.machine import check_machine
from pipeline.ray.placement import Node
from yolov7.errors import one_line
from yolov7.system.plugins import VARIABLE as PLUGINS
from yolov7.system.threads import usable_cpus

_ANSWER_SECONDS = 10.0
_SETTINGS = b"\x04"  # type of the frame with which HTTP/2 connections begin, and hence gRPC's
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + _SETTINGS + bytes(5)
_OBJECT_STORE_BYTES = 256 << 20  # on this machine; workers exchange tensors over torch, and Ray only small values
_QUIET: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
_IN_WORKERS = {"worker_process_setup_hook": "yolov7.system.threads.bound_spinning"}
"""What the processes of a cluster do when they start; here they inherit the environment of this process instead."""


@contextmanager
def connect(settings: RaySettings) -> Iterator[None]:
    """Connect this process to a Ray cluster while the body runs.

    In the main thread, SIGTERM then raises KeyboardInterrupt, as Ctrl-C does.

    Args:
        settings: How many CPUs a cluster that is started here must offer.

    Yields:
        Nothing; the connection is global in Ray.

    Raises:
        ClusterError: If the cluster cannot be reached, or does not start.
    """
    set_ray_environment()
    address = cluster_address()
    if address is None:
        check_machine()
    else:
        check_reachable(address)
    import ray

    try:
        if address is None:
            _start(cpus_to_offer(settings))
        else:
            _join(address)
        interrupt_on_sigterm()  # also where Ray has set a handler of its own
        yield
    finally:
        ray.shutdown()


def interrupt_on_sigterm() -> None:
    """Raise KeyboardInterrupt on SIGTERM, as on Ctrl-C, if this is the main thread."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def cpus_to_offer(settings: RaySettings) -> int:
    """Return the number of CPUs of this machine that all workers together may use."""
    wanted, workers = settings.cpus_per_worker, settings.most_workers
    return workers * (max(1, usable_cpus() // workers) if wanted == "auto" else wanted)


def nodes_alive() -> list[Node]:
    """Return the nodes of the connected cluster that are alive."""
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]
    offers = [(node["NodeManagerHostname"], node["Resources"]) for node in alive]
    return [Node(name, cpus=offer.get("CPU", 0.0), gpus=offer.get("GPU", 0.0)) for name, offer in offers]


def check_reachable(address: str) -> None:
    """Check that a Ray cluster answers at an address; Ray itself would try for minutes.

    Args:
        address: The value of RAY_ADDRESS. `auto` is left to Ray.

    Raises:
        ClusterError: If nothing listens there, or something else than Ray.
    """
    if address.startswith(("http://", "https://")):
        raise ClusterError(
            f"RAY_ADDRESS={address} is the address of Ray's dashboard; name the cluster's own address, HOST:6379"
        )
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address == "auto":
        return
    if not host or not port.isdigit():
        raise ClusterError(f"RAY_ADDRESS={address} must be HOST:PORT, ray://HOST:PORT, auto or local")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_SECONDS) as line:
            line.sendall(_GREETING)
            if not os.environ.get("RAY_USE_TLS") and line.recv(4)[3:] != _SETTINGS:
                raise ConnectionError("another kind of server uses that port")
    except (OSError, OverflowError) as error:  # the latter for a port above 65535
        raise ClusterError(
            f"no Ray cluster answers at RAY_ADDRESS={address} ({getattr(error, 'strerror', None) or error}); "
            "start it, or unset RAY_ADDRESS to train on this machine"
        ) from None


def _start(cpus: int, *, again: bool = True) -> None:
    import ray

    try:
        ray.init(
            address="local",
            num_cpus=cpus,
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            **_QUIET,
        )
    except Exception as error:  # Ray has no class of its own for processes that do not start
        ray.shutdown()
        if again and "timed out" in str(error):  # Ray waits for 30 seconds, which is short on a busy machine
            _start(cpus, again=False)
            return
        raise ClusterError(
            f"Ray does not start on this machine ({one_line(error)}); it needs memory, and room in its temporary "
            "folder (RAY_TMPDIR)"
        ) from error


def _join(address: str) -> None:
    import ray

    try:
        allowed = {name: os.environ[name] for name in (PLUGINS,) if name in os.environ}
        environment = {**_IN_WORKERS, **({"env_vars": allowed} if allowed else {})}
        if not ray.init(address=address, runtime_env=environment, **_QUIET).dashboard_url:
            ray.shutdown()
            ray.init(address=address, runtime_env={**_IN_WORKERS, "env_vars": allowed | NO_DASHBOARD}, **_QUIET)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        if address == "auto" and "Could not find any running Ray" in str(error):
            raise ClusterError(
                "RAY_ADDRESS=auto: no Ray cluster runs on this machine; start one (ray start --head), or unset "
                "RAY_ADDRESS to train without one"
            ) from None
        raise ClusterError(  # a RuntimeError is about another version
            f"the Ray cluster at RAY_ADDRESS={address} refuses the connection: {one_line(error)}; it needs this "
            f"version of Ray ({ray.__version__}) and the same token (RAY_AUTH_MODE=token, RAY_AUTH_TOKEN_PATH)"
        ) from None
