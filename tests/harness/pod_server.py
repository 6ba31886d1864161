"""An HTTPS server that stands for a kubelet or an API server, which cannot run on this machine: what they answer to a
request for pods follows Kubernetes' API reference."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.harness import certificates


@dataclass
class PodServer:
    url: str
    authority: Path
    token_file: Path
    status: int = 200
    body: bytes = b'{"kind": "PodList", "items": []}'
    headers: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    """(path, the Authorization header) of each request."""


def pod(uid: str, namespace: str, name: str, *, mirror: str = "", **containers: str) -> dict[str, Any]:
    """`containers`: name -> id as the runtime says it."""
    metadata: dict[str, Any] = {"name": name, "namespace": namespace, "uid": uid, "labels": {"app": name}}
    if mirror:
        metadata["annotations"] = {"kubernetes.io/config.mirror": mirror}
    statuses = [{"name": key, "containerID": f"containerd://{value}"} for key, value in containers.items()]
    return {"metadata": metadata, "spec": {"nodeName": "node-1"}, "status": {"containerStatuses": statuses}}


def pods(*items: dict[str, Any]) -> bytes:
    return json.dumps({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}).encode()


@contextlib.contextmanager
def pod_server(folder: Path, listener: socket.socket | None = None) -> Iterator[PodServer]:
    """On the loopback address, here or where `listener` is; its authority's certificate and a token are in `folder`."""
    files = certificates.make(folder, "127.0.0.1")
    token = folder / "token"
    token.write_text("first\n")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.asked.append((self.path, self.headers["Authorization"]))
            self.send_response(found.status)
            for name, value in found.headers.items():
                self.send_header(name, value)
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(found.body)

        def log_message(self, *_: Any) -> None:
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)
    listener = listener or socket.create_server(("127.0.0.1", 0))
    address: tuple[str, int] = listener.getsockname()
    with ThreadingHTTPServer(address, Handler, bind_and_activate=False) as server:
        server.socket.close()
        server.socket = context.wrap_socket(listener, server_side=True)
        found = PodServer(f"https://127.0.0.1:{address[1]}", files.authority, token)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield found
        finally:
            server.shutdown()
            thread.join()
