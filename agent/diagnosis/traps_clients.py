"""A client written in C in a worker of greenlets: while it waits, no other greenlet runs. Pure.

gevent and eventlet replace Python's sockets; a C library calls poll() itself. psycopg2 can be told to yield
(`set_wait_callback`, which psycogreen does); the others cannot. A client that is loaded and has no connection now is a
warning only: it may be imported and never used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from stucktrace.diagnosis.words import listing
from stucktrace.facts.audited import Audited, CClient
from stucktrace.facts.settings import ERROR, OK, WARN, Check

GREENLETS = ("gevent", "eventlet")
_WITHOUT = ("sync", "thread", "tornado", "uvicorn", "asgi", "prefork", "processes", "solo")
_FIX = {
    "psycopg2": "psycogreen.gevent.patch_psycopg() (eventlet: psycogreen.eventlet.patch_psycopg()) before the first "
    "connection; or psycopg 3",
    "MySQLdb": "PyMySQL, which is Python (pymysql.install_as_MySQLdb()); or gthread workers",
    "mysql.connector": "mysql.connector.connect(..., use_pure=True), which is Python",
    "librabbitmq": "py-amqp, which is Python: a broker URL that begins with pyamqp://",
    "pymssql": "gthread workers, or pymssql.set_wait_callback()",
    "pylibmc": "pymemcache, which is Python; or gthread workers",
}


def greenlets(member: Audited) -> str:
    """ "gevent" or "eventlet" where this process serves with them; else ""."""
    worker = member.process.worker
    kinds = {"gunicorn-worker": member.value("worker_class") or worker.worker_class}
    kinds["celery-main"] = kinds["celery-child"] = member.value("worker_pool") or worker.pool
    found = str(kinds.get(worker.kind) or "").lower()
    named = next((name for name in GREENLETS if name in found), "")
    # A class of the project's own may be theirs too; those that are known to serve without greenlets are not.
    return named or ("" if any(name in found for name in _WITHOUT) else member.greenlets)


def checks(family: Sequence[Audited]) -> Iterator[Check]:
    """`c-client-in-greenlets`: a client written in C stops all greenlets of its worker while it waits.

    gevent and eventlet replace Python's sockets; a C library calls poll() itself, and no other greenlet runs
    meanwhile.

    Error: it has a connection open.

    Warn: it is loaded, and perhaps never used.

    Later: psycogreen for psycopg2, or a client written in Python; else gthread workers. The fix names it for each
    client.

    Not: psycopg2 whose wait callback is set; workers without greenlets.

    Try: `gunicorn -k gevent` with an application that imports MySQLdb, then `stucktrace audit PID`.
    """
    found: dict[tuple[str, str], list[tuple[Audited, CClient]]] = {}
    cooperative = [(member, kind) for member in family if (kind := greenlets(member))]
    for member, kind in cooperative:
        for client in member.c_clients:
            if client.patched is False:
                found.setdefault((client.name, kind), []).append((member, client))
    for (name, kind), held in found.items():
        yield _check(name, kind, [member for member, _ in held])
    if cooperative and not found:
        clients = sorted({client.name for member, _ in cooperative for client in member.c_clients if client.patched})
        text = (
            f"{listing(clients)} yields to greenlets" if clients else "no C client is loaded that would stop greenlets"
        )
        yield Check("c-client-in-greenlets", OK, text)


def _check(name: str, kind: str, members: Sequence[Audited]) -> Check:
    in_use = sorted({remote for member in members for remote in _c_connections(member)})
    text = (
        f"{name} is loaded in {kind} workers and does not yield: while a query waits, every request of its worker does"
    )
    return Check(
        "c-client-in-greenlets",
        ERROR if in_use else WARN,
        text,
        evidence=(f"a C library has a connection open to {listing(in_use[:4])}",) if in_use else (),
        fix=_FIX.get(name, "a client written in Python, or gthread workers"),
    )


def _c_connections(member: Audited) -> Iterator[str]:
    """Peers of connections that have no Python socket object."""
    if member.python_fds is None:
        return
    for socket in member.sockets:
        if socket.direction == "out" and socket.state == "ESTABLISHED" and not member.python_fds & set(socket.fds):
            yield socket.remote
