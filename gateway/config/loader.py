"""Loading of the configuration: YAML and environment in, frozen settings or a list of every problem out."""

import difflib
from collections.abc import Callable, Hashable, Iterable, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Final, get_args

import yaml
from pydantic import (
    BaseModel,
    ValidationError,
)

from gateway.config.files import read_files
from gateway.config.problems import Problem
from gateway.config.scale_settings import SCALE_KEYS, ScaleConnection
from gateway.config.settings import MachineSettings, Settings

#: Environment variables, and the keys that they override: the old scale gateway's, and what differs where several
#: processes are run by one file.
ENVIRONMENT: Final = {
    "SCALE_GATEWAY_LISTEN_HOST": ("scale", "host"),
    "SCALE_GATEWAY_LISTEN_PORT": ("scale", "port"),
    "SCALE_GATEWAY_IDLE_TIMEOUT_SEC": ("scale", "idle_timeout_sec"),
    "CYNOW_GATEWAY_NAME": ("gateway", "name"),
    "CYNOW_GATEWAY_OWN_PORT": ("server", "own_port"),
}

#: Kinds of endpoints that several processes may listen on at a time.
_SHAREABLE: Final = ("tcp:", "tcp6:", "systemd:")


#: Sections whose entries have names, and the model of an entry.
_NAMED: Final[dict[str, type[BaseModel]]] = {"scales": ScaleConnection, "machines": MachineSettings}


#: Keys for which an explicit null has a meaning other than the default.
_NULLS: Final = frozenset({("logger", "path")})


class ConfigError(Exception):
    """A configuration that cannot be used, with every problem in it.

    :param rest: settings without the invalid values; ``None`` if the file cannot be read that far.
    :param broken: keys and sections that have their defaults in ``rest``.
    """

    def __init__(self, problems: list[Problem], rest: "Settings | None" = None, broken: Iterable[str] = ()) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = problems
        self.rest = rest
        self.broken = frozenset(broken)


def load(
    path: Path | None,
    environment: Mapping[str, str],
    check_line: Callable[[str, str], str] | None = None,
    folder: str = ".",
) -> Settings:
    """Return the settings of a file (``None``: all defaults) and the environment.

    The URL in the file of ``database.url_file`` is returned as ``database.url``.

    :param check_line: function that takes the kind of a scale's line (``listen``, ``connect``, ``serial``) and its
        text, or ``url`` and a database's URL, and returns the problem with it, or an empty string.
    :param folder: base of relative paths.
    :raises ConfigError: with every problem found.
    """
    given = {} if path is None else _read(path)
    problems: list[Problem] = []
    tree = _normalised(given, Settings, (), problems)
    from_environment = {}
    for variable, (section, key) in ENVIRONMENT.items():
        if environment.get(variable):
            section_tree = tree.setdefault(section, {})
            if isinstance(section_tree, dict):
                section_tree[key] = environment[variable]
                from_environment[f"{section}.{key}"] = variable
    if isinstance(tree.get("stat"), dict):
        # A type that is left out has its default, as every key has.
        tree["stat"] = {**Settings().stat, **tree["stat"]}
    broken = {problem.key.rpartition(".")[0] for problem in problems}
    file_problems = read_files(tree, environment, folder, check_line)
    problems += file_problems
    broken |= {problem.key for problem in file_problems}
    settings: Settings | None
    try:
        settings = Settings.model_validate(tree, context=check_line)
    except ValidationError as error:
        for item in error.errors():
            problem = _problem(item, from_environment)
            problems.append(problem)
            # An unknown key may be meant for any other of its section.
            is_unknown = item["type"] == "extra_forbidden"
            broken.add(problem.key.rpartition(".")[0] if is_unknown else problem.key)
        # A scale without a key for its line cannot be used, so the whole scale is removed.
        places = [
            item["loc"][: 2 if item["loc"][:1] in {(name,) for name in _NAMED} else None] for item in error.errors()
        ]
        settings = _rest(_without(tree, places), check_line)
    if settings is not None:
        problems += _sharing_problems(settings, broken)
    if problems or settings is None:
        raise ConfigError(problems, None if "" in broken else settings, broken)
    return settings


def _without(tree: Any, locations: list[tuple[int | str, ...]]) -> Any:
    """Return a tree of mappings without the values at some locations; a list there is removed as a whole."""
    if not isinstance(tree, dict):
        return tree
    below: dict[int | str, list[tuple[int | str, ...]]] = {}
    for first, *further in (location for location in locations if location):
        below.setdefault(first, []).append(tuple(further))
    return {
        key: _without(value, below.get(key, []))
        for key, value in tree.items()
        if key not in below or (isinstance(value, dict) and all(below[key]) and ("[key]",) not in below[key])
    }


def _rest(tree: Any, check_line: Callable[[str, str], str] | None) -> "Settings | None":
    try:
        return Settings.model_validate(tree, context=check_line)
    except ValidationError:
        return None


