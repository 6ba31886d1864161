"""Celery's settings by name, as the traps ask for them; and how the project would write one."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stucktrace.facts.settings import COMPUTED, DEFAULT, NOT_SET, SET_IN_CODE, SettingFact, Value, alike

TRANSPORT = "broker_transport_options"
NAMES = {
    str(int(getattr(socket, name))): f"socket.{name}"
    for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT", "TCP_NODELAY", "TCP_SYNCNT")
}
"""The keys of such a table: number -> constant."""
_AMQP = ("amqp", "amqps", "pyamqp")
_REDIS = ("redis", "rediss", "sentinel", "redis+socket", "rediss+socket", "valkey", "valkeys")

_AMQP_ONLY = ("confirm_publish", "confirm_timeout", "heartbeat", "read_timeout", "write_timeout", "socket_settings")
_REDIS_ONLY = (
    "visibility_timeout", "socket_timeout", "socket_connect_timeout", "socket_keepalive", "socket_keepalive_options",
    "health_check_interval", "retry_on_timeout", "max_connections",
)  # fmt: skip


@dataclass(frozen=True)
class View:
    facts: dict[str, SettingFact]

    @classmethod
    def of(cls, settings: Sequence[SettingFact]) -> View:
        return cls({fact.name: fact for fact in settings if fact.subject == "celery"})

    def fact(self, name: str) -> SettingFact | None:
        """One whose value is known, and which the process has."""
        found = self.facts.get(name)
        return found if found is not None and found.known and found.source != NOT_SET else None

    def value(self, name: str) -> Value:
        """None also for one that is not set or not known."""
        found = self.fact(name)
        return found.value if found is not None else None

    def given(self, name: str) -> SettingFact | None:
        """One that somebody set."""
        found = self.fact(name)
        return found if found is not None and found.source != DEFAULT else None

    def sure(self, name: str) -> bool:
        """Whether what is said of it, its absence too, is known."""
        found = self.facts.get(name)
        return found.known if found is not None else self.facts[TRANSPORT].known if TRANSPORT in self.facts else False

    def option(self, name: str) -> Value:
        """Of the transport's options."""
        return self.value(f"{TRANSPORT}.{name}")

    def lacks(self, name: str) -> bool:
        """The transport's options are known, and have no such one."""
        return self.sure(TRANSPORT) and self.fact(f"{TRANSPORT}.{name}") is None and self.sure(f"{TRANSPORT}.{name}")

    def spelled(self, name: str) -> str:
        """As the project writes this setting: with its namespace."""
        prefix = str(self.value("app_namespace") or "")
        full = f"{prefix}{name}"
        return full.upper() if prefix.isupper() else full

    def uses(self, fact: SettingFact) -> bool:
        """The broker's transport takes this option; true of every setting that is none."""
        name = fact.name.removeprefix(f"{TRANSPORT}.").partition("[")[0]
        if name == fact.name:
            return True
        return (self.amqp and name not in _REDIS_ONLY) or (self.redis and name not in _AMQP_ONLY)

    @property
    def amqp(self) -> bool:
        return self._scheme() in _AMQP

    @property
    def redis(self) -> bool:
        return self._scheme() in _REDIS

    def _scheme(self) -> str:
        url = self.value("broker_write_url") or self.value("broker_url")
        # Celery's own default is RabbitMQ on this machine.
        named = str(url or self.value("broker_transport") or ("" if "broker_url" not in self.facts else "amqp"))
        return named.partition("://")[0]


def number(value: Value) -> float | None:
    """A number, also one that was written as text; None for True and False."""
    if isinstance(value, bool):
        return None
    try:
        return float(value) if value is not None else None
    except ValueError:
        return None


def shown(value: Value) -> str:
    """As it stands in a settings file; "..." for what is not written out there."""
    return "..." if value == COMPUTED else repr(value)


def add(view: View, options: Mapping[str, Value]) -> str:
    """The line that puts options among the transport's, to stand behind what sets them now."""
    name, fact = view.spelled(TRANSPORT), view.given(TRANSPORT)
    table = _table(options)
    if fact is None:
        return f"{name} = {table}"
    if fact.source == SET_IN_CODE:
        return f"app.conf.{TRANSPORT}.update({table})"
    return f"{name}.update({table}), behind {fact.source}"


def _table(options: Mapping[str, Value]) -> str:
    """The dict itself; of "socket_settings[4]" and its like the dict inside it."""
    inside: dict[str, list[str]] = {}
    for name, value in options.items():
        key, _, inner = name.partition("[")
        word = f"{NAMES.get(inner[:-1], inner[:-1])}: {shown(value)}" if inner else shown(value)
        inside.setdefault(key, []).append(word)
    tables = {name.partition("[")[0] for name in options if "[" in name}
    words = (f'"{key}": ' + (f"{{{', '.join(each)}}}" if key in tables else each[0]) for key, each in inside.items())
    return f"{{{', '.join(words)}}}"


def evidence(fact: SettingFact | None) -> tuple[str, ...]:
    if fact is None:
        return ()
    others = [(where, value) for where, value in fact.others if not alike(value, fact.value)]
    lost = f", over {shown(others[0][1])} ({others[0][0]})" if others else ""
    return (f"{fact.name} = {shown(fact.value)} ({fact.source}){lost}",)
