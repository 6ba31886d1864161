"""Debian releases as targets, each with its own CPython, run as a hardened container is.

A tree is made once by debootstrap (half a minute, 250 MB) in a cache outside the repository, from the mirror that this
machine's apt uses. A program runs in it in mount, PID and network namespaces of its own, as a user without
capabilities; the ids that it says are its own view, and are told here in the machine's.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.harness import crowd, kernel, targets
from tests.harness.confined import Confinement

PYTHONS = {"bullseye": "3.9", "bookworm": "3.11", "trixie": "3.13"}
"""Release -> its CPython."""
STAMP = "1: minbase, python3"
"""Trees made otherwise are made anew."""
INSIDE = "/opt/targets"
"""Where a program finds tests/targets."""
USER = "1000"

_MOUNTS = """
mount -t proc proc "$1/proc"
mount -t tmpfs -o mode=1777 tmpfs "$1/tmp"
mount -t tmpfs -o mode=1777 tmpfs "$1/dev/shm"
mount --bind "$2" "$1/opt/targets"
tree=$1; shift 2
exec chroot "$tree" "$@"
"""


def tree(release: str) -> Path:
    """The root of this release's tree, which is made if need be; who comes meanwhile waits."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "/var/cache") / "stucktrace-trees"
    cache.mkdir(parents=True, exist_ok=True)
    root, stamp = cache / release, cache / f"{release}.stamp"
    with open(cache / f"{release}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp.exists() or stamp.read_text() != STAMP:
            stamp.unlink(missing_ok=True)
            _make(release, root)
            stamp.write_text(STAMP)
    return root


def _make(release: str, root: Path) -> None:
    subprocess.run(["rm", "-rf", "--one-file-system", root], check=True)
    # What it mounts goes with its namespace, however it ends.
    namespace = ("unshare", "--mount", "--propagation", "private")
    options = ("--variant=minbase", "--include=python3", release)
    done = subprocess.run(
        [*namespace, "debootstrap", *options, root, mirror()],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"},
    )
    assert done.returncode == 0, f"debootstrap {release}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    (root / INSIDE[1:]).mkdir()
    for package in (root / "var/cache/apt/archives").glob("*.deb"):
        package.unlink()


@functools.cache
def mirror() -> str:
    """Where this machine's own packages come from."""
    asked = ["apt-get", "indextargets", "--format", "$(ORIGIN)|$(LABEL)|$(COMPONENT)|$(REPO_URI)"]
    listed = subprocess.run(asked, check=True, capture_output=True, text=True).stdout
    found = re.search(r"^Debian\|Debian\|main\|(\S+)$", listed, re.MULTILINE)
    assert found, f"apt knows no mirror of Debian: {listed}"
    return found[1]


@dataclass(frozen=True)
class Contained(crowd.Hung):
    """A program in a tree, which said "PID TID..." in its own ids; all ids here are the machine's."""

    ids: dict[int, int]
    """Its own view of each thread that there was when it was ready -> the machine's."""

    @property
    def pid(self) -> int:
        return self.words[0] if self.said else self.ids.get(1, self.target.pid)

    @property
    def said(self) -> list[int]:
        """The ids that it said, in its own view; nothing when it only said that it is ready."""
        return [int(word) for word in self.target.said.split() if word.isdigit()]

    @property
    def words(self) -> list[int]:
        return [self.ids[word] for word in self.said]


@contextlib.contextmanager
def start(release: str, program: str, *args: str, contained: bool = True) -> Iterator[Contained]:
    """A program of tests/targets in the release's tree; not `contained`: as root, in a mount namespace alone."""
    root = tree(release)
    spaces = (
        "--mount",
        "--propagation",
        "private",
        *(("--pid", "--net", "--fork", "--kill-child") if contained else ()),
    )
    drop = ("--reuid", USER, "--regid", USER, "--clear-groups", "--inh-caps", "-all", "--bounding-set", "-all")
    command = (
        *("unshare", *spaces, "sh", "-ec", _MOUNTS, "sh", str(root), str(targets.TARGETS)),
        *(("setpriv", *drop, "--no-new-privs") if contained else ()),
        *("python3", "-u", "-B", f"{INSIDE}/{program}", *args),
    )
    with targets.start(command, env={"HOME": "/tmp", "LC_ALL": "C.UTF-8"}) as target:
        inside = targets.descendants(target.pid)
        yield Contained(target, _ids(inside if contained else [target.pid, *inside]))


@contextlib.contextmanager
def harden(
    release: str,
    program: str,
    *args: str,
    cgroups: Sequence[Path] = (),
    binds: Sequence[tuple[Path, str]] = (),
    own_users: bool = True,
    prefix: Sequence[str] = (),
) -> Iterator[Contained]:
    """A program of tests/targets in the release's tree, as process 1 of a hardened container (see confined.py)."""
    root = tree(release)
    for _, where in binds:
        (root / where[1:]).touch()
    with tempfile.TemporaryDirectory(prefix="targets-") as folder:
        # Its root is nobody outside, who may not go through this repository's own folders.
        Path(folder).chmod(0o755)
        programs = shutil.copytree(targets.TARGETS, Path(folder) / "targets")
        wanted = Confinement(
            str(root),
            ["python3", "-u", "-B", f"{INSIDE}/{program}", *args],
            [(str(programs), INSIDE), *((str(what), where) for what, where in binds)],
            [str(folder) for folder in cgroups],
            own_users=own_users,
        )
        with targets.start(wanted.as_words(), env={"HOME": "/tmp", "LC_ALL": "C.UTF-8"}, prefix=prefix) as target:
            yield Contained(target, _ids(targets.descendants(target.pid)))


def _ids(pids: Sequence[int]) -> dict[int, int]:
    """Each thread's id in its own view -> in the machine's."""
    found = {}
    for pid in pids:
        for tid in kernel.tids(pid):
            status = Path(f"/proc/{pid}/task/{tid}/status").read_text()
            found[int(re.search(r"^NSpid:.*?(\d+)$", status, re.MULTILINE)[1])] = tid  # type: ignore[index]
    return found


@contextlib.contextmanager
def start_all(release: str, programs: Mapping[str, str]) -> Iterator[dict[str, Contained]]:
    """Case -> program: each with its case as the first argument, all at the same time."""
    tree(release)
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(crowd.STARTERS) as pool:
        started = pool.map(lambda one: stack.enter_context(start(release, one[1], one[0])), programs.items())
        yield dict(zip(programs, started, strict=True))
