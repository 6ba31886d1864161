"""Runs a few lines of Python, given in the test itself, as a process to look at."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass
class Script:
    """A running script. `says` is the JSON object of its first line of output."""

    process: subprocess.Popen[str]
    says: dict[str, Any]

    @property
    def pid(self) -> int:
        """Its pid as we see it; with a prefix (unshare ...) that of the prefix."""
        return self.process.pid

    def tell(self, line: str) -> str:
        """Sends a line to its stdin and returns the line it answers."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()


@contextmanager
def running(source: str, *prefix: str) -> Iterator[Script]:
    """The script, once it has printed its first line; killed at the end."""
    process = subprocess.Popen(
        [*prefix, sys.executable, "-c", source], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout
        line = process.stdout.readline()
        assert line, f"the script ended with {process.wait()}"
        yield Script(process, json.loads(line))
    finally:
        process.kill()
        process.communicate()
