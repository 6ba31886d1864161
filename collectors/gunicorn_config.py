"""gunicorn's settings from outside: command line, GUNICORN_CMD_ARGS, config file, defaults; the first one wins.

The config file is parsed, never run: only plain literal assignments at its top level count, and a setting that the file
computes is not known (None), which is not the same as its default. Source: gunicorn's settings reference (`-c`,
`--chdir`, `./gunicorn.conf.py`).
"""

from __future__ import annotations

import ast
import operator
import posixpath
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stucktrace.collectors import command_line
from stucktrace.collectors.target_files import read_file

LONGEST_FILE = 1 << 17
"""Of source text, which takes a second to parse at ten times that."""
_OPTIONS = {
    "timeout": ("-t", "--timeout"),
    "worker_class": ("-k", "--worker-class"),
    "workers": ("-w", "--workers"),
    "threads": ("--threads",),
}
_DEFAULTS: Mapping[str, Any] = {"timeout": 30, "worker_class": "sync", "workers": 1, "threads": 1}
_SUMS: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
}


@dataclass(frozen=True)
class Setting:
    value: Any
    """None: set, but not to what could be read from outside."""
    source: str
    """"command line", "GUNICORN_CMD_ARGS", "WEB_CONCURRENCY", the config file's path, "environment" or "default"."""


def read(pid: int, arguments: Sequence[str], environ: Mapping[str, str] | None, cwd: str) -> dict[str, Setting]:
    """timeout, worker_class, workers and threads, each with where it comes from. `environ` None: it cannot be read."""
    from_environ = command_line.split((environ or {}).get("GUNICORN_CMD_ARGS", ""))
    found = {name: Setting(value, "default") for name, value in _DEFAULTS.items()}
    if workers := (environ or {}).get("WEB_CONCURRENCY"):
        found["workers"] = Setting(workers, "WEB_CONCURRENCY")
    found.update(_from_file(pid, arguments, from_environ, environ or {}, cwd))
    if environ is None:
        found = {name: Setting(None, "environment") for name in _OPTIONS}
    for source, words in (("GUNICORN_CMD_ARGS", from_environ), ("command line", arguments)):
        for name, spellings in _OPTIONS.items():
            value = command_line.option(words, *spellings)
            if value is not None:
                found[name] = Setting(value, source)
    return found


def _from_file(
    pid: int, arguments: Sequence[str], from_environ: Sequence[str], environ: Mapping[str, str], cwd: str
) -> dict[str, Setting]:
    """What the config file sets. One that was named and cannot be read may set everything."""
    given, folder = named(arguments, from_environ, environ, cwd)
    path, settings = config_file(pid, given, folder, cwd, _OPTIONS)
    if settings is None:
        return {option: Setting(None, path) for option in _OPTIONS}
    return {option: Setting(_known(value), path) for option, value in settings.items()}


def named(
    arguments: Sequence[str], from_environ: Sequence[str], environ: Mapping[str, str], cwd: str
) -> tuple[str | None, str]:
    """(the config file as --config names it, the folder that a relative name starts from)."""
    given = command_line.option(arguments, "-c", "--config") or command_line.option(from_environ, "-c", "--config")
    if (command_line.option(arguments, "--chdir") or command_line.option(from_environ, "--chdir")) is not None:
        # The file was named from where gunicorn was started; --chdir leaves that in PWD.
        return given, environ.get("PWD", "")
    return given, cwd


def config_file(
    pid: int, given: str | None, folder: str, cwd: str, names: Collection[str]
) -> tuple[str, dict[str, Any] | None]:
    """(its path, what it sets of `names`: a value or COMPUTED). None: it may set everything. {}: it is not there.

    `given`: as --config names it, from `folder`.
    """
    name = (given or "gunicorn.conf.py").removeprefix("file:")
    if name.startswith("python:"):
        # It is imported: most often from the working directory, else from wherever sys.path leads.
        folder, name = cwd, name.removeprefix("python:").replace(".", "/") + ".py"
    if not folder and not name.startswith("/"):
        return name, None
    path = posixpath.normpath(posixpath.join(folder, name))
    try:
        text = read_file(pid, path, LONGEST_FILE, whole=True)
    except FileNotFoundError:
        return (path, {}) if not given else (given, None)
    except OSError:
        return given or path, None
    settings = assignments(text, names)
    return (path, settings) if settings is not None else (given or path, None)


COMPUTED = object()
"""Stands for a value that a config file computes."""


def _known(value: Any) -> Any:
    return None if value is COMPUTED else value


def parse(text: bytes) -> dict[str, Any] | None:
    """The settings in a config file; one that is computed is None. None for a file that may set anything."""
    found = assignments(text, _OPTIONS)
    return None if found is None else {name: _known(value) for name, value in found.items()}


def assignments(text: bytes, names: Collection[str]) -> dict[str, Any] | None:
    """As `parse`, of these names; a value that is computed is COMPUTED, so that None is the literal."""
    try:
        module = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    found: dict[str, Any] = {}
    for statement in module.body:
        for name, value in _assigned(statement):
            if name == "*":
                found.update(dict.fromkeys(names, COMPUTED))
            elif name in names:
                found[name] = _value(value)
    return found


def _value(value: ast.expr | None) -> Any:
    if isinstance(value, ast.Constant) and value.value is None:
        return None
    try:
        found = _literal(value)
    except RecursionError:
        found = None
    return COMPUTED if found is None else found


def _assigned(statement: ast.stmt) -> Iterator[tuple[str, ast.expr | None]]:
    """(name, value) of what a statement at the top level sets; the value is None where it is not simply assigned."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return
    if isinstance(statement, ast.Assign) and all(isinstance(target, ast.Name) for target in statement.targets):
        for target in statement.targets:
            if isinstance(target, ast.Name):
                yield target.id, statement.value
    elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
        if statement.value is not None:
            yield statement.target.id, statement.value
    else:
        for node in ast.walk(statement):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                yield node.id, None
            elif isinstance(node, ast.alias):
                yield node.asname or node.name, None


def _literal(value: ast.expr | None) -> Any:
    """The value of a literal, or of a sum of small ones ("60 * 5"); None for what has to be run."""
    if value is None:
        return None
    if isinstance(value, ast.BinOp) and type(value.op) in _SUMS:
        left, right = _literal(value.left), _literal(value.right)
        if isinstance(left, int | float) and isinstance(right, int | float):
            try:
                return _SUMS[type(value.op)](left, right)
            except (ArithmeticError, ValueError):
                return None
        return None
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
