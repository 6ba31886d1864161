"""Which container and pod a process is in, and how its runtime and the kubelet call it.

Source: its cgroup path (Docker, containerd, CRI-O, podman; cgroupfs and systemd drivers; v1 and v2), and where a
private cgroup namespace hides that, what was mounted into it (/proc/PID/mountinfo); the container's name in its pod
stands only there. The pod's Kubernetes namespace needs the kubelet, and stays "".
"""

from __future__ import annotations

import re

from stucktrace.collectors import procfs
from stucktrace.errors import CannotInspect
from stucktrace.facts import Container

# "<id>", "docker-<id>.scope", and containerd's "kubepods-...slice:cri-containerd:<id>". Not "crio-conmon-<id>.scope":
# that is the container's monitor.
_ID = re.compile(
    r"^(?:[^:]*:)*?(?:(docker|cri-containerd|crio|containerd|libpod|libpod-payload|nerdctl)[-:])?"
    r"([0-9a-f]{64})(?:\.scope)?$"
)
_POD = re.compile(r"pod([0-9a-f]{8}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{12}|[0-9a-f]{32})")
_RUNTIMES = {
    "cri-containerd": "containerd",
    "crio": "cri-o",
    "libpod": "podman",
    "libpod-payload": "podman",
    "nerdctl": "containerd",
}

_MOUNTED_POD = re.compile(r"/pods/(?P<uid>[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{32})/(?P<rest>[^ ]*)")
_MOUNTED_DOCKER = re.compile(r"/containers/(?P<id>[0-9a-f]{64})/")
# What runtimes and the kubelet mount into every container from a folder of its own.
_MOUNTED_FILES = frozenset({"/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/dev/termination-log"})


def read_container(pid: int, paths: tuple[tuple[str, str], ...]) -> Container | None:
    """None outside of containers. `paths`: its cgroups."""
    named = from_paths(paths)
    if named is not None and not named.pod:
        return named
    try:
        mounted = from_mounts(procfs.read(pid, "mountinfo").decode(errors="replace"))
    except CannotInspect:
        mounted = None
    if named is None or mounted is None:
        return named or mounted
    return Container(named.id or mounted.id, named.runtime or mounted.runtime, named.pod, name=mounted.name)


def from_paths(paths: tuple[tuple[str, str], ...]) -> Container | None:
    """None outside of containers, as far as the path tells (a private cgroup namespace shows only "/")."""
    for _, path in paths:
        for part in reversed(path.split("/")):
            match = _ID.match(part)
            if not match:
                continue
            pod = _POD.search(path)
            runtime = match.group(1) or ("docker" if "/docker/" in path else "")
            return Container(
                id=match.group(2),
                runtime=_RUNTIMES.get(runtime, runtime),
                pod=pod.group(1).replace("_", "-") if pod else "",
            )
    return None


def from_mounts(mountinfo: str) -> Container | None:
    identity = runtime = pod = name = ""
    for line in mountinfo.splitlines():
        fields = line.split(" ")
        if len(fields) < 5 or fields[4] not in _MOUNTED_FILES:
            continue
        if match := _MOUNTED_POD.search(fields[3]):
            pod = match["uid"]
            folders = match["rest"].split("/")
            if folders[0] == "containers" and len(folders) > 2:
                name = folders[1]
        elif match := _MOUNTED_DOCKER.search(fields[3]):
            identity, runtime = match["id"], "docker" if "docker" in fields[3] else ""
    return Container(identity, runtime, pod, name=name) if identity or pod else None
