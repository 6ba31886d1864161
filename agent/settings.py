"""What the agent was told to do: options over environment over a TOML file over defaults.

One table (`KEYS`) says for every setting how it is called in each of the three and what it accepts. Every problem of a
configuration is told, in one line each that names the place, the key and the accepted values; a secret is never shown.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stucktrace import setting_values as values
from stucktrace.errors import InvalidSettings

DEFAULT_FILE = Path("/etc/stucktrace/agent.toml")
ENVIRONMENT_PREFIX = "STUCKTRACE_"
LARGEST_FILE_BYTES = 1 << 20
SHOWN = 60
"""Characters of a wrong value that are repeated."""
_YEAR_S = 365 * 86400


@dataclass(frozen=True)
class Settings:
    match: re.Pattern[str] | None = None
    """Watch other Python processes too, whose command line matches."""
    interval_s: float = 0.25
    stuck_after_s: float | None = None
    """None: a share of Celery's soft time limit, else 30."""
    engine: str = "auto"
    node: str | None = None
    """None: the host name."""
    cpu_budget: float = 0.05
    """A share of one core. Over it the agent sheds work."""
    memory_budget_bytes: int = 256_000_000
    json: bool = False
    """JSON lines on a terminal too."""
    stdout: bool = True
    sentry_dsn: str | None = field(default=None, repr=False)
    sentry_environment: str | None = None
    metrics: str | None = None
    """HOST:PORT to listen on; None: no port is opened."""
    otlp_endpoint: str | None = None
    """http://HOST:PORT; /v1/logs and /v1/metrics are added."""
    otlp_headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    spool: Path | None = None
    """None: what cannot be delivered waits in memory and is lost with the process."""
    spool_bytes: int = 64_000_000
    journal: Path | None = None
    journal_bytes: int = 256_000_000
    journal_age_s: float = 7 * 86400.0
    origins: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)
    """Field -> where its value came from; defaults are not in it."""


@dataclass(frozen=True)
class Key:
    """One setting."""

    field: str
    path: str
    """In the file: TABLE.KEY."""
    read: Callable[[Any], Any]
    accepts: str
    option: str = ""
    secret: bool = False
    """Its value is never shown; PATH_file names a file that has it, such as a mounted Kubernetes secret."""

    @property
    def variable(self) -> str:
        return ENVIRONMENT_PREFIX + self.path.removeprefix("agent.").replace(".", "_").upper()


KEYS = (
    Key("match", "agent.match", values.pattern, "a regular expression", "--match"),
    Key("interval_s", "agent.interval", values.seconds(0.05, 60), "a number of seconds from 0.05 to 60", "--interval"),
    Key(
        "stuck_after_s", "agent.stuck_after", values.seconds(0.1, 86400),
        'a number of seconds from 0.1 to 86400, or a time like "10m"', "--stuck-after",
    ),
    Key("engine", "agent.engine", values.one_of("auto", "core", "none"), 'one of "auto", "core", "none"', "--engine"),
    Key("node", "agent.node", values.text, "a name"),
    Key("cpu_budget", "agent.cpu_budget", values.between(0.001, 1), "a share of one core from 0.001 to 1"),
    Key(
        "memory_budget_bytes", "agent.memory_budget", values.size(32_000_000, 1 << 40),
        'a size from 32 MB on, like "256MB" or a number of bytes',
    ),
    Key("json", "agent.json", values.boolean, "true or false", "--json"),
    Key("stdout", "agent.stdout", values.boolean, "true or false"),
    Key("sentry_dsn", "sentry.dsn", values.dsn, "a DSN, https://KEY@HOST/PROJECT", "--sentry-dsn", secret=True),
    Key("sentry_environment", "sentry.environment", values.text, "a name"),
    Key(
        "metrics", "metrics.listen", values.listen_address,
        'an IP address with a port, like "127.0.0.1:9464", or a port alone (of the loopback address)', "--metrics",
    ),
    Key(
        "otlp_endpoint", "otlp.endpoint", values.endpoint, 'a URL like "http://127.0.0.1:4318"', "--otlp-endpoint",
    ),
    Key(
        "otlp_headers", "otlp.headers", values.headers,
        'HTTP headers: a table, or text like "name=value,name=value"', secret=True,
    ),
    Key("spool", "spool.dir", values.directory, "an absolute path of a directory", "--spool"),
    Key(
        "spool_bytes", "spool.bytes", values.size(1_000_000, 1 << 40),
        'a size from 1 MB on, like "64MB" or a number of bytes',
    ),
    Key("journal", "journal.dir", values.directory, "an absolute path of a directory", "--journal"),
    Key(
        "journal_bytes", "journal.bytes", values.size(1_000_000, 1 << 40),
        'a size from 1 MB on, like "256MB" or a number of bytes',
    ),
    Key(
        "journal_age_s", "journal.age", values.seconds(60, 10 * _YEAR_S),
        'a number of seconds from 60 on, or a time like "7d"',
    ),
)  # fmt: skip
_TABLES = tuple(dict.fromkeys(key.path.partition(".")[0] for key in KEYS))


