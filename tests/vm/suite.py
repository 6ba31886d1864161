"""`make test-vm`: the cases of cases.py and bcc_cases.py under each of Debian's kernels, two machines at a time, and what they used.

docs/kernels.md is written from the run itself (TABLE=1), and a run whose findings are no longer what stands there fails.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from tests.vm import arm64, kernels, machine, table

AT_A_TIME = 2
DEADLINE_S = 1500.0
# Every line of JSON is a finding. What fails does not keep the rest from running.
INSIDE = """
status=0
.venv/bin/python -m tests.vm.cases core || status=1
.venv/bin/python -m tests.vm.bcc_cases || status=1
{also}
exit $status
"""
# Under Linux 5.10 it was not seen to end within minutes: detaching there takes long.
CALL_RUNGS = ".venv/bin/python -m tests.harness.call_rungs || status=1\n"
ALSO = {
    # By the command itself, which compiles anew; bcc_cases.py compares all else within one process.
    "bookworm": f"{CALL_RUNGS}.venv/bin/python -m tests.vm.cases bcc spinning || status=1",
    "trixie": f"{CALL_RUNGS}.venv/bin/python -m tests.vm.yama || status=1",
}
"""What one kernel or two are enough for."""


@dataclass
class Ran:
    name: str
    failures: list[str] = field(default_factory=list)
    lines: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0


class _Lines(io.BytesIO):
    """Output that is also shown, a line at a time, once it is there."""

    def __init__(self, shown: Callable[[str], None]) -> None:
        super().__init__()
        self._shown = shown
        self._rest = b""

    def write(self, data: Any, /) -> int:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._shown(line.decode(errors="replace"))
        return super().write(data)


def under(release: str) -> Ran:
    ran = Ran(release)
    script = INSIDE.format(also=ALSO.get(release, ""))

    def shown(line: str) -> None:
        if not line.startswith("{"):
            _say(release, line)
            return
        found = json.loads(line)
        ran.lines.append(found)
        _say(release, _summary(found))
        if found.get("right") is False or found.get("same") is False:
            ran.failures.append(found.get("because") or line)

    said = _Lines(shown)
    ended = machine.run(release, ("sh", "-c", script), headers=True, deadline_s=DEADLINE_S, output=said)  # type: ignore[arg-type]
    ran.seconds = ended.seconds
    if ended.status != 0:
        how = "did not come to its end" if ended.status is None else f"ended with {ended.status}"
        ran.failures.append(f"the run {how}; the kernel's last lines:\n{ended.last_lines()}")
    return ran


def on_arm64() -> Ran:
    ran, began = Ran("arm64"), time.monotonic()
    try:
        said = arm64.check()
        _say("arm64", said)
        ran.lines.append({"said": re.sub(r"\ball \d+ ", "all ", said)})
    except AssertionError as error:
        ran.failures.append(str(error))
    ran.seconds = time.monotonic() - began
    return ran


def _summary(found: dict[str, Any]) -> str:
    if "verdict" in found:
        return f"{found['engine']}: {found['case']}: {found['verdict']} ({found['seconds']} s)"
    if "case" in found:
        return f"{found.get('engine', 'core and bcc')}: {found['case']}: {'right' if found.get('right', found.get('same')) else 'WRONG'}"
    return ", ".join(f"{key}: {value}" for key, value in found.items())


_PRINTING = threading.Lock()


def _say(name: str, text: str) -> None:
    with _PRINTING:
        print(f"{name:9} {text}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.vm.suite", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*kernels.RELEASES, "arm64", []], metavar="KERNEL")
    parser.add_argument("--table", action="store_true", help="write docs/kernels.md")
    asked = parser.parse_args()
    names = asked.names or ["bookworm", "trixie", "bullseye", "arm64"]
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        started = [pool.submit(on_arm64) if name == "arm64" else pool.submit(under, name) for name in names]
        done = [one.result() for one in started]
    failed = False
    for ran in done:
        print(f"{ran.name}: {'FAILED' if ran.failures else 'passed'} in {ran.seconds:.0f} s")
        for failure in ran.failures:
            failed = True
            print(f"--- {ran.name}\n{failure}")
    sections = {
        ran.name: f"{ran.lines[0]['said']}\n" if ran.name == "arm64" else table.section(ran.lines)
        for ran in done
        if not ran.failures
    }
    if asked.table and not failed:
        table.write(sections)
    elif not failed:
        for name, text in table.changed(sections).items():
            failed = True
            print(f"--- docs/kernels.md says otherwise of {name} (make test-vm TABLE=1 writes it anew):\n{text}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
