"""Incidents of Celery's main process and beat: a stalled loop, `beat-stopped`, `beat-twice`. Pure."""

from __future__ import annotations

from stucktrace.diagnosis import evidence, loops, vocabulary
from stucktrace.diagnosis.model import LIKELY, PROVEN, WARNING, Evidence, Finding, Later, Now
from stucktrace.diagnosis.remedies import restart
from stucktrace.diagnosis.words import age
from stucktrace.facts import Snapshot
from stucktrace.incidents import BeatStopped, BeatTwice, LoopStalled


def loop_stalled(snapshot: Snapshot, incident: LoopStalled) -> Finding:
    """Look after look the same callback stood on the loop, and in none of their windows did a poll return. It could
    have turned between two looks: `likely`.
    """
    pid = snapshot.process.pid
    frames, callback = snapshot.frames(pid), loops.callback_frame(snapshot, pid)
    shown = (vocabulary.own_frame(frames) or callback) if callback is not None else None
    index = frames.index(shown) if shown is not None else None
    under = f" under {evidence.where(shown)}" if shown is not None else ""
    name = evidence.who(snapshot, pid)
    main = snapshot.main_thread
    return Finding(
        "blocked-loop",
        LIKELY,
        f"Celery's event loop stands still: {name} has been in a callback{under} for {age(incident.seconds)}, and the "
        "broker, the pool and the heartbeats wait for it",
        evidence=(
            Evidence(
                "waits",
                "polls",
                0,
                f"{incident.looks} looks in {age(incident.seconds)}: the same callback, and no poll returned",
            ),
            *((evidence.call_line(snapshot, main),) if main is not None else ()),
            *evidence.frame_line(frames, index),
        ),
        now=restart(snapshot),
        later=(
            Later(
                "keep signal handlers and consumer steps of the main process short; do the work in a task",
                "while a callback runs, no message is taken and no heartbeat is sent",
            ),
        ),
        tid=pid,
        chain=(name, "Celery's event loop", evidence.where(shown) if shown is not None else "a callback"),
        frame=index,
    )


def beat_stopped(snapshot: Snapshot, incident: BeatStopped) -> Finding:
    """`beat-stopped`: Celery beat does not wake up any more.

    No periodic task is sent while it sleeps. It has one thread, so whatever blocks that stops every schedule.

    Likely: always, for what it waits for may still come: its main thread has not run for longer than it ever sleeps
    (`--max-interval`, 300 s by default) and a minute more, in a call without a timeout.

    Now: restart beat; nothing that was sent is lost.

    Later: timeouts for the scheduler's database and broker connections.

    Not: a beat that sleeps until its next task.

    Wrong: a scheduler of one's own with a longer interval that does not show.

    Try: `celery -A APP beat --max-interval 5` with a scheduler whose database does not answer, and `stucktrace
    agent` beside it.
    """
    main = snapshot.main_thread
    call = f" in {evidence.call_text(main)}" if main is not None else ""
    frames = snapshot.frames(snapshot.process.pid)
    return Finding(
        "beat-stopped",
        LIKELY,
        f"Celery beat (pid {snapshot.process.pid}) has not ticked for {age(incident.asleep_s)}{call}: it sleeps at "
        f"most {age(incident.longest_s)}, so no periodic task is sent",
        evidence=(
            Evidence(
                "/proc/PID/task/TID/status",
                "switches",
                incident.asleep_s,
                f"its main thread has not run for {age(incident.asleep_s)}",
                "s",
            ),
            Evidence(
                "beat",
                "max_interval",
                incident.longest_s,
                f"it wakes up at least every {age(incident.longest_s)} ({incident.source})",
                "s",
            ),
            *((evidence.call_line(snapshot, main),) if main is not None else ()),
            *evidence.frame_line(frames, 0),
        ),
        now=restart(snapshot),
        later=(
            Later(
                "give the scheduler's database and broker connections timeouts",
                "beat has one thread: what blocks it stops every schedule",
            ),
        ),
        tid=snapshot.process.pid if frames else None,
        chain=(f"beat {snapshot.process.pid}", "no tick", age(incident.asleep_s)),
        frame=0 if frames else None,
        subject=incident.application,
    )


def beat_twice(snapshot: Snapshot, incident: BeatTwice) -> Finding:
    """`beat-twice`: two beats run one schedule.

    Every periodic task is sent twice.

    Proven: both have one schedule file open.

    Likely: both keep their schedule at the same path, or the same command runs twice in the same directory with the
    same settings.

    Now: end one of them; its supervisor may start it again.

    Later: beat as one replica of its own with the strategy Recreate, and no worker with `-B` beside it.

    Not: the old and the new beat of a deployment, which may overlap for five minutes (30 s where both have the file
    open); beats in different containers whose files differ.

    Wrong: two beats of different applications that were started by the same command in one directory.

    Try: `celery -A APP beat` twice with one `--schedule` and two `--pidfile`, and `stucktrace agent` for a minute.
    """
    pid, other = snapshot.process.pid, incident.other
    if incident.both_open:
        why = f"both have {incident.schedule} open"
    elif incident.schedule:
        why = f"both keep their schedule in {incident.schedule}"
    else:
        why = "the same command runs twice, in the same directory with the same settings"
    return Finding(
        "beat-twice",
        PROVEN if incident.both_open else LIKELY,
        f"two Celery beats run one schedule (pids {other} and {pid}): every periodic task is sent twice; {why}",
        evidence=(
            Evidence("/proc/PID/fd" if incident.both_open else "/proc/PID", "schedule", incident.schedule or None, why),
            Evidence(
                "stucktrace",
                "together",
                incident.together_s,
                f"both have been there for {age(incident.together_s)}",
                "s",
            ),
        ),
        severity=WARNING,
        now=(
            Now(
                f"end one of them: kill -TERM {pid}",
                "its supervisor starts it again if that is what it is told",
                "nothing",
            ),
        ),
        later=(
            Later(
                "run beat as one replica of its own, with the strategy Recreate, and no worker with -B beside it",
                "nothing but its pid file, in its own container, keeps a second beat away",
            ),
        ),
        chain=(f"beat {pid}", incident.schedule or "the same command", f"beat {other}"),
        subject=incident.application,
    )
