"""What a command line starts: gunicorn, Celery (worker or beat), a supervisor, and the options that matter here.

Pure: argv in, words out. Knows a script behind an interpreter and its options, `-m module`, launchers that keep their
own argv (coverage, debugpy ...), and options as gunicorn (argparse) and Celery (click) take them. Titles that
setproctitle wrote are read too; they hide gunicorn's options, and only Celery's main process repeats its own in them.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

GUNICORN, CELERY_WORKER, CELERY_BEAT, SUPERVISOR, OTHER = (
    "gunicorn",
    "celery-worker",
    "celery-beat",
    "supervisor",
    "other",
)

PYTHON = re.compile(r"^(?:python|pypy)[\d.]*[a-z]*(?:-\w+)?$")
_SHELLS = frozenset({"sh", "bash", "dash", "ash", "busybox", "zsh", "ksh"})
_PYTHON_OPTIONS_WITH_VALUE = frozenset({"-W", "-X", "--check-hash-based-pycs"})
_GUNICORN_PROGRAMS = frozenset({"gunicorn", "gunicorn3", "gunicorn_paster"})
_CELERY_PROGRAMS = frozenset({"celery", "celery.bin.celery", "celery.__main__"})
# Python programs whose own work is to keep others running: their children are what a user means.
_SUPERVISORS = frozenset({"supervisord", "circusd", "honcho", "watchmedo", "watchfiles"})
_SUPERVISOR_MODULES = frozenset({"supervisor", "circus", "honcho", "watchdog", "watchfiles"})
# Python programs that run another one in their own process.
_LAUNCHERS = frozenset(
    {"coverage", "ddtrace-run", "debugpy", "kernprof", "manage.py", "memray", "pyinstrument", "viztracer"}
)

# Option -> the length of the shortest form of it that is unique among gunicorn's (argparse takes any).
_GUNICORN_LONG = {"timeout": 2, "threads": 2, "workers": 7, "worker-class": 9, "config": 4, "chdir": 3, "bind": 2}
_GUNICORN_SHORT = {"t": "timeout", "w": "workers", "k": "worker-class", "c": "config", "b": "bind"}
_GUNICORN_SHORT_FLAGS = "DR"
_CELERY_LONG = ("concurrency", "pool", "time-limit", "soft-time-limit", "autoscale", "beat", "hostname", "queues")
_CELERY_SHORT = {"c": "concurrency", "P": "pool", "B": "beat", "n": "hostname", "Q": "queues"}
_CELERY_SHORT_FLAGS = "BDEC"
# Before the subcommand.
_CELERY_GLOBAL_WITH_VALUE = frozenset(
    {"-A", "--app", "-b", "--broker", "--result-backend", "--loader", "--config", "--workdir"}
)

_GUNICORN_TITLE = re.compile(r"^gunicorn: (?P<role>[a-z-]+)(?: \[|$)")
_CELERY_TITLE = re.compile(r"^\[celeryd: (?P<node>.+?):(?P<process>[^:\]]+)\](?: (?P<rest>.*))?$", re.DOTALL)
_BEAT_TITLE = re.compile(r"^\[celery beat\]")


@dataclass(frozen=True)
class CommandLine:
    """What was started."""

    program: str
    """GUNICORN, CELERY_WORKER, CELERY_BEAT, SUPERVISOR or OTHER."""
    options: Mapping[str, str] = field(default_factory=dict)
    """By their long names without dashes; of a flag "". The last one given counts."""
    title: str = ""
    """The title set with setproctitle, "" when argv is the real one."""
    role: str = ""
    """From a title: "master", "worker", "other"."""


def read(argv: Sequence[str]) -> CommandLine:
    """Classifies one command line."""
    if not argv:
        return CommandLine(OTHER)
    return _titled(argv[0]) or _started(argv)


def read_wrapped(argv: Sequence[str]) -> CommandLine:
    """What a wrapper (tini, a shell, an entrypoint) was told to run, where its own argv says that plainly."""
    words = list(argv)
    if words and base_name(words[0]) in _SHELLS:
        scripts = [following for word, following in pairwise(words) if _runs_string(word)]
        if scripts:
            words = _last_command(scripts[0])
    for index, word in enumerate(words):
        name = base_name(word)
        if name in _GUNICORN_PROGRAMS or name in _CELERY_PROGRAMS or PYTHON.match(name):
            found = _started(words[index:])
            if found.program != OTHER:
                return found
    return CommandLine(OTHER)


def program_of(argv: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """(base name of the script, or the module; what follows it), with or without an interpreter before it."""
    rest = list(argv)
    if rest and PYTHON.match(base_name(rest[0])):
        rest.pop(0)
        while rest and rest[0].startswith("-"):
            option = rest.pop(0)
            # A cluster such as -Bum ends in m; the module may follow it without a space.
            if found := re.match(r"^-[bBdEiIOPqsSuvx]*m(.*)$", option):
                module = found[1] or (rest.pop(0) if rest else "")
                return module, tuple(rest)
            if option == "-" or re.match(r"^-[bBdEiIOPqsSuvx]*c", option):
                return "", ()
            if option in _PYTHON_OPTIONS_WITH_VALUE and rest:
                rest.pop(0)
    return (base_name(rest[0]), tuple(rest[1:])) if rest else ("", ())


def base_name(path: str) -> str:
    return path.rpartition("/")[2]


def gunicorn_options(arguments: Sequence[str]) -> dict[str, str]:
    """The options of interest among gunicorn's arguments."""
    found: dict[str, str] = {}
    words = iter(arguments)
    for word in words:
        if word == "--":
            break
        if word.startswith("--"):
            given, has_value, value = word[2:].partition("=")
            name = next(
                (
                    full
                    for full, shortest in _GUNICORN_LONG.items()
                    if len(given) >= shortest and full.startswith(given)
                ),
                None,
            )
        elif word.startswith("-"):
            letters = word[1:].lstrip(_GUNICORN_SHORT_FLAGS)
            name, value = _GUNICORN_SHORT.get(letters[:1]), letters[1:].removeprefix("=")
            has_value = letters[1:]
        else:
            continue
        if name is not None:
            found[name] = value if has_value else next(words, "")
    return found


