"""What a command line says the process is: gunicorn, Celery (worker or beat), and the options that it was given.

Pure: argv in, words out. Titles set by setproctitle are read too; they hide the options.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

GUNICORN, CELERY_WORKER, CELERY_BEAT, OTHER = "gunicorn", "celery-worker", "celery-beat", "other"

_PYTHON = re.compile(r"^(python|pypy)[\d.]*[a-z]*$")
_PYTHON_OPTIONS_WITH_VALUE = {"-W", "-X", "--check-hash-based-pycs"}
_GUNICORN_PROGRAMS = {"gunicorn", "gunicorn3", "gunicorn.app.wsgiapp", "gunicorn_paster"}
_CELERY_PROGRAMS = {"celery", "celery.bin.celery", "celery.__main__", "celeryd", "celerybeat"}
_CELERY_OPTIONS_WITH_VALUE = {"-A", "--app", "-b", "--broker", "--result-backend", "--loader", "--config", "--workdir"}
# Python programs that run another one in their own process, and keep their own command line.
_LAUNCHERS = {"coverage", "ddtrace-run", "debugpy", "kernprof", "memray", "pyinstrument", "viztracer"}
# Options without a value that are one letter, of gunicorn and of Celery's worker; none has a value in the other.
_FLAGS = "BCDER"

_GUNICORN_TITLE = re.compile(r"^gunicorn: (master|worker|arbiter)\b")
_CELERY_TITLE = re.compile(r"^\[(celeryd|celery beat|celery worker|celery)(?:: ([^\]]*))?\]")

_USERINFO = re.compile(r"://[^\s'\"]{0,512}@")
HIDDEN = "(hidden)"


@dataclass(frozen=True)
class CommandLine:
    """What was started."""

    program: str
    """GUNICORN, CELERY_WORKER, CELERY_BEAT or OTHER."""
    arguments: tuple[str, ...] = ()
    """What follows the program's name; () behind a title."""
    title: str = ""
    """The title set with setproctitle, "" when argv is the real one."""
    role: str = ""
    """"master", "worker" or "" as the title says it (Celery: "master" for MainProcess)."""


def without_userinfo(text: str) -> str:
    """`text` with the user and password of its URLs hidden; a password may hold "/" and "@" unquoted."""
    return _USERINFO.sub(f"://{HIDDEN}@", text)


def read(argv: Sequence[str]) -> CommandLine:
    """Classifies one command line."""
    if not argv:
        return CommandLine(OTHER)
    titled = _title(argv[0])
    if titled:
        return titled
    name, arguments = _program(argv)
    if name in _LAUNCHERS:
        name, arguments = _launched(arguments)
    if name in _GUNICORN_PROGRAMS:
        return CommandLine(GUNICORN, arguments)
    if name == "manage.py" and arguments[:1] == ("celery",):
        name, arguments = "celery", arguments[1:]
    if name in _CELERY_PROGRAMS:
        command = {"celeryd": "worker", "celerybeat": "beat"}.get(name) or _celery_command(arguments)
        if command == "beat":
            return CommandLine(CELERY_BEAT, arguments)
        if command == "worker":
            return CommandLine(CELERY_WORKER, arguments)
    return CommandLine(OTHER, arguments)


def _launched(arguments: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    for index, word in enumerate(arguments):
        if _base(word) in _GUNICORN_PROGRAMS | _CELERY_PROGRAMS:
            return _base(word), tuple(arguments[index + 1 :])
    return "", ()


def program_name(argv: Sequence[str]) -> str:
    """The script (without its folder), or the module behind -m; "" for `python -c` and an interactive interpreter."""
    return _program(argv)[0] if argv else ""


def _celery_command(arguments: Sequence[str]) -> str:
    """The first word that is neither an option nor its value."""
    rest = iter(arguments)
    for argument in rest:
        if not argument.startswith("-"):
            return argument
        if argument in _CELERY_OPTIONS_WITH_VALUE:
            next(rest, None)
    return ""


def _title(first: str) -> CommandLine | None:
    if match := _GUNICORN_TITLE.match(first):
        return CommandLine(GUNICORN, title=first, role="worker" if match.group(1) == "worker" else "master")
    if match := _CELERY_TITLE.match(first):
        if match.group(1) == "celery beat":
            # It repeats the arguments, but for a beat inside a worker.
            return CommandLine(CELERY_BEAT, tuple(first[match.end() :].split()), first)
        process = (match.group(2) or "").rpartition(":")[2]
        # The rest of Celery's title repeats the arguments: "-active- (worker -A proj --concurrency=4)".
        inside = first[match.end() :].partition("(")[2].rpartition(")")[0]
        role = "worker" if "PoolWorker" in process else "master"
        return CommandLine(CELERY_WORKER, tuple(inside.split()), first, role)
    return None


def _program(argv: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """(name of the script or module, what follows)."""
    rest = list(argv)
    if _PYTHON.match(_base(rest[0])):
        rest.pop(0)
        while rest and rest[0].startswith("-") and rest[0] != "-":
            option = rest.pop(0)
            # Flags of one letter can stand together, the last of them with a value: -um gunicorn, -mgunicorn.
            if match := re.match(r"^-[bBdEiIOPqRsSuvx]*([mc])(.*)$", option):
                module = match[2] or (rest.pop(0) if rest else "")
                return (module, tuple(rest)) if match[1] == "m" else ("", ())
            if option in _PYTHON_OPTIONS_WITH_VALUE and rest:
                rest.pop(0)
        if not rest:
            return "", ()
    return _base(rest[0]), tuple(rest[1:])


def _base(path: str) -> str:
    return path.rpartition("/")[2]


def option(arguments: Sequence[str], *names: str) -> str | None:
    """The last value of an option: "--name value", "--name=value", "-nvalue", "-n value", "-Fn value" with a
    flag F before it; None when absent.

    A long name may be shortened: a program that allows it refuses what fits two of its options.
    """
    found = None
    for index, argument in enumerate(arguments):
        given, separator, value = argument.partition("=")
        for name in names:
            if given == name or (name.startswith("--") and len(given) > 3 and name.startswith(given)):
                if separator:
                    found = value
                elif index + 1 < len(arguments):
                    found = arguments[index + 1]
            elif not name.startswith("--") and not argument.startswith("--"):
                letters = argument[1:].lstrip(_FLAGS) if argument.startswith("-") else ""
                if letters == name[1:] and index + 1 < len(arguments):
                    found = arguments[index + 1]
                elif letters.startswith(name[1:]) and len(letters) > 1:
                    found = letters[1:]
    return found


def split(text: str) -> list[str]:
    """A shell-like string of options (GUNICORN_CMD_ARGS); [] when it cannot be split."""
    try:
        return shlex.split(text)
    except ValueError:
        return []


def number(text: str | None) -> float | None:
    """A finite number; None when it is none."""
    try:
        value = float(text) if text is not None else None
    except ValueError:
        return None
    return value if value is not None and math.isfinite(value) else None
