"""What of a setting's value may leave this process: of a URL its scheme and host, of a backend its kind. Pure."""

from __future__ import annotations

import re

from stucktrace.collectors import celery_names
from stucktrace.collectors.command_line import HIDDEN
from stucktrace.collectors.python_literals import Literal, Other
from stucktrace.facts.settings import Value

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+._-]{0,40})://([^/?#;]*)")
_HOST = re.compile(r"[A-Za-z0-9._-]+(?::\d{1,5})?|\[[0-9A-Fa-f:.]+\](?::\d{1,5})?")
_WORD = re.compile(r"[A-Za-z0-9_.+-]{1,60}")


def value(literal: Literal) -> tuple[Value, bool]:
    if isinstance(literal, str) and ("://" in literal or "@" in literal):
        # A URL where none belongs.
        return HIDDEN, True
    return (None, False) if isinstance(literal, Other | tuple | dict) else (literal, True)


def public(name: str, literal: Literal) -> tuple[Value, bool]:
    """(what of a value may leave this process, whether it is known)."""
    if name in celery_names.URLS and isinstance(literal, tuple):
        return " ".join(host_of(each) for each in literal if isinstance(each, str)), bool(literal)
    if not isinstance(literal, str):
        return value(literal)
    if name in celery_names.URLS:
        urls = literal.split(";")
        # A password may hold the character that parts one URL from the next.
        whole = len(urls) == 1 or all("://" in each for each in urls)
        return (" ".join(map(host_of, urls)) if whole else HIDDEN), True
    if name == "result_backend":
        scheme = literal.partition("://")[0] if "://" in literal else literal.partition(":")[0]
        return (scheme if _WORD.fullmatch(scheme) else HIDDEN), True
    if name == "broker_host" and not _HOST.fullmatch(literal):
        return HIDDEN, True
    return value(literal)


def host_of(url: str) -> str:
    """ "amqp://broker:5672" of a broker's URL: no user, password, virtual host or option; "" for the host where it
    cannot be told for certain."""
    match = _URL.match(url)
    if match is None:
        return url if _WORD.fullmatch(url) else HIDDEN
    scheme, place = match.groups()
    # A password that holds "/", "?" or "#" unquoted would end the host early: then an "@" is left behind it.
    host = place.rpartition("@")[2]
    plain = "@" not in url[match.end() :] and (_HOST.fullmatch(host) or not host)
    return f"{scheme}://{host if plain else HIDDEN}"
