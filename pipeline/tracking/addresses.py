"""The address of the tracking store, and the same address without its secrets, to be shown and kept on disk."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlencode

DATABASE = "mlflow.db"
_SQLITE = "sqlite:///"
_TEMPORARY_COPY = re.compile(r"(?s)(.*)/\.dvc/tmp/exps/(?:standalone/)?tmp[^/]+(/.*)?")
_SECRET_NAME = re.compile(r"(?i)pass|pwd|secret|token|key|credential|auth|signature")
_SECRET_VALUE = re.compile(r"(?i)(?:pass|pwd|secret|token)\w*\s*=")
_URI = re.compile(r"[a-zA-Z][a-zA-Z0-9+.\-]*://[^\s'\"<>]+")
_SECRET_VARIABLES = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_SHORTEST_SECRET = 4  # characters; replacing shorter ones would make a message unreadable


@dataclass(frozen=True)
class StoreAddress:
    """Where the tracking store is.

    Attributes:
        uri: What MLflow receives. It may hold a password.
        name: The address without secrets. It is shown in messages and kept with records that wait. It does not depend
            on the folder in which the project lies, so that records of a project that was moved are still sent.
    """

    uri: str
    name: str


def store_address() -> StoreAddress:
    """Return the address in MLFLOW_TRACKING_URI, or that of the SQLite file in the project's folder."""
    chosen = os.environ.get("MLFLOW_TRACKING_URI")
    if chosen:
        return StoreAddress(_resolve(chosen), without_secrets(chosen))
    return StoreAddress(sqlite_uri(project_folder() / DATABASE), _SQLITE + DATABASE)


def tracking_uri() -> str:
    """Return what MLflow receives as its tracking URI; it may hold a password."""
    return store_address().uri


def tracking_server() -> str:
    """Return the address of the tracking store without secrets, to be shown."""
    return store_address().name


def project_folder() -> Path:
    """Return the folder of the project, also while DVC runs an experiment in a temporary copy of it.

    `dvc exp run --temp` and `dvc exp run --queue` work in a copy below `.dvc/tmp/exps/` and delete it afterwards.
    Whatever has to survive the experiment belongs to the folder that the copy was made from.
    """
    here = Path.cwd()
    copy = _TEMPORARY_COPY.fullmatch(here.as_posix())
    if copy is None:
        return here
    original = Path(copy[1] + (copy[2] or "") or "/")
    return original if original.is_dir() else here


def sqlite_uri(file: Path) -> str:
    """Return the SQLAlchemy URI of a SQLite file.

    MLflow reads the path in a URI in two ways: SQLAlchemy decodes percent signs, and MLflow makes the parent folder
    without decoding them. A path with `%` or `?` is therefore given relative to the current folder, which leaves out
    the names of the folders that both have in common.
    """
    path = file.absolute().as_posix()
    if "%" in path or "?" in path:
        path = Path(os.path.relpath(path)).as_posix().replace("%", "%25").replace("?", "%3F")
    return _SQLITE + path


def sqlite_file(uri: str) -> Path | None:
    """Return the file of a SQLite URI, or None for another kind of store or a database in memory."""
    match = re.match(r"sqlite(?:\+pysqlite)?:///([^?]*)", uri)
    path = unquote(match[1]) if match else ""
    return None if path in ("", ":memory:") or path.startswith("file:") else Path(path).absolute()


def without_secrets(uri: str) -> str:
    """Return a URI without user, password, and parameters of the query that hold a secret.

    A password that was not percent-encoded may hold `/`, `?`, `#` or `@`. In doubt more is left out than necessary.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator or rest.startswith("/"):
        base, mark, query = uri.partition("?")
    else:
        base, mark, query = _without_user(rest).partition("?")
        base = f"{scheme}://{base}"
    kept = [(name, value) for name, value in parse_qsl(query, keep_blank_values=True) if not _is_secret(name, value)]
    return f"{base}?{urlencode(kept, safe='/:,')}" if mark and kept else base


def redact(text: str) -> str:
    """Return a message without the secrets of the URIs in it, of MLFLOW_TRACKING_URI and of related variables."""
    text = _URI.sub(lambda match: without_secrets(match[0]), text)
    for secret in sorted(_known_secrets(), key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def _resolve(uri: str) -> str:
    """Place a store that is given relative to the project there, also in a temporary copy of the project."""
    up = os.path.relpath(project_folder())
    if up == ".":
        return uri
    match = re.match(r"(sqlite(?:\+pysqlite)?:///|file:)(?![/:]|file:)(.+)", uri)
    if match:
        return f"{match[1]}{up}/{match[2]}"
    is_path = ":" not in uri and not uri.startswith(("/", "databricks"))
    return f"{up}/{uri}" if is_path else uri


def _without_user(rest: str) -> str:
    """Remove user and password from what follows `://`."""
    host = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if "@" in host:
        plain = rest.partition("?")[0]
        return rest[plain.rfind("@") + 1 :]
    has_password = ":" in host and not host.startswith("[")  # [::1] is an address
    return rest.rpartition("@")[2] if has_password else rest


def _is_secret(name: str, value: str) -> bool:
    return bool(_SECRET_NAME.search(name) or _SECRET_VALUE.search(value))


def _known_secrets() -> set[str]:
    """Return the passwords that a library may quote in a message, complete and in the parts of a wrong parse."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    secrets = {os.environ.get(name, "") for name in _SECRET_VARIABLES}
    rest = uri.partition("://")[2]
    if rest and not rest.startswith("/"):
        password = rest.removesuffix(_without_user(rest)).partition(":")[2].rstrip("@")
        secrets |= {password, unquote(password), *re.split(r"[@/?#]", password)}
    query = uri.partition("?")[2]
    secrets |= {value for name, value in parse_qsl(query) if _is_secret(name, value)}
    return {secret for secret in secrets if len(secret) >= _SHORTEST_SECRET}