def _sharing_problems(settings: Settings, broken: Iterable[str]) -> list[Problem]:
    """Return the problems that keep several processes from sharing the ports."""
    if not settings.server.share_ports:
        return []
    problems = []
    if settings.database.url is None and not {"database", "database.url", "database.url_file"} & set(broken):
        # Otherwise each process would have commits and statistics of its own.
        problems.append(
            Problem("server.share_ports", "processes that share ports must share a database too; set database.url")
        )
    for scale_id, line in settings.scales.items():
        key = f"scales.{scale_id}"
        if line.connect is not None:
            problems.append(
                Problem(f"{key}.connect", "with server.share_ports each process would dial the scale; use listen")
            )
        elif line.serial is not None:
            problems.append(
                Problem(f"{key}.serial", "with server.share_ports each process would open the device; use listen")
            )
        elif not (line.listen or "").startswith(_SHAREABLE):
            problems.append(
                Problem(f"{key}.listen", f"with server.share_ports it must begin with {', '.join(_SHAREABLE)}")
            )
    return problems


#: Beginnings of the keys whose values may hold a password, even if they are not a URL yet.
_HIDDEN: Final = ("database", "cylinders.url")


class _Loader(yaml.SafeLoader):
    """Safe loader of YAML that refuses a duplicate key instead of taking its last value."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key}", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _read(path: Path) -> dict[Hashable, Any]:
    try:
        text = path.read_text("utf-8-sig")
    except OSError as error:
        raise ConfigError([Problem("", f"{path}: {error.strerror}")]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([Problem("", f"{path}: not UTF-8")]) from error
    try:
        tree = yaml.load(text, _Loader)  # noqa: S506 - it is a SafeLoader
    except (yaml.YAMLError, TypeError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        what = getattr(error, "problem", None) or f"not YAML ({type(error).__name__})"
        raise ConfigError([Problem("", f"{path}{where}: {what}")]) from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError([Problem("", f"{path}: the top level is not a mapping")])
    return tree


def _normalised(
    tree: Mapping[Hashable, Any], model: type[BaseModel], above: tuple[str, ...], problems: list[Problem]
) -> dict[str, Any]:
    """Return a tree with keys in lower case, as the models have them, and without empty values."""
    result: dict[str, Any] = {}
    seen: set[str] = set()
    for given, value in tree.items():
        key = str(given).lower()
        here = (*above, key)
        if key in seen:
            problems.append(Problem(".".join(here), "duplicate key, in upper and lower case"))
        seen.add(key)
        if value is None and here not in _NULLS and not (model is ScaleConnection and key in SCALE_KEYS):
            # `scales.<id>` turns off a key of `scale` by null.
            continue
        field = model.model_fields.get(key)
        if field is not None and isinstance(value, dict):
            section = _section_of(field.annotation)
            if section is not None:
                value = _normalised(value, section, here, problems)
            elif key in _NAMED:
                # The case of a name matters.
                value = {
                    name: _normalised(line, _NAMED[key], (*here, name), problems) if isinstance(line, dict) else line
                    for name, line in _renamed(value, str, here, problems).items()
                }
            else:
                value = _renamed(value, str.lower, here, problems)
        result[key] = value
    return result


def _renamed(
    tree: Mapping[Hashable, Any], name_of: Callable[[str], str], above: tuple[str, ...], problems: list[Problem]
) -> dict[str, Any]:
    """Return a mapping with its keys as normalised names.

    :param name_of: normalises a name.
    """
    result: dict[str, Any] = {}
    for given, value in tree.items():
        name = name_of(str(given))
        if name in result:
            problems.append(Problem(".".join((*above, name)), "duplicate key"))
        result[name] = value
    return result


def _problem(error: Any, from_environment: Mapping[str, str]) -> Problem:
    key = ".".join(str(part) for part in error["loc"] if part != "[key]")
    if error["type"] == "extra_forbidden":
        return Problem(key, f"unknown key; the nearest known key is {_nearest(error['loc'])}")
    message = error["msg"]
    given = error.get("input")
    # A URL may hold a password.
    if isinstance(given, str | int | float) and "://" not in str(given) and not key.startswith(_HIDDEN):
        message = f"{message} (it is {given!r})"
    if key in from_environment:
        message = f"{message}, set by {from_environment[key]}"
    return Problem(key, message)


def _section_of(annotation: Any) -> type[BaseModel] | None:
    """Return the model of a section, which may be optional; ``None`` if a key is not a section."""
    for kind in get_args(annotation) if isinstance(annotation, UnionType) else (annotation,):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def _nearest(location: tuple[int | str, ...]) -> str:
    """Return the known key that is most similar to an unknown one."""
    *above, unknown = map(str, location)
    model: type[BaseModel] = Settings
    for part in above:
        field = model.model_fields.get(part)
        section = None if field is None else _section_of(field.annotation)
        if section is not None:
            model = section
        elif above[0] in _NAMED and model is Settings:
            model = _NAMED[above[0]]
    (best,) = difflib.get_close_matches(unknown, model.model_fields, 1, cutoff=0.0)
    if not above and difflib.SequenceMatcher(None, unknown, best).ratio() < 0.6:
        # It may belong into a section.
        inner = [
            f"{name}.{key}"
            for name, field in Settings.model_fields.items()
            if (section := _section_of(field.annotation)) is not None
            for key in section.model_fields
        ]
        found = [name for name in inner if name.partition(".")[2] == unknown]
        if found:
            return found[0]
    return ".".join([*above, best])
