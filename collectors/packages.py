"""Which distributions, in which versions, the target can import. Source: the *.dist-info names in its site folders.

The folders are found through the target's own mappings, open files and executable, and read inside its root. Its
interpreter is never run.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Mapping

from stucktrace.collectors import procfs
from stucktrace.collectors.regions import Regions
from stucktrace.collectors.target_files import lines_inside, list_inside

_SITE = re.compile(r"^(/.*?/(?:site|dist)-packages)(?:/|$)")
_INFO = re.compile(r"^(?P<name>.+?)-(?P<version>\d[^-]*)(?:-py\d[\d.]*)?(?:-[^-]*)?\.(?:dist|egg)-info$")
_MOST_FOLDERS = 8


def read_packages(
    pid: int, mapped: Regions, executable: str, version: str, environ: Mapping[str, str]
) -> dict[str, str]:
    """Normalised name -> version; where two folders have one, the first folder found wins, as on sys.path."""
    found: dict[str, str] = {}
    for folder in _folders(pid, mapped, executable, version, environ):
        for name, its_version in from_names(list_inside(pid, folder)).items():
            found.setdefault(name, its_version)
    return dict(sorted(found.items()))


def from_names(names: Iterable[str]) -> dict[str, str]:
    """The distributions whose metadata folders are among these names."""
    return {normalised(match["name"]): match["version"] for name in names if (match := _INFO.match(name))}


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _folders(pid: int, mapped: Regions, executable: str, version: str, environ: Mapping[str, str]) -> list[str]:
    """Folders in the order in which they would be searched: environment, virtual environment, mapped files, system."""
    major_minor = ".".join(version.split(".")[:2])
    folders: dict[str, None] = {}
    for entry in environ.get("PYTHONPATH", "").split(":"):
        if entry.startswith("/"):
            folders[posixpath.normpath(entry)] = None
    argv = procfs.read_argv(pid)
    prefixes = [environ.get("VIRTUAL_ENV", ""), *_prefixes(pid, argv, executable, environ)]
    for path in dict.fromkeys(region.path for region in mapped.regions):
        if match := _SITE.match(path):
            folders[match.group(1)] = None
    if major_minor:
        for prefix in dict.fromkeys(prefix for prefix in prefixes if prefix):
            folders[f"{prefix}/lib/python{major_minor}/site-packages"] = None
        folders[f"/usr/local/lib/python{major_minor}/dist-packages"] = None
    folders["/usr/lib/python3/dist-packages"] = None
    return list(folders)[: _MOST_FOLDERS + 2]


def _prefixes(pid: int, argv: tuple[str, ...], executable: str, environ: Mapping[str, str]) -> list[str]:
    """Where the interpreter and the script live: a virtual environment's python is a link, so argv knows more."""
    prefixes = []
    for program in (*argv[:2], executable):
        if program and "/" not in program:
            program = _on_path(pid, program, environ)
        if program.startswith("/") and posixpath.basename(posixpath.dirname(program)) in ("bin", "sbin"):
            prefix = posixpath.dirname(posixpath.dirname(program))
            prefixes.append(prefix)
            if any(
                line.replace(" ", "") == "include-system-site-packages=true"
                for line in lines_inside(pid, f"{prefix}/pyvenv.cfg")
            ):
                prefixes.append("/usr")
    return prefixes


def _on_path(pid: int, program: str, environ: Mapping[str, str]) -> str:
    for folder in environ.get("PATH", "").split(":")[:32]:
        if folder.startswith("/") and program in list_inside(pid, folder):
            return f"{folder}/{program}"
    return ""
