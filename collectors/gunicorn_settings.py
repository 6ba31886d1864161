"""What gunicorn is configured to: the running process's own settings, and which source they come from.

Two things are read and held against each other: the Config object in the memory of the process or its master
(gunicorn_memory.py), which is what is in force, and everything that could have set it, in gunicorn's order
(app/base.py, `load_config`): command line, GUNICORN_CMD_ARGS, config file, environment, default. Names, options and
defaults are those of gunicorn's settings reference, versions 20 to 27.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from stucktrace.collectors import command_line, gunicorn_config, gunicorn_memory, procfs, target_files
from stucktrace.collectors.gunicorn_config import COMPUTED
from stucktrace.facts import ProcessFact, SettingFact
from stucktrace.facts.settings import DEFAULT, MEMORY, ConfigFile, Value, alike

SUBJECT = "gunicorn"
OPTIONS: Mapping[str, tuple[str, ...]] = {
    "worker_class": ("-k", "--worker-class"),
    "workers": ("-w", "--workers"),
    "threads": ("--threads",),
    "worker_connections": ("--worker-connections",),
    "timeout": ("-t", "--timeout"),
    "graceful_timeout": ("--graceful-timeout",),
    "keepalive": ("--keep-alive",),
    "preload_app": ("--preload",),
    "max_requests": ("--max-requests",),
    "max_requests_jitter": ("--max-requests-jitter",),
    "worker_tmp_dir": ("--worker-tmp-dir",),
}
DEFAULTS: Mapping[str, Value] = {
    "worker_class": "sync",
    "workers": 1,
    "threads": 1,
    "worker_connections": 1000,
    "timeout": 30,
    "graceful_timeout": 30,
    "keepalive": 2,
    "preload_app": False,
    "max_requests": 0,
    "max_requests_jitter": 0,
    "worker_tmp_dir": None,
}
_UNREAD = object()
"""Stands for a value of a source that cannot be read: it may set it, or not."""
_FLAGS = frozenset({"preload_app"})
_TEXTS = frozenset({"worker_class", "worker_tmp_dir"})


class _Layer(NamedTuple):
    source: str
    values: Mapping[str, Any]


def collect(
    process: ProcessFact, argv: Sequence[str], environ: Mapping[str, str] | None, master: int | None
) -> tuple[tuple[SettingFact, ...], ConfigFile]:
    """The settings of a gunicorn process and its config file. `argv`: the command line without a title over it, () if
    it cannot be read; `environ` None: likewise. `master`: whose memory answers where the process's own does not."""
    names = frozenset(OPTIONS)
    memory = gunicorn_memory.read(process.pid, names)
    if not memory and master is not None:
        memory = gunicorn_memory.read(master, names)
    line = command_line.read(argv)
    known = line.program == command_line.GUNICORN and not line.title
    layers, file = _layers(process.pid, line.arguments, environ, _cwd(process.pid, master)) if known else ([], "")
    facts = tuple(_fact(name, memory, layers, known) for name in OPTIONS)
    return facts, _config_file(process.pid, file, layers)


def _cwd(pid: int, master: int | None) -> str:
    """The settings are read in the master; an application may change its worker's directory."""
    path = (procfs.read_link(master, "cwd") if master is not None else "") or procfs.read_link(pid, "cwd")
    # The kernel names it from our root for a process in a mere chroot.
    root = procfs.read_link(pid, "root").rstrip("/")
    return (path.removeprefix(root) or "/") if path.startswith(f"{root}/") or path == root else path


def _layers(
    pid: int, arguments: Sequence[str], environ: Mapping[str, str] | None, cwd: str
) -> tuple[list[_Layer], str]:
    """What may set a value, the strongest first; and the config file's path."""
    words = command_line.split((environ or {}).get("GUNICORN_CMD_ARGS", ""))
    layers = [_Layer("command line", _from_words(arguments))]
    layers.append(
        _Layer("GUNICORN_CMD_ARGS", _from_words(words) if environ is not None else dict.fromkeys(OPTIONS, _UNREAD))
    )
    given, folder = gunicorn_config.named(arguments, words, environ or {}, cwd)
    path, values = gunicorn_config.config_file(pid, given, folder, cwd, OPTIONS)
    layers.append(_Layer(path, dict.fromkeys(OPTIONS, _UNREAD) if values is None else values))
    if concurrency := (environ or {}).get("WEB_CONCURRENCY"):
        layers.append(_Layer("WEB_CONCURRENCY", {"workers": _typed("workers", concurrency)}))
    return [*layers, _Layer(DEFAULT, DEFAULTS)], path if values is None or values else ""


def _from_words(words: Sequence[str]) -> dict[str, Any]:
    every = {spelling for spellings in OPTIONS.values() for spelling in spellings}
    found: dict[str, Any] = {}
    for name, spellings in OPTIONS.items():
        # "--max-requests" is also how "--max-requests-jitter" could be shortened.
        others = every - set(spellings)
        mine = [word for word in words if word.partition("=")[0] not in others]
        if name in _FLAGS:
            if any(len(word) > 4 and spellings[0].startswith(word) for word in mine):
                found[name] = True
        elif (given := command_line.option(mine, *spellings)) is not None:
            found[name] = _typed(name, given)
    return found


def _typed(name: str, given: str) -> Value:
    number = command_line.number(given) if name not in _TEXTS else None
    return given if number is None else int(number)


def _fact(name: str, memory: Mapping[str, Value], layers: Sequence[_Layer], known: bool) -> SettingFact:
    said = [(layer.source, layer.values[name]) for layer in layers if name in layer.values]
    if name not in memory:
        if not said:
            because = "command line" if not known else DEFAULT
            return SettingFact(SUBJECT, name, None, because, known=False)
        (source, value), *rest = said
        return SettingFact(
            SUBJECT,
            name,
            None if _hidden(value) else _plain(value),
            source,
            known=not _hidden(value),
            others=_others(rest),
        )
    value = memory[name]
    # The first source that agrees, or that computes it, explains the value; without one, a source that cannot be read.
    explains = [place for place, (_, theirs) in enumerate(said) if theirs is COMPUTED or _same(theirs, value)]
    explains += [place for place, (_, theirs) in enumerate(said) if theirs is _UNREAD]
    for place in explains[:1]:
        rest = [*said[:place], *said[place + 1 :]]
        return SettingFact(SUBJECT, name, value, said[place][0], in_force=True, others=_others(rest))
    return SettingFact(SUBJECT, name, value, MEMORY, in_force=True, others=_others(said))


def _others(said: Sequence[tuple[str, Any]]) -> tuple[tuple[str, Value], ...]:
    return tuple((source, _plain(value)) for source, value in said if not _hidden(value) and source != DEFAULT)


def _hidden(value: Any) -> bool:
    return value is COMPUTED or value is _UNREAD


def _same(theirs: Any, value: Value) -> bool:
    return not _hidden(theirs) and alike(_plain(theirs), value)


def _plain(value: Any) -> Value:
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


def _config_file(pid: int, path: str, layers: Sequence[_Layer]) -> ConfigFile:
    if not path:
        return ConfigFile()
    try:
        fd = target_files.open_inside(pid, path, os.O_PATH)
    except OSError:
        return ConfigFile(path)
    try:
        changed = os.fstat(fd).st_mtime
    finally:
        os.close(fd)
    values = next((layer.values for layer in layers if layer.source == path), {})
    literal = tuple((name, _plain(value)) for name, value in values.items() if not _hidden(value))
    return ConfigFile(path, changed, literal)
