"""An empty Debian to install something into: a debootstrap tree under an overlay, whose changes are gone with it.

Tree and mounts are those of a mount namespace, held by a process that ends with the test's own (its stdin closes).
Processes in it are the machine's, as in a pod with hostPID.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.harness import trees

_MOUNTS = """
tree=$1
changes=$2
root=$3
mount -t tmpfs tmpfs "$changes"
mkdir "$changes/upper" "$changes/work"
mount -t overlay overlay -o "lowerdir=$tree,upperdir=$changes/upper,workdir=$changes/work" "$root"
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mount -t tmpfs -o mode=0755 tmpfs "$root/run"
mount --rbind /dev "$root/dev"
cat /etc/resolv.conf >"$root/etc/resolv.conf"
printf '#!/bin/sh\\nexit 101\\n' >"$root/usr/sbin/policy-rc.d"
chmod +x "$root/usr/sbin/policy-rc.d"
echo ready
exec cat
"""
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Root:
    path: Path
    """Only inside of the namespace."""
    holder: int
    """The pid of the process that keeps the namespace."""

    def command(self, *command: str | Path, env: Mapping[str, str] | None = None, cwd: str = "/") -> list[str]:
        """What runs this in the tree, with these variables and no others."""
        variables = {
            "PATH": PATH,
            "HOME": "/root",
            "LC_ALL": "C.UTF-8",
            "DEBIAN_FRONTEND": "noninteractive",
            **(env or {}),
        }
        inside = f"cd {shlex.quote(cwd)} && exec {shlex.join(map(str, command))}"
        return [
            *("nsenter", "-t", str(self.holder), "-m", "chroot", str(self.path), "env", "-i"),
            *(f"{name}={value}" for name, value in variables.items()),
            *("sh", "-c", inside),
        ]

    def attempt(
        self, *command: str | Path, timeout: float = 900, **options: object
    ) -> subprocess.CompletedProcess[str]:
        done = self.command(*command, **options)  # type: ignore[arg-type]
        return subprocess.run(done, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL)

    def run(self, *command: str | Path, **options: object) -> str:
        """What it printed; an AssertionError when it fails."""
        done = self.attempt(*command, **options)  # type: ignore[arg-type]
        assert done.returncode == 0, f"{command}: status {done.returncode}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
        return done.stdout

    def install(self, *packages: str) -> None:
        self.run("apt-get", "update", "-q")
        self.run("apt-get", "install", "-q", "-y", "--no-install-recommends", *packages)

    def seen_as(self, path: str) -> Path:
        """A file of the tree, as this process can open it."""
        return Path(f"/proc/{self.holder}/root{self.path}{path}")

    def copy_in(self, source: Path, target: str) -> None:
        """A file or a folder, with what is in it; folders on the way are made."""
        place = f"{self.path}{target}"
        copy = f'mkdir -p "$(dirname "{place}")" && cp -r "{source}" "{place}"'
        subprocess.run(["nsenter", "-t", str(self.holder), "-m", "sh", "-ec", copy], check=True)

    def copy_from(self, other: Root, path: str) -> None:
        """What another tree has at this path."""
        with subprocess.Popen(other.command("tar", "-cf", "-", "-C", "/", path[1:]), stdout=subprocess.PIPE) as packed:
            subprocess.run(self.command("tar", "-xf", "-", "-C", "/"), stdin=packed.stdout, check=True)
        assert packed.returncode == 0


@contextlib.contextmanager
def root(folder: Path, release: str = "bookworm") -> Iterator[Root]:
    """A Debian of this release with python3 and nothing else, below `folder`."""
    changes, path = folder / "changes", folder / "root"
    changes.mkdir(parents=True)
    path.mkdir()
    options = ("--mount", "--propagation", "private")
    arguments = (str(trees.tree(release)), str(changes), str(path))
    with subprocess.Popen(
        ["unshare", *options, "sh", "-ec", _MOUNTS, "sh", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"},
    ) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "ready\n"
        try:
            yield Root(path, holder.pid)
        finally:
            holder.kill()
