"""A real gunicorn that serves tests/targets/web_app.py on a port of its own."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.harness import kernel, targets


@dataclass(frozen=True)
class Gunicorn:
    master: int
    workers: tuple[int, ...]
    port: int
    target: targets.Target

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port))

    @contextlib.contextmanager
    def request(self, path: str) -> Iterator[socket.socket]:
        """A client that sends one request and then does nothing."""
        with self.connect() as client:
            client.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n\r\n".encode())
            yield client


@contextlib.contextmanager
def serve(
    *options: str | int,
    workers: int = 1,
    titled: bool = False,
    netns: str | None = None,
    app: str = "web_app:application",
    env: Mapping[str, str] | None = None,
) -> Iterator[Gunicorn]:
    """Yields once every worker is up and the port is open. `titled`: setproctitle has replaced its command lines."""
    command = [
        sys.executable, "-m", "gunicorn", "-b", "127.0.0.1:0", "-w", str(workers), "--no-control-socket", "--chdir", str(targets.TARGETS),
        *map(str, options), app,
    ]  # fmt: skip
    env = {**(env or {}), **({} if titled else {"PYTHONPATH": str(targets.TARGETS / "untitled")})}
    with targets.start(command, ready=False, env=env, netns=netns) as target:
        kernel.wait_until(lambda: target.log().count("Booting worker") == workers, "all workers booted")
        children = tuple(kernel.wait_for_children(target.pid, workers))
        yield Gunicorn(target.pid, children, listening_port(target.pid, netns), target)


def listening_port(pid: int, netns: str | None) -> int:
    """The TCP port that this process listens on."""
    inside = ["ip", "netns", "exec", netns] if netns else []
    inodes = {str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()}
    for line in subprocess.run(
        [*inside, "ss", "-tlneH"], capture_output=True, text=True, check=True
    ).stdout.splitlines():
        words = line.split()
        if any(word.startswith("ino:") and f"socket:[{word[4:]}]" in inodes for word in words):
            return int(words[3].rpartition(":")[2])
    raise AssertionError(f"{pid} listens nowhere")
