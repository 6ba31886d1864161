"""All that `stucktrace audit` saw of one process: what its rules take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from stucktrace.facts.amqp import AmqpFact
from stucktrace.facts.network import Keepalive, SocketFact
from stucktrace.facts.process import ProcessFact
from stucktrace.facts.settings import Check, ConfigFile, SettingFact, Value


@dataclass(frozen=True)
class CClient:
    """A database or broker client written in C that a process has loaded."""

    name: str
    """As it is imported: "psycopg2", "MySQLdb", "librabbitmq" ..."""
    patched: bool | None = None
    """It yields to greenlets (psycopg2's wait callback is set); None: not known."""


@dataclass(frozen=True)
class Audited:
    """One process."""

    process: ProcessFact
    sockets: tuple[SocketFact, ...] = ()
    """Its connected TCP sockets, and those that it listens on."""
    amqp: tuple[AmqpFact, ...] = ()
    own_timeouts: Mapping[int, float | None] = field(default_factory=dict)
    """fd -> the timeout that the program set on its Python socket; None: none, so calls on it block."""
    python_fds: frozenset[int] | None = None
    """Sockets that have a Python object; any other one is a C library's. None: not known."""
    polled: frozenset[int] = frozenset()
    """Inodes that its event loop watches (epoll); of a Celery child those of its main process."""
    siblings: frozenset[int] = frozenset()
    """Of a worker: what else its master started."""
    settings: tuple[SettingFact, ...] = ()
    config_file: ConfigFile = field(default_factory=ConfigFile)
    config_age_s: float | None = None
    """How long ago the config file was changed."""
    c_clients: tuple[CClient, ...] = ()
    greenlets: str = ""
    """"gevent" or "eventlet": it replaced the standard library's sockets."""
    heartbeat_filesystem: str = ""
    """Type of the filesystem that gunicorn's heartbeat file of this worker is on ("tmpfs", "ext4", ...)."""

    def setting(self, name: str) -> SettingFact | None:
        return next((setting for setting in self.settings if setting.name == name), None)

    def value(self, name: str) -> Value:
        """None also where it is not known."""
        setting = self.setting(name)
        return setting.value if setting is not None and setting.known else None

    def number(self, name: str) -> float | None:
        value = self.value(name)
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


@dataclass(frozen=True)
class Connection:
    """What guards one connection, computed from its live options, and what is to be said of that."""

    pid: int
    fd: int
    inode: int
    direction: str
    local: str
    remote: str
    state: str
    keepalive: Keepalive | None
    user_timeout_s: float | None
    idle_window_s: float | None
    """After how long keepalive notices a dead peer while nothing is in flight; None: never, or not known."""
    in_flight_window_s: float | None
    """After how long the kernel gives up on data that is not acknowledged."""
    own_timeout_s: float | None
    """The timeout that the program set on its Python socket; None: none, or not known."""
    waits: str
    """How calls on it wait: "bounded", "blocks", "event loop", "C library" or "" (not known)."""
    heartbeat_s: float | None
    """AMQP: negotiated; 0: off."""
    confirms: bool | None
    """AMQP: a channel of it is in confirm mode."""
    budget_s: float | None
    """The worker's timeout, which it is held against."""
    check: Check
