"""gunicorn's timeout, heartbeat and config file. Pure.

The timeout guards what notifies the master: in a sync worker that is the request itself, in every other class its main
loop, so a request that hangs there is not ended (gunicorn/workers/gthread.py, ggevent.py; measured).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from stucktrace.diagnosis.words import age
from stucktrace.facts.audited import Audited
from stucktrace.facts.settings import DEFAULT, OK, WARN, Check, alike

IN_MEMORY = frozenset({"tmpfs", "ramfs"})
NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb3", "ceph", "fuse.glusterfs", "fuse.sshfs", "9p"})
_STRONGER = ("command line", "GUNICORN_CMD_ARGS")
"""They win over the config file."""
_SHM = "worker_tmp_dir = '/dev/shm' (or another tmpfs)"


def checks(member: Audited, family: Sequence[Audited]) -> Iterator[Check]:
    if not member.process.worker.kind.startswith("gunicorn-"):
        return
    yield from _timeout(member)
    yield from _heartbeat(member)
    yield from _config_file(member, family)


def _timeout(member: Audited) -> Iterator[Check]:
    """`timeout-off`, `timeout`: gunicorn's timeout is 0.

    Nobody ends a worker that hangs: a sync worker is held by one request for ever.

    Warn: the setting in force is 0.

    Later: `timeout = 60`, or twice the slowest request that is allowed.

    Not: a worker of another class than sync, whose timeout guards its main loop alone: that is said as a remark,
    for there each call in a request needs a timeout of its own.

    Try: `gunicorn --timeout 0`, then `stucktrace audit PID`.
    """
    timeout_s, kind = member.number("timeout"), effective_class(member)
    if timeout_s is None or not kind:
        return
    if not timeout_s:
        what = (
            "a request that hangs holds its worker for ever" if kind == "sync" else "a worker that hangs is never ended"
        )
        yield Check(
            "timeout-off", WARN, f"timeout is 0: {what}", fix="timeout = 60, or twice the slowest request you allow"
        )
    elif kind == "sync":
        yield Check(
            "timeout", OK, f"timeout is {age(timeout_s)}: a sync worker whose request hangs is ended after that"
        )
    else:
        yield Check(
            "timeout",
            OK,
            f"timeout is {age(timeout_s)}: of a {kind} worker it guards the main loop only; a request that hangs is "
            "not ended, so each call in it needs a timeout of its own",
        )


def effective_class(member: Audited) -> str:
    """The short name of the worker's class: a sync one with threads is gthread."""
    given = str(member.value("worker_class") or "")
    threads = member.number("threads") or 1
    if given == "sync" or given.endswith("SyncWorker"):
        return "gthread" if threads > 1 else "sync"
    return member.process.worker.worker_class or given.rpartition(".")[2]


def _heartbeat(member: Audited) -> Iterator[Check]:
    """`heartbeat-on-disk`, `heartbeat-file`: gunicorn's heartbeat file is on a disk.

    Each worker touches a temporary file for its master. Where that file system is slow, a healthy worker is late
    and is ended.

    Warn: `worker_tmp_dir` names a directory that is not in memory, or the file is on a network file system.

    Later: `worker_tmp_dir = '/dev/shm'`, or another tmpfs.

    Not: gunicorn's own default on a local disk, which is said as a remark.

    Try: `gunicorn --worker-tmp-dir /var/tmp`, then `stucktrace audit PID`.
    """
    filesystem, setting = member.heartbeat_filesystem, member.setting("worker_tmp_dir")
    if not filesystem:
        return
    if filesystem in IN_MEMORY:
        yield Check("heartbeat-file", OK, f"the heartbeat file is in memory ({filesystem})")
        return
    chosen = setting is not None and setting.known and setting.value is not None and setting.source != DEFAULT
    text = f"the workers' heartbeat file is on a disk ({filesystem})"
    if chosen or filesystem in NETWORK:
        where = f", in worker_tmp_dir {setting.value}" if chosen and setting is not None else ""
        yield Check(
            "heartbeat-on-disk",
            WARN,
            f"{text}{where}: when that is slow, a healthy worker is late with its heartbeat and is ended",
            fix=_SHM,
        )
    else:
        yield Check("heartbeat-file", OK, f"{text}, gunicorn's default; under heavy writing {_SHM} is safer")


def _config_file(member: Audited, family: Sequence[Audited]) -> Iterator[Check]:
    """`config-not-in-force`, `config-file`: gunicorn's config file says something else than what is in force.

    What the file sets literally is compared with what the running process has in its memory.

    Warn: a value differs, and neither the command line nor GUNICORN_CMD_ARGS set it: the file was changed after
    gunicorn read it, or a hook set it again.

    Later: reload (`kill -HUP` the master), or restart it; if it stays so, look in the hooks.

    Not: a file that is newer and says the same; values that the file computes.

    Try: change `timeout` in the file of a running gunicorn, then `stucktrace audit PID`.
    """
    file = member.config_file
    if not file.path or file.changed is None:
        return
    different = {
        name: (value, setting.value)
        for name, value in file.values
        if (setting := member.setting(name)) is not None
        and setting.in_force
        and setting.known
        and setting.source not in _STRONGER
        and not alike(setting.value, value)
    }
    age_s, ages = member.config_age_s, [each.process.age_s for each in family]
    newer, newer_than_all = (age_s is not None and age_s < of for of in (max(ages), min(ages)))
    said = ", ".join(f"{name} = {here!r}" for name, (here, _) in different.items())
    if different and newer:
        yield Check(
            "config-not-in-force",
            WARN,
            f"{file.path} was changed after this gunicorn read it: {said} is not in force",
            evidence=tuple(f"{name} = {held!r} is in force" for name, (_, held) in different.items()),
            fix="reload: kill -HUP the master; or restart it",
        )
    elif different:
        yield Check(
            "config-not-in-force",
            WARN,
            f"{file.path} says {said}, which is not in force: a hook set it again, or the file was replaced since",
            evidence=tuple(f"{name} = {held!r} is in force" for name, (_, held) in different.items()),
            fix="reload: kill -HUP the master; if it stays so, look in the hooks for what sets it",
        )
    elif newer_than_all:
        text = f"{file.path} was changed after this gunicorn read it; nothing that is shown here differs"
        yield Check("config-file", OK, text)
    else:
        yield Check("config-file", OK, f"{file.path} is not newer than what is in force")
