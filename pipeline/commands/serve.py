"""The command `serve`: answer HTTP requests with the detections of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipeline.commands.model_file import model_file
from pipeline.console import console, stage_line
from pipeline.serving.server import reserve_port, run_server
from pipeline.serving.settings import serving_settings

if TYPE_CHECKING:
    from pipeline.serving.service import Service


def serve_model(values: Mapping[str, Any], *, host: str, port: int) -> None:
    """Serve a model until Ctrl-C or SIGTERM.

    Args:
        values: The settings of the service by their names.
        host: The name or address of the network interface.
        port: The port; 0 chooses one that is free.

    Raises:
        ArtifactError: If the file is not a model.
        SettingError: If a setting or the port cannot be used.
    """
    settings = serving_settings({**values, "weights": str(model_file(str(values["weights"])))})
    with reserve_port(host, port) as reserved:  # before the slow part: the import of torch, and the model
        from pipeline.serving.application import make_application
        from pipeline.serving.service import Service

        service = Service(settings)
        try:
            run_server(make_application(service), reserved, on_ready=lambda address: _say_ready(service, address))
        finally:
            service.close()
    console.print(stage_line("serve", settings.weights, "ended"))


def _say_ready(service: Service, address: str) -> None:
    about = service.metadata
    model = f"{about['engine']}, {about['precision']}, {about['image_size']} px, {len(about['class_names'])} classes"
    text = f"ready at {address} ({model}); its description is at {address}/docs; press Ctrl-C to end it"
    for note in service.notes:
        console.print(stage_line("serve", about["weights"], note))
    console.print(stage_line("serve", about["weights"], text))