@dataclass(frozen=True)
class _Given:
    """A value as somebody wrote it."""

    origin: str
    name: str
    """Of the setting, as it is called there."""
    value: Any

    @property
    def where(self) -> str:
        return f"{self.origin}: {self.name}" if self.origin != self.name else self.name


class _Problems(list[str]):
    """What is wrong, a line each."""


def load(path: Path | None, environ: Mapping[str, str], options: Mapping[str, Any]) -> Settings:
    """`options`: field -> value as typed; None and fields that are missing were not given. InvalidSettings."""
    problems = _Problems()
    layers = (_from_file(path, problems) if path else {}, _from_environment(environ, problems), _from_options(options))
    found: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for layer in layers:
        for key in KEYS:
            given = _choose(key, layer, problems)
            if given is None:
                continue
            try:
                found[key.field] = key.read(given.value)
                origins[key.field] = given.origin
            except ValueError as error:
                problems.append(_refusal(key, given, str(error)))
    if problems:
        raise InvalidSettings(tuple(problems))
    return Settings(**found, origins=origins)


def default_file() -> Path | None:
    """The file that is read when none is named. One that is there and cannot be read is a problem of `load`."""
    try:
        DEFAULT_FILE.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        pass
    return DEFAULT_FILE


def _refusal(key: Key, given: _Given, because: str) -> str:
    what = "the value" if key.secret else shown(given.value)
    # Python's own words about a wrong number could repeat a secret.
    reason = f" ({because})" if because and not key.secret else ""
    return f"{given.where}: {what} is not {key.accepts}{reason}"


def shown(value: Any) -> str:
    """A wrong value, as TOML would write it where that is simple; a URL without the credentials in it."""
    if isinstance(value, dict):
        return "a table"
    text = re.sub(r"//[^/@]*@", "//***@", json.dumps(value, ensure_ascii=False, default=str))
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def _choose(key: Key, layer: Mapping[str, _Given], problems: _Problems) -> _Given | None:
    """The value of a layer; that of a secret may stand in a file of its own."""
    given, elsewhere = layer.get(key.path), layer.get(_file_path(key)) if key.secret else None
    if elsewhere is None:
        return given
    if given is not None:
        problems.append(f"{elsewhere.where}: {given.name} is given too; one of the two is enough")
        return None
    text = _read(Path(elsewhere.value), elsewhere.where, problems) if isinstance(elsewhere.value, str) else None
    if text is None:
        if not isinstance(elsewhere.value, str):
            problems.append(f"{elsewhere.where}: {shown(elsewhere.value)} is not the path of a file")
        return None
    return _Given(elsewhere.origin, elsewhere.name, text.strip())


def _file_path(key: Key) -> str:
    return key.path + "_file"


def _read(path: Path, where: str, problems: _Problems) -> str | None:
    what = f"{where}: {path}" if where else str(path)
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_FILE_BYTES + 1)
        if len(data) > LARGEST_FILE_BYTES:
            problems.append(f"{what} is larger than {LARGEST_FILE_BYTES} bytes; is it the right file?")
            return None
        return data.decode()
    except OSError as error:
        problems.append(f"{what} cannot be read: {error.strerror}")
    except ValueError:
        problems.append(f"{what} is not UTF-8 text")
    return None


def _known() -> dict[str, Key]:
    """Path in the file -> its key."""
    return {path: key for key in KEYS for path in (key.path, *([_file_path(key)] if key.secret else []))}


