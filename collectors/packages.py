"""Which distributions, in which versions, the target can import. Source: the *.dist-info names in its site folders.

The folders are found through the target's own mappings, its program, its virtual environment and path variables, in the
order in which its interpreter would search them, and read inside its root. Its interpreter is never run. What was
upgraded after the target started is listed with its new version.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from stucktrace.collectors import procfs
from stucktrace.collectors.regions import Regions
from stucktrace.collectors.target_files import exists_inside, inside, lines_inside, list_inside
from stucktrace.errors import CannotInspect

_SITE = re.compile(r"^(/.*?/(?:site|dist)-packages)(?:/|$)")
_STANDARD_LIBRARY = re.compile(r"^(/.*?)/lib(?:64)?/python\d\.\d+t?/lib-dynload/")
_INFO = re.compile(
    r"^(?P<name>[A-Za-z0-9][A-Za-z0-9._-]{0,127}?)-(?P<version>\d[^-]{0,63})(?:-py\d[\d.]*)?(?:-[^-]*)?\.(?:dist|egg)-info$"
)
_MOST_FOLDERS = 16


def read_packages(
    pid: int, mapped: Regions, executable: str, version: str, environ: Mapping[str, str]
) -> dict[str, str]:
    """Normalised name -> version; where two folders have one, the first folder found wins, as on sys.path."""
    python = "python" + ".".join(version.split(".")[:2]) if "." in version else ""
    paths = [inside(pid, path) for path in _interesting(mapped)]
    folders = dict.fromkeys(_folders(pid, paths, inside(pid, executable), python, environ))
    found: dict[str, str] = {}
    for folder in list(folders)[:_MOST_FOLDERS]:
        for name, its_version in from_names(list_inside(pid, folder)).items():
            found.setdefault(name, its_version)
    return dict(sorted(found.items()))


def from_names(names: Iterable[str]) -> dict[str, str]:
    """The distributions whose metadata folders are among these names."""
    return {normalised(match["name"]): match["version"] for name in names if (match := _INFO.match(name))}


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _interesting(mapped: Regions) -> list[str]:
    paths = dict.fromkeys(region.path for region in mapped.regions)
    folders = {posixpath.dirname(path): path for path in paths if "-packages/" in path or "/lib-dynload/" in path}
    return list(folders.values())


def _folders(pid: int, paths: Sequence[str], executable: str, python: str, environ: Mapping[str, str]) -> Iterator[str]:
    """Where its interpreter (`python`: "python3.11") would look, in its order."""
    for entry in environ.get("PYTHONPATH", "").split(":"):
        if entry.startswith("/"):
            yield posixpath.normpath(entry)
    environment = _virtual_environment(pid, executable, environ)
    if environment and python:
        yield f"{environment}/lib/{python}/site-packages"
    yield from (match[1] for path in paths if (match := _SITE.match(path)))
    if not python or (environment and not _sees_system(pid, environment)):
        return
    home = environ.get("PYTHONUSERBASE") or (f"{environ['HOME']}/.local" if environ.get("HOME") else "")
    if home.startswith("/"):
        yield f"{home}/lib/{python}/site-packages"
    prefixes = [posixpath.dirname(posixpath.dirname(executable))] if "/bin/" in executable else []
    prefixes += [match[1] for path in paths if (match := _STANDARD_LIBRARY.match(path))]
    for prefix in dict.fromkeys(prefixes):
        if prefix == "/usr":
            # Debian's layout.
            yield f"/usr/local/lib/{python}/dist-packages"
            yield "/usr/lib/python3/dist-packages"
        yield f"{prefix}/lib/{python}/site-packages"
        yield f"{prefix}/lib64/{python}/site-packages"


def _virtual_environment(pid: int, executable: str, environ: Mapping[str, str]) -> str:
    """Its prefix, "" for none. The interpreter in it is a link, so the words that started the program know more.

    A title hides those; then what the shell that started it left behind has to do.
    """
    try:
        argv = procfs.read_argv(pid)
    except CannotInspect:
        argv = ()
    started = [program for program in (*argv[:2], environ.get("_", "")) if "/" in program]
    if argv and "/" not in argv[0]:
        started.append(_on_path(pid, argv[0], environ))
    candidates = [_prefix(pid, program) for program in [*started, executable]] + [environ.get("VIRTUAL_ENV", "")]
    for prefix in dict.fromkeys(candidates):
        if prefix.startswith("/") and exists_inside(pid, f"{prefix}/pyvenv.cfg"):
            return prefix
    return ""


def _prefix(pid: int, program: str) -> str:
    """The folder above the bin that a program is in. A relative path counts from its working directory."""
    if not program.startswith("/"):
        program = posixpath.join(inside(pid, procfs.read_link(pid, "cwd")), program)
    folder = posixpath.dirname(posixpath.normpath(program))
    return posixpath.dirname(folder) if posixpath.basename(folder) in ("bin", "sbin") else ""


def _sees_system(pid: int, prefix: str) -> bool:
    return any(
        line.replace(" ", "").lower() == "include-system-site-packages=true"
        for line in lines_inside(pid, f"{prefix}/pyvenv.cfg")
    )


def _on_path(pid: int, program: str, environ: Mapping[str, str]) -> str:
    """Where the shell would have found it."""
    if re.fullmatch(r"[\w.+-]{1,64}", program):
        for folder in environ.get("PATH", "").split(":")[:32]:
            if folder.startswith("/") and exists_inside(pid, f"{folder}/{program}"):
                return f"{folder}/{program}"
    return ""
