"""Names of pods from a kubelet or an API server, for which a server of ours stands (tests/harness/pod_server.py)."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from stucktrace.collectors import pod_list
from stucktrace.collectors.pod_list import Access, Pod
from stucktrace.errors import CollectorError
from stucktrace.facts import Container
from stucktrace.node import pod_names
from stucktrace.node.pod_names import PodNames
from stucktrace.settings import Settings

from tests.harness.kernel import wait_until
from tests.harness.pod_server import PodServer, pod, pod_server, pods

ID, UID, HASH = "4f" * 32, "0c3f0b5e-8a54-4b6c-9d6e-0f1e2d3c4b5a", "ab" * 16
WEB = pod(UID, "shop", "web-1", app=ID, sidecar="5a" * 32)
STATIC = pod("1c3f0b5e-8a54-4b6c-9d6e-0f1e2d3c4b5a", "kube-system", "etcd-node-1", mirror=HASH)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PodServer]:
    with pod_server(tmp_path_factory.mktemp("pods")) as found:
        yield found


@pytest.fixture
def server(running: PodServer) -> PodServer:
    running.status, running.body, running.headers = 200, pods(WEB, STATIC), {}
    running.asked.clear()
    return running


def access(server: PodServer, way: str = "api") -> Access:
    return Access(way, server.url, "node 1", server.token_file, server.authority)


def refusal(wanted: Access) -> tuple[str, str]:
    with pytest.raises(CollectorError) as caught:
        pod_list.read_pods(wanted)
    return caught.value.missing.because, caught.value.missing.remedy


def test_the_api_server_is_asked_for_this_nodes_pods_with_the_token_of_now(server: PodServer):
    found = pod_list.read_pods(access(server))
    assert found[UID] == Pod("shop", "web-1", {ID: "app", "5a" * 32: "sidecar"})
    assert found[HASH].name == "etcd-node-1", "the kubelet's cgroup of a static pod has its hash"
    server.token_file.write_text("second")
    pod_list.read_pods(access(server))
    path = "/api/v1/pods?fieldSelector=spec.nodeName%3Dnode%201&resourceVersion=0"
    assert server.asked == [(path, "Bearer first"), (path, "Bearer second")]


def test_a_kubelet_with_a_certificate_of_its_own(server: PodServer, tmp_path: Path):
    stranger = replace(access(server, "kubelet"), ca_file=tmp_path / "none")
    because, remedy = refusal(stranger)
    assert "certificate verify failed" in because and "kubernetes.verify = false" in remedy and not server.asked
    assert pod_list.read_pods(replace(stranger, verify=False))[UID].name == "web-1"
    assert server.asked[0][0] == "/pods"


@pytest.mark.parametrize(
    ("way", "status", "remedy"),
    [
        ("api", 401, "automountServiceAccountToken"),
        ("api", 403, "list pods"),
        ("kubelet", 403, "nodes/pods"),
        ("kubelet", 404, "kubernetes.url"),
        ("api", 503, "asked again"),
    ],
)
def test_what_is_not_granted_is_named(server: PodServer, way: str, status: int, remedy: str):
    server.status = status
    because, said = refusal(access(server, way))
    assert str(status) in because and remedy in said and "first" not in because + said


def test_a_redirect_gets_no_token(server: PodServer):
    server.status, server.headers = 302, {"Location": server.url + "/elsewhere"}
    assert "302" in refusal(access(server))[0]
    assert len(server.asked) == 1


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"kind": "Status"}', b"[" * 100_000, b"\xff", b'{"items": 7}'])
def test_no_list_of_pods(server: PodServer, body: bytes):
    server.body = body
    assert "list of pods" in refusal(access(server))[0]


def test_odd_pods_are_left_out(server: PodServer):
    odd = [
        None,
        7,
        {"metadata": []},
        {"metadata": {"uid": 7, "name": "x"}},
        {"metadata": {"uid": "u", "name": "a\x1b"}},
    ]
    bare = {"metadata": {"uid": "u-1", "name": "new"}, "status": {"containerStatuses": [None, {"containerID": 1}]}}
    server.body = pods(*odd, bare, WEB)  # type: ignore[arg-type]
    assert pod_list.read_pods(access(server)) == {
        "u-1": Pod("", "new"),
        UID: Pod("shop", "web-1", {ID: "app", "5a" * 32: "sidecar"}),
    }


def test_too_much_and_too_slow(server: PodServer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pod_list, "MOST_BYTES", 1000)
    server.body = b" " * 5000
    assert "more than" in refusal(access(server))[0]
    monkeypatch.setattr(pod_list, "READ_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        wanted = Access("kubelet", f"http://127.0.0.1:{deaf.getsockname()[1]}", "n")
        assert "timed out" in refusal(wanted)[0]


def test_plain_text_gets_no_token(server: PodServer):
    said: list[bytes] = []

    def answer() -> None:
        peer, _ = plain.accept()
        with peer:
            said.append(peer.recv(65536))
            peer.sendall(b"HTTP/1.0 200 OK\r\n\r\n" + pods(WEB))

    with socket.create_server(("127.0.0.1", 0)) as plain:
        thread = threading.Thread(target=answer)
        thread.start()
        wanted = replace(access(server, "kubelet"), url=f"http://127.0.0.1:{plain.getsockname()[1]}")
        assert pod_list.read_pods(wanted)[UID].name == "web-1"
        thread.join()
    assert said[0].startswith(b"GET /pods ") and b"uthorization" not in said[0]


def test_who_is_asked(monkeypatch: pytest.MonkeyPatch):
    assert pod_names.access(Settings(), "n") is None
    environ = {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "443"}
    found = pod_names.access(Settings(kubernetes_pods="api"), "n", environ)
    assert found is not None and (found.url, found.node) == ("https://[fd00::1]:443", "n")
    kubelet = pod_names.access(Settings(kubernetes_pods="kubelet"), "n", {})
    assert kubelet is not None and kubelet.url == "https://127.0.0.1:10250"
    kubelet = pod_names.access(Settings(kubernetes_pods="kubelet"), "n", {"NODE_IP": "fd00::2"})
    assert kubelet is not None and kubelet.url == "https://[fd00::2]:10250"
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    said: list[str] = []
    names = pod_names.asked(Settings(kubernetes_pods="api"), "n", lambda *words: said.append(": ".join(words)))
    names.want([Container(ID, pod=UID)])
    assert said == ["names of pods: KUBERNETES_SERVICE_HOST is not set: this is no pod: set kubernetes.url"]


def test_names_come_later_and_who_does_not_answer_is_told_of_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pod_names, "FIRST_AGAIN_S", 0.01)
    asked, said = threading.Semaphore(0), []
    answers: list[dict[str, Pod]] = []

    def read(_: Access) -> dict[str, Pod]:
        asked.release()
        if not answers:
            raise CollectorError("names of pods", "https://it: refused", "start it")
        return answers[-1]

    container = Container(ID, "containerd", UID, name="as-mounted")
    names = PodNames(Access("api", "https://it", "n"), lambda *words: said.append("; ".join(words)), read)
    names.want([None, Container("", "docker")])
    names.want([container])
    assert names.named(container) == container and names.called(UID) == UID
    for _ in range(3):
        names.want([container])
        assert asked.acquire(timeout=60)
    assert said == ["names of pods: https://it: refused; pods are called by their uid; start it"]
    answers.append({})
    wait_until(lambda: (names.want([container]), UID in names._again)[1], "a list without the pod")
    answers.append({UID: Pod("shop", "web-1", {ID: "app"})})
    wait_until(lambda: (names.want([container]), names.called(UID) != UID)[1], "the pod's name")
    assert names.called(UID) == "shop/web-1"
    assert names.named(container) == replace(container, namespace="shop", pod_name="web-1", name="app")
    assert names.named(replace(container, id="")) == replace(
        container, id="", namespace="shop", pod_name="web-1", name="as-mounted"
    )
    assert names.named(None) is None and len(said) == 1
