"""Hundreds of looks at a process whose locks change hands all the time: how many owners were named, and how many wrongly.

The target keeps a diary (tests/targets/busy_locks.py). A named owner is right when some instant within the look exists at
which the waiter waited for a lock and the owner had it, and all the claims about one address fit one and the same lock.
The diary is written beside the acquiring, not in it, so a lock counts as its owner's from when the one before let go.
With another thread of the crowd put in each owner's place, nine of ten claims are found wrong.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from stucktrace.diagnosis.model import STUCK
from stucktrace.inspection import Opening, inspect_all
from stucktrace.run import Options

from tests.bench import Row
from tests.harness import command, kernel, targets, trees
from tests.targets.busy_locks import ENTRIES, ENTRY, GOT, HEADER, HEADERS_BYTES, RELEASED, SLOW, THREADS, USES, WAIT

RUNS, OF_THE_COMMAND, IN_A_TREE = 450, 50, 150
PAIRS, SLICE_S = 9, 3.0
FOR_EVER = 1 << 63


@dataclass(frozen=True)
class Claim:
    waiter: int
    owner: int
    address: str


@dataclass(frozen=True)
class Hold:
    tid: int
    asked: int
    got: int
    released: int
    over: int
    """The thread's next entry of any kind."""


@dataclass
class Busy:
    """The running target, and what was said about it."""

    pid: int
    diary: Path
    ids: dict[int, int] = field(default_factory=dict)
    """The target's own view of a thread -> ours, where the two differ."""
    looks: int = 0
    owners: int = 0
    wrong: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    ways: dict[str, int] = field(default_factory=dict)
    """How an owner was known -> how often."""
    lock_of: dict[str, set[int]] = field(default_factory=dict)
    """Address -> the locks that it can be by all that was said so far."""

    def counts(self) -> list[tuple[int, int]]:
        """(tid, entries written) of each thread."""
        with self.diary.open("rb") as file:
            header = file.read(THREADS * HEADER.size)
        return [(self.ids.get(tid, tid), count) for tid, count in HEADER.iter_unpack(header)]

    def entries(self, number: int, since: int) -> list[tuple[int, int, int]]:
        """(time, what, lock): the thread's entries, from the last ones before `since` on."""
        found: list[tuple[int, int, int]] = []
        count = self.counts()[number][1]
        with self.diary.open("rb") as file:
            for last in range(count, max(0, count - ENTRIES + 2048), -1024):
                first = max(last - 1024, 0)
                start = HEADERS_BYTES + number * ENTRIES * ENTRY.size
                words = [
                    file.seek(start + at % ENTRIES * ENTRY.size) and file.read(ENTRY.size) for at in range(first, last)
                ]
                found[:0] = [ENTRY.unpack(word) for word in words]
                # Whole acquisitions that began before: a lock was waited for and held since.
                if found[0][0] < since and any(what == WAIT and at < since for at, what, _ in found[:-8]):
                    break
        return found

    def judge(self, claims: list[Claim], began: int, ended: int) -> None:
        """Every claim against the diary of the look's time."""
        self.owners += len(claims)
        if not claims:
            return
        tids = [tid for tid, _ in self.counts()]
        numbers = {tids.index(claim.waiter) >= SLOW for claim in claims if claim.waiter in tids}
        told = {number: self.entries(number, began) for number in range(THREADS) if (number >= SLOW) in numbers}
        holds, waits = holds_of({tids[number]: entries for number, entries in told.items()})
        for claim in claims:
            possible = {
                lock
                for lock, asked, got in waits.get(claim.waiter, ())
                for start, end in held(holds.get(lock, []), claim.owner)
                if max(asked, start, began) <= min(got, end, ended)
            }
            known = self.lock_of.setdefault(claim.address, possible)
            if claim.waiter == claim.owner or not possible & known:
                self.wrong.append(f"{claim}: can be {possible}, was {known}")
            else:
                self.lock_of[claim.address] = known & possible


def holds_of(
    told: dict[int, list[tuple[int, int, int]]],
) -> tuple[dict[int, list[Hold]], dict[int, list[tuple[int, int, int]]]]:
    """Lock -> its holds in the order in which they began; thread -> (lock, asked, got) of its waits."""
    holds: dict[int, list[Hold]] = {}
    waits: dict[int, list[tuple[int, int, int]]] = {}
    for tid, entries in told.items():
        asked: dict[int, int] = {}
        have: dict[int, tuple[int, int]] = {}
        for index, (at, what, lock) in enumerate(entries):
            after = entries[index + 1][0] if index + 1 < len(entries) else FOR_EVER
            if what == WAIT:
                asked[lock] = at
                waits.setdefault(tid, []).append((lock, at, after))
            elif what == GOT:
                have[lock] = asked.get(lock, at), at
            elif what == USES:
                waits.setdefault(tid, []).append((lock, at, after))
                holds.setdefault(lock, []).append(Hold(tid, at, at, after, after))
            elif what == RELEASED and lock in have:
                holds.setdefault(lock, []).append(Hold(tid, *have.pop(lock), at, after))
        for lock, (since, got) in have.items():
            holds.setdefault(lock, []).append(Hold(tid, since, got, FOR_EVER, FOR_EVER))
    for kept in holds.values():
        kept.sort(key=lambda hold: hold.got)
    return holds, waits


