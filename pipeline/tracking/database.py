"""Open the SQL database of a tracking store: make it, reach it within seconds, and keep its files in the project."""

from __future__ import annotations

import logging
import math
import os
import re
import socket
import sqlite3
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from pipeline.tracking.addresses import project_folder, sqlite_file, sqlite_uri, without_secrets
from pipeline.tracking.availability import OtherSchemaError
from yolov7.errors import ArtifactError
from yolov7.system.locks import exclusive

_log = logging.getLogger(__name__)

ARTIFACTS = "mlartifacts"
_CONNECT_SECONDS = 5
_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
_LOCATIONS = (  # every place where MLflow records an absolute location of files
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def open_client(mlflow: Any, uri: str) -> Any:
    """Return MLflow's client of a store after the checks that MLflow would spend minutes on.

    Args:
        mlflow: The imported module.
        uri: The address, which may hold a password.

    Returns:
        An `MlflowClient`.

    Raises:
        ArtifactError: If the SQLite file is a folder, or cannot be read or written.
        OtherSchemaError: If another version of MLflow made the database.
        OSError: If the database server is unreachable.
    """
    file = sqlite_file(uri)
    if file is not None:
        _make_database(mlflow, uri, file)
    elif _is_database_server(uri):
        uri = _with_connect_timeout(uri)
        _check_connection(uri)
    try:
        client = mlflow.MlflowClient(tracking_uri=uri)
    except Exception as error:
        found = re.search(r"out-of-date database schema \(found version (\w+)", str(error))
        if found is None:
            raise
        raise OtherSchemaError(_schema_remedy(mlflow, uri, found[1])) from error
    if file is not None:
        _move_artifacts(file)
    return client


def artifact_root(uri: str) -> str | None:
    """Return the URI of the folder for files beside a SQLite file; None where the server decides."""
    file = sqlite_file(uri)
    return None if file is None else (file.parent / ARTIFACTS).as_uri()


def creation_lock(uri: str) -> AbstractContextManager[None]:
    """Return a lock that prevents two processes from making the same run in one SQLite file."""
    file = sqlite_file(uri)
    if file is None:
        return nullcontext()
    return exclusive(file.with_name(f"{file.name}.lock"), what="the tracking store", patience=math.inf)


def _make_database(mlflow: Any, uri: str, file: Path) -> None:
    """Create a SQLite store completely or not at all; MLflow's own creation must not be shared or interrupted."""
    if file.is_dir():
        raise ArtifactError(
            f"{file} is a folder; move it to another place, or set MLFLOW_TRACKING_URI to another address"
        )
    with creation_lock(uri):
        if file.exists():
            _check_file(file)
            return
        unfinished = file.with_name(f"{file.name}.{os.getpid()}")
        mlflow.MlflowClient(tracking_uri=sqlite_uri(unfinished))
        unfinished.replace(file)


def _check_file(file: Path) -> None:
    """Raise ArtifactError for a file that SQLite cannot use; MLflow would try it ten times within two minutes."""
    try:
        with closing(sqlite3.connect(file, timeout=_CONNECT_SECONDS)) as connection:
            connection.execute("PRAGMA schema_version").fetchone()
    except sqlite3.DatabaseError as error:
        if "locked" in str(error):
            return
        raise ArtifactError(
            f"{file} cannot be read as a SQLite database ({error}); restore it from a backup, or move it"
        ) from None
    if not os.access(file, os.W_OK):
        raise ArtifactError(f"{file} cannot be written; change its permissions, or set MLFLOW_TRACKING_URI")


def _is_database_server(uri: str) -> bool:
    return urlsplit(uri).scheme.partition("+")[0] in _PORTS


def _with_connect_timeout(uri: str) -> str:
    """Add PostgreSQL's connect_timeout where the user did not state it; the default waits for minutes."""
    if not uri.startswith("postgresql") or "connect_timeout=" in uri:
        return uri
    return f"{uri}{'&' if '?' in uri else '?'}connect_timeout={_CONNECT_SECONDS}"


def _check_connection(uri: str) -> None:
    """Connect once, so that a server that is unreachable or refuses the user is noticed at the first attempt."""
    import sqlalchemy

    url = sqlalchemy.make_url(uri)
    if url.host and not url.host.startswith("/"):
        port = url.port or _PORTS[url.get_backend_name()]
        socket.create_connection((url.host, port), timeout=_CONNECT_SECONDS).close()
    engine = sqlalchemy.create_engine(url)
    try:
        engine.connect().close()
    finally:
        engine.dispose()


def _schema_remedy(mlflow: Any, uri: str, found: str) -> str:
    """Return what to do about a schema of another version of MLflow."""
    versions = Path(mlflow.__file__).parent / "store" / "db_migrations" / "versions"
    if not any(versions.glob(f"{found}_*.py")):
        return f"install the newer MLflow that made it (this is {mlflow.__version__})"
    file = sqlite_file(uri)
    if file is None:
        address = '"$MLFLOW_TRACKING_URI"'
    elif file == project_folder() / file.name:
        address = f"sqlite:///{file.name}"
    else:
        address = without_secrets(uri)
    return f"back it up, then run `mlflow db upgrade {address}`"


def _move_artifacts(file: Path) -> None:
    """Change the locations of files to the folder beside the database, if the project was moved or copied.

    MLflow records absolute locations. Without this, a copy of the project would write into the original.
    Locations elsewhere that the user chose, such as an object store, stay as they are.
    """
    own = file.parent / ARTIFACTS
    with closing(sqlite3.connect(file, timeout=60)) as connection, connection:
        connection.execute("BEGIN")
        rows = connection.execute("SELECT DISTINCT artifact_location FROM experiments").fetchall()
        for (location,) in rows:
            if not _is_of_another_folder(location, own):
                continue
            for table, column in _LOCATIONS:
                length = len(location)
                connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                    f"WHERE {column} = ? OR substr({column}, 1, ?) = ? || '/'",
                    (own.as_uri(), length + 1, location, length + 1, location),
                )
            _log.info("the project was moved or copied; its runs refer to files in %s now", own)


def _is_of_another_folder(location: str | None, own: Path) -> bool:
    if not location or not location.startswith("file:///") or not location.endswith(f"/{ARTIFACTS}"):
        return False
    return Path(unquote(urlsplit(location).path)).resolve() != own.resolve()
