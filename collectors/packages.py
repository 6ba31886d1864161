"""Which distributions, in which versions, the target can import. Source: the *.dist-info names in its site folders.

The folders are found through the target's own mappings, arguments and executable, and read inside its root. Its
interpreter is never run.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from functools import lru_cache

from stucktrace.collectors import procfs
from stucktrace.collectors.interpreter import Interpreter
from stucktrace.collectors.regions import Regions
from stucktrace.collectors.target_files import lines_inside, list_inside

_SITE = re.compile(r"^(/.*?/(?:site|dist)-packages)(?:/|$)")
_INFO = re.compile(r"^(?P<name>.+?)-(?P<version>\d[^-]*)(?:-py\d[\d.]*)?(?:-[^-]*)?\.(?:dist|egg)-info$")
_MOST_FOLDERS = 12


def read_packages(
    pid: int, mapped: Regions, found: Interpreter, argv: tuple[str, ...], environ: Mapping[str, str]
) -> dict[str, str]:
    """Normalised name -> version; where two folders have one, the first folder found wins, as on sys.path."""
    packages: dict[str, str] = {}
    for folder in _folders(pid, mapped, found, argv, environ):
        for name, version in from_names(tuple(list_inside(pid, folder))).items():
            packages.setdefault(name, version)
    return dict(sorted(packages.items()))


@lru_cache(maxsize=64)
def from_names(names: tuple[str, ...]) -> Mapping[str, str]:
    """The distributions whose metadata folders are among these names. Kept: the workers of a family share theirs."""
    return {normalised(match["name"]): match["version"] for name in names if (match := _INFO.match(name))}


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _folders(
    pid: int, mapped: Regions, found: Interpreter, argv: tuple[str, ...], environ: Mapping[str, str]
) -> list[str]:
    """Folders in the order in which they would be searched: PYTHONPATH, mapped files, the prefix, the system's."""
    version = ".".join(found.version.split(".")[:2])
    folders: dict[str, None] = {}
    for entry in environ.get("PYTHONPATH", "").split(":"):
        if entry.startswith("/"):
            folders[posixpath.normpath(entry)] = None
    for path in dict.fromkeys(region.path for region in mapped.regions):
        if match := _SITE.match(path):
            folders[match.group(1)] = None
    prefix = _prefix(pid, argv, environ)
    settings = _pyvenv(pid, prefix) if prefix else {}
    prefixes = [prefix]
    system = True
    if settings:
        system = settings.get("include-system-site-packages", "").lower() == "true"
        home = settings.get("home", "")
        prefixes += [posixpath.dirname(home)] if system else []
    else:
        prefixes.append(_prefix_of(found.executable))
    if version:
        for entry in dict.fromkeys(filter(None, prefixes)):
            folders[f"{entry.rstrip('/')}/lib/python{version}/site-packages"] = None
    if system:
        if version:
            if environ.get("HOME", "").startswith("/"):
                folders[f"{environ['HOME'].rstrip('/')}/.local/lib/python{version}/site-packages"] = None
            folders[f"/usr/local/lib/python{version}/dist-packages"] = None
        if "/usr" in prefixes:
            folders["/usr/lib/python3/dist-packages"] = None
    return list(folders)[:_MOST_FOLDERS]


def _prefix(pid: int, argv: tuple[str, ...], environ: Mapping[str, str]) -> str:
    """Where the interpreter was started from: a virtual environment's python is a link, so argv knows more than exe."""
    program = argv[0] if argv else ""
    if not program or " " in program:
        return ""
    if "/" not in program:
        program = _on_path(pid, program, environ)
    elif not program.startswith("/"):
        program = posixpath.normpath(posixpath.join(procfs.read_link(pid, "cwd") or "/", program))
    return _prefix_of(program)


def _prefix_of(program: str) -> str:
    folder = posixpath.dirname(program)
    return posixpath.dirname(folder) if posixpath.basename(folder) in ("bin", "sbin") else ""


def _pyvenv(pid: int, prefix: str) -> dict[str, str]:
    """The settings of a virtual environment; {} when the prefix is none."""
    lines = (line.partition("=") for line in lines_inside(pid, f"{prefix}/pyvenv.cfg"))
    return {name.strip().lower(): value.strip() for name, _, value in lines}


def _on_path(pid: int, program: str, environ: Mapping[str, str]) -> str:
    for folder in environ.get("PATH", "").split(":")[:32]:
        if folder.startswith("/") and program in list_inside(pid, folder):
            return f"{folder}/{program}"
    return ""