def held(holds: list[Hold], owner: int) -> Iterator[tuple[int, int]]:
    """From when to when the owner can have had the lock: not before the last one let go, nor after the next one had it."""
    for index, hold in enumerate(holds):
        if hold.tid == owner:
            before = holds[index - 1].released if index and holds[index - 1].released <= hold.got else hold.asked
            after = (
                holds[index + 1].got if index + 1 < len(holds) and holds[index + 1].got >= hold.released else hold.over
            )
            yield max(hold.asked, before), max(min(hold.over, after), hold.released)


def look(busy: Busy, opened: Opening) -> None:
    """In this process, as the agent looks."""
    began = time.monotonic_ns()
    try:
        answer = inspect_all([busy.pid], Options(sample_s=0.0), opened.opened)[busy.pid]
    except Exception as error:
        busy.failed.append(repr(error))
        return
    ended = time.monotonic_ns()
    busy.looks += 1
    if isinstance(answer, Exception):
        busy.failed.append(repr(answer))
        return
    verdict = answer.diagnosis.verdict
    if verdict.verdict_class == STUCK:
        busy.stuck.append(f"{verdict.code} ({verdict.confidence}): {verdict.summary}")
    claims = []
    for lock in answer.snapshot.locks:
        if lock.owner is not None and lock.owner.state != "unknown" and lock.kind not in ("join", "gil"):
            claims.append(Claim(lock.waiter_tid, lock.owner.tid or 0, hex(lock.address)))
            busy.ways[lock.owner.how or lock.kind] = busy.ways.get(lock.owner.how or lock.kind, 0) + 1
    busy.judge(claims, began, ended)


def look_by_command(busy: Busy) -> None:
    began = time.monotonic_ns()
    done = subprocess.run([str(command.COMMAND), "pid", str(busy.pid), "--json"], capture_output=True, text=True)
    ended = time.monotonic_ns()
    busy.looks += 1
    try:
        report = json.loads(done.stdout)
    except ValueError:
        busy.failed.append(f"status {done.returncode}: {done.stderr[-300:]}")
        return
    if report["verdict"]["class"] == STUCK or done.returncode not in command.EXIT_STATUS.values():
        busy.stuck.append(report["verdict"]["summary"])
    claims = [
        Claim(waiter["tid"], owner["tid"] or 0, lock["address"])
        for lock in report["locks"]
        for owner in lock["owners"]
        for waiter in lock["waiters"]
        if owner["state"] != "unknown" and lock["kind"] not in ("join", "gil")
    ]
    busy.judge(claims, began, ended)


def slices(busy: Busy, opened: Opening) -> list[float]:
    """The quick locks' throughput while it is looked at without a pause, as a share of the throughput just before."""

    def throughput() -> float:
        before = sum(count for _, count in busy.counts()[SLOW:])
        began = time.monotonic()
        time.sleep(SLICE_S)
        return (sum(count for _, count in busy.counts()[SLOW:]) - before) / (time.monotonic() - began)

    shares = []
    for _ in range(PAIRS):
        alone = throughput()
        done = threading.Event()

        def keeps_looking(done: threading.Event = done) -> None:
            while not done.is_set():
                look(busy, opened)

        looker = threading.Thread(target=keeps_looking)
        looker.start()
        shares.append(throughput() / alone)
        done.set()
        looker.join()
    return shares


@contextlib.contextmanager
def on_one_cpu() -> Iterator[str]:
    """This process on the first CPU; a command prefix for the target to have the last one."""
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cpus)})
    try:
        yield str(max(cpus))
    finally:
        os.sched_setaffinity(0, cpus)


def rows(name: str, busy: Busy) -> list[Row]:
    for said in (*busy.wrong, *busy.stuck, *busy.failed):
        print(name, said)
    alive = kernel.alive(busy.pid)
    ways = ", ".join(f"{how} {count}" for how, count in sorted(busy.ways.items(), key=lambda item: -item[1]))
    return [
        Row(f"{name}: looks", busy.looks, "", f"{busy.owners:,} owners named", ways),
        Row(f"{name}: wrong owners", len(busy.wrong), "", "", "target: 0"),
        Row(f"{name}: called stuck", len(busy.stuck), "", "", "target: 0"),
        Row(f"{name}: crashes of stucktrace, of the target", len(busy.failed) + (not alive), "", "", "target: 0"),
    ]


def run() -> list[Row]:
    found: list[Row] = []
    with on_one_cpu() as cpu, tempfile.TemporaryDirectory() as folder:
        opened = Opening("auto")
        diary = Path(folder) / "diary"
        with targets.start("busy_locks.py", diary, prefix=("taskset", "-c", cpu)) as target:
            busy = Busy(target.pid, diary)
            for number in range(RUNS):
                look(busy, opened)
                if number % (RUNS // OF_THE_COMMAND) == 0:
                    look_by_command(busy)
            found += rows(f"CPython 3.11, {THREADS} busy threads", busy)
            shares = slices(busy, opened)
            note = f"target: 100; {PAIRS} pairs, {100 * min(shares):.1f} to {100 * max(shares):.1f}"
            found.append(
                Row(
                    "throughput while looked at without a pause",
                    100 * statistics.median(shares),
                    "% of left alone",
                    "",
                    note,
                )
            )
        with trees.start("trixie", "busy_locks.py", "/tmp/diary") as contained:
            os.sched_setaffinity(contained.pid, {int(cpu)})
            inside = Busy(contained.pid, Path(f"/proc/{contained.pid}/root/tmp/diary"), contained.ids)
            for _ in range(IN_A_TREE):
                look(inside, opened)
            found += rows("CPython 3.13 in a container", inside)
    return found
