"""What the agent is told to do: from its options, the environment, a TOML file and the defaults, in this order.

One table of keys says for each what it is called, what it accepts and what it means, for all of these sources. Every
mistake is told with its place and what would be accepted, all of them at once.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from stucktrace.errors import UsageError

DEFAULT_FILE = Path("/etc/stucktrace/agent.toml")
ENVIRONMENT_PREFIX = "STUCKTRACE_"
FILE_VARIABLE = "STUCKTRACE_CONFIG"
_OTHER_VARIABLES = frozenset({FILE_VARIABLE, "STUCKTRACE_DEBUG"})
_MOST_FILE_BYTES = 1 << 20
_HIDDEN = "***"


@dataclass(frozen=True)
class Settings:
    """In force. Times in seconds, sizes in bytes; None: off, or not given."""

    match: re.Pattern[str] | None = None
    interval_s: float = 0.25
    stuck_after_s: float | None = None
    engine: str = "auto"
    json: bool | None = None
    """None: text on a terminal, JSON lines elsewhere."""
    stdout: bool = True
    node: str | None = None
    cpu_budget: float = 0.05
    memory_budget_bytes: int = 200 << 20
    sentry_dsn: str | None = field(default=None, repr=False)
    sentry_environment: str | None = None
    metrics_listen: tuple[str, int] | None = None
    otlp_endpoint: str | None = None
    otlp_headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    spool_dir: Path | None = None
    spool_bytes: int = 64 << 20
    journal_dir: Path | None = None
    journal_bytes: int = 256 << 20
    journal_age_s: float = 7 * 86400.0
    origins: Mapping[str, str] = field(default_factory=dict, compare=False)
    """Key -> where its value came from."""


class _Wrong(Exception):
    """The value is not accepted."""


def _text(value: object) -> str:
    if isinstance(value, str) and value and value.isprintable():
        return value
    raise _Wrong


def _pattern(value: object) -> re.Pattern[str]:
    try:
        return re.compile(_text(value))
    except re.error as error:
        raise _Wrong(str(error)) from None


def _flag(value: object) -> bool:
    if isinstance(value, bool):
        return value
    known = {"true": True, "yes": True, "1": True, "on": True, "false": False, "no": False, "0": False, "off": False}
    if isinstance(value, str) and value.lower() in known:
        return known[value.lower()]
    raise _Wrong


def _engine(value: object) -> str:
    if value in ("auto", "core", "none"):
        return str(value)
    raise _Wrong


_UNITS_S = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_UNITS_BYTES = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}


def _number(value: object, units: Mapping[str, float]) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", value) if isinstance(value, str) else None
    if found is None or found[2] not in units:
        raise _Wrong
    return float(found[1]) * units[found[2]]


def _seconds(least: float, most: float) -> Callable[[object], float]:
    return lambda value: _within(_number(value, _UNITS_S), least, most)


def _bytes(least: int) -> Callable[[object], int]:
    def parse(value: object) -> int:
        return int(_within(_number(value.upper() if isinstance(value, str) else value, _UNITS_BYTES), least, 1 << 50))

    return parse


def _within(value: float, least: float, most: float) -> float:
    if not least <= value <= most:
        raise _Wrong
    return value


def _share(value: object) -> float:
    return _within(_number(value, {"": 1}), 0.001, 64)


def _directory(value: object) -> Path:
    path = Path(_text(value))
    if not path.is_absolute():
        raise _Wrong
    return path


def _web_address(value: object) -> str:
    address = _text(value)
    try:
        parts = urlsplit(address)
        usable = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True)
    except ValueError:
        usable = False
    if not usable:
        raise _Wrong
    return address


def _dsn(value: object) -> str:
    address = _web_address(value)
    parts = urlsplit(address)
    if not parts.username or not parts.path.strip("/").rpartition("/")[2].isdigit():
        raise _Wrong
    return address


def _listen(value: object) -> tuple[str, int]:
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else _text(value)
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") or "127.0.0.1"
    if not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise _Wrong
    return host, int(port)


def _headers(value: object) -> Mapping[str, str]:
    if isinstance(value, str):
        value = dict(part.partition("=")[::2] for part in value.split(",")) if value else {}
    if isinstance(value, dict) and all(
        isinstance(name, str) and name.strip() and isinstance(text, str) and text.isprintable()
        for name, text in value.items()
    ):
        return {name.strip(): text.strip() for name, text in value.items()}
    raise _Wrong


class Key(NamedTuple):
    """One setting."""

    name: str
    """In the file: its table and its name there."""
    attribute: str
    """Of `Settings`."""
    parse: Callable[[object], Any]
    accepts: str
    secret: bool = False

    @property
    def variable(self) -> str:
        return ENVIRONMENT_PREFIX + self.name.removeprefix("agent.").replace(".", "_").upper()


KEYS = (
    Key("agent.match", "match", _pattern, "a regular expression"),
    Key("agent.interval", "interval_s", _seconds(0.05, 60), "seconds from 0.05 to 60"),
    Key("agent.stuck_after", "stuck_after_s", _seconds(0.001, 86400), 'seconds above 0, or a time like "2m"'),
    Key("agent.engine", "engine", _engine, '"auto", "core" or "none"'),
    Key("agent.json", "json", _flag, "true or false"),
    Key("agent.stdout", "stdout", _flag, "true or false"),
    Key("agent.node", "node", _text, "a name"),
    Key("agent.cpu_budget", "cpu_budget", _share, "a share of one core from 0.001 on, such as 0.05"),
    Key("agent.memory_budget", "memory_budget_bytes", _bytes(32 << 20), 'a size from 32 MiB on, such as "200MB"'),
    Key("sentry.dsn", "sentry_dsn", _dsn, "a DSN: https://KEY@HOST/PROJECT", secret=True),
    Key("sentry.environment", "sentry_environment", _text, "a name"),
    Key("metrics.listen", "metrics_listen", _listen, 'a port, or "ADDRESS:PORT"'),
    Key("otlp.endpoint", "otlp_endpoint", _web_address, "an http or https URL"),
    Key("otlp.headers", "otlp_headers", _headers, 'a table of texts, or "NAME=VALUE,..."', secret=True),
    Key("spool.dir", "spool_dir", _directory, "an absolute path"),
    Key("spool.bytes", "spool_bytes", _bytes(1 << 16), 'a size from 64 KiB on, such as "64MB"'),
    Key("journal.dir", "journal_dir", _directory, "an absolute path"),
    Key("journal.bytes", "journal_bytes", _bytes(1 << 16), 'a size from 64 KiB on, such as "256MB"'),
    Key("journal.age", "journal_age_s", _seconds(60, 3650 * 86400), 'a time from one minute on, such as "7d"'),
)
SECRET_FILES = {"sentry.dsn_file": "sentry.dsn", "otlp.headers_file": "otlp.headers"}
"""A secret may stand in a file of its own."""
_BY_NAME = {key.name: key for key in KEYS}


class _Given(NamedTuple):
    name: str
    value: object
    origin: str


def load(path: Path | None, environ: Mapping[str, str], options: Mapping[str, Any]) -> Settings:
    """The settings in force. UsageError names every mistake.

    `path`: the file; None: `STUCKTRACE_CONFIG`, else the default one where it exists. `options`: by attribute of
    `Settings`, as typed; None counts as not given.
    """
    mistakes: list[str] = []
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for given in (*_from_file(path, environ, mistakes), *_from_environment(environ, mistakes), *_from_options(options)):
        key = _BY_NAME[given.name]
        try:
            values[key.attribute] = key.parse(given.value)
            origins[key.name] = given.origin
        except _Wrong as error:
            shown = _HIDDEN if key.secret else repr(given.value)[:80]
            reason = f" ({error})" if str(error) else ""
            mistakes.append(f"{given.origin}: {key.name}: {shown} is not {key.accepts}{reason}")
    if mistakes:
        remedy = "stucktrace agent --check-config shows what is in force"
        raise UsageError("\n".join(mistakes), remedy if len(mistakes) == 1 else "")
    return Settings(**values, origins=origins)


def _from_options(options: Mapping[str, Any]) -> Iterator[_Given]:
    for key in KEYS:
        if options.get(key.attribute) is not None:
            yield _Given(key.name, options[key.attribute], "command line")


def _from_environment(environ: Mapping[str, str], mistakes: list[str]) -> Iterator[_Given]:
    known = {name.upper(): name for name in (*_BY_NAME, *SECRET_FILES)}
    variables = {_variable(name): name for name in known.values()}
    for variable, text in environ.items():
        if not variable.startswith(ENVIRONMENT_PREFIX) or variable in _OTHER_VARIABLES:
            continue
        name = variables.get(variable)
        if name is None:
            # A service of Kubernetes that is called stucktrace sets such variables too.
            if not re.search(r"_(?:SERVICE_|PORT)", variable.removeprefix("STUCKTRACE")):
                mistakes.append(f"environment: {variable} is no setting{_nearest(variable, variables)}")
            continue
        if text:
            yield from _opened(name, text, f"environment {variable}", mistakes)


def _variable(name: str) -> str:
    return ENVIRONMENT_PREFIX + name.removeprefix("agent.").replace(".", "_").upper()


def _from_file(path: Path | None, environ: Mapping[str, str], mistakes: list[str]) -> Iterator[_Given]:
    asked = path or (Path(environ[FILE_VARIABLE]) if environ.get(FILE_VARIABLE) else None)
    if asked is None and not DEFAULT_FILE.exists():
        return
    found = asked or DEFAULT_FILE
    try:
        with found.open("rb") as file:
            text = file.read(_MOST_FILE_BYTES + 1).decode()
        tables = tomllib.loads(text)
    except OSError as error:
        raise UsageError(f"{found}: {error.strerror}", "name the file with --config") from None
    except UnicodeDecodeError:
        raise UsageError(f"{found}: not UTF-8 text", "a TOML file is") from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{found}: not TOML: {error}", "texts need quotes; see the example in packaging/") from None
    lines = _lines(text)
    for name, value in _flat(tables):
        origin = f"{found} line {lines[name]}" if name in lines else str(found)
        if name in _BY_NAME or name in SECRET_FILES:
            yield from _opened(name, value, origin, mistakes)
        else:
            mistakes.append(f"{origin}: {name} is no setting{_nearest(name, (*_BY_NAME, *SECRET_FILES))}")


def _flat(tables: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    for table, content in tables.items():
        if not isinstance(content, dict):
            yield table, content
            continue
        for name, value in content.items():
            yield f"{table}.{name}", value


def _opened(name: str, value: object, origin: str, mistakes: list[str]) -> Iterator[_Given]:
    """A setting; the content of its file where only that is named."""
    if name not in SECRET_FILES:
        yield _Given(name, value, origin)
        return
    try:
        text = Path(_text(value)).read_text()[:_MOST_FILE_BYTES].strip()
    except (OSError, UnicodeDecodeError, _Wrong) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        mistakes.append(f"{origin}: {name}: {str(value)[:200]!r}: {reason}")
        return
    yield _Given(SECRET_FILES[name], text, f"{origin} ({name})")


def _lines(text: str) -> dict[str, int]:
    """Where each "table.key" stands; for messages only."""
    found: dict[str, int] = {}
    table = ""
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[\s*([\w.-]+)\s*\]", line):
            table = header[1] + "."
        elif assigned := re.match(r"\s*([\w.-]+)\s*=", line):
            found.setdefault(table + assigned[1], number)
    return found


def _nearest(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean {near[0]}?" if near else ""


def describe(settings: Settings) -> str:
    """Every setting with its value and where it came from, one a line; secrets are hidden."""
    lines = []
    for key in KEYS:
        value = getattr(settings, key.attribute)
        lines.append(f"{key.name:22} {_shown(key, value):28} {settings.origins.get(key.name, 'default')}".rstrip())
    return "\n".join(lines) + "\n"


def _shown(key: Key, value: Any) -> str:
    if value is None or value == {}:
        return "-"
    if key.secret:
        return _HIDDEN
    if isinstance(value, re.Pattern):
        return str(value.pattern)
    if isinstance(value, tuple):
        return f"{value[0]}:{value[1]}" if ":" not in value[0] else f"[{value[0]}]:{value[1]}"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
