"""The child of `stucktrace amqp` may be killed at any moment: its parent notices, and goes on to its own end."""

from __future__ import annotations

import subprocess
import sys

KILLED = """
import os, signal
signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # as the command line has it
from stucktrace.amqp import Decoder
decoder = Decoder()
os.kill(decoder._pid, signal.SIGKILL)
os.waitid(os.P_PID, decoder._pid, os.WEXITED | os.WNOWAIT)
decoder.send({"follow": [["a", "b", "c", "d"]] * 10_000, "about": []})
print(list(decoder.read()), decoder.ended)
decoder.end()
"""


def test_a_decoder_that_was_killed():
    done = subprocess.run(
        [sys.executable, "-c", KILLED], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120
    )
    assert (done.returncode, done.stdout) == (0, "[] True\n"), done
