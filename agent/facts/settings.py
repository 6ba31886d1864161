"""What a process is configured to, where each setting comes from, and what `stucktrace audit` says about it.

A collector returns settings; a rule (diagnosis/traps*.py) takes them and returns checks. How they are put together:
`collectors.X.collect(process) -> tuple[SettingFact, ...]`, `diagnosis.traps_X.checks(...) -> tuple[Check, ...]`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

Value = str | int | float | bool | None
MEMORY = "process memory"
"""`SettingFact.source` of what was read from the running process itself."""
DEFAULT = "default"
CHANGED_SINCE = ", changed since the process started"
"""Ends the name of a file whose value is not in force for that reason."""
SET_IN_CODE = "set on the application in code"
"""`SettingFact.source`: `app.conf`, or the arguments of `Celery()`."""
COMPUTED: Final = "(computed)"
"""A value among `others` that its file does not write out."""
OF_OBJECT = "the application's configuration object"
"""`SettingFact.source`: a dict that `config_from_object` was given."""
NOT_SET = "not set"
"""`SettingFact.source` of an option that the process does not have, though `others` set it."""

OK, WARN, ERROR = "ok", "warn", "error"


def alike(one: Value, other: Value) -> bool:
    """The same setting, however it is written: 60, 60.0 and "60"; True, 1 and "true"."""
    if one == other or str(one).lower() == str(other).lower():
        return True
    try:
        return float(str(int(one) if isinstance(one, bool) else one)) == float(str(other))
    except ValueError:
        return False


@dataclass(frozen=True)
class SettingFact:
    """One setting of one process. A structured one is several: "broker_transport_options.heartbeat"."""

    subject: str
    """Whose setting: "gunicorn" or "celery"."""
    name: str
    """As the program itself spells it: "max_requests", "worker_prefetch_multiplier"."""
    value: Value
    """None is a value too ("no limit"): see `known`. Never a credential."""
    source: str
    """What won: "command line", "GUNICORN_CMD_ARGS", a path, DEFAULT; MEMORY where nothing else explains the value."""
    in_force: bool = False
    """True: this is the running process's own value, read from its memory. False: concluded from the sources."""
    known: bool = True
    """False: it is set at `source`, but computed there or unreadable, so `value` says nothing."""
    others: tuple[tuple[str, Value], ...] = ()
    """(source, value) of what was set elsewhere too and lost, the strongest first."""


@dataclass(frozen=True)
class ConfigFile:
    """The settings file that a program was started with, or found. `path` "": none."""

    path: str = ""
    changed: float | None = None
    """When it was last changed, CLOCK_REALTIME."""
    values: tuple[tuple[str, Value], ...] = ()
    """What it sets now, as far as that stands there literally."""


@dataclass(frozen=True)
class Check:
    """One thing that was looked at, and what is to be said of it."""

    code: str
    """"max-requests-without-jitter", "string-keys" ...: what documentation and scripts go by."""
    status: str
    """OK, WARN or ERROR."""
    text: str
    """One line. Text of a target stands in it as it was read (sinks clean it)."""
    evidence: tuple[str, ...] = ()
    """What proves it, a line each."""
    fix: str = ""
    """What to change; "" for OK."""
