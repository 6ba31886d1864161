"""Container and pod in the cgroup paths of containerd, CRI-O, Docker and podman, with both cgroup drivers."""

from __future__ import annotations

import pytest
from stucktrace.collectors import containers
from stucktrace.facts import Container

ID = "4f" * 32
OTHER = "5a" * 32
POD = "0c3f0b5e-8a54-4b6c-9d6e-0f1e2d3c4b5a"
UNDERSCORED = POD.replace("-", "_")


@pytest.mark.parametrize(
    ("path", "runtime", "pod"),
    [
        (f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UNDERSCORED}.slice/cri-containerd-{ID}.scope", "containerd", POD),
        (f"/kubepods.slice/kubepods-pod{UNDERSCORED}.slice/crio-{ID}.scope", "cri-o", POD),
        (f"/kubepods.slice/kubepods-pod{UNDERSCORED}.slice/crio-{ID}.scope/container", "cri-o", POD),
        (f"/kubepods/besteffort/pod{POD}/{ID}", "", POD),
        (f"/../../burstable/pod{POD}/{ID}", "", POD),
        (f"/system.slice/containerd.service/kubepods-besteffort-pod{UNDERSCORED}.slice:cri-containerd:{ID}", "containerd", POD),
        (f"/docker/{ID}", "docker", ""),
        (f"/system.slice/docker-{ID}.scope", "docker", ""),
        (f"/docker/{OTHER}/docker/{ID}", "docker", ""),
        (f"/docker/{ID}/system.slice/cron.service", "docker", ""),
        (f"/machine.slice/libpod-{ID}.scope/container", "podman", ""),
        (f"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope", "podman", ""),
        (f"/user.slice/podman.service/libpod-payload-{ID}", "podman", ""),
        (f"/system.slice/nerdctl-{ID}.scope", "containerd", ""),
    ],
)  # fmt: skip
def test_shapes(path, runtime, pod):
    assert containers.from_paths((("", path),)) == Container(id=ID, runtime=runtime, pod=pod)


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/user.slice/user-0.slice/session-1.scope",
        "/system.slice/gunicorn.service",
        f"/system.slice/crio-conmon-{ID}.scope",
        f"/machine.slice/libpod-conmon-{ID}.scope",
        f"/system.slice/build-{ID[:40]}.scope",
        f"/kubepods.slice/kubepods-pod{UNDERSCORED}.slice",
    ],
)
def test_no_container(path):
    assert containers.from_paths((("", path),)) is None


def test_the_first_hierarchy_that_tells():
    paths = (("name=systemd", "/"), ("memory", f"/docker/{ID}"), ("", "/"))
    assert containers.from_paths(paths) == Container(id=ID, runtime="docker")
    assert containers.from_paths(()) is None


KUBELET = f"/var/lib/kubelet/pods/{POD}"
MOUNTS = f"""\
1 0 0:50 / / rw - overlay overlay rw,lowerdir=/var/lib/containerd/x
2 1 8:1 {KUBELET}/etc-hosts /etc/hosts rw - ext4 /dev/sda1 rw
3 1 8:1 {KUBELET}/containers/web-app/0a1b2c3d /dev/termination-log rw - ext4 /dev/sda1 rw
4 1 8:1 /var/lib/containerd/io.containerd.grpc.v1.cri/sandboxes/{OTHER}/hostname /etc/hostname rw - ext4 /dev/sda1 rw
5 1 8:1 /var/lib/kubelet/pods/{"0" * 8}-0000-0000-0000-{"0" * 12}/volumes/data /data rw - ext4 /dev/sda1 rw
"""
DOCKER = f"9 1 8:1 /var/lib/docker/containers/{ID}/hostname /etc/hostname rw - ext4 /dev/sda1 rw\n"


def test_mounts_of_a_pod_name_its_container_and_never_its_sandbox():
    assert containers.from_mounts(MOUNTS) == Container("", pod=POD, name="web-app")


def test_mounts_of_docker():
    assert containers.from_mounts(DOCKER) == Container(ID, "docker")


def test_mounts_of_no_container():
    assert containers.from_mounts("22 1 0:20 / / rw - ext4 /dev/vda rw\nbroken\n") is None
    elsewhere = DOCKER.replace(" /etc/hostname ", " /srv/backup/hostname ")
    assert containers.from_mounts(elsewhere) is None, "the node's own view of a container's files"
