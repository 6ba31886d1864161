"""What native stacks tell of a verdict on a lock: which C code waits, which holds, and one well-known hang.

The hang: OpenSSL before 1.1.0 has no locks of its own and calls back for each, through one function pointer for the
whole process. Python's ssl sets it, and so does libpq, which before PostgreSQL 9.5 also took it away again when its
last TLS connection closed. A lock taken through one callback is then released through none or another, and the next
taker waits for ever. psycopg2 2.6.1 tells libpq to leave the callbacks alone (psycopg/psycopg2#290), libpq of
PostgreSQL 9.5 does not overwrite or unset those of others, and OpenSSL 1.1.0 ignores callbacks.
Told only where the stack shows it: a mutex taken in such a callback, and libpq in the stack. Where the versions say
that it cannot be that fault, the story says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from stucktrace.diagnosis import entered_again, evidence, known_issues, libraries
from stucktrace.diagnosis.model import Diagnosis, Evidence, Finding, Later
from stucktrace.facts import Frame, LockFact, NativeStack, Snapshot

SOURCE = "native stack"
FRAMES_SHOWN = 6
_CODES = ("deadlock", "orphaned-lock", "lock-held")
_MUTEXES = ("pthread-mutex", "robust-mutex", "pi-mutex")
_CALLBACK = re.compile(r"(?<![bc])lock(?:ing)?_?(?:callback|cb|function)(?:$|[^a-z])", re.IGNORECASE)
_LIBPQ = re.compile(r"PQ[a-z]\w+|pq(?:_|secure|[A-Z])\w*|pgtls_\w+")
_C_LIBRARY = ("libc", "libpthread")
_TLS = ("libssl", "libcrypto")
_ISSUE = "psycopg/psycopg2#290"


def explain(snapshot: Snapshot, diagnosis: Diagnosis) -> Diagnosis:
    findings = tuple(_explained(snapshot, finding) for finding in diagnosis.findings)
    return replace(diagnosis, verdict=findings[0], findings=findings) if findings else diagnosis


def _explained(snapshot: Snapshot, finding: Finding) -> Finding:
    tid = finding.tid
    if finding.code not in _CODES or tid is None:
        return finding
    finding = entered_again.retold(snapshot, finding)
    finding = replace(finding, evidence=(*finding.evidence, *_lines(snapshot, finding)))
    lock = next((lock for lock in snapshot.locks if lock.waiter_tid == tid), None)
    stack = snapshot.native_stack(tid)
    if lock is None or stack is None or not in_callback(lock, stack) or not _below_libpq(stack):
        return finding
    told = replace(known_issues.attach(snapshot, [replace(finding, known_issues=())])[0], story=_story(snapshot))
    if _cannot_be(snapshot):
        return replace(told, known_issues=tuple(issue for issue in told.known_issues if issue.link != _ISSUE))
    later = Later(
        "psycopg2 2.6.1 or newer with libpq of PostgreSQL 9.5 or newer, or best a Python and libpq that use "
        "OpenSSL 1.1.0 or newer",
        "then one party alone, or none, sets OpenSSL's locking callback",
    )
    return replace(told, later=(later,))


def _lines(snapshot: Snapshot, finding: Finding) -> Iterator[Evidence]:
    """Where the threads in the finding are, in C: the waiter, and who holds what it waits for."""
    lock = next((lock for lock in snapshot.locks if lock.waiter_tid == finding.tid), None)
    owner = lock.owner.tid if lock is not None and lock.owner is not None else None
    for tid, role in ((finding.tid, ""), (owner, "its holder ")):
        stack = snapshot.native_stack(tid) if tid is not None else None
        if stack is None or (role and tid == finding.tid):
            continue
        shown = [frame for frame, inside in zip(stack.frames, stack.inside, strict=True) if not inside]
        if shown:
            text = f"{role}{evidence.who(snapshot, tid)} is in {calls(shown)}"
            yield Evidence(SOURCE, "frames", shown[0].function, text)


def calls(frames: Sequence[Frame]) -> str:
    """ "pthread_mutex_lock (glibc) < PQexec (libpq)": the library once for frames that share it."""
    parts = []
    # How glibc waits inside of a function that has a name.
    named = next((index for index, frame in enumerate(frames) if "+0x" not in frame.function), 0)
    if libraries.stem(frames[0].file) in _C_LIBRARY:
        frames = frames[named:]
    # Functions without a name in a row, in one library, are one step.
    known = [
        frame
        for before, frame in zip([None, *frames], frames, strict=False)
        if not (before and before.file == frame.file and "+0x" in before.function and "+0x" in frame.function)
    ]
    shown = known[:FRAMES_SHOWN]
    for index, frame in enumerate(shown):
        follows = index + 1 < len(shown) and shown[index + 1].file == frame.file
        parts.append(frame.function if follows else f"{frame.function} ({libraries.short(frame.file)})")
    return " < ".join(parts) + (" < ..." if len(known) > len(shown) else "")


def in_callback(lock: LockFact, stack: NativeStack) -> bool:
    """The mutex is taken in a locking callback of OpenSSL: a function named so, one of libpq or Python's ssl that
    OpenSSL itself calls, or any for a mutex in OpenSSL's own data."""
    if lock.kind not in _MUTEXES:
        return False
    outside = _outside_libc(stack)
    if not outside:
        return False
    if libraries.stem(lock.mapping) in _TLS or _CALLBACK.search(outside[0].function):
        return True
    if _openssl_without_locks(outside[0]):
        return True
    called_back = len(outside) > 1 and libraries.stem(outside[1].file) in _TLS
    return called_back and libraries.stem(outside[0].file) in ("libpq", "_psycopg", "_ssl", "_hashlib")


