"""Facts: immutable records of one thing seen. Collectors make them, diagnosis reads them, nothing changes them.

Conventions for every field in this file:
- `_s` is seconds, as an age or a length of time at `Snapshot.time`; `_bytes` is bytes; times are CLOCK_REALTIME.
- Addresses and inodes are plain ints here (hex strings only in the JSON report).
- pid and tid are ids as seen from the tool's own PID namespace; `ns_pid` and `ns_tid` are the target's own view.
- None means "not known", never "no". Why something is not known stands in `Seen.missing`.
"""

from __future__ import annotations

from stucktrace.facts.amqp import AmqpChannel, AmqpFact, AmqpMethod, Latency
from stucktrace.facts.broker import (
    BrokerChannel,
    BrokerConnection,
    BrokerConsumer,
    BrokerFact,
    BrokerQueue,
    Subscription,
)
from stucktrace.facts.calls import CallActivity, Syscall, ThreadFact
from stucktrace.facts.greenlets import GreenletFact
from stucktrace.facts.locks import FileLockFact, FileLockStep, LockFact, LockOwner, OwnerElsewhere, PipeFact
from stucktrace.facts.native import NativeStack
from stucktrace.facts.network import (
    ConntrackFact,
    EpollFact,
    EpollWatch,
    Keepalive,
    Peer,
    ProbeFact,
    SocketFact,
    TcpEvent,
)
from stucktrace.facts.pools import Awaited, PoolFact, PoolMember
from stucktrace.facts.process import MASTERS, ROLES, WORKERS, Container, ProcessFact, Relative, WorkerFact
from stucktrace.facts.python import Frame, PythonFact, PythonThread, WorkFact
from stucktrace.facts.settings import Check, SettingFact
from stucktrace.facts.snapshot import Missing, Seen, Snapshot

__all__ = [
    "MASTERS",
    "ROLES",
    "WORKERS",
    "AmqpChannel",
    "AmqpFact",
    "AmqpMethod",
    "Awaited",
    "BrokerChannel",
    "BrokerConnection",
    "BrokerConsumer",
    "BrokerFact",
    "BrokerQueue",
    "CallActivity",
    "Check",
    "ConntrackFact",
    "Container",
    "EpollFact",
    "EpollWatch",
    "FileLockFact",
    "FileLockStep",
    "Frame",
    "GreenletFact",
    "Keepalive",
    "Latency",
    "LockFact",
    "LockOwner",
    "Missing",
    "NativeStack",
    "OwnerElsewhere",
    "Peer",
    "PipeFact",
    "PoolFact",
    "PoolMember",
    "ProbeFact",
    "ProcessFact",
    "PythonFact",
    "PythonThread",
    "Relative",
    "Seen",
    "SettingFact",
    "Snapshot",
    "SocketFact",
    "Subscription",
    "Syscall",
    "TcpEvent",
    "ThreadFact",
    "WorkFact",
    "WorkerFact",
]