def _from_file(path: Path, problems: _Problems) -> dict[str, _Given]:
    text = _read(path, "", problems)
    if text is None:
        return {}
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        at = re.search(r" \(at line (\d+), column (\d+)\)$", str(error))
        line, what = (at[1], f"{str(error)[: at.start()]} at column {at[2]}") if at else ("", str(error))
        line = line or str(text.count("\n") + 1)
        problems.append(f"{path} line {line}: not TOML: {what}")
        return {}
    known, lines, found = _known(), _lines(text), {}
    for name, value in _flat(data):
        line_number = lines.get(name) or lines.get(name.partition(".")[0])
        origin = f"{path} line {line_number}" if line_number else str(path)
        if name in known:
            found[name] = _Given(origin, name, value)
        elif name in _TABLES:
            problems.append(f"{origin}: {name} is a table: write [{name}], and its keys below it")
        else:
            problems.append(f"{origin}: {name} is not a setting{_nearest(name, known)}")
    return found


def _flat(data: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """TABLE.KEY and value. What has no table, or too many, is called as it stands there."""
    for table, content in data.items():
        if not isinstance(content, dict):
            yield table, content
            continue
        if not content and table not in _TABLES:
            yield table, content
        for name, value in content.items():
            yield f"{table}.{name}", value


def _lines(text: str) -> dict[str, int]:
    """Table or TABLE.KEY -> its line, the first being 1. The TOML reader does not tell."""
    found: dict[str, int] = {}
    table = ""
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[+\s*([^\]]+?)\s*\]", line):
            table = re.sub(r"[\s\"']", "", header[1])
            found.setdefault(table, number)
        elif key := re.match(r"\s*([\w.\s\"'-]+?)\s*=", line):
            name = re.sub(r"[\s\"']", "", key[1])
            full = f"{table}.{name}" if table else name
            # sentry.dsn = and [otlp.headers] belong to what is above them.
            for end in range(full.count(".") + 1, 0, -1):
                found.setdefault(".".join(full.split(".")[:end]), number)
    return found


def _nearest(name: str, known: Mapping[str, Key]) -> str:
    last = name.rpartition(".")[2]
    same = [path for path in known if path.rpartition(".")[2] == last]
    near = same or difflib.get_close_matches(name, known, 1, cutoff=0.75)
    if near:
        return f"; did you mean {near[0]}?"
    tables = {table: [p.rpartition(".")[2] for p in known if p.startswith(table + ".")] for table in _TABLES}
    table = name.partition(".")[0]
    if table in tables:
        return f"; [{table}] has {', '.join(tables[table])}"
    return f"; there are the tables {', '.join(_TABLES)}"


def _from_environment(environ: Mapping[str, str], problems: _Problems) -> dict[str, _Given]:
    """An empty variable counts as none: that is what templates leave where nothing was chosen."""
    known = {key.variable: key.path for key in KEYS}
    known.update({key.variable + "_FILE": _file_path(key) for key in KEYS if key.secret})
    found = {}
    for name, value in environ.items():
        if not name.startswith(ENVIRONMENT_PREFIX) or not value:
            continue
        if name in known:
            found[known[name]] = _Given(name, name, value)
            continue
        # Others may use the prefix (Kubernetes does, for a service of our name): only what looks like a slip is one.
        word = name.removeprefix(ENVIRONMENT_PREFIX)
        words = {other.removeprefix(ENVIRONMENT_PREFIX): other for other in known}
        if near := difflib.get_close_matches(word, words, 1, cutoff=0.8):
            problems.append(f"{name} is not a setting; did you mean {words[near[0]]}?")
    return found


def _from_options(options: Mapping[str, Any]) -> dict[str, _Given]:
    given = ((key, options.get(key.field)) for key in KEYS)
    return {key.path: _Given(key.option, key.option, value) for key, value in given if value is not None}


def describe(settings: Settings) -> str:
    """Every setting with its value and where that came from, a line each."""
    rows = [
        (key.path, _as_text(key, getattr(settings, key.field)), settings.origins.get(key.field, "default"))
        for key in KEYS
    ]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return "".join(f"{path:{widths[0]}}  {value:{widths[1]}}  {origin}\n" for path, value, origin in rows)


def _as_text(key: Key, value: Any) -> str:
    if value is None or value == ():
        return "not set"
    if key.secret:
        return "set, not shown"
    if isinstance(value, re.Pattern):
        value = value.pattern
    return json.dumps(value if isinstance(value, bool | int | float) else str(value), ensure_ascii=False)
