"""gunicorn's settings from outside: command line, GUNICORN_CMD_ARGS, config file, defaults; the first one wins.

The config file is parsed, never run: only plain top-level assignments count, of literals and of arithmetic on numbers.
A setting that anything else in the file may set (a call, an `if`, a star import) is not known, and not guessed.
Source: gunicorn's settings reference (`-c`, `--chdir`, `./gunicorn.conf.py`).
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass

from stucktrace.collectors import command_line, procfs
from stucktrace.collectors.target_files import inside, read_inside

Value = str | float | bool | None

_OPTIONS = {"timeout": "timeout", "worker_class": "worker-class", "workers": "workers", "threads": "threads"}
_DEFAULTS: Mapping[str, Value] = {"timeout": 30, "worker_class": "sync", "workers": 1, "threads": 1}
_DEFAULT_FILE = "gunicorn.conf.py"


@dataclass(frozen=True)
class Setting:
    value: Value
    """None: not known, `source` says what decides it."""
    source: str
    """"command line", "GUNICORN_CMD_ARGS", "WEB_CONCURRENCY", the config file's path, or "default"."""


@dataclass(frozen=True)
class Parsed:
    """A config file."""

    values: Mapping[str, Value]
    computed: frozenset[str] = frozenset()
    """Names that the file sets to what only running it would tell."""
    anything: bool = False
    """It may set any name at all: it cannot be parsed, or has a star import."""


def read(master: int, options: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, Setting]:
    """timeout, worker_class, workers and threads, each with where it comes from.

    `master`: whose working directory a relative path belongs to (an application may change a worker's).
    """
    from_environ = command_line.gunicorn_environment(environ.get("GUNICORN_CMD_ARGS", ""))
    found = {name: Setting(value, "default") for name, value in _DEFAULTS.items()}
    if environ.get("WEB_CONCURRENCY"):
        found["workers"] = Setting(environ["WEB_CONCURRENCY"], "WEB_CONCURRENCY")
    found.update(_from_file(master, options.get("config") or from_environ.get("config")))
    for source, given in (("GUNICORN_CMD_ARGS", from_environ), ("command line", options)):
        found.update({name: Setting(given[option], source) for name, option in _OPTIONS.items() if option in given})
    return found


def _from_file(master: int, given: str | None) -> dict[str, Setting]:
    name = (given or _DEFAULT_FILE).removeprefix("file:")
    if name.startswith("python:"):
        return dict.fromkeys(_OPTIONS, Setting(None, f"the module {name.removeprefix('python:')}"))
    cwd = inside(master, procfs.read_link(master, "cwd"))
    text = read_inside(master, posixpath.join(cwd, name)) if cwd else None
    if text is None:
        # No such file is the rule for the default one; one that was given exists, and could not be read.
        return dict.fromkeys(_OPTIONS, Setting(None, name)) if given else {}
    parsed = parse(text)
    if parsed.anything:
        return dict.fromkeys(_OPTIONS, Setting(None, name))
    settings = {setting: Setting(parsed.values[setting], name) for setting in _OPTIONS if setting in parsed.values}
    return settings | {setting: Setting(None, name) for setting in _OPTIONS if setting in parsed.computed}


def parse(text: bytes) -> Parsed:
    """What a config file sets, as far as its text tells."""
    # Slow to import, and needed for gunicorn only.
    import ast
    import warnings

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return Parsed({}, anything=True)

    def literal(node: ast.expr) -> Value:
        if isinstance(node, ast.BinOp):
            left, right = literal(node.left), literal(node.right)
            if not isinstance(left, int | float) or not isinstance(right, int | float):
                raise ValueError("not a number")
            if isinstance(node.op, ast.Add):
                return left + right
            if isinstance(node.op, ast.Sub):
                return left - right
            if isinstance(node.op, ast.Mult):
                return left * right
            raise ValueError("not plain arithmetic")
        value = ast.literal_eval(node)
        if value is None or isinstance(value, str | int | float | bool):
            return value
        raise ValueError("not a plain value")

    def names_in(statement: ast.stmt) -> set[str]:
        """Every name that it may set at the top level, "*" for all."""
        names: set[str] = set()
        inside_function = isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        for node in ast.walk(statement):
            if isinstance(node, ast.Global):
                names.update(node.names)
            elif inside_function:
                continue
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store | ast.Del):
                names.add(node.id)
            elif isinstance(node, ast.ImportFrom | ast.Import):
                names.update(alias.asname or alias.name for alias in node.names)
        return names

    values: dict[str, Value] = {}
    computed: set[str] = set()
    for statement in module.body:
        names = names_in(statement)
        values = {name: value for name, value in values.items() if name not in names}
        computed |= names
        if isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None:
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            plain = {target.id for target in targets if isinstance(target, ast.Name)}
            try:
                values |= dict.fromkeys(plain, literal(statement.value))
                computed -= plain
            except (ValueError, TypeError, SyntaxError, ArithmeticError, RecursionError, MemoryError):
                continue
    return Parsed(values, frozenset(computed), anything="*" in computed)
