"""How an HTTP request and a Celery task look in memory, whatever server or framework made them.

- WSGI: a dict with REQUEST_METHOD and PATH_INFO;
- ASGI: a dict whose `type` is "http" or "websocket", with `path`;
- Celery: `uuid` and `name` of `trace_task`.
Only what names the work is read: no query string, header, body or argument is ever fetched.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from stucktrace.collectors.python_values import Values
from stucktrace.facts import WorkFact

LONGEST_NAME = 200
LONGEST_PATH = 300
LONGEST_PEER = 100
TASK_FRAME, TASK_FILE = "trace_task", "celery/app/trace.py"
_WSGI = ("REQUEST_METHOD", "PATH_INFO", "SCRIPT_NAME", "REMOTE_ADDR", "REMOTE_PORT")
_ASGI = ("type", "method", "path", "client")
KEYS = (*_WSGI, *_ASGI)
_METHOD = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,30}")


def request(values: Values, found: Mapping[str, int], tid: int) -> WorkFact | None:
    """`found`: of a dict, the addresses of the values under `KEYS`. None: it is no request."""
    return _wsgi(values, found, tid) or _asgi(values, found, tid)


def task(values: Values, variable: Callable[[str], int | None], tid: int) -> WorkFact | None:
    """`variable`: the address of a variable of `trace_task`."""
    name, task_id = variable("name"), variable("uuid")
    words = values.text(name, LONGEST_NAME) if name else None
    id_ = values.text(task_id, LONGEST_NAME) if task_id else None
    return WorkFact(tid, "task", words, id_) if words and id_ else None


def _wsgi(values: Values, found: Mapping[str, int], tid: int) -> WorkFact | None:
    method, path = _text(values, found, "REQUEST_METHOD", 32), _text(values, found, "PATH_INFO", 4 * LONGEST_PATH)
    if method is None or path is None or not _METHOD.fullmatch(method):
        return None
    mount = _text(values, found, "SCRIPT_NAME", LONGEST_PATH) or ""
    host = _text(values, found, "REMOTE_ADDR", LONGEST_PEER) or ""
    return _fact(tid, method, _as_utf8(mount + path), _peer(host, _port(values, found.get("REMOTE_PORT"))))


def _asgi(values: Values, found: Mapping[str, int], tid: int) -> WorkFact | None:
    kind, path = _text(values, found, "type", 16), _text(values, found, "path", 4 * LONGEST_PATH)
    method = _text(values, found, "method", 32) if kind == "http" else kind
    if kind not in ("http", "websocket") or path is None or method is None or not _METHOD.fullmatch(method):
        return None
    client = values.items(found["client"]) if "client" in found else None
    host = values.text(client[0], LONGEST_PEER) if client else None
    port = _port(values, client[1]) if client and len(client) > 1 else None
    return _fact(tid, method, path, _peer(host or "", port))


def _text(values: Values, found: Mapping[str, int], key: str, longest: int) -> str | None:
    return values.text(found[key], longest) if key in found else None


def _port(values: Values, address: int | None) -> int | None:
    """A port, kept as int or as text."""
    if address is None:
        return None
    text = values.text(address, 5)
    number = int(text) if text is not None and text.isascii() and text.isdecimal() else values.integer(address)
    return number if number is not None and 0 < number < 1 << 16 else None


def _fact(tid: int, method: str, path: str, peer: str) -> WorkFact:
    path = path.partition("?")[0]
    if "://" in path:
        # A request line for a proxy; who asks may have put a password there.
        path = "/" + path.partition("://")[2].partition("/")[2]
    path = _bounded(path or "/", LONGEST_PATH)
    name = _bounded(f"{method} {path}", LONGEST_NAME)
    return WorkFact(tid, "request", name, method="" if method == "websocket" else method, path=path, peer=peer)


def _bounded(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _as_utf8(path: str) -> str:
    """WSGI hands over the bytes of a path as latin-1."""
    try:
        # The end may be cut in the middle of a character.
        return path.encode("latin-1").decode("utf-8", errors="ignore" if len(path) > LONGEST_PATH else "strict")
    except ValueError:
        return path


def _peer(host: str, port: int | None) -> str:
    if not host or port is None:
        return host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
