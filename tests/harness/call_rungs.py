"""Counts of calls by every rung of collectors/call_hooks.py that this kernel has, as JSON: rung -> what it answered.

Run as a program, for it wants tracefs mounted, which a test does in a mount namespace of its own.
"""

from __future__ import annotations

import json

from stucktrace.collectors import waits
from stucktrace.collectors.kernel import Kernel

from tests.harness.scripts import running
from tests.live.test_waits import WORKER, assert_exact

RUNGS = ("fexit", "tp_btf", "raw_tp", "tracepoint")
WINDOWS = {"fexit": 1, "fexit kept": 2, "tp_btf": 2, "raw_tp": 2, "tracepoint": 1}
"""One for what takes seconds to detach."""


def counted(rung: str, windows: int, lasting: bool) -> str:
    """The means in use, or why there is none; AssertionError for a wrong count."""
    with Kernel(frozenset(RUNGS) - {rung}) as kernel, running(WORKER) as one, running(WORKER) as other:
        kernel.lasting = lasting
        for script in (one, other)[:windows]:
            with waits.watching([script.pid], kernel) as watch:
                if watch.missing:
                    return f"refused: {watch.missing[0].because}"
                refused = int(script.tell("go"))
                activity = watch.activity()
                assert watch.complete, rung
            assert set(activity) == {script.pid}
            assert_exact(activity[script.pid], script.says, refused, script.pid)
        return kernel.hooks["waits"]


if __name__ == "__main__":
    print(json.dumps({rung: counted(rung.split()[0], count, "kept" in rung) for rung, count in WINDOWS.items()}))
