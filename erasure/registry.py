"""Registry: the one mechanism by which a piece is found, named, configured and described.

A piece (an eraser, an attack, a metric, ...) is one file: a dataclass of settings that derives from the base class of
its extension point. It is found in the package of that base, or in a package that declares an entry point of the group
`erasure.plugins` with the name of a module or of a package of modules.
"""

import inspect
import pkgutil
from abc import ABC, ABCMeta
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache, partial
from importlib import import_module, invalidate_caches
from importlib.metadata import entry_points
from types import MappingProxyType, ModuleType
from typing import Annotated, Any, ClassVar, Generic, Literal, NotRequired, TypeVar, cast, get_type_hints

from pydantic import ConfigDict, GetCoreSchemaHandler, PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import (
    CoreSchema,
    ErrorDetails,
    PydanticCustomError,
    PydanticSerializationError,
    SchemaValidator,
    core_schema,
    to_json,
)
from typing_extensions import TypedDict

from .arguments import checks_arguments
from .errors import ErasureError, InputError, expectation, reason, unknown_name
from .io.text import shortened

ENTRY_POINTS = "erasure.plugins"
"""Group of the entry points by which other packages add pieces."""
Exactness = Literal["published", "reconstructed", "ours"]
"""Relation of a piece to its source: as published, reconstructed where the source leaves gaps, or our own."""

# Largest size of a setting: a tenfold of it, as of a learning rate in Adam's first step, is finite in float32.
_MOST = 1e30
_MOST_WHOLE = 2**63 - 1

AnyPlugin = TypeVar("AnyPlugin", bound="Plugin")
AnySettings = TypeVar("AnySettings")


class _Checked(ABCMeta):
    """Metaclass that checks settings before an instance is made."""

    # No return annotation: a type checker then reads the dataclass's own signature.
    def __call__(cls, *args: object, **settings: object):
        if is_dataclass(cls):
            where = getattr(cls, "name", cls.__name__)
            if args:
                raise InputError(f"{where}: expected settings by name, got {shortened(args[0])}. Write SETTING=VALUE.")
            settings = _checked(cls, settings, _valid, f"{where}.")
            settings = with_presets(cls, settings)
            check_sizes(settings, f"{where}.")
        return super().__call__(*args, **settings)

    @property
    def __signature__(cls) -> inspect.Signature:
        """Signature of the dataclass, which `inspect` would else take from `__call__`."""
        _, *parameters = inspect.signature(cls.__init__).parameters.values()
        return inspect.Signature(parameters)


class Settings(ABC, metaclass=_Checked):
    """Base of dataclasses whose fields are checked strictly at construction: the text "1.0" is no number."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    def as_settings(self) -> dict[str, Any]:
        """Return the fields by name, nested settings in turn; a nested piece has its name among them."""
        return {field.name: _plain(getattr(self, field.name)) for field in fields(cast("Any", self)) if field.init}


class Plugin(Settings):
    """One piece of an extension point.

    Attributes:
        name: Name in configs and on the command line; the file's name with hyphens.
        source: Source of the method: an arXiv number, a commit of official code, or "ours".
        exactness: Relation of the code to the source.
        quick: Settings with which the piece takes a moment on a tiny model; for tests and trials, never for results.
        presets: Defaults that go with a value of a setting, by setting and value: `{"release": {"2025": {"lr":
            5e-5}}}`. A setting that is given wins.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    exactness: ClassVar[Exactness]
    quick: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    presets: ClassVar[Mapping[str, Mapping[Any, Mapping[str, Any]]]] = MappingProxyType({})


@checks_arguments
class Registry(Generic[AnyPlugin]):
    """Pieces of one extension point, by name.

    Args:
        base: Base class of the pieces; its package is searched.
        noun: Name of the extension point for errors, such as "eraser".
    """

    def __init__(self, base: type[AnyPlugin], noun: str) -> None:
        self.base, self.noun = base, noun
        self.package = base.__module__.rpartition(".")[0]
        _REGISTRIES[base] = self

    def classes(self) -> Mapping[str, type[AnyPlugin]]:
        """Return the class of each piece by its name, in the order of the names."""
        return _classes(self.base, self.noun)

    def names(self) -> tuple[str, ...]:
        """Return the names of all pieces, sorted."""
        return tuple(self.classes())

    def get(self, name: str) -> type[AnyPlugin]:
        """Return the class of the piece `name`.

        Raises:
            UnknownNameError: There is none of that name.
        """
        if name not in self.classes():
            raise unknown_name(self.noun, name, self.classes())
        return self.classes()[name]

    def make(self, name: str, **settings: object) -> AnyPlugin:
        """Return the piece `name` with `settings`, checked strictly; JSON arrays become tuples.

        Raises:
            UnknownNameError: There is no such piece, or it has no such setting.
            InputError: Values of a wrong type or out of range, all named at once.
        """
        return with_settings(self.get(name), settings, where=f"{name}.")


