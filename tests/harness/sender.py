"""A process of its own with the product's Delivery and its Sentry sink, to be killed, and to meet full disks.

Run as a program it takes one JSON object a line: {"event", "timeline"} is put, "status" asks, "drain" ends it.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    from stucktrace.errors import StucktraceError
    from stucktrace.output import complain
    from stucktrace.sinks.delivery import Delivery, Item
    from stucktrace.sinks.sentry import Sentry

    dsn, spool, spool_bytes = sys.argv[1:]
    sink = Sentry(dsn, environment="testing", server_name="")
    try:
        delivery = Delivery([sink], Path(spool) if spool else None, int(spool_bytes), complain)
    except StucktraceError as error:
        complain(error.message, error.remedy)
        sys.exit(error.exit_status)
    for line in sys.stdin:
        wanted = json.loads(line)
        if isinstance(wanted, dict):
            delivery.put(Item(wanted["event"], tuple(wanted["timeline"])))
            continue
        if wanted == "drain":
            delivery.drain(60)
        print(json.dumps(vars(delivery.status()["sentry"])), flush=True)
        if wanted == "drain":
            os._exit(0)


@dataclass
class Sender:
    process: subprocess.Popen[str]
    errors: Path

    def put(self, *events: dict[str, Any], timeline: Sequence[dict[str, Any]] = ()) -> None:
        for event in events:
            self._say({"event": event, "timeline": list(timeline)})

    def _say(self, what: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()

    def _ask(self, what: str) -> dict[str, Any]:
        self._say(what)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.said()
        return json.loads(line)  # type: ignore[no-any-return]

    def status(self) -> dict[str, Any]:
        """The sink's SinkStatus; everything put before has been taken in."""
        return self._ask("status")

    def drain(self) -> dict[str, Any]:
        status = self._ask("drain")
        assert self.process.wait(90) == 0
        return status

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(60)

    def running(self) -> bool:
        return self.process.poll() is None

    def said(self) -> list[str]:
        return self.errors.read_text(errors="replace").splitlines()


@contextlib.contextmanager
def sending(
    dsn: str,
    spool: Path | None = None,
    spool_bytes: int = 64 << 20,
    *,
    env: Mapping[str, str] | None = None,
    prefix: Sequence[str] = (),
) -> Iterator[Sender]:
    descriptor, name = tempfile.mkstemp(prefix="sender-", suffix=".log")
    process = subprocess.Popen(
        [*prefix, sys.executable, "-P", __file__, dsn, str(spool or ""), str(spool_bytes)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=descriptor, text=True, env={**os.environ, **(env or {})},
    )  # fmt: skip
    os.close(descriptor)
    sender = Sender(process, Path(name))
    try:
        yield sender
        assert "Traceback" not in sender.errors.read_text(), sender.said()
    finally:
        sender.kill()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()
        sender.errors.unlink()
