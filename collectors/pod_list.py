"""How the pods of this node and their containers are called, by the pod's uid and the container's id.

Source: a list of pods: the kubelet's (GET /pods), or the API server's for this node (GET /api/v1/pods with a field
selector), asked with a service account's token. Nothing but names and ids is kept of the answer.
Errors: CollectorError with what would help: the right that is missing, a wrong address or certificate.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from stucktrace import __version__
from stucktrace.errors import CollectorError

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse

MOUNTED = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where a pod that has a token finds it."""
WHAT = "names of pods"
CONNECT_S, READ_S, ALL_S = 3.0, 5.0, 15.0
MOST_BYTES = 16 << 20
"""A node has a hundred pods, of some 10 kB each."""
LONGEST_NAME = 253
_CHUNK_BYTES = 1 << 16
# Of a static pod the kubelet knows a hash as its uid, under which the API server has it as well.
_MIRROR = "kubernetes.io/config.mirror"


@dataclass(frozen=True)
class Access:
    """Whom to ask, and how."""

    way: str
    """"api" or "kubelet"."""
    url: str
    node: str
    token_file: Path = MOUNTED / "token"
    """Read for each request, for tokens are renewed; one that is not there is not sent."""
    ca_file: Path = MOUNTED / "ca.crt"
    verify: bool = True
    """False: the certificate is not looked at."""


@dataclass(frozen=True)
class Pod:
    namespace: str
    name: str
    containers: Mapping[str, str] = field(default_factory=dict)
    """Container id -> its name in the pod."""


def read_pods(access: Access) -> dict[str, Pod]:
    """Pod uid -> pod, of all pods of the node."""
    path = "/pods" if access.way == "kubelet" else _api_path(access.node)
    body = _get(access, access.url + path)
    try:
        return dict(parse(json.loads(body)))
    except (ValueError, RecursionError):
        raise CollectorError(
            WHAT, f"{access.url}{path} does not answer with a list of pods", "see that kubernetes.url is right"
        ) from None


def _api_path(node: str) -> str:
    # From the server's own memory: a list of every node at once does not reach its database.
    return f"/api/v1/pods?fieldSelector={quote(f'spec.nodeName={node}', safe='')}&resourceVersion=0"


def parse(document: Any) -> Iterator[tuple[str, Pod]]:
    """(uid, pod) of each pod of a PodList; what is no pod is left out. ValueError when it is no list of pods."""
    items = document.get("items") if isinstance(document, dict) else None
    if not isinstance(items, list | None) or not str(_at(document, "kind")).endswith("List"):
        raise ValueError
    for item in items or ():
        metadata = _at(item, "metadata")
        uid, namespace, name = (_name(metadata, key) for key in ("uid", "namespace", "name"))
        if not (uid and name):
            continue
        pod = Pod(namespace, name, dict(_containers(_at(item, "status"))))
        yield uid, pod
        if mirrored := _name(_at(metadata, "annotations"), _MIRROR):
            yield mirrored, pod


def _containers(status: Any) -> Iterator[tuple[str, str]]:
    for kind in ("containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"):
        found = _at(status, kind)
        for container in found if isinstance(found, list) else ():
            # "containerd://4f4f..."
            identity = _name(container, "containerID").rpartition("//")[2]
            if identity:
                yield identity, _name(container, "name")


def _at(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, dict) else None


def _name(value: Any, key: str) -> str:
    found = _at(value, key)
    return found if isinstance(found, str) and found.isprintable() and len(found) <= LONGEST_NAME else ""


def _get(access: Access, url: str) -> bytes:
    import urllib3

    options: dict[str, Any] = {}
    if url.lower().startswith("https:"):
        options["cert_reqs"] = "CERT_REQUIRED" if access.verify else "CERT_NONE"
        if access.verify and access.ca_file.exists():
            options["ca_certs"] = str(access.ca_file)
        if not access.verify:
            # The user said so; it is not said again with each request.
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
    timeout = urllib3.Timeout(connect=CONNECT_S, read=READ_S)
    try:
        with urllib3.PoolManager(1, timeout=timeout, retries=False, **options) as pool:
            answer = pool.request("GET", url, headers=_headers(access), redirect=False, preload_content=False)
            try:
                if answer.status != 200:
                    raise _refused(access, answer.status)
                return _body(access, answer)
            finally:
                answer.close()
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise _unreachable(access, error) from None


def _headers(access: Access) -> dict[str, str]:
    headers = {"Accept": "application/json", "User-Agent": f"stucktrace/{__version__}"}
    # In plain text a token would be anybody's.
    if access.url.lower().startswith("https:") and (token := _token(access.token_file)):
        headers["Authorization"] = f"Bearer {token}"
    return headers


def _token(file: Path) -> str:
    try:
        found = file.read_text().strip()
    except FileNotFoundError:
        return ""
    except (OSError, ValueError):
        raise CollectorError(WHAT, f"the token in {file} cannot be read", "see its owner and mode") from None
    return found if found.isascii() and found.isprintable() else ""


def _body(access: Access, answer: BaseHTTPResponse) -> bytes:
    """All of it, within the deadline: a drop every second is no answer."""
    body, end = bytearray(), time.monotonic() + ALL_S
    while chunk := answer.read(_CHUNK_BYTES):
        body += chunk
        if len(body) > MOST_BYTES:
            raise CollectorError(WHAT, f"{access.url} answers with more than {MOST_BYTES >> 20} MiB", "see what it is")
        if time.monotonic() > end:
            raise CollectorError(WHAT, f"{access.url} takes more than {ALL_S:.0f} s for its answer", "see its load")
    return bytes(body)


def _refused(access: Access, status: int) -> CollectorError:
    remedy = "see that kubernetes.url is right"
    if status == 401:
        remedy = f"it needs a service account's token in {access.token_file} (automountServiceAccountToken: true)"
    elif status == 403 and access.way == "kubelet":
        remedy = "allow the service account to get nodes/pods (Kubernetes 1.33 and later), or nodes/proxy"
    elif status == 403:
        remedy = "allow the service account to list pods (a ClusterRole and its binding)"
    elif status == 429 or status >= 500:
        remedy = "it is asked again"
    return CollectorError(WHAT, f"{access.url} answers {status}", remedy)


def _unreachable(access: Access, error: Exception) -> CollectorError:
    import urllib3

    # urllib3's ProtocolError holds its cause as an argument.
    inner = next((part for part in error.args if isinstance(part, Exception)), None)
    cause = getattr(error, "reason", None) or inner or error.__cause__ or error
    said = getattr(cause, "strerror", None) or str(cause).rpartition(">: ")[2] or type(cause).__name__
    remedy = "see that kubernetes.url is right, and that no network policy is in the way"
    if isinstance(error, urllib3.exceptions.SSLError):
        remedy = f"give the certificate of its authority in kubernetes.ca_file (asked for: {access.ca_file})"
        if access.way == "kubelet":
            remedy += ", or kubernetes.verify = false where kubelets sign their own"
    return CollectorError(WHAT, f"{access.url}: {said}"[:300], remedy)
