"""A client whose server on this machine holds its request: it works on it, it never read it, it never accepted it."""

from __future__ import annotations

import pytest

from tests.harness import command, kernel, targets

LONG_S = 6.0
"""Longer than a reply that is owed at once may take, shorter than the budget of an open-ended one."""


@pytest.mark.parametrize("library", ["urllib", "requests"])
@pytest.mark.parametrize(("server", "code"), [("reads", "waiting"), ("deaf", "peer-silent"), ("full", "peer-silent")])
def test_a_held_request(library, server, code):
    with (
        targets.start("http_holder.py", server) as holder,
        targets.start("http_client.py", library, f"http://127.0.0.1:{holder.said}/") as client,
    ):
        kernel.wait_for_call(client.pid, "recvfrom")
        kernel.wait_until(lambda: kernel.asleep_s(client.pid) > LONG_S, "a wait that is long")
        for engine in ("auto", "none"):
            report = command.check(client.pid, code, "--engine", engine)
            assert f"127.0.0.1:{holder.said}" in report.summary, report.summary
            if code == "waiting":
                # Past its budget the same wait is stuck, though the server has read the request.
                command.check(client.pid, "peer-silent", "--engine", engine, "--stuck-after", 3)
