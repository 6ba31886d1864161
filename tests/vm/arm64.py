"""The wheel on arm64: installed into Debian's arm64 tree, run under Debian's arm64 kernel in an emulated machine.

The tree is unpacked, not configured, for its programs cannot run here; Python, libbpf and iproute2 need no more. py-spy
and the other dependencies are the registry's own wheels for arm64. A process that hangs on two locks, with a socket open,
is to be explained with the arm64 BPF objects, and `doctor` is to find everything that the agent needs.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import subprocess
import tempfile
from pathlib import Path

from tests.harness import installed, trees
from tests.vm import machine

RELEASE = "bookworm"
PACKAGES = ("python3", "libbpf1", "iproute2", "busybox-static", "procps")
STAMP = f"1: {RELEASE}, {' '.join(PACKAGES)}"
INSIDE = "opt/stucktrace"
"""Where the tree has the wheel, its dependencies and the program that hangs."""
PLATFORMS = ("manylinux2014_aarch64", "manylinux_2_28_aarch64", "any")
PYTHON = "3.11"
DEADLINE_S = 1500.0
RUN = f"""
export PYTHONPATH=/{INSIDE} PATH=$PATH:/{INSIDE}/bin
python3 /{INSIDE}/hang.py &
hung=$!
until [ -e /tmp/crossed ] && [ "$(cat /proc/$hung/task/*/wchan | grep -o futex_ | wc -l)" = 2 ]; do sleep 1; done
python3 -m stucktrace pid $hung --engine core --json
echo "status $?"
python3 -m stucktrace doctor --json
"""
HANG = """
import pathlib, socket, threading
server = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(server.getsockname())
first, second, meeting = threading.Lock(), threading.Lock(), threading.Barrier(2)
def cross(one, other):
    with one:
        if meeting.wait() == 0:
            pathlib.Path("/tmp/crossed").touch()
        with other:
            pass
threading.Thread(target=cross, args=(first, second)).start()
threading.Thread(target=cross, args=(second, first)).start()
client.recv(1)
"""


def check() -> str:
    """What was seen, in a line. AssertionError: it is not as it should be."""
    with tempfile.TemporaryDirectory(dir=tree().parent, prefix="arm64-") as folder:
        root = Path(folder) / "tree"
        # Links, not copies; what is added is this run's own.
        _run("cp", "-al", tree(), root)
        place = root / INSIDE
        wheel = installed.build(Path(folder))
        platforms = [word for name in PLATFORMS for word in ("--platform", name)]
        target = (*platforms, "--only-binary=:all:", "--python-version", PYTHON, "--target", place)
        _run(*installed.PIP, "install", *target, wheel)
        (place / "hang.py").write_text(HANG)
        said = io.BytesIO()
        ended = machine.run(
            RELEASE,
            ("sh", "-c", RUN),
            deadline_s=DEADLINE_S,
            output=said,
            architecture="arm64",
            tree=root,
            cwd=Path("/"),
        )
    text = said.getvalue().decode(errors="replace")
    assert ended.status is not None, f"no end; the kernel's last lines:\n{ended.last_lines()}\n{text[-3000:]}"
    explained, status, examined = text.splitlines()[-3:]
    report, doctor = json.loads(explained), json.loads(examined)
    verdict, seen = report["verdict"], report["seen"]
    assert (status, verdict["code"], verdict["confidence"]) == ("status 1", "deadlock", "proven"), text[:3000]
    assert seen["engine"] == "core" and not seen["missing"], seen
    assert [thread["syscall"]["name"] for thread in report["threads"]].count("futex") == 2, report["threads"]
    assert any(socket["state"] == "ESTABLISHED" for socket in report["sockets"]), report["sockets"]
    lacking = [ability for ability in doctor["abilities"] if not ability["works"]]
    assert not lacking, lacking
    hooks = ", ".join(f"{name} by {means}" for name, means in seen["hooks"].items())
    return f"{verdict['code']} {verdict['confidence']}; {hooks}; doctor: all {len(doctor['abilities'])} abilities"


def tree() -> Path:
    """Debian's tree for arm64, which is made if need be; who comes meanwhile waits."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "/var/cache") / "stucktrace-trees"
    cache.mkdir(parents=True, exist_ok=True)
    root, stamp = cache / f"{RELEASE}-arm64", cache / f"{RELEASE}-arm64.stamp"
    with open(cache / f"{RELEASE}-arm64.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp.exists() or stamp.read_text() != STAMP:
            stamp.unlink(missing_ok=True)
            _make(root)
            stamp.write_text(STAMP)
    return root


def _make(root: Path) -> None:
    subprocess.run(["rm", "-rf", "--one-file-system", root], check=True)
    options = ("--foreign", "--arch=arm64", "--variant=minbase", f"--include={','.join(PACKAGES)}", RELEASE)
    _run("unshare", "--mount", "--propagation", "private", "debootstrap", *options, root, trees.mirror())
    for package in sorted((root / "var/cache/apt/archives").glob("*.deb")):
        _run("dpkg-deb", "-x", package, root)
        package.unlink()


def _run(*command: str | Path) -> None:
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, env={**os.environ, "PATH": path})
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-2000:]}"


if __name__ == "__main__":
    print(f"arm64, {RELEASE}: {check()}")
