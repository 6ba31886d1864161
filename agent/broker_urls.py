"""The URL of a broker as a user gives it, and its password, which is never shown.

It comes from the URL, or from STUCKTRACE_BROKER_PASSWORD; the whole URL from STUCKTRACE_BROKER_URL (probe-broker) or
STUCKTRACE_BROKER_VIEW (pid --broker). An argument can be read by every user of the machine in `ps`, so it is
overwritten in our own command line as soon as it is known, and no child inherits the variables.
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from stucktrace.errors import UsageError

URL, VIEW, PASSWORD = "STUCKTRACE_BROKER_URL", "STUCKTRACE_BROKER_VIEW", "STUCKTRACE_BROKER_PASSWORD"
PORTS = {"amqp": 5672, "amqps": 5671, "redis": 6379, "rediss": 6379, "http": 15672, "https": 15671}
_ALIASES = {"pyamqp": "amqp", "librabbitmq": "amqp"}
"""Names of kombu's transports for the same protocol."""
_ARGUMENTS, _ENVIRONMENT = (48, 49), (50, 51)
"""Fields of /proc/PID/stat: where each begins and ends in memory (proc(5))."""


@dataclass(frozen=True)
class BrokerUrl:
    scheme: str
    """One of PORTS."""
    host: str
    port: int
    user: str
    password: str = field(repr=False)
    path: str
    """What stands behind the host and its slash, unquoted: a virtual host, or the number of a database; "" for none."""

    @property
    def encrypted(self) -> bool:
        return self.scheme in ("amqps", "rediss", "https")

    @property
    def kind(self) -> str:
        """ "amqp", "redis" or "http"."""
        return self.scheme.removesuffix("s") if self.scheme != "redis" else "redis"

    @property
    def endpoint(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def vhost(self) -> str:
        return self.path if self.path not in ("", "/") else "/"

    def __str__(self) -> str:
        """Without the password: "amqp://user@host:5672/vhost"."""
        who = f"{self.user}@" if self.user else ""
        path = f"/{self.path}" if self.path not in ("", "/") else ""
        return f"{self.scheme}://{who}{self.endpoint}{path}"


def parse(text: str, schemes: tuple[str, ...] = tuple(PORTS)) -> BrokerUrl:
    """Raises UsageError, which does not repeat the text: a password may stand anywhere in it."""
    wanted = "give one like amqp://user@host:5672/vhost or redis://host:6379/0"
    try:
        parts = urlsplit(text)
        port, host = parts.port, parts.hostname
    except ValueError:
        raise UsageError("this is not the URL of a broker", wanted) from None
    scheme = _ALIASES.get(parts.scheme, parts.scheme)
    if not text.isprintable() or "://" not in text or not host:
        raise UsageError("this is not the URL of a broker", wanted)
    if "@" in parts.path + parts.query + parts.fragment:
        # The end of a password with a bare / ? or #, of which the rest would be taken for a host and shown.
        raise UsageError("this is not the URL of a broker", "%-encode what is special in it: / is %2F, @ is %40")
    if ";" in (parts.hostname or "") or ";" in parts.path:
        raise UsageError("these are the URLs of several brokers", "give one of them at a time")
    if scheme not in schemes:
        raise UsageError(f"no broker is known for {scheme}:// here", f"give a URL with {', '.join(schemes)}")
    return BrokerUrl(
        scheme,
        host,
        port or PORTS[scheme],
        unquote(parts.username or ""),
        unquote(parts.password or "") or os.environ.get(PASSWORD, ""),
        unquote(parts.path[1:]),
    )


def keep_secret(text: str) -> None:
    """Overwrites the secret part of this argument in our own command line. Where that cannot be done it stays visible:
    that is why there are variables."""
    secret = text.rpartition("@")[0].partition("://")[2].partition(":")[2].encode(errors="surrogateescape")
    if secret:
        _overwrite(_ARGUMENTS, b":" + secret + b"@", 1, len(secret))


def forget_environment() -> None:
    """Nothing that is started from here on inherits the variables, and /proc/PID/environ does not show them."""
    for name in (URL, VIEW, PASSWORD):
        value = os.environ.pop(name, None)
        if value:
            data = value.encode(errors="surrogateescape")
            _overwrite(_ENVIRONMENT, name.encode() + b"=" + data + b"\0", len(name) + 1, len(data))


def _overwrite(area: tuple[int, int], text: bytes, skip: int, length: int) -> None:
    """Wherever `text` stands in this area of our own memory, `length` bytes behind its first `skip`."""
    try:
        with open("/proc/self/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        # Behind the name in brackets the fields begin with the third.
        start, end = (int(fields[number - 3]) for number in area)
        data = ctypes.string_at(start, end - start) if 0 < start < end else b""
    except (OSError, ValueError, IndexError):
        return
    place = data.find(text)
    while place >= 0:
        ctypes.memset(start + place + skip, ord("*"), length)
        place = data.find(text, place + 1)