def gunicorn_environment(value: str) -> dict[str, str]:
    """The options in GUNICORN_CMD_ARGS; {} when it cannot be split."""
    try:
        return gunicorn_options(shlex.split(value))
    except ValueError:
        return {}


def celery_options(arguments: Sequence[str]) -> dict[str, str]:
    """The options of interest among the arguments of Celery's worker."""
    found: dict[str, str] = {}
    words = iter(arguments)
    for word in words:
        if word == "--":
            break
        if word.startswith("--"):
            name, has_value, value = word[2:].partition("=")
            if name not in _CELERY_LONG:
                continue
        elif word.startswith("-"):
            letters = word[1:]
            while letters and letters[0] in _CELERY_SHORT_FLAGS:
                if letters[0] == "B":
                    found["beat"] = ""
                letters = letters[1:]
            if letters[:1] not in _CELERY_SHORT:
                continue
            name, value = _CELERY_SHORT[letters[0]], letters[1:].removeprefix("=")
            has_value = letters[1:]
        else:
            continue
        if name == "beat":
            found["beat"] = ""
        else:
            found[name] = value if has_value else next(words, "")
    return found


def number(text: str | None) -> float | None:
    try:
        return float(text) if text is not None else None
    except ValueError:
        return None


def _titled(first: str) -> CommandLine | None:
    if match := _GUNICORN_TITLE.match(first):
        role = match["role"] if match["role"] in ("master", "worker") else "other"
        return CommandLine(GUNICORN, title=first, role=role)
    if match := _CELERY_TITLE.match(first):
        if match["process"] != "MainProcess":
            return CommandLine(CELERY_WORKER, title=first, role="worker")
        # "... -active- (worker -A proj --concurrency=4)"
        inside = (match["rest"] or "").partition("(")[2].rpartition(")")[0].split()
        options = celery_options(_celery_subcommand(inside)[1])
        return CommandLine(CELERY_WORKER, options, first, "master")
    if _BEAT_TITLE.match(first):
        return CommandLine(CELERY_BEAT, title=first)
    return None


def _started(argv: Sequence[str]) -> CommandLine:
    name, arguments = program_of(argv)
    if name in _LAUNCHERS:
        name, arguments = _launched(arguments)
    if name in _GUNICORN_PROGRAMS or name.startswith("gunicorn.app."):
        return CommandLine(GUNICORN, gunicorn_options(arguments))
    if name in _CELERY_PROGRAMS:
        subcommand, rest = _celery_subcommand(arguments)
        if subcommand == "worker":
            return CommandLine(CELERY_WORKER, celery_options(rest))
        return CommandLine(CELERY_BEAT if subcommand == "beat" else OTHER)
    if name in _SUPERVISORS or name.partition(".")[0] in _SUPERVISOR_MODULES:
        return CommandLine(SUPERVISOR)
    return CommandLine(OTHER)


def _celery_subcommand(arguments: Sequence[str]) -> tuple[str, Sequence[str]]:
    """The first word that is neither an option nor the value of one, and what follows it."""
    words = iter(enumerate(arguments))
    for index, word in words:
        if word in _CELERY_GLOBAL_WITH_VALUE:
            next(words, None)
        elif not word.startswith("-"):
            return word, arguments[index + 1 :]
    return "", ()


def _launched(arguments: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    known: Collection[str] = _GUNICORN_PROGRAMS | _CELERY_PROGRAMS
    for index, word in enumerate(arguments):
        if base_name(word) in known:
            return base_name(word), tuple(arguments[index + 1 :])
    return "", ()


def _runs_string(word: str) -> bool:
    """-c, or a cluster that ends in it: -ec, -lc."""
    return bool(re.match(r"^-[a-z]*c$", word))


def _last_command(script: str) -> list[str]:
    """The words of a shell script's last command; [] when a shell would have to expand something in it."""
    last = re.split(r"&&|\|\||;|\n", script.strip().rstrip(";"))[-1].strip()
    if re.search(r"[$`|<>*?(){}&]", last):
        return []
    try:
        words = shlex.split(last)
    except ValueError:
        return []
    return words[1:] if words[:1] == ["exec"] else words
