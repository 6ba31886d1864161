"""The wheel, built from a copy of the sources and installed into an empty environment elsewhere, with no source tree near it."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = ("agent", "bpf", "collectors", "LICENSES", "LICENSE", "README.md", "pyproject.toml", "setup.py")
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "-q")


@dataclass(frozen=True)
class Installed:
    wheel: Path
    command: Path
    python: Path
    empty: Path
    """A folder with nothing in it."""


def _run(*command: str | Path) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, f"{command}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def build(folder: Path) -> Path:
    """The wheel, built in this folder from a copy of the sources; nothing compiled before is used."""
    source = folder / "source"
    source.mkdir()
    ignored = shutil.ignore_patterns("__pycache__", "*.o")
    for entry in SOURCES:
        if (ROOT / entry).is_dir():
            shutil.copytree(ROOT / entry, source / entry, ignore=ignored)
        else:
            shutil.copy(ROOT / entry, source / entry)
    _run(*PIP, "wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", folder, source)
    shutil.rmtree(source)
    (wheel,) = folder.glob("*.whl")
    return wheel


@contextlib.contextmanager
def installed() -> Iterator[Installed]:
    """Everyone may read it."""
    with tempfile.TemporaryDirectory(prefix="installed-") as name:
        root = Path(name)
        root.chmod(0o755)
        environment, empty = root / "environment", root / "empty"
        empty.mkdir()
        wheel = build(root)
        _run(sys.executable, "-m", "venv", "--without-pip", environment)
        _run(*PIP, "--python", environment / "bin/python", "install", "--no-compile", wheel)
        # Whoever runs it cannot write there. scapy is large, and only few commands load it.
        _run(environment / "bin/python", "-m", "compileall", "-q", "-x", "/scapy/", environment / "lib")
        _run("chmod", "-R", "a+rX", root)
        yield Installed(wheel, environment / "bin/stucktrace", environment / "bin/python", empty)
