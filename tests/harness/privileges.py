"""A hang to look at from outside, and ways to look at it with some capabilities alone.

The hang: a process of another user in PID and network namespaces of its own, whose thread holds an RLock while a server
does not acknowledge what it sent; its main thread wants the lock; conntrack tracks the connection.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.harness import kernel, namespaces, targets

UNDER_SECCOMP, UNDER_LANDLOCK = (Path(__file__).with_name(f"under_{name}.py") for name in ("seccomp", "landlock"))
PROFILE = Path(__file__).parents[2] / "packaging" / "seccomp.json"
PYTHON = "/usr/bin/python3"
"""One that every user may run."""
ANOTHER_USER = (
    "setpriv", "--reuid=64321", "--regid=64321", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all",
    "--no-new-privs",
)  # fmt: skip
TRACKS = """
add table inet t
add chain inet t c { type filter hook input priority 0; }
add rule inet t c ct state established accept
"""
READ_ONLY = r"""
state=$1; shift
mount --make-rprivate /
mount -t tmpfs tmpfs "$state"
awk '$3 != "proc" {print $2}' /proc/self/mounts | while read -r place; do
    [ "$place" = "$state" ] || mount -o remount,bind,ro "$(printf "$place")" || exit 1
done || exit 1
exec "$@"
"""


@dataclass(frozen=True)
class Hang:
    pid: int
    holder: int
    """The thread that has the lock, in the process's own view."""
    remote: str


@contextlib.contextmanager
def hang() -> Iterator[Hang]:
    folder = Path(tempfile.mkdtemp(prefix="readable-"))
    folder.chmod(0o755)
    try:
        for name in ("cut_off.py", "ready.py"):
            shutil.copy(targets.TARGETS / name, folder)
            (folder / name).chmod(0o644)
        with namespaces.pair() as pair:
            namespaces.run(pair.here, "nft", "-f", "-", text=TRACKS)
            alone = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "env", "--chdir=/")
            with (
                targets.start("http_holder.py", "mute", pair.there_address, netns=pair.there) as server,
                targets.start(
                    [*alone, *ANOTHER_USER, PYTHON, str(folder / "cut_off.py"), pair.there_address, server.said],
                    netns=pair.here,
                ) as target,
            ):
                (pid,) = targets.descendants(target.pid)
                pair.cut(int(server.said))
                os.kill(pid, signal.SIGUSR1)
                kernel.wait_until(lambda: len(kernel.tids(pid)) == 2, "the thread that asks")
                tid = next(tid for tid in kernel.tids(pid) if tid != pid)
                # Before, the lock's waiter is all that there is to tell: unacknowledged data means something after 5 s.
                kernel.wait_until(lambda: kernel.asleep_s(pid, tid) >= 6.0, "its data is late")
                status = Path(f"/proc/{pid}/task/{tid}/status").read_text()
                own = next(line.split()[-1] for line in status.splitlines() if line.startswith("NSpid:"))
                yield Hang(pid, int(own), f"{pair.there_address}:{server.said}")
    finally:
        shutil.rmtree(folder)


def as_root(names: Collection[str]) -> list[str]:
    """Root with these capabilities (without CAP_) and no others, as a container's runtime starts it."""
    return ["setpriv", f"--bounding-set={_listed(names)}", "--inh-caps=-all", "--no-new-privs"]


def as_user(names: Collection[str]) -> list[str]:
    """Another user with these, as systemd starts it."""
    listed = _listed(names)
    user = ["setpriv", "--reuid=64999", "--regid=64999", "--clear-groups", f"--inh-caps={listed}"]
    return [*user, f"--ambient-caps={listed}", f"--bounding-set={listed}", "--no-new-privs"]


def _listed(names: Collection[str]) -> str:
    return ",".join(["-all", *(f"+{name.lower()}" for name in names)])


def filtered(profile: Path = PROFILE) -> list[str]:
    """Behind a seccomp profile. Comes last, for the filter stays."""
    return [PYTHON, str(UNDER_SECCOMP), str(profile)]


def profile_without(folder: Path, name: str) -> Path:
    """packaging/seccomp.json less one system call."""
    profile = json.loads(PROFILE.read_text())
    for rule in profile["syscalls"]:
        rule["names"] = [one for one in rule["names"] if one != name]
    path = folder / f"without-{name}.json"
    path.write_text(json.dumps(profile))
    return path


def by_a_security_module() -> list[str]:
    """In a Landlock domain, which may look at nothing outside."""
    return [PYTHON, str(UNDER_LANDLOCK)]


def read_only(state: Path) -> list[str]:
    """In a mount namespace where nothing can be written but `state`, which is empty."""
    return ["unshare", "--mount", "sh", "-c", READ_ONLY, "sh", str(state)]


@dataclass(frozen=True)
class Watched:
    event: dict[str, Any] | None
    """The first alert."""
    said: str
    """On stderr."""
    written: tuple[str, ...]
    """What was in `state` in the end."""


def watch(hung: Hang, program: Path, prefix: Sequence[str], *options: str, state: Path | None = None) -> Watched:
    """An agent beside the hung process, in a network namespace of its own, until its first alert."""
    beside = ["nsenter", "-t", str(hung.pid), "-p", "-m", "unshare", "--net"]
    line = [*beside, *prefix, str(program), "agent", "--json", "--match", "cut_off", "--stuck-after", "2", *options]
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            line, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, cwd="/", start_new_session=True
        ) as process,
    ):
        try:
            text = _first_line(process, time.monotonic() + 120)
            written = _files(process.pid, state) if state is not None else ()
            for pid in [*targets.descendants(process.pid), process.pid]:
                # nsenter and unshare wait for the agent, which ends by itself.
                if "agent" in Path(f"/proc/{pid}/cmdline").read_text().split("\0"):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGTERM)
            process.wait(60)
        finally:
            for pid in [*targets.descendants(process.pid), process.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        errors.seek(0)
        said = errors.read().decode(errors="replace")
    return Watched(json.loads(text) if text else None, said, written)


def _first_line(process: subprocess.Popen[bytes], until_s: float) -> bytes:
    assert process.stdout is not None
    text = b""
    while b"\n" not in text:
        ready, _, _ = select.select([process.stdout], [], [], max(0.0, until_s - time.monotonic()))
        part = os.read(process.stdout.fileno(), 1 << 16) if ready else b""
        if not part:
            return b""
        text += part
    return text.partition(b"\n")[0]


def _files(pid: int, state: Path) -> tuple[str, ...]:
    """As the agent sees it."""
    inner = [pid, *targets.descendants(pid)][-1]
    root = Path(f"/proc/{inner}/root{state}")
    return tuple(sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()))