def _openssl_without_locks(frame: Frame) -> bool:
    """Of a version that never locks but in a callback, here one that jumped on to pthread_mutex_lock."""
    versions = libraries.openssl((frame.file.removesuffix(" (deleted)").rpartition("/")[2],))
    return bool(versions) and not libraries.locks_itself(versions[0])


def _outside_libc(stack: NativeStack) -> tuple[Frame, ...]:
    """The frames from the one that called pthread_mutex_lock on."""
    first = next(
        (index for index, frame in enumerate(stack.frames) if libraries.stem(frame.file) not in _C_LIBRARY),
        len(stack.frames),
    )
    return stack.frames[first:]


def _below_libpq(stack: NativeStack) -> bool:
    return any(
        _LIBPQ.fullmatch(frame.function) or libraries.stem(frame.file) in ("libpq", "_psycopg")
        for frame in _outside_libc(stack)
    )


def _versions(snapshot: Snapshot) -> tuple[str | None, tuple[str, ...], str]:
    """(psycopg2, OpenSSL, the PostgreSQL that libpq is of), as far as they are known."""
    names = snapshot.process.libraries
    psycopg2 = known_issues.version_of(snapshot, "psycopg2")
    return psycopg2, libraries.openssl(names), libraries.postgresql(names)


def _cannot_be(snapshot: Snapshot) -> bool:
    """The versions rule the known fault out."""
    psycopg2, openssl, postgresql = _versions(snapshot)
    return (
        (psycopg2 is not None and not known_issues.within(psycopg2, "<2.6.1"))
        or (bool(openssl) and all(libraries.locks_itself(version) for version in openssl))
        or (bool(postgresql) and not known_issues.within(postgresql, "<9.5"))
    )


def _story(snapshot: Snapshot) -> str:
    psycopg2, openssl, postgresql = _versions(snapshot)
    here = [f"psycopg2 {psycopg2}"] if psycopg2 else []
    here += [f"libpq of PostgreSQL {postgresql}"] if postgresql else []
    here += [f"OpenSSL {' and '.join(openssl)}"] if openssl else []
    what = (
        "OpenSSL before 1.1.0 has no locks of its own: it calls back for each, through one function pointer for the "
        "whole process. libpq sets that pointer when it opens a TLS connection, and Python's ssl sets it too; libpq "
        "before PostgreSQL 9.5 also takes it away when its last TLS connection closes. A lock that was taken "
        "through one callback is then never released, and the next thread that takes it waits for ever"
    )
    if _cannot_be(snapshot):
        return (
            f"This has the same shape as the psycopg2 hang of {_ISSUE} and celery/celery#2429, but its versions rule "
            f"that fault out: here are {', '.join(here)}. (There: {what}; it needs psycopg2 before 2.6.1, libpq before "
            "PostgreSQL 9.5 and OpenSSL before 1.1.0.) Look for who set this locking callback, and who else sets one."
        )
    if psycopg2:
        return (
            f"This is the psycopg2 hang of {_ISSUE} (celery/celery#2429 shows it in a worker). {what}. Here are "
            f"{', '.join(here)}. psycopg2 2.6.1 leaves the callbacks to Python, libpq of PostgreSQL 9.5 does not touch "
            "those of others, and OpenSSL 1.1.0 and newer needs none."
        )
    return (
        f"This has the shape of the psycopg2 hang of {_ISSUE} (celery/celery#2429 shows it in a worker). {what}. "
        f"{'Here are ' + ', '.join(here) + '; the' if here else 'The'} version of psycopg2 is not known here. psycopg2 "
        "2.6.1 leaves the callbacks to Python, libpq of PostgreSQL 9.5 does not touch those of others, and OpenSSL "
        "1.1.0 and newer needs none."
    )
