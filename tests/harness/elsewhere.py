"""The command as another user would run it: a copy of the package, outside of this user's home, on Debian's Python.

It has no py-spy beside its interpreter: the first one on PATH is used, so a test can put its own there.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import stucktrace

PYTHON = "/usr/bin/python3"
UNPRIVILEGED = (
    "setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--bounding-set", "-all", "--inh-caps", "-all",
    "--no-new-privs",
)  # fmt: skip


@contextmanager
def installed(pyspy: str | None = "real") -> Iterator[dict[str, str]]:
    """The environment in which `COMMAND` runs. `pyspy`: "real", None for none at all, or the text of a script."""
    with tempfile.TemporaryDirectory(prefix="elsewhere-") as name:
        root = Path(name)
        for package in (stucktrace, click):
            source = Path(package.__file__).parent
            shutil.copytree(source, root / "lib" / source.name, ignore=shutil.ignore_patterns("__pycache__"))
        (root / "bin").mkdir()
        program = root / "bin" / "py-spy"
        if pyspy == "real":
            shutil.copy(Path(sysconfig.get_path("scripts")) / "py-spy", program)
        elif pyspy is not None:
            program.write_text(pyspy)
        if pyspy is not None:
            program.chmod(program.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
        subprocess.run(["chmod", "-R", "a+rX", name], check=True)
        yield {
            "PYTHONPATH": str(root / "lib"),
            "PATH": f"{root / 'bin'}:/usr/sbin:/usr/bin:/sbin:/bin",
            "PYTHONDONTWRITEBYTECODE": "1",
            "HOME": "/",
        }


COMMAND = (PYTHON, "-c", "from stucktrace.cli import main; main()")


def run(
    environment: dict[str, str], *args: str | int, prefix: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """The copied command. Never a traceback."""
    assert os.access(PYTHON, os.X_OK) and sys.version_info >= (3, 11)
    done = subprocess.run(
        [*prefix, *COMMAND, *map(str, args)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=120,
        env=environment,
        cwd="/",
    )
    assert "Traceback" not in done.stdout + done.stderr, done.stdout + done.stderr
    return done
