"""The agent for an hour among processes that come, hang, recover, fork and die: what it costs, misses and says wrongly.

`python -m tests.bench.soak MINUTES SEED`. Everything runs in PID, mount and network namespaces of its own: the agent
sees nothing else of the machine, and all of it ends with the first process there. In the first third the agent is
killed with SIGKILL at random moments and started again; the last one runs to the end, and its memory is judged by the
second half of the run.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.harness import kernel, namespaces, sentry_server, targets
from tests.harness.soak_agent import Event, Watcher
from tests.harness.soak_hangs import KINDS, OWNER, Kind, World, gunicorn
from tests.harness.soak_judge import EXPECTED_AFTER_S, judge, table
from tests.live.test_lookalikes import BUSY, CASES, Healthy

HANGS_AT_ONCE = 7
SHORT_S, LONG_S = (0.5, 3.0), (EXPECTED_AFTER_S + 5, EXPECTED_AFTER_S + 60)
SHORT_SHARE = 0.15
KILLED_UNTIL = 1 / 3
"""Of the run: from then on the agent is left alone."""
KILL_EVERY_S = (30.0, 150.0)
SAMPLE_EVERY_S = 5.0
RESOLVED_WITHIN_S = 120.0
STEADY = ("gunicorn.sync", "gunicorn.gthread", "gunicorn.gevent", "celery.prefork", "celery.solo", "celery.threads",
          "celery.beat", "program.redis")  # fmt: skip
CHURNING, CHURN_S = 10, (20.0, 240.0)
INSIDE = "--inside"


@dataclass
class Hang:
    """One injected hang. Times are CLOCK_MONOTONIC."""

    kind: Kind
    owner: str
    hold_s: float
    soak: Soak
    began: float = float("inf")
    ended: float = float("inf")
    seen_over: float = float("inf")
    failed: str = ""

    def lasts(self) -> None:
        self.began = time.monotonic()
        time.sleep(self.hold_s)
        self.ended = time.monotonic()

    def over(self) -> None:
        """Waits until no alert of the present agent is open on it."""
        with contextlib.suppress(AssertionError):
            kernel.wait_until(lambda: not self.soak.open_alerts(self.owner), "", RESOLVED_WITHIN_S)
            self.seen_over = time.monotonic()


@dataclass
class Soak:
    minutes: float
    seed: str
    folder: Path
    hangs: list[Hang] = field(default_factory=list)
    owners: dict[tuple[int, str], str] = field(default_factory=dict)
    """(pid, start time) -> whose it is; filled while they live."""
    pids: dict[int, str] = field(default_factory=dict)
    """The last one of each pid."""
    told: list[tuple[float, Event, tuple[str, ...]]] = field(default_factory=list)
    """Events with the owners of the processes that they name."""
    stopping: threading.Event = field(default_factory=threading.Event)
    began: float = field(default_factory=time.monotonic)
    short_lived: int = 0
    came: Counter[str] = field(default_factory=Counter)

    @property
    def end(self) -> float:
        return self.began + self.minutes * 60

    def random(self, what: str) -> random.Random:
        return random.Random(f"{self.seed} {what}")

    def nap(self, seconds: float) -> bool:
        """False when the soak is over."""
        return not self.stopping.wait(max(0.0, seconds))

    # Whose process is it?

    def look_around(self) -> None:
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError, IndexError):
                    self._take(int(entry.name))

    def _take(self, pid: int) -> None:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        if (pid, fields[19]) in self.owners:
            return
        environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        owner = next((word[len(OWNER) + 1 :].decode() for word in environ if word.startswith(f"{OWNER}=".encode())), "")
        self.owners[pid, fields[19]] = self.pids[pid] = owner or self.pids.get(int(fields[1]), "")

    def hear(self, event: Event, now: float) -> None:
        named = [affected["pid"] for affected in event["affected"]]
        for pid in named:
            with contextlib.suppress(OSError, IndexError):
                self._take(pid)
        self.told.append((now, event, tuple(self.pids.get(pid, "") for pid in named)))

    def open_alerts(self, owner: str) -> set[str]:
        """Alerts of the present agent on processes of this owner."""
        life = self.watcher.life
        resolved = life.of("resolved")
        mine = {event["id"] for _, event, owners in self.told if event["type"] == "opened" and owner in owners}
        return {alert for alert in life.of("opened") if alert in mine and alert not in resolved}

    # What goes on meanwhile, each in a thread of its own.

    def inject(self, kind: Kind, slots: threading.Semaphore, world: World) -> None:
        chance, number = self.random(kind.name), 0
        going_on = self.nap(chance.uniform(0, min(90.0, self.minutes * 10)))
        while going_on:
            short = kind.lasts_s is None and chance.random() < SHORT_SHARE
            hold_s = kind.lasts_s or chance.uniform(*(SHORT_S if short else LONG_S))
            rest_s = chance.uniform(5, 60)
            with slots:
                if time.monotonic() + hold_s + 60 > self.end:
                    return
                number += 1
                hang = Hang(kind, f"{kind.name}#{number}", hold_s, self)
                self.hangs.append(hang)
                try:
                    kind.run(world, hang)
                except Exception as error:
                    hang.failed = f"{type(error).__name__}: {error}"[:300]
                hang.over()
            going_on = self.nap(rest_s)

    def churn(self, slot: int) -> None:
        """Healthy look-alikes that come and go."""
        chance, number = self.random(f"healthy {slot}"), 0
        while not self.stopping.is_set():
            number += 1
            case, lives_s = chance.choice(CASES), chance.uniform(*CHURN_S)
            if case in BUSY and slot:
                continue
            with self.healthy(case, f"{slot}.{number}"):
                self.nap(min(lives_s, 20.0) if case in BUSY else lives_s)

    @contextlib.contextmanager
    def healthy(self, case: Healthy, mark: str) -> Iterator[None]:
        folder = self.folder / f"{case.name}-{mark}"
        folder.mkdir()
        arguments = [word.replace("{folder}", str(folder)) for word in case.command]
        env = {**case.env, OWNER: f"healthy.{case.name}-{mark}"}
        ready = case.says_ready and not case.children
        with targets.start(arguments, ready=ready, env=env, cwd=targets.TARGETS):
            self.came[case.name] += 1
            yield

    def flash(self) -> None:
        """Processes that live for a moment, and end in several ways."""
        chance = self.random("short-lived")
        commands = (
            [sys.executable, "-c", "print()"],
            [sys.executable, "-c", "import os; os.abort()"],
            [sys.executable, "-c", "import subprocess; subprocess.run(['true'])"],
            [sys.executable, "-c", "import time; time.sleep(60)"],
            ["sh", "-c", "sleep 0.1 | cat"],
        )
        while self.nap(chance.uniform(0.3, 3.0)):
            env = {**os.environ, OWNER: "healthy.short"}
            process = subprocess.Popen(chance.choice(commands), stdout=subprocess.DEVNULL, env=env)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(chance.uniform(0.05, 1.0))
            process.kill()
            process.wait()
            self.short_lived += 1

    def unsettle(self, sentry: sentry_server.Server) -> None:
        """The server of the alerts is down now and then."""
        chance = self.random("sentry")
        while self.nap(chance.uniform(40, 150)):
            sentry.stop()
            self.nap(chance.uniform(5, 40))
            sentry.start()

    def kill_the_agent(self) -> None:
        chance = self.random("kill")
        while self.nap(chance.uniform(*KILL_EVERY_S) * min(1.0, self.minutes / 10)):
            if time.monotonic() > self.began + KILLED_UNTIL * (self.end - self.began):
                return
            self.watcher.kill()
            self.check_leftovers()
            self.nap(chance.uniform(0, 3))
            self.watcher.start()

    def check_leftovers(self) -> None:
        """No process of the agent, and no target stopped or traced, but those that hang by being stopped."""
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(OSError, IndexError):
                self._take(int(entry.name))
                owner, argv = self.pids.get(int(entry.name), ""), (entry / "cmdline").read_bytes()
                if b"py-spy" in argv or b"/stucktrace\0" in argv:
                    self.watcher.wrong.append(f"after a kill: process {entry.name} is left: {argv!r}"[:300])
                status = (entry / "status").read_text()
                if "TracerPid:\t0" not in status and "strace" not in owner:
                    self.watcher.wrong.append(f"after a kill: process {entry.name} ({owner}) is traced")
                if kernel.state(int(entry.name)) in "Tt" and "stop" not in owner:
                    self.watcher.wrong.append(f"after a kill: process {entry.name} ({owner}) is stopped: {argv!r}")

    def run(self) -> bool:
        with contextlib.ExitStack() as stack:
            pair = stack.enter_context(namespaces.pair())
            sentry = stack.enter_context(sentry_server.running())
            self.watcher = Watcher(self.folder, sentry.dsn, self.hear)
            world = World(self.folder, pair, threading.Lock())
            for case in CASES:
                if case.name in STEADY:
                    stack.enter_context(self.healthy(case, "steady"))
            stack.enter_context(targets.start("soak_programs.py", "forks", env={OWNER: "healthy.forks"}))
            _, port = stack.enter_context(gunicorn(world, "healthy.busy", "-k", "gthread", "--threads", "4", "-w", "2"))
            for number in range(2):
                browser = ("browses", "127.0.0.1", port)
                env = {OWNER: f"healthy.browser{number}"}
                stack.enter_context(targets.start("soak_programs.py", *browser, env=env, netns=pair.here))
            self.watcher.start()
            self.began = time.monotonic()
            slots = threading.Semaphore(HANGS_AT_ONCE)
            work = [threading.Thread(target=self.inject, args=(kind, slots, world), name=kind.name) for kind in KINDS]
            work += [threading.Thread(target=self.churn, args=(slot,)) for slot in range(CHURNING)]
            work += [threading.Thread(target=self.flash), threading.Thread(target=self.unsettle, args=(sentry,))]
            killing = threading.Thread(target=self.kill_the_agent)
            for thread in [killing, *work]:
                thread.start()
            self.follow(killing)
            self.stopping.set()
            for thread in work:
                thread.join(RESOLVED_WITHIN_S + 400)
            return self.close(sentry)

    def follow(self, killing: threading.Thread) -> None:
        """Samples until the end, with a line a minute."""
        said = 0
        while time.monotonic() < self.end or killing.is_alive():
            self.look_around()
            if not killing.is_alive():
                self.watcher.sample()
            if (minute := int((time.monotonic() - self.began) / 60)) > said:
                said = minute
                sample = self.watcher.samples[-1] if self.watcher.samples else None
                held = f"{sample.rss_mb:.1f} MB, {sample.fds} fds" if sample else "being killed"
                opened = sum(event["type"] == "opened" for _, event, _ in self.told)
                print(
                    f"{minute} min: {len(self.hangs)} hangs, {opened} alerts, {len(self.pids)} pids, {held}", flush=True
                )
            time.sleep(SAMPLE_EVERY_S)

    def close(self, sentry: sentry_server.Server) -> bool:
        if sentry.stopped:
            sentry.start()
        report = judge(self, sentry)
        print(table(self, report), flush=True)
        return not report.wrong


def inside(minutes: float, seed: str, folder: Path) -> int:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    # Other tests of this machine have their names there.
    Path("/run/netns").mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", "/run/netns"], check=True)
    fine = Soak(minutes, seed, folder).run()
    return 0 if fine else 1


def main() -> int:
    if sys.argv[1] == INSIDE:
        return inside(float(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
    minutes = float(sys.argv[1])
    seed = sys.argv[2] if len(sys.argv) > 2 and sys.argv[2] else str(int(time.time()))
    folder = tempfile.mkdtemp(prefix="soak-")
    print(f"{minutes:g} minutes, seed {seed}, kept in {folder}", flush=True)
    alone = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--net", "tini", "-s", "--")
    return subprocess.run(
        [*alone, sys.executable, "-m", "tests.bench.soak", INSIDE, str(minutes), seed, folder]
    ).returncode  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
