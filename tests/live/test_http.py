"""Clients whose server on this machine holds their request: it works on it, it never read it, it never accepted it.

Many pairs wait side by side; all are judged once they have waited for longer than what a protocol owes at once.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.harness import command, kernel, targets
from tests.live.conftest import ENGINES

LONG_S = 6.0
"""Longer than a reply that is owed at once may take, shorter than the budget of an open-ended one."""
HELD = {"reads": "waiting", "deaf": "peer-silent", "full": "peer-silent"}
"""What the server does, and what its client's wait is."""
PROTOCOLS = ("tls", "https", "smtp", "psycopg2", "psycopg3", "kombu")


def held(stack: ExitStack, server: str, library: str, folder: Path) -> tuple[targets.Target, str]:
    """A client of a server that does this, and the name of the peer."""
    if library == "unix":
        holder = stack.enter_context(targets.start("http_holder.py", server, folder / server))
        return stack.enter_context(targets.start("http_client.py", "http.client", holder.said)), ""
    holder = stack.enter_context(targets.start("http_holder.py", server))
    peer = f"127.0.0.1:{holder.said}"
    return stack.enter_context(targets.start("http_client.py", library, f"http://{peer}/")), peer


@pytest.mark.parametrize("library", ["urllib", "requests", "unix"])
def test_held_requests(library, tmp_path):
    with ExitStack() as stack:
        clients = {server: held(stack, server, library, tmp_path) for server in HELD}
        for server, (client, peer) in clients.items():
            kernel.wait_for_call(client.pid, "recvfrom")
            kernel.wait_until(lambda: kernel.asleep_s(client.pid) > LONG_S, "a wait that is long")
            for engine in ENGINES:
                # The budget is given, for a busy machine may come to this one late.
                report = command.check(client.pid, HELD[server], "--engine", engine, "--stuck-after", 3600)
                assert peer in report.summary, report.summary
        # Past its budget the same wait is stuck, though the server has read the request.
        for engine in ENGINES:
            command.check(clients["reads"][0].pid, "peer-silent", "--engine", engine, "--stuck-after", 3)


def test_servers_that_never_begin_their_protocol():
    """They accept, read what comes and say nothing, where the protocol owes an answer at once."""
    with ExitStack() as stack:
        clients = {}
        for protocol in PROTOCOLS:
            server = stack.enter_context(targets.start("http_holder.py", "mute"))
            client = stack.enter_context(targets.start("handshakes.py", protocol, server.said))
            clients[protocol] = (client, f"127.0.0.1:{server.said}")
        for protocol, (client, peer) in clients.items():
            kernel.wait_for_silence(peer, LONG_S)
            for engine in ENGINES:
                report = command.check(client.pid, "peer-silent", "--engine", engine)
                assert peer in report.summary, f"{protocol}: {report.summary}"
