"""Real cgroups that are called as a kubelet and a runtime call those of a pod's container, removed at the end."""

from __future__ import annotations

import contextlib
import secrets
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stucktrace.collectors.cgroups import parse_mounts


@dataclass(frozen=True)
class PodCgroups:
    pod: str
    """The pod's uid."""
    container: str
    folders: tuple[Path, ...]
    """One in each hierarchy."""


def _shapes(pod: str, container: str) -> dict[str, str]:
    """Hierarchy -> path: version 2 with containerd and systemd, version 1 as with cgroupfs."""
    under = pod.replace("-", "_")
    burstable = "kubepods.slice/kubepods-burstable.slice"
    return {
        "cgroup2": f"{burstable}/kubepods-burstable-pod{under}.slice/cri-containerd-{container}.scope",
        "freezer": f"kubepods/burstable/pod{pod}/{container}",
    }


@contextlib.contextmanager
def pod_cgroups(pod: str = "") -> Iterator[PodCgroups]:
    """Of a new container, in the pod of this uid or a new one; in every hierarchy that this machine has mounted."""
    pod, container = pod or str(uuid.uuid4()), secrets.token_hex(32)
    shapes, found = _shapes(pod, container), parse_mounts(Path("/proc/self/mountinfo").read_text())
    mounts = {kind: mount for kind, mount in found.items() if kind in shapes}
    assert "cgroup2" in mounts, "no cgroup2 is mounted here"
    folders = tuple(Path(mount) / shapes[kind] for kind, mount in sorted(mounts.items()))
    try:
        for folder in folders:
            _make(folder)
        yield PodCgroups(pod, container, folders)
    finally:
        for folder, mount in zip(folders, (mounts[kind] for kind in sorted(mounts)), strict=True):
            _remove(folder, Path(mount))


def _make(folder: Path) -> None:
    for _ in range(100):
        # Another test may just remove what is above it.
        with contextlib.suppress(FileNotFoundError):
            folder.mkdir(parents=True, exist_ok=True)
            return
    raise AssertionError(f"cannot make {folder}")


def _remove(folder: Path, mount: Path) -> None:
    """It and what is empty above it, once its last process is gone."""
    end = time.monotonic() + 60
    while folder.exists() and time.monotonic() < end:
        try:
            folder.rmdir()
        except OSError:
            time.sleep(0.05)
    assert not folder.exists(), f"still in {folder}: {(folder / 'cgroup.procs').read_text().split()}"
    for above in folder.parents:
        if above == mount:
            return
        with contextlib.suppress(OSError):
            above.rmdir()
