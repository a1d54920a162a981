"""Own code of users, named by its dotted name: box losses, assigners, augmentations, callbacks and blocks.

A dotted name in settings is imported, because the user has stated it. Blocks are different: their names are also in
weight files and specifications, which others may have made. A block is therefore imported only if its package is
allowed, by the environment variable YOLOV7_PLUGINS or by `allow_plugins`. This module imports no torch.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

from pydantic import AfterValidator

from yolov7.errors import SettingError, TrainingError, UserError, one_line, shown, suggest

VARIABLE = "YOLOV7_PLUGINS"
"""The environment variable with the packages whose blocks may be imported, separated by commas."""

_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")
_LONGEST = 200  # characters of a name


@dataclass(frozen=True)
class Kind:
    """A kind of own code.

    Attributes:
        what: What it is, for messages.
        example: A name of one, for messages.
        arguments: The positional arguments with which it is called.
        is_instance: Whether the instance of a class is called, and not the class itself.
        needs_consent: Whether its package must be allowed.
        base: The class from which it must be derived, by its dotted name; empty if any will do.
    """

    what: str
    example: str
    arguments: tuple[str, ...]
    is_instance: bool = False
    needs_consent: bool = False
    base: str = ""


BOX_LOSS = Kind("a box loss", "mypkg.losses.wiou", ("predicted", "wanted"), is_instance=True)
ASSIGNER = Kind("an assigner", "mypkg.assign.Nearest", ("head",))
AUGMENTATION = Kind(
    "an augmentation", "mypkg.augment.Rain", ("image", "boxes_xyxy", "labels", "generator"), is_instance=True
)
CALLBACK = Kind("a callback", "mypkg.callbacks.Log", (), base="yolov7.training.callbacks.Callback")
BLOCK = Kind(
    "a block",
    "mypkg.blocks.Gate",
    ("channels", "out", "stride"),
    needs_consent=True,
    base="torch.nn.modules.module.Module",  # so that a weight file cannot name a function that its module has imported
)


def is_dotted(name: str) -> bool:
    """Return whether a name is that of own code, in contrast to a name of this library.

    Args:
        name: Any name.
    """
    return "." in name


def allow_plugins(packages: Iterable[str]) -> None:
    """Allow the import of blocks from packages, in this process and in the processes that it starts.

    Args:
        packages: Names of packages or modules; what they contain is allowed too. Allow only code that you trust, since
            an import executes it.

    Raises:
        SettingError: A name is not the name of a package.
    """
    names = list(dict.fromkeys([*_allowed(), *packages]))
    for name in names:
        if not all(part.isidentifier() for part in name.split(".")):
            raise SettingError(f"plugins: {shown(name)} must be the name of a package, such as mypkg")
    if names:
        os.environ[VARIABLE] = ",".join(names)


def load_plugin(name: str, kind: Kind, *, options: Mapping[str, Any] | None = None) -> Any:
    """Import own code and check that it can be called.

    Args:
        name: Its dotted name.
        kind: What it must be.
        options: Keyword arguments with which it will be called.

    Returns:
        The function or class; an instance of the class if the kind says so.

    Raises:
        SettingError: It cannot be imported or used, in one line with the name and the remedy.
    """
    found = _find(name, kind)
    bases = {f"{base.__module__}.{base.__qualname__}" for base in getattr(found, "__mro__", ())}
    if kind.base and kind.base not in bases:
        raise SettingError(f"{name} is not derived from {kind.base}, as {kind.what} must be; derive it")
    if inspect.isclass(found) and kind.is_instance:
        found = _call_without_arguments(found, name, kind)
    if not callable(found):
        raise SettingError(f"{name} is no function and no class; name {kind.what}, such as {kind.example}")
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):  # some functions in C have none
        return found
    given = dict.fromkeys(options or {})
    try:
        signature.bind(*kind.arguments, **given)
    except TypeError as error:
        wanted = ", ".join([*kind.arguments, *(f"{key}=..." for key in given)])
        has = one_line(signature, limit=100)
        raise SettingError(
            one_line(f"{name} must take ({wanted}), but its signature is {has} ({error}); change it")
        ) from None
    return found


def source_hash(name: str, kind: Kind) -> str:
    """Return sixteen hexadecimal digits that change with the source file of own code.

    Args:
        name: Its dotted name.
        kind: What it is.

    Raises:
        SettingError: It cannot be imported.
    """
    return hash_of_source(_find(name, kind), module=name.rpartition(".")[0])


def hash_of_source(found: object, *, module: str = "") -> str:
    """Return sixteen hexadecimal digits that change with the file in which a function or class is written.

    Args:
        found: The function or class.
        module: A module whose file counts too.

    Returns:
        The digits; those of no content if there is no file, such as for code that was typed at a prompt.
    """
    names = {module, str(getattr(found, "__module__", ""))}
    files = {getattr(sys.modules.get(each), "__file__", None) for each in names}
    digest = hashlib.sha256()
    for file in sorted(file for file in files if file):
        path = Path(file)
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()[:16]


@contextmanager
def naming(what: str, name: str) -> Iterator[None]:
    """Report an error of a user's own code in one line that names the code and the line of its package.

    Args:
        what: What runs in the body, such as `on_start of the callback`.
        name: The dotted name of the own code. Its first part is the package, whose last line that ran is stated; none
            is if no line of the package raised the error.

    Raises:
        TrainingError: The body raised an error that is not one of this library's own.
    """
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        place = _place(error, package=name.partition(".")[0])
        fault = one_line(f"{what} {name} failed: {type(error).__name__}: {error}", limit=280)  # the place must fit too
        raise TrainingError(one_line(f"{fault}{place}; correct it")) from error


def named_choice(kind: Kind, *own: str) -> AfterValidator:
    """Return a validator of a setting that is a name of this library or the dotted name of own code.

    Args:
        kind: What the own code must be.
        own: The names of this library.
    """

    def check(name: str) -> str:
        if name in own:
            return name
        if not is_dotted(name):
            listed = ", ".join(own)
            raise SettingError(
                f"{shown(name)} must be one of {listed}, or the dotted name of {kind.what} of your own, such as "
                f"{kind.example}{suggest(name, own)}"
            )
        load_plugin(name, kind)
        return name

    return AfterValidator(check)


def _dotted_name(kind: Kind) -> AfterValidator:
    def check(name: str) -> str:
        load_plugin(name, kind)
        return name

    return AfterValidator(check)


AugmentationName = Annotated[str, _dotted_name(AUGMENTATION)]
CallbackName = Annotated[str, _dotted_name(CALLBACK)]


def _place(error: Exception, *, package: str) -> str:
    """Return the file and line of a package that ran last before an error, in brackets, or else an empty string."""
    places = [
        f" ({frame.f_code.co_filename}, line {line})"
        for frame, line in traceback.walk_tb(error.__traceback__)
        if str(frame.f_globals.get("__name__")).partition(".")[0] == package
    ]
    return places[-1] if places else ""


def _allowed() -> list[str]:
    return [name.strip() for name in os.environ.get(VARIABLE, "").split(",") if name.strip()]


def _find(name: str, kind: Kind) -> Any:
    """Import the module of a dotted name and return what the name names."""
    if not _NAME.fullmatch(name) or len(name) > _LONGEST:
        raise SettingError(f"{shown(name)} must be the dotted name of {kind.what}, such as {kind.example}")
    if kind.needs_consent and not any(f"{name}.".startswith(f"{package}.") for package in _allowed()):
        package = name.partition(".")[0]
        raise SettingError(
            f"{name} is {kind.what} from the package {package!r}, whose code is imported only if it is allowed; if you "
            f"trust it, state plugins: [{package}], or set {VARIABLE}={package}"
        )
    module, _, attribute = name.rpartition(".")
    try:
        found = _import(module)
    except Exception as error:  # the code of the module can raise anything
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and f"{module}.".startswith(f"{missing}."):
            kind_of = "package" if missing == module.partition(".")[0] else "module"
            raise SettingError(
                f"{name}: there is no {kind_of} {missing!r}; install it, or add the folder that contains it to "
                "PYTHONPATH"
            ) from None
        raise SettingError(
            one_line(f"{name}: importing {module} fails with {type(error).__name__}: {error}; correct the module")
        ) from None
    if attribute not in vars(found):
        raise SettingError(f"{name}: the module {module!r} has no {attribute!r}{suggest(attribute, vars(found))}")
    return vars(found)[attribute]


def _import(module: str) -> ModuleType:
    """Import a module; the working folder is searched last, and only for a package that the user has named."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        folder = str(Path.cwd())
        if error.name != module.partition(".")[0] or folder in sys.path:
            raise
        sys.path.append(folder)
        try:
            return import_module(module)
        except ModuleNotFoundError:
            sys.path.remove(folder)
            raise


def _call_without_arguments(found: type, name: str, kind: Kind) -> Any:
    try:
        return found()
    except Exception as error:
        raise SettingError(
            one_line(
                f"{name} is a class that cannot be called without arguments ({type(error).__name__}: {error}), as "
                f"{kind.what} must be; give its arguments defaults"
            )
        ) from None
