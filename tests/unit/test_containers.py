"""Container and pod in the cgroup paths of containerd, CRI-O, Docker and podman, with both cgroup drivers."""

from __future__ import annotations

import pytest
from stucktrace.collectors import containers, procfs
from stucktrace.errors import NoSuchProcess
from stucktrace.facts import Container

ID = "4f" * 32
OTHER = "5a" * 32
POD = "0c3f0b5e-8a54-4b6c-9d6e-0f1e2d3c4b5a"
NODES_POD = POD.replace("0", "1")
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
        (f"/kubepods.slice/kubepods-pod{UNDERSCORED}.slice/docker-{ID}.scope", "docker", POD),
        (f"/kubepods/burstable/pod{POD}/crio-{ID}", "cri-o", POD),
        (f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{'ab' * 16}.slice/crio-{ID}.scope", "cri-o", "ab" * 16),
        # A node that is a container: kind and k3d.
        (f"/docker/{OTHER}/kubelet/kubepods/besteffort/pod{POD}/{ID}", "", POD),
        (f"/system.slice/docker-{OTHER}.scope/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/"
         f"kubelet-kubepods-burstable-pod{UNDERSCORED}.slice/cri-containerd-{ID}.scope", "containerd", POD),
        # Within a pod: its own systemd, its own Docker, and a cluster of its own.
        (f"/kubepods.slice/kubepods-pod{UNDERSCORED}.slice/cri-containerd-{ID}.scope/system.slice/web.service", "containerd", POD),
        (f"/kubepods/burstable/pod{POD}/{OTHER}/docker/{ID}", "docker", POD),
        (f"/kubepods/burstable/pod{NODES_POD}/{OTHER}/kubepods/burstable/pod{POD}/{ID}", "", POD),
        # Seen from a cgroup namespace of our own: another pod, and our own.
        (f"/../../kubepods-burstable-pod{UNDERSCORED}.slice/cri-containerd-{ID}.scope", "containerd", POD),
        (f"/../../../kubepods-besteffort.slice/kubepods-besteffort-pod{UNDERSCORED}.slice/crio-{ID}.scope/container", "cri-o", POD),
        (f"/../cri-containerd-{ID}.scope", "containerd", ""),
        (f"/../../../system.slice/docker-{ID}.scope", "docker", ""),
        # Removed while a process of it is still on its way out.
        (f"/kubepods/burstable/pod{POD}/{ID} (deleted)", "", POD),
        (f"/system.slice/web.service/libpod-payload-{ID}", "podman", ""),
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


def test_a_hierarchy_with_the_pod_goes_before_one_without():
    """Hybrid: version 1 by the container's name, version 2 as systemd keeps it."""
    paths = (("memory", f"/docker/{ID}"), ("", f"/kubepods/besteffort/pod{POD}/{ID}"))
    assert containers.from_paths(paths) == Container(id=ID, pod=POD)


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


def test_dockers_folder_in_a_pod_is_the_sandboxs():
    assert containers.from_mounts(DOCKER + MOUNTS) == Container("", pod=POD, name="web-app")
    assert containers.from_mounts(MOUNTS + DOCKER) == Container("", pod=POD, name="web-app")


STORAGE = "/containers/storage/overlay-containers"
PODMAN = f"""\
7 1 0:54 {STORAGE}/{ID}/userdata/.containerenv /run/.containerenv rw - tmpfs tmpfs rw,size=792480k
8 1 0:54 {STORAGE}/{OTHER}/userdata/hostname /etc/hostname rw - tmpfs tmpfs rw,size=792480k
"""


def test_mounts_of_podman_where_the_pods_files_are_another_containers():
    assert containers.from_mounts(PODMAN) == Container(ID, "podman")


def test_mounts_of_cri_o_are_a_pods():
    assert containers.from_mounts(PODMAN + MOUNTS) == Container("", pod=POD, name="web-app")


def test_mounts_of_no_container():
    assert containers.from_mounts("22 1 0:20 / / rw - ext4 /dev/vda rw\nbroken\n") is None
    elsewhere = DOCKER.replace(" /etc/hostname ", " /srv/backup/hostname ")
    assert containers.from_mounts(elsewhere) is None, "the node's own view of a container's files"


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/", Container("", pod=POD, name="web-app")),
        # A container of our own pod, seen from our own cgroup namespace.
        (f"/../cri-containerd-{ID}.scope", Container(ID, "containerd", POD, name="web-app")),
        (f"/kubepods/pod{POD}/{ID}", Container(ID, "", POD, name="web-app")),
        # A pod within the pod, which was given the outer one's files.
        (f"/kubepods/pod{NODES_POD}/{ID}", Container(ID, "", NODES_POD)),
    ],
)
def test_path_and_mounts_together(path, found, monkeypatch):
    monkeypatch.setattr(procfs, "read", lambda *_: MOUNTS.encode())
    assert containers.read_container(1, (("", path),)) == found


def test_a_process_that_is_gone_has_the_container_of_its_path(monkeypatch):
    def gone(*_):
        raise NoSuchProcess("gone")

    monkeypatch.setattr(procfs, "read", gone)
    assert containers.read_container(1, (("", f"/docker/{ID}"),)) == Container(ID, "docker")
    assert containers.read_container(1, ()) is None
