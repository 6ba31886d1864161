"""gunicorn's settings from outside: command line, GUNICORN_CMD_ARGS, config file, defaults; the first one wins.

The config file is parsed, never run: only plain literal assignments at its top level count. Source: gunicorn's settings
reference (`-c`, `--chdir`, `./gunicorn.conf.py`).
"""

from __future__ import annotations

import ast
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stucktrace.collectors import command_line
from stucktrace.collectors.target_files import read_inside

_OPTIONS = {
    "timeout": ("-t", "--timeout"),
    "worker_class": ("-k", "--worker-class"),
    "workers": ("-w", "--workers"),
    "threads": ("--threads",),
}
_DEFAULTS: Mapping[str, Any] = {"timeout": 30, "worker_class": "sync", "threads": 1}


@dataclass(frozen=True)
class Setting:
    value: Any
    source: str
    """"command line", "GUNICORN_CMD_ARGS", the config file's path, or "default"."""


def read(pid: int, arguments: Sequence[str], environ: Mapping[str, str], cwd: str) -> dict[str, Setting]:
    """timeout, worker_class, workers and threads, each with where it comes from."""
    from_environ = command_line.split(environ.get("GUNICORN_CMD_ARGS", ""))
    found = {name: Setting(value, "default") for name, value in _DEFAULTS.items()}
    if workers := environ.get("WEB_CONCURRENCY"):
        found["workers"] = Setting(workers, "WEB_CONCURRENCY")
    path = _config_path(arguments, from_environ, cwd)
    text = read_inside(pid, path) if path else None
    if text is not None and path:
        found.update({name: Setting(value, path) for name, value in parse(text).items()})
    for source, words in (("GUNICORN_CMD_ARGS", from_environ), ("command line", arguments)):
        for name, spellings in _OPTIONS.items():
            value = command_line.option(words, *spellings)
            if value is not None:
                found[name] = Setting(value, source)
    return found


def _config_path(arguments: Sequence[str], from_environ: Sequence[str], cwd: str) -> str:
    given = command_line.option(arguments, "-c", "--config") or command_line.option(from_environ, "-c", "--config")
    name = (given or "gunicorn.conf.py").removeprefix("file:")
    return "" if name.startswith("python:") else posixpath.join(cwd or "/", name)


def parse(text: bytes) -> dict[str, Any]:
    """The literal settings in a config file; a setting that is computed is left out."""
    try:
        module = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    found: dict[str, Any] = {}
    for statement in module.body:
        if isinstance(statement, ast.Assign):
            names = [target.id for target in statement.targets if isinstance(target, ast.Name)]
            value: ast.expr | None = statement.value
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            names, value = [statement.target.id], statement.value
        else:
            continue
        for name in names:
            if name not in _OPTIONS or value is None:
                continue
            try:
                found[name] = ast.literal_eval(value)
            except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
                # Computed: the file decides, but not in a way that can be read from outside.
                found[name] = None
    return found
