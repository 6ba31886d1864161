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

_RUNTIMES = {
    "docker": "docker",
    "cri-containerd": "containerd",
    "containerd": "containerd",
    "nerdctl": "containerd",
    "crio": "cri-o",
    "libpod": "podman",
}
# "<id>", "docker-<id>.scope", "cri-containerd-<id>.scope", and containerd's "kubepods-...slice:cri-containerd:<id>".
_ID = re.compile(
    r"(?:^|[:-])(?:(?P<runtime>docker|cri-containerd|containerd|nerdctl|crio|libpod)[:-])?(?P<id>[0-9a-f]{64})"
    r"(?:\.scope)?$"
)
_POD = re.compile(
    r"(?:^|-)pod(?P<uid>[0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})(?:\.slice)?(?::|$)"
)

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
    """As far as the cgroup path tells: a private cgroup namespace shows only "/"."""
    found = [container for _, path in paths if (container := from_path(path))]
    return max(found, key=lambda container: (bool(container.id), bool(container.pod)), default=None)


def from_path(path: str) -> Container | None:
    identity = runtime = ""
    parts = path.split("/")
    for above, part in zip(["", *parts], parts, strict=False):
        if match := _ID.search(part):
            if part.startswith(("crio-conmon-", "libpod-conmon-")):
                # The monitor of a container, not the container.
                return None
            identity = match["id"]
            runtime = _RUNTIMES.get(match["runtime"] or above, "")
    uid = next((_uid(match["uid"]) for part in parts if (match := _POD.search(part))), "")
    return Container(identity, runtime, uid) if identity or uid else None


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


def _uid(text: str) -> str:
    """The systemd driver writes its dashes as underscores; a static pod's uid has none at all."""
    return text.replace("_", "-")
