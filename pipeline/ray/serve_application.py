"""The HTTP service as a Ray Serve application, for a cluster: serve run pipeline.ray.serve_application:application."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from ray import serve

from pipeline.serving.settings import serving_settings


def application(arguments: dict[str, Any]) -> serve.Application:
    """Describe the application to Ray Serve, which calls this with the `args` of its configuration file.

    Requests and answers are those of `yolov7 serve`. The number of replicas and their resources are settings of the
    deployment `detector` in the configuration file. A replica forms batches of the requests that it receives.

    Args:
        arguments: The settings of the service by their names; `weights` must be a path that every node has.

    Returns:
        The application.

    Raises:
        SettingError: If a setting cannot be used.
    """
    settings = serving_settings(arguments)

    def build() -> FastAPI:
        """Open the model in the process of a replica."""
        from pipeline.serving.application import make_application
        from pipeline.serving.service import Service

        return make_application(Service(settings))

    deployment = serve.deployment(serve.ingress(build)(), name="detector", max_ongoing_requests=settings.max_queue)
    return deployment.bind()
