"""Which container and pod a process is in, and how its runtime and the kubelet call it.

Source: its cgroup path (Docker, containerd, CRI-O, podman; cgroupfs and systemd drivers; v1, v2 and both together;
nodes that are containers themselves), and where a private cgroup namespace hides that, what was mounted into it
(/proc/PID/mountinfo); the container's name in its pod stands only there. Seen from a cgroup namespace of our own the
path is one from our own cgroup on ("/../<id>" beside us in our pod): then the mounts tell the pod.
The names of the pod and of its Kubernetes namespace need a list of pods (pod_list.py).
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
# Docker's folder of the container, and podman's: both have the container's own id, but in a pod that of its sandbox.
_MOUNTED_ID = re.compile(r"/(?:containers|overlay-containers)/(?P<id>[0-9a-f]{64})/")
# What runtimes and the kubelet mount into every container from a folder of its own; podman's members of a pod share
# all but the last.
_MOUNTED_FILES = frozenset(
    {"/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/dev/termination-log", "/run/.containerenv"}
)


def read_container(pid: int, paths: tuple[tuple[str, str], ...]) -> Container | None:
    """None outside of containers. `paths`: its cgroups."""
    named = from_paths(paths)
    try:
        mounted = from_mounts(procfs.read(pid, "mountinfo").decode(errors="replace"))
    except CannotInspect:
        mounted = None
    if named is None or mounted is None:
        return named or mounted
    if named.pod and mounted.pod not in ("", named.pod):
        # A pod's process that has the node's own files, or those of a pod inside of the pod: not what its cgroup is.
        return named
    return Container(
        named.id or mounted.id, named.runtime or mounted.runtime, named.pod or mounted.pod, name=mounted.name
    )


def from_paths(paths: tuple[tuple[str, str], ...]) -> Container | None:
    """None outside of containers, as far as the path tells (a private cgroup namespace shows only "/").

    Hierarchies may differ: the first with a pod tells, else the first with a container.
    """
    found = [container for _, path in paths if (container := _from_path(path)) is not None]
    return next((container for container in found if container.pod), found[0] if found else None)


def _from_path(path: str) -> Container | None:
    """The innermost container, and the pod that it belongs to: a node may be a container, and a pod have some of its
    own."""
    parts = path.removesuffix(" (deleted)").split("/")
    for depth in range(len(parts) - 1, -1, -1):
        match = _ID.match(parts[depth])
        if not match:
            continue
        pods = _POD.findall("/".join(parts[: depth + 1]))
        runtime = match.group(1) or ("docker" if depth and parts[depth - 1] == "docker" else "")
        return Container(
            id=match.group(2),
            runtime=_RUNTIMES.get(runtime, runtime),
            pod=pods[-1].replace("_", "-") if pods else "",
        )
    return None


def from_mounts(mountinfo: str) -> Container | None:
    """What the files tell that its runtime and the kubelet mounted into it."""
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
        elif match := _MOUNTED_ID.search(fields[3]):
            if "/overlay-containers/" not in fields[3]:
                identity, runtime = match["id"], "docker" if "docker" in fields[3] else ""
            elif fields[4] == "/run/.containerenv":
                identity, runtime = match["id"], "podman"
    if pod:
        # What is mounted from a runtime's folder is its sandbox's.
        return Container("", pod=pod, name=name)
    return Container(identity, runtime) if identity else None
