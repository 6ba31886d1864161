"""How the value of a setting is written: in TOML with its type, in the environment and on the command line as text.

Each function takes either and gives the value; ValueError when it is not what the function's key accepts (the words for
that stand beside it, in settings.py). ValueError("because") adds a reason.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

_TIMES = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZES = {
    "": 1, "b": 1, "kb": 1000, "mb": 1000**2, "gb": 1000**3, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30,
}  # fmt: skip
_BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_LOOPBACK = "127.0.0.1"
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
LONGEST_TEXT = 4096


def text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or not value.isprintable() or len(value) > LONGEST_TEXT:
        raise ValueError
    return value.strip()


def pattern(value: Any) -> re.Pattern[str]:
    if not isinstance(value, str):
        raise ValueError
    try:
        return re.compile(value)
    except re.error as error:
        raise ValueError(str(error)) from None


def boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if not isinstance(value, str):
        raise ValueError
    found = _BOOLEANS.get(value.strip().lower())
    if found is None:
        raise ValueError
    return found


def _number(value: Any, units: dict[str, float] | dict[str, int]) -> float:
    if isinstance(value, bool):
        raise ValueError
    if isinstance(value, int | float):
        return float(value)
    found = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*([a-z]*)", value.strip().lower()) if isinstance(value, str) else None
    if found is None or found[2] not in units:
        raise ValueError
    return float(found[1]) * units[found[2]]


def between(low: float, high: float) -> Callable[[Any], float]:
    """A number without a unit."""
    return lambda value: _inside(_number(value, {"": 1}), low, high)


def seconds(low: float, high: float) -> Callable[[Any], float]:
    """A number of seconds, or text with a unit: "250ms", "10m", "7d"."""
    return lambda value: _inside(_number(value, _TIMES), low, high)


def size(low: int, high: int) -> Callable[[Any], int]:
    """A number of bytes, or text with a unit: "64MB" (10^6), "64MiB" (2^20)."""
    return lambda value: int(_inside(_number(value, _SIZES), low, high))


def _inside(number: float, low: float, high: float) -> float:
    # False for NaN, too.
    if not low <= number <= high:
        raise ValueError
    return number


def one_of(*words: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if value not in words:
            raise ValueError
        return str(value)

    return read


def directory(value: Any) -> Path:
    """An absolute path: a daemon's working directory is nobody's choice."""
    path = Path(text(value))
    if not path.is_absolute():
        raise ValueError("it is relative")
    return path


file = directory


def listen_address(value: Any) -> str:
    """HOST:PORT; a port alone, with or without a colon, is one of the loopback address. Port 0: any free one."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    host, _, port = text(value).rpartition(":")
    if not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise ValueError
    host = host.removeprefix("[").removesuffix("]") or _LOOPBACK
    if host == "localhost":
        host = _LOOPBACK
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        raise ValueError(f"{host} is not an IP address") from None
    return f"[{address}]:{int(port)}" if address.version == 6 else f"{address}:{int(port)}"


def endpoint(value: Any) -> str:
    """As `server`; credentials go into headers, which are never shown."""
    if "@" in urlsplit(text(value)).netloc:
        raise ValueError("credentials go into otlp.headers")
    return server(value)


def server(value: Any) -> str:
    """An http or https URL without credentials."""
    parts = urlsplit(text(value))
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError
    if "@" in parts.netloc:
        raise ValueError
    try:
        _ = parts.port
    except ValueError:
        # Python's own words could repeat a part of a password.
        raise ValueError from None
    return text(value).rstrip("/")


def dsn(value: Any) -> str:
    """What Sentry calls a DSN: https://PUBLIC_KEY@HOST/PROJECT."""
    parts = urlsplit(text(value))
    project = parts.path.rpartition("/")[2]
    if parts.scheme not in ("http", "https") or not (parts.username and parts.hostname and project.isdigit()):
        raise ValueError
    _ = parts.port
    return text(value)


def headers(value: Any) -> tuple[tuple[str, str], ...]:
    """A TOML table; as text NAME=VALUE, several with commas or lines between."""
    if isinstance(value, str):
        pairs = [part.partition("=") for part in re.split(r"[,\n]", value) if part.strip()]
        value = {name.strip(): content.strip() for name, _, content in pairs}
    if not isinstance(value, dict) or not value:
        raise ValueError
    for name, content in value.items():
        if not _HEADER_NAME.fullmatch(name) or not (isinstance(content, str) and content and content.isprintable()):
            raise ValueError
    return tuple(value.items())
