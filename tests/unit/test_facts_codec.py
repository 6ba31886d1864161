"""Facts go through a journal unchanged: literal ones, and random ones made after the type hints of every fact."""

from __future__ import annotations

import dataclasses
import random
import types
from collections.abc import Mapping
from typing import Any, Union, get_args, get_origin, get_type_hints

import pytest
from stucktrace import facts
from stucktrace.diagnosis import diagnose
from stucktrace.diagnosis.model import Budgets
from stucktrace.facts import Snapshot
from stucktrace.facts_codec import DecodeError, decode, decode_as, encode, encode_as
from stucktrace.incidents import Incident
from stucktrace.sinks import journal

from tests.unit import snapshots as s

TEXTS = ("", "main", "Fußgänger\n\x00", "\udcff\ud800 no UTF-8", "x" * 300)
FACTS = [cls for cls in vars(facts).values() if dataclasses.is_dataclass(cls)]
INCIDENTS = get_args(Incident) or (Incident,)

LITERAL = {
    "a deadlock": s.snapshot(
        s.thread(100), s.thread(101),
        stacks={100: ["wait /app/a.py:3", "<module> /app/a.py:9"], 101: ["native pthread_mutex_lock libc.so.6"]},
        gil=101,
        locks=[s.lock(100, owner=s.owned_by(101)), s.lock(101, "rlock", s.owned_by(None, "absent"), count=2)],
    ),
    "a black hole": s.snapshot(
        s.thread(100, "recvfrom", fd=7, blocked_s=35.0),
        stacks={100: ["read_frame amqp/transport.py:294"]},
        sockets=[s.black_hole(), s.tcp(8, peer=s.peer()), s.listen()],
        worker=facts.WorkerFact("gunicorn-worker", "sync", timeout_s=30.0, seconds_to_kill=4.5),
    ),
    "all the rest": s.snapshot(
        s.thread(100, s.call("ppoll", 4, args=(2**64 - 1, 0, 1, 2, 3, 4), fds=(4, 5), timeout_s=1.5)),
        s.thread(101, None),
        pipes=[s.pipe(3, writers=[12])],
        epolls=[s.epoll(4, s.watch(7), s.watch(9, present=False, held_by=(12,)))],
        file_locks=[s.file_lock()],
        relatives=[s.parent(), s.relative(103, "child", threads=((1, "a"), (2, "b")))],
        activity=[s.activity()],
        process=s.process(packages={"celery": "5.4.0"}, container=facts.Container("0" * 64), argv=()),
    ),
}  # fmt: skip


def through(cls: type[Any], fact: Any) -> Any:
    """What is read back of it."""
    return decode(cls, journal.unpack(journal.pack({"fact": encode(fact)}))["fact"])


def made(hint: Any, rng: random.Random) -> Any:
    """A random value of that type."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return made(rng.choice(arguments), rng)
    if origin is tuple:
        if arguments[-1] is ...:
            return tuple(made(arguments[0], rng) for _ in range(rng.randrange(3)))
        return tuple(made(argument, rng) for argument in arguments)
    if origin in (dict, Mapping):
        return {made(arguments[0], rng): made(arguments[1], rng) for _ in range(rng.randrange(3))}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        hints = get_type_hints(hint)
        return hint(**{field.name: made(hints[field.name], rng) for field in dataclasses.fields(hint)})
    return {
        type(None): None,
        bool: rng.random() < 0.5,
        int: rng.choice((0, 1, -1, 2**31, 2**63, 2**64 - 1, -(2**63))),
        float: rng.choice((0.0, -1.5, 1e300, 0.1, 1_700_000_000.123456, float("inf"))),
        str: rng.choice(TEXTS),
    }[hint]


@pytest.mark.parametrize("snapshot", LITERAL.values(), ids=LITERAL.keys())
def test_literal_snapshots(snapshot: Snapshot):
    back = through(Snapshot, snapshot)
    assert back == snapshot
    assert diagnose(back, Budgets()) == diagnose(snapshot, Budgets())


@pytest.mark.parametrize("cls", [*FACTS, Budgets], ids=lambda cls: cls.__name__)
def test_every_fact(cls: type[Any]):
    rng = random.Random(cls.__name__)
    for _ in range(20 if cls is Snapshot else 100):
        fact = made(cls, rng)
        back = through(cls, fact)
        assert back == fact
        assert repr(back) == repr(fact), "equal, and of the same types"


@pytest.mark.parametrize("cls", INCIDENTS, ids=lambda cls: cls.__name__)
def test_every_incident(cls: type[Any]):
    rng = random.Random(cls.__name__)
    for _ in range(100):
        incident = made(cls, rng)
        assert decode_as(Incident, journal.unpack(journal.pack(encode_as(Incident, incident)))) == incident


def test_data_of_another_version():
    snapshot = LITERAL["a black hole"]
    data = encode(snapshot)
    data["from_the_future"] = {"anything": [1, 2]}
    data["sockets"][0]["from_the_future"] = None
    del data["work"], data["sockets"][0]["user_timeout_s"]
    back = decode(Snapshot, data)
    first = dataclasses.replace(snapshot.sockets[0], user_timeout_s=None)
    assert back == dataclasses.replace(snapshot, sockets=(first, *snapshot.sockets[1:]))


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda data: data.pop("process"), "Snapshot has no process"),
        (lambda data: data["threads"][0].pop("tid"), "Snapshot.threads[0] has no tid"),
        (lambda data: data["sockets"][1].update(inode="7"), "Snapshot.sockets[1].inode is not of the type int"),
        (lambda data: data["sockets"][1].update(inode=True), "Snapshot.sockets[1].inode is not of the type int"),
        (lambda data: data["sockets"][1].update(peer=3), "Snapshot.sockets[1].peer is not a Peer"),
        (lambda data: data["sockets"][0].update(rto_s=[]), "Snapshot.sockets[0].rto_s has an unexpected type"),
        (lambda data: data.update(fds=[]), "Snapshot.fds is not a mapping"),
        (lambda data: data.update(fds={"7": "x"}), "Snapshot.fds is not of the type int"),
        (lambda data: data.update(threads={}), "Snapshot.threads is not a list"),
    ],
)
def test_what_does_not_fit_is_named(change: Any, where: str):
    data = encode(LITERAL["a black hole"])
    change(data)
    with pytest.raises(DecodeError) as raised:
        decode(Snapshot, data)
    assert str(raised.value) == where


@pytest.mark.parametrize("data", [None, [], {}, {"NoSuchThing": {}}, "WorkerAborted"])
def test_no_incident(data: Any):
    with pytest.raises(DecodeError):
        decode_as(Incident, data)
