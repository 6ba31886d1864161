"""The names of this node's pods, asked for beside the loop and kept: nothing here waits for an answer.

Somebody is asked only when a pod is new whose name is not known, as a name never changes: a quiet node asks nobody.
Who does not answer is told of once, and asked again less and less often; until then a pod is called by its uid.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from stucktrace.collectors.pod_list import Access, Pod, read_pods
from stucktrace.errors import CollectorError
from stucktrace.facts import Container
from stucktrace.settings import Settings

FIRST_AGAIN_S, LONGEST_AGAIN_S = 5.0, 600.0
"""A pod may be there before it is in the list, or never be in it: a cluster within a pod has its own."""
KEPT_S = 1800.0
"""A pod that is gone may still be told of."""
KUBELET_PORT = "10250"


def access(settings: Settings, node: str, environ: Mapping[str, str] = os.environ) -> Access | None:
    """Whom the settings say to ask; None: nobody. CollectorError when it is not known where they are."""
    way, url = settings.kubernetes_pods, settings.kubernetes_url
    if way == "off":
        return None
    if url is None and way == "kubelet":
        url = _url(environ.get("NODE_IP") or "127.0.0.1", KUBELET_PORT)
    elif url is None:
        host = environ.get("KUBERNETES_SERVICE_HOST", "")
        if not host:
            raise CollectorError(
                "names of pods", "KUBERNETES_SERVICE_HOST is not set: this is no pod", "set kubernetes.url"
            )
        url = _url(host, environ.get("KUBERNETES_SERVICE_PORT", "443"))
    return Access(
        way, url, node, settings.kubernetes_token_file, settings.kubernetes_ca_file, settings.kubernetes_verify
    )


def _url(host: str, port: str) -> str:
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"


def asked(settings: Settings, node: str, complain: Callable[[str, str], None]) -> PodNames:
    """As the settings say; where they cannot be followed, nobody is asked."""
    try:
        return PodNames(access(settings, node), complain)
    except CollectorError as error:
        complain(f"{error.missing.what}: {error.missing.because}", error.missing.remedy)
        return PodNames(None, complain)


class PodNames:
    def __init__(
        self,
        access: Access | None,
        complain: Callable[[str, str], None],
        read: Callable[[Access], Mapping[str, Pod]] = read_pods,
    ) -> None:
        self._access = access
        self._complain = complain
        self._read = read
        self._pods: dict[str, Pod] = {}
        self._seen: dict[str, float] = {}
        """uid -> when it was last in the list, CLOCK_MONOTONIC."""
        self._again: dict[str, tuple[float, float]] = {}
        """uid of a pod that is not in the list -> when it is asked for again, and how long after that."""
        self._wanted: frozenset[str] = frozenset()
        self._wake, self._answered = threading.Event(), threading.Event()
        self._failure = ""
        if access is not None:
            threading.Thread(target=self._work, name="pod names", daemon=True).start()

    def want(self, containers: Iterable[Container | None]) -> None:
        """These are on the node now."""
        if self._access is None:
            return
        now = time.monotonic()
        wanted = {container.pod for container in containers if container is not None and container.pod}
        self._wanted = frozenset(wanted)
        if any(self._due(uid, now) for uid in wanted):
            self._wake.set()

    def wait(self, seconds: float) -> None:
        """For the first answer, at most so long: for when the agent starts, which may find somebody stuck at once."""
        if self._wanted:
            self._answered.wait(seconds)

    def _due(self, uid: str, now: float) -> bool:
        return uid not in self._pods and self._again.get(uid, (0.0, 0.0))[0] <= now

    def named(self, container: Container | None) -> Container | None:
        """With the names that are known by now."""
        pod = self._pods.get(container.pod) if container is not None else None
        if container is None or pod is None:
            return container
        name = pod.containers.get(container.id, container.name)
        return replace(container, namespace=pod.namespace, pod_name=pod.name, name=name)

    def called(self, uid: str) -> str:
        """The pod's name as "NAMESPACE/NAME"; its uid while that is not known."""
        pod = self._pods.get(uid)
        return f"{pod.namespace}/{pod.name}" if pod is not None else uid

    def _work(self) -> None:
        assert self._access is not None
        wait_s = FIRST_AGAIN_S
        while True:
            self._wake.wait()
            self._wake.clear()
            try:
                self._learn(self._read(self._access), time.monotonic())
                self._failure, wait_s = "", FIRST_AGAIN_S
                pause_s = FIRST_AGAIN_S
            except Exception as error:
                pause_s, wait_s = wait_s, min(2 * wait_s, LONGEST_AGAIN_S)
                self._failed(error)
            self._answered.set()
            # One who is asked too often answers nobody.
            time.sleep(pause_s)

    def _learn(self, pods: Mapping[str, Pod], now: float) -> None:
        self._seen = {uid: at for uid, at in self._seen.items() if now - at < KEPT_S} | dict.fromkeys(pods, now)
        kept = {uid: pod for uid, pod in self._pods.items() if uid in self._seen}
        self._pods = kept | dict(pods)
        again = {}
        for uid in self._wanted - self._pods.keys():
            due, after_s = self._again.get(uid, (0.0, FIRST_AGAIN_S))
            again[uid] = (now + after_s, min(2 * after_s, LONGEST_AGAIN_S)) if due <= now else (due, after_s)
        self._again = again

    def _failed(self, error: Exception) -> None:
        """Told when it begins, not each time."""
        if isinstance(error, CollectorError):
            because, remedy = f"{error.missing.what}: {error.missing.because}", error.missing.remedy
        else:
            because, remedy = f"names of pods: {type(error).__name__}: {error}", ""
        if because != self._failure:
            self._failure = because
            self._complain(f"{because}; pods are called by their uid", remedy)
