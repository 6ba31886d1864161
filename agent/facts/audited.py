"""All that `stucktrace audit` saw of one process: what its rules take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from stucktrace.facts.amqp import AmqpFact
from stucktrace.facts.network import SocketFact
from stucktrace.facts.process import ProcessFact
from stucktrace.facts.settings import ConfigFile, SettingFact, Value


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
    polled_fds: frozenset[int] = frozenset()
    """Sockets that one of its epoll sets watches."""
    settings: tuple[SettingFact, ...] = ()
    config_file: ConfigFile = ConfigFile()
    c_clients: tuple[CClient, ...] = ()
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