_REGISTRIES: dict[type[Plugin], Registry[Any]] = {}


def registries() -> Mapping[str, Registry[Any]]:
    """Return the registry of every extension point that is imported, by its noun."""
    return {registry.noun: registry for registry in _REGISTRIES.values()}


def registry_of(base: type[AnyPlugin]) -> Registry[AnyPlugin]:
    """Return the registry of the pieces that derive from `base`; its package is imported for that."""
    import_module(base.__module__.rpartition(".")[0])
    return _REGISTRIES[base]


class _ByName:
    """Pydantic's reading of a field of type `Chosen`."""

    def __get_pydantic_core_schema__(self, base: type[Plugin], handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(partial(_chosen, base))


Chosen = Annotated[AnyPlugin, _ByName()]
"""A field that takes a piece of `Chosen[Base]`, its name, or a mapping of `name` and settings."""


def refresh() -> None:
    """Forget which pieces were found, for packages that were installed since."""
    invalidate_caches()
    _classes.cache_clear()
    added_modules.cache_clear()


def with_settings(kind: type[AnySettings], settings: Mapping[str, Any], *, where: str) -> AnySettings:
    """Return an instance of a dataclass of settings, with these checked strictly; JSON arrays become tuples.

    Args:
        kind: Dataclass of settings.
        settings: Values by field.
        where: Text before a setting's name in errors.

    Raises:
        UnknownNameError: There is no such setting.
        InputError: Values of a wrong type or out of range, all named at once.
    """
    return kind(**_checked(kind, settings, _parsed, where))


def with_presets(kind: type, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with the defaults that go with their values; see `Plugin.presets`."""
    completed = dict(settings)
    for name, presets in getattr(kind, "presets", {}).items():
        value = settings.get(name)
        if isinstance(value, str | int):  # a config may hold a year as a number
            completed = {**presets.get(value, presets.get(str(value), {})), **completed}
    return completed


def check_sizes(value: object, path: str) -> None:
    """Refuse numbers beyond those that tensors are computed with.

    Args:
        value: Settings by name, or a part of them.
        path: Text before a setting's name in errors.

    Raises:
        InputError: A setting is such a number.
    """
    if isinstance(value, Mapping):
        for key, each in cast("Mapping[object, object]", value).items():
            check_sizes(each, f"{path}{'' if path.endswith('.') else '.'}{key}")
    elif isinstance(value, list | tuple):
        for i, each in enumerate(cast("Sequence[object]", value)):
            check_sizes(each, f"{path}.{i}")
    elif isinstance(value, int | float):
        most = _MOST if isinstance(value, float) else _MOST_WHOLE
        if abs(value) > most:
            raise InputError(f"{path}: expected a number up to {most:g}, got {shortened(value)}. Give a smaller one.")


def described(kind: type) -> dict[str, str]:
    """Return the description of each attribute in a class's docstring, on one line each."""
    lines: dict[str, str] = {}
    name = ""
    _, _, section = (inspect.getdoc(kind) or "").partition("\nAttributes:\n")
    for line in section.splitlines():
        if line and not line.startswith("    "):
            break
        head, colon, rest = line.strip().partition(": ")
        if line.startswith("    ") and line[4:5] not in ("", " ") and colon and head.isidentifier():
            name, lines[head] = head, rest
        elif name and line.strip():
            lines[name] += f" {line.strip()}"
    return lines


@cache
def _classes(base: type[Plugin], noun: str) -> Mapping[str, type[Any]]:
    package = import_module(base.__module__.rpartition(".")[0])
    kinds: dict[str, type[Plugin]] = {}
    for module in (*_modules(package), *added_modules()):
        for _, kind in inspect.getmembers(module, inspect.isclass):
            if (
                not issubclass(kind, base)
                or kind is base
                or inspect.isabstract(kind)
                or not hasattr(kind, "name")  # a base that several pieces share
                or kind.__module__ != module.__name__
            ):
                continue
            if kinds.setdefault(kind.name, kind) is not kind:
                both = f"{kinds[kind.name].__module__} and {module.__name__}"
                raise InputError(f"{noun} {kind.name!r}: expected one of that name, got {both}. Rename one of them.")
    return MappingProxyType(dict(sorted(kinds.items())))


def _modules(package: ModuleType) -> Iterator[ModuleType]:
    for info in pkgutil.iter_modules(package.__path__):
        yield import_module(f"{package.__name__}.{info.name}")


@cache
def added_modules() -> tuple[ModuleType, ...]:
    """Return the modules that entry points name, those within a package in its place.

    Raises:
        InputError: A module cannot be imported.
    """
    modules: list[ModuleType] = []
    for point in entry_points(group=ENTRY_POINTS):
        try:
            loaded = import_module(point.module)
            modules.extend([loaded, *(_modules(loaded) if hasattr(loaded, "__path__") else ())])
        except ImportError as error:
            where = f"entry point {point.name!r} of {ENTRY_POINTS}"
            raise InputError(
                f"{where}: expected a module to import, got {point.value!r} ({reason(error)})."
                " Repair or uninstall the package that declares it."
            ) from error
    return tuple(modules)


def _chosen(base: type[Plugin], value: object) -> Plugin:
    """Return a piece from an instance, a name, or a mapping of name and settings."""
    if isinstance(value, base):
        return value
    settings = cast("Mapping[object, object]", value) if isinstance(value, Mapping) else {"name": value}
    name = settings.get("name")
    if not isinstance(name, str):
        noun = registry_of(base).noun
        named = f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"
        raise PydanticCustomError("piece", "Input should be the name of {named} or its settings", {"named": named})
    kind = registry_of(base).get(name)
    try:
        return kind(**_parsed(kind, {str(key): each for key, each in settings.items() if key != "name"}))
    except ValidationError as error:
        raise PieceError(_lines(error, f"{kind.name}.")) from error


def _checked(
    kind: type[Any], settings: Mapping[str, Any], read: Callable[..., dict[str, Any]], where: str
) -> dict[str, Any]:
    """Return settings as `read` reads them.

    Raises:
        UnknownNameError: There is no such setting.
        InputError: Values of a wrong type or out of range, all named at once.
    """
    try:
        return read(kind, settings)
    except ValidationError as error:
        raise InputError(" ".join(_lines(error, where))) from error


def _valid(kind: type[Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of exactly the types of a dataclass's fields."""
    _require_known(kind, settings)
    return _adapter(kind).validate_python(dict(settings), strict=True)


def _parsed(kind: type[Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of the types of a dataclass's fields, read from JSON values: arrays become tuples."""
    _require_known(kind, settings)
    try:
        values = to_json(_plain(settings))
    except PydanticSerializationError:  # a function or a model is among them
        return _valid(kind, settings)
    return _adapter(kind).validate_json(values, strict=True)


def _require_known(kind: type[Any], settings: Mapping[str, Any]) -> None:
    known = [field.name for field in fields(kind) if field.init]
    for key in settings:
        if key not in known:
            raise unknown_name(f"{getattr(kind, 'name', kind.__name__)} setting", key, known)


@cache
def _adapter(kind: type[Any]) -> SchemaValidator:
    hints = get_type_hints(kind, include_extras=True)
    types = {
        field.name: hints[field.name] if _required(field) else NotRequired[hints[field.name]]
        for field in fields(kind)
        if field.init
    }
    typed = cast("Callable[[str, dict[str, Any]], Any]", TypedDict)(kind.__name__, types)
    typed.__pydantic_config__ = ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False)
    try:
        return cast("SchemaValidator", TypeAdapter(typed).validator)
    except PydanticUserError as error:
        raise TypeError(f"{kind.__name__}: a field's type cannot be checked: {error}") from error


def _required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _plain(value: object) -> object:
    """Return a setting without its classes: nested pieces as mappings with their names."""
    if isinstance(value, Plugin):
        return {"name": value.name, **value.as_settings()}
    if isinstance(value, Settings):
        return value.as_settings()
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in cast("Mapping[object, object]", value).items()}
    if isinstance(value, tuple):
        return tuple(map(_plain, cast("Sequence[object]", value)))
    if isinstance(value, list):
        return list(map(_plain, cast("Sequence[object]", value)))
    return value


class PieceError(ValueError):
    """Settings of a nested piece that cannot be used, a line each."""

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__(" ".join(lines))
        self.lines = lines


def _lines(error: ValidationError, where: str) -> list[str]:
    """Return one line of this library's error texts for each problem."""
    problems = error.errors()
    # A list counts as too short where one of its items cannot be used: the item is what is wrong.
    within = {problem["loc"][:n] for problem in problems for n in range(len(problem["loc"]))}
    real = [problem for problem in problems if problem["type"] != "too_short" or problem["loc"] not in within]
    return [line for problem in real for line in _lines_of(problem, where)]


def _lines_of(problem: ErrorDetails, where: str) -> list[str]:
    path = f"{where}{'.'.join(map(str, problem['loc']))}"
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, PieceError):
        return [f"{path}.{line}" for line in cause.lines]
    if isinstance(cause, ErasureError):  # of a piece that checks its settings together: it names the place itself
        return [str(cause)]
    if problem["type"] == "missing":
        return [f"{path}: expected a value, got none."]
    return [f"{path}: {expectation(problem['msg'])}, got {problem['input']!r}."]
