"""The same programs on a CPython that runs on musl and on one on glibc: the verdicts have to be the same."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from pathlib import Path

from tests.bench import Row
from tests.harness import command, kernel, musl, targets

CASES = {
    "rlocks_crossed": "stuck_locks.py",
    "behind_a_silent_server": "stuck_locks.py",
    "locks_crossed": "stuck_locks.py",
    "event_alone": "healthy_threads.py",
    "queue_get": "healthy_threads.py",
}
ASLEEP_S, STUCK_AFTER_S = 4.0, 3
# The programs import these for other cases; the one on musl has none of them, nor the tables that IDNA takes.
STUBBED = """
import codecs, runpy, sys, types
codecs.register(lambda name: codecs.lookup("ascii") if name == "idna" else None)
for name in ("ctypes", "hashlib", "sqlite3"):
    sys.modules[name] = stub = types.ModuleType(name)
    stub.__getattr__ = lambda name: lambda *_: None
sys.path.insert(0, sys.argv[1].rpartition("/")[0])
sys.argv[:] = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def essence(report: command.Report) -> tuple[str, ...]:
    """What the verdict says, without the numbers and the program's name, which differ from process to process."""
    verdict = report.verdict
    words = [verdict["code"], verdict["confidence"], verdict["summary"], *verdict["chain"]]
    return tuple(
        re.sub(r"0x[0-9a-f]+|(python)?\d+(\.\d+)?", "#", word.replace("(python,", "(python3,")) for word in words
    )


def run() -> list[Row]:
    program, environment = musl.python()
    libraries = {"glibc": (sys.executable, {}), "musl": (str(program), environment)}
    same = 0
    for case, file in CASES.items():
        found = {}
        with contextlib.ExitStack() as stack:
            started = {}
            for name, (python, env) in libraries.items():
                words = [python, "-B", "-c", STUBBED, str(targets.TARGETS / file), case]
                started[name] = stack.enter_context(targets.start(words, env=env))
            for name, target in started.items():
                said = [int(word) for word in target.said.split() if word.isdigit()]
                for tid in said[1:3] or [target.pid]:
                    kernel.wait_until(
                        lambda pid=target.pid, tid=tid: kernel.asleep_s(pid, tid) > ASLEEP_S, f"{case}: {tid} asleep"
                    )
                found[name] = command.explain(target.pid, "--stuck-after", STUCK_AFTER_S)
                maps = Path(f"/proc/{target.pid}/maps").read_text()
                assert ("musl/libc.so" in maps) == (name == "musl"), maps
        if essence(found["glibc"]) == essence(found["musl"]):
            same += 1
        else:
            print(f"{case}:{os.linesep}{found['glibc'].text()}{os.linesep}{found['musl'].text()}")
    return [Row("the same verdict on musl as on glibc", same, f"of {len(CASES)} programs", "", "all of them")]
