"""The environment variables with which Ray is configured. This module imports neither Ray nor torch.

Ray reads some of these variables while it is imported, and its processes inherit all of them. They must therefore be
set before the first `import ray` of this process. A variable that the user has set keeps its value.
"""

from __future__ import annotations

import os
import secrets

from yolov7.system.threads import bound_spinning

NO_DASHBOARD = {"RAY_API_SERVER_ADDRESS": "http://127.0.0.1:9"}
"""An address at which no dashboard answers.

At the end of every training, an actor of Ray Train asks the dashboard for the state of the training. Without a
dashboard it searches for the address for ten seconds; a closed port answers at once.
"""

_EVERYWHERE = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    "RAY_worker_niceness": "0",  # with Ray's default of 15, any other process of the machine slows training down
}
_ON_THIS_MACHINE = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on every system: all of Ray's ports listen on the loopback interface
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # this machine is not removed
    **NO_DASHBOARD,
}


def cluster_address() -> str | None:
    """Return the address of the cluster to join (RAY_ADDRESS), or None if a cluster is to be started here."""
    address = os.environ.get("RAY_ADDRESS", "")
    return None if address in {"", "local"} else address


def set_ray_environment() -> None:
    """Set the variables that Ray reads when it is imported and started, and those of OpenMP in its processes."""
    bound_spinning()
    defaults = dict(_EVERYWHERE)
    if cluster_address() is None:
        defaults |= _ON_THIS_MACHINE
        if "RAY_AUTH_TOKEN_PATH" not in os.environ:  # else Ray would write a token into the user's home folder
            defaults["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
