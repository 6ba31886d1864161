"""What a child process writes, read up to a deadline and within bounds: it may be a stranger's program."""

from __future__ import annotations

import os
import selectors
import subprocess
import time


def read(
    child: subprocess.Popen[bytes], ends: float, most_bytes: int, most_error_bytes: int
) -> tuple[bytes, bytes, bool]:
    """(stdout, stderr, both reached their end in time and within bounds). `ends` is CLOCK_MONOTONIC.

    Of more than `most_error_bytes` on stderr the rest is thrown away.
    """
    assert child.stdout is not None and child.stderr is not None
    taken: dict[int, bytearray] = {child.stdout.fileno(): bytearray(), child.stderr.fileno(): bytearray()}
    output, errors = taken.values()
    with selectors.DefaultSelector() as selector:
        for fd in taken:
            os.set_blocking(fd, False)
            selector.register(fd, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(max(ends - time.monotonic(), 0.0))
            if not ready:
                return bytes(output), bytes(errors), False
            for key, _ in ready:
                chunk = os.read(key.fd, 1 << 18)
                if not chunk:
                    selector.unregister(key.fd)
                elif len(output) + len(chunk) > most_bytes:
                    return bytes(output), bytes(errors), False
                elif key.fd == child.stdout.fileno() or len(errors) < most_error_bytes:
                    taken[key.fd] += chunk
    return bytes(output), bytes(errors), True
