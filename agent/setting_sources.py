"""Where settings are written: a TOML file, environment variables and options, each read as path -> what stands there.

Nothing is judged here but the names; problems are told with the file's line, which the TOML reader does not give.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stucktrace.collectors.command_line import HIDDEN, without_userinfo

PREFIX = "STUCKTRACE_"
LARGEST_FILE_BYTES = 1 << 20
SHOWN = 60
"""Characters of a wrong value that are repeated."""


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
        return PREFIX + self.path.removeprefix("agent.").replace(".", "_").upper()

    @property
    def path_of_file(self) -> str:
        """Of a secret."""
        return f"{self.path}_file"


@dataclass(frozen=True)
class Given:
    """A value as somebody wrote it."""

    origin: str
    name: str
    """Of the setting, as it is called there."""
    value: Any

    @property
    def where(self) -> str:
        return f"{self.origin}: {self.name}" if self.origin != self.name else self.name


def refusal(key: Key, given: Given, because: str) -> str:
    what = "the value" if key.secret else shown(given.value)
    # Python's own words about a wrong number could repeat a secret.
    reason = f" ({because})" if because and not key.secret else ""
    return f"{given.where}: {what} is not {key.accepts}{reason}"


def shown(value: Any) -> str:
    """A wrong value, as TOML would write it where that is simple; a URL without the credentials and the query in it."""
    if isinstance(value, dict):
        return "a table"
    text = without_userinfo(json.dumps(value, ensure_ascii=False, default=str))
    text = re.sub(r"(://[^?\s]*\?).*\"", rf'\1{HIDDEN}"', text)
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def choose(key: Key, layer: Mapping[str, Given], problems: list[str]) -> Given | None:
    """The value of a layer; that of a secret may stand in a file of its own."""
    given, elsewhere = layer.get(key.path), layer.get(key.path_of_file) if key.secret else None
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
    return Given(elsewhere.origin, elsewhere.name, text.strip())


def _read(path: Path, where: str, problems: list[str]) -> str | None:
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


def _known(keys: Sequence[Key]) -> dict[str, str]:
    """Every path that the file may have -> the variable for it."""
    known = {key.path: key.variable for key in keys}
    return known | {key.path_of_file: key.variable + "_FILE" for key in keys if key.secret}


def from_file(path: Path, keys: Sequence[Key], problems: list[str]) -> dict[str, Given]:
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
    known, lines, found = _known(keys), _lines(text), {}
    for name, value in _flat(data, _tables(known)):
        line_number = lines.get(name) or lines.get(name.partition(".")[0])
        origin = f"{path} line {line_number}" if line_number else str(path)
        if name in known:
            found[name] = Given(origin, name, value)
        elif name in _tables(known):
            problems.append(f"{origin}: {name} is a table: write [{name}], and its keys below it")
        else:
            problems.append(f"{origin}: {name} is not a setting{_nearest(name, known)}")
    return found


def _flat(data: Mapping[str, Any], tables: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """TABLE.KEY and value. What has no table, or too many, is called as it stands there."""
    for table, content in data.items():
        if not isinstance(content, dict):
            yield table, content
            continue
        if not content and table not in tables:
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


def _tables(known: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(path.partition(".")[0] for path in known))


def _nearest(name: str, known: Mapping[str, str]) -> str:
    last = name.rpartition(".")[2]
    same = [path for path in known if path.rpartition(".")[2] == last]
    near = same or difflib.get_close_matches(name, known, 1, cutoff=0.75)
    if near:
        return f"; did you mean {near[0]}?"
    tables = {table: [p.rpartition(".")[2] for p in known if p.startswith(table + ".")] for table in _tables(known)}
    table = name.partition(".")[0]
    if table in tables:
        return f"; [{table}] has {', '.join(tables[table])}"
    return f"; there are the tables {', '.join(tables)}"


def from_environment(environ: Mapping[str, str], keys: Sequence[Key], problems: list[str]) -> dict[str, Given]:
    """An empty variable counts as none: that is what templates leave where nothing was chosen."""
    known = {variable: path for path, variable in _known(keys).items()}
    found = {}
    for name, value in environ.items():
        if not name.startswith(PREFIX) or not value:
            continue
        if name in known:
            found[known[name]] = Given(name, name, value)
            continue
        # Others may use the prefix (Kubernetes does, for a service of our name): only what looks like a slip is one.
        word = name.removeprefix(PREFIX)
        words = {other.removeprefix(PREFIX): other for other in known}
        if near := difflib.get_close_matches(word, words, 1, cutoff=0.8):
            problems.append(f"{name} is not a setting; did you mean {words[near[0]]}?")
    return found


def from_options(options: Mapping[str, Any], keys: Sequence[Key]) -> dict[str, Given]:
    given = ((key, options.get(key.field)) for key in keys)
    return {key.path: Given(key.option, key.option, value) for key, value in given if value is not None}
