"""gunicorn's heartbeat files, told apart where a worker holds those of older workers too, as old versions do."""

from __future__ import annotations

import sys
from pathlib import Path

from stucktrace.collectors import heartbeat

from tests.harness import kernel, targets

OLD = """
import os, tempfile, time
touched = [500, 60, 7]
for age in touched:
    descriptor, name = tempfile.mkstemp(prefix="wgunicorn-")
    os.unlink(name)
    if os.fork() == 0:
        if age != 7:
            now = time.monotonic() - age
            os.utime(descriptor, (now, now))
        time.sleep(600)
say_ready()
time.sleep(600)
"""


def test_each_worker_has_its_own(tmp_path: Path):
    program = tmp_path / "old.py"
    program.write_text(f"import sys\nsys.path.insert(0, {str(targets.TARGETS)!r})\nfrom ready import say_ready\n{OLD}")
    with targets.start([sys.executable, str(program)]) as master:
        oldest, middle, youngest = kernel.wait_for_children(master.pid, 3)
        for pid in (oldest, middle, youngest):
            kernel.wait_for_call(pid, "clock_nanosleep")
        assert [len(heartbeat.files(pid) or ()) for pid in (oldest, middle, youngest, master.pid)] == [1, 2, 3, 3]
        ages = [heartbeat.last_notify_s(pid, master.pid) for pid in (oldest, middle, youngest)]
        assert ages[0] is not None and 500 <= ages[0] < 1500
        assert ages[1] is not None and 60 <= ages[1] < 500
        assert ages[2] is None, "it never touched its file"
        assert heartbeat.shared(oldest, master.pid) and heartbeat.shared(middle, oldest)
        # Nobody is above the master, and what is not there holds nothing.
        assert heartbeat.last_notify_s(1 << 30, master.pid) is None
        assert not heartbeat.shared(master.pid, 1 << 30)
