"""Which container and pod a process is in. Source: its cgroup path (containerd, CRI-O, Docker and podman shapes).

The pod's namespace and the container's name do not stand there; they need the kubelet, and stay "".
"""

from __future__ import annotations

import re

from stucktrace.facts import Container

_ID = re.compile(
    r"^(?:.*?:)??(?:(docker|cri-containerd|crio|containerd|libpod|libpod-payload|nerdctl)[-:])?([0-9a-f]{64})(?:\.scope)?$"
)
_POD = re.compile(r"pod([0-9a-f]{8}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{12}|[0-9a-f]{32})")
_RUNTIMES = {
    "cri-containerd": "containerd",
    "crio": "cri-o",
    "libpod": "podman",
    "libpod-payload": "podman",
    "nerdctl": "containerd",
}


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
