"""Alerts as Sentry events: one envelope an event, with the report attached; the SDK writes it, this thread sends it.

`sentry_sdk.init` is never called: nothing of our own process is instrumented, and the server's answer is known before
the next event goes out. An event's id follows from the alert, so that Sentry drops what is sent twice.
"""

from __future__ import annotations

import gzip
import json
import os
import socket
import ssl
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.request import getproxies, proxy_bypass

from stucktrace import __version__
from stucktrace.errors import UsageError
from stucktrace.sinks import retry_after, sentry_event
from stucktrace.sinks.page import clean
from stucktrace.sinks.sink import Item, SinkDown, SinkRefused

if TYPE_CHECKING:
    import urllib3
    from sentry_sdk.envelope import Envelope

CONNECT_S, READ_S = 5.0, 15.0
IDLE_S = 30.0
"""A connection that rested longer is not used again: what lies between may have forgotten it."""
LONGEST_ANSWER_BYTES = 4096
RATE_LIMITED_S = 60.0
"""Where a 429 names no time; Sentry's own rule."""
WRONG_KEY_S = 300.0
UPDATE_AFTER_S = 30.0
"""An update that only counts more processes is worth an event when the last one is older than this."""
MOST_ALERTS = 1000
"""Whose tags are kept for their later events."""


class Sentry:
    name = "sentry"

    def __init__(self, dsn: str, *, environment: str = "", server_name: str = "") -> None:
        """UsageError when `dsn` is none. Nothing is sent yet."""
        _import_sdk()
        from sentry_sdk.utils import BadDsn, Dsn

        try:
            parsed = Dsn(dsn)
        except (BadDsn, ValueError):
            # Not shown: a part of it may be the key.
            raise UsageError("this is not a Sentry DSN", "it looks like https://KEY@HOST/PROJECT") from None
        auth = parsed.to_auth(f"stucktrace/{__version__}")
        self._url = str(auth.get_api_url())
        self._headers = {
            "User-Agent": f"stucktrace/{__version__}",
            "X-Sentry-Auth": str(auth.to_header()),
            "Content-Type": "application/x-sentry-envelope",
            "Content-Encoding": "gzip",
        }
        self._names = {"environment": environment, "server_name": server_name}
        self._pool, proxy = _pool(parsed.scheme, parsed.host)
        self._where = parsed.netloc + (f" (by way of the proxy {proxy})" if proxy else "")
        """For people: never the key, nor the proxy's password."""
        self._used = 0.0
        self._not_before = 0.0
        self._tags: dict[str, dict[str, str]] = {}
        """Alert id -> what its report said."""
        self._last: dict[str, tuple[float, int, str]] = {}
        """Alert id -> time, count and confidence of what was sent last."""

    def deliver(self, item: Item) -> None:
        """Sends it, or leaves out an update that says nothing new."""
        wait_s = self._not_before - time.monotonic()
        if wait_s > 0:
            raise SinkDown(f"{self._where} limits our rate", wait_s)
        identity = item.event["id"]
        if not self._news(item):
            return
        tags = self._tags.get(identity, {}) | sentry_event.tags(item.event)
        envelope = _envelope(item, sentry_event.build(item, tags, **self._names))
        status, detail = self._post(envelope)
        if status == 413 and len(envelope.items) > 1:
            del envelope.items[1:]
            status, detail = self._post(envelope)
        if status in (400, 413, 422):
            raise SinkRefused(f"{self._where} answers {status}{detail}")
        if not 200 <= status < 300:
            raise SinkDown(f"{self._where} answers {status}{detail}")
        if item.event["type"] == "resolved":
            self._tags.pop(identity, None)
            self._last.pop(identity, None)
            return
        self._tags[identity] = tags
        self._last[identity] = item.event["time"], item.event["count"], item.event["confidence"]
        if len(self._last) > MOST_ALERTS:
            forgotten = next(iter(self._last))
            del self._last[forgotten], self._tags[forgotten]

    def _news(self, item: Item) -> bool:
        event = item.event
        if event["type"] != "updated" or event["id"] not in self._last:
            return True
        said, count, confidence = self._last[event["id"]]
        more = event["count"] != count and abs(event["time"] - said) >= UPDATE_AFTER_S
        return bool(more or event["confidence"] != confidence)

    def _post(self, envelope: Envelope) -> tuple[int, str]:
        """The answer's status, and what it says beside it. SinkDown when there is none, or it says to wait."""
        import urllib3

        if time.monotonic() - self._used > IDLE_S:
            self._pool.clear()
        try:
            answer = self._pool.request(
                "POST",
                self._url,
                body=gzip.compress(envelope.serialize(), 6),
                headers=self._headers,
                preload_content=False,
                retries=False,
                redirect=False,
            )
            said = answer.read(LONGEST_ANSWER_BYTES, decode_content=False)
            if len(said) < LONGEST_ANSWER_BYTES:
                answer.release_conn()
            else:
                answer.close()
        except (urllib3.exceptions.HTTPError, OSError) as error:
            self._pool.clear()
            raise _down(self._where, error) from None
        self._used = time.monotonic()
        detail = _detail(answer.headers.get("X-Sentry-Error"), said)
        limited_s = _limit_s(answer.headers.get("X-Sentry-Rate-Limits", ""))
        self._not_before = time.monotonic() + limited_s
        after_s = retry_after.seconds(answer.headers.get("Retry-After"))
        if answer.status == 429:
            raise SinkDown(f"{self._where} limits our rate (429)", after_s or limited_s or RATE_LIMITED_S)
        if answer.status in (401, 403, 404):
            reason = f"{self._where} answers {answer.status}{detail}"
            raise SinkDown(reason, after_s or WRONG_KEY_S, "see that the DSN is right; alerts wait and are sent later")
        if answer.status >= 500 and after_s:
            raise SinkDown(f"{self._where} answers {answer.status}{detail}", after_s)
        return answer.status, detail

    def close(self) -> None:
        self._pool.clear()


def _import_sdk() -> None:
    """Without gevent and eventlet: it imports them where they are installed, 13 MB, and eventlet writes a warning."""
    hidden = [name for name in ("gevent", "eventlet") if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        import sentry_sdk.envelope
        import sentry_sdk.utils  # noqa: F401
    finally:
        for name in hidden:
            sys.modules.pop(name, None)


def _authorities() -> str:
    """The file of the CA certificates to trust: the environment's, as sentry_sdk chooses it, else certifi's."""
    import certifi

    name = next((name for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE") if os.environ.get(name)), None)
    path = os.environ[name] if name else str(certifi.where())
    if not os.access(path, os.R_OK):
        raise UsageError(f"{name}: {path} cannot be read", "name a file of CA certificates, or leave it unset")
    return path


def _pool(scheme: str, host: str) -> tuple[urllib3.PoolManager, str]:
    """And the proxy that the environment names for it, without its password; empty for none."""
    import urllib3

    options: dict[str, Any] = {"num_pools": 1, "timeout": urllib3.Timeout(connect=CONNECT_S, read=READ_S)}
    if scheme == "https":
        # One for all connections: reading the certificates takes 20 ms and a megabyte.
        options["ssl_context"] = urllib3.util.create_urllib3_context(cert_reqs=ssl.CERT_REQUIRED)
        options["ssl_context"].load_verify_locations(_authorities())
    proxy = None if proxy_bypass(host) else getproxies().get(scheme)
    if not proxy:
        return urllib3.PoolManager(**options), ""
    try:
        parts = urllib3.util.parse_url(proxy)
        headers = urllib3.make_headers(proxy_basic_auth=parts.auth) if parts.auth else None
        return urllib3.ProxyManager(proxy, proxy_headers=headers, **options), str(parts.netloc)
    except (urllib3.exceptions.HTTPError, ValueError):
        raise UsageError(
            f"the proxy of {scheme.upper()}_PROXY cannot be used", "only http and https proxies can"
        ) from None


def _envelope(item: Item, payload: dict[str, Any]) -> Envelope:
    from sentry_sdk.envelope import Envelope, PayloadRef
    from sentry_sdk.envelope import Item as Part

    event = Part(PayloadRef(json=payload), type="event")
    envelope = Envelope({"event_id": payload["event_id"]}, [event])
    report = item.event["report"]
    if report is not None:
        envelope.add_item(
            Part(
                json.dumps(report).encode(),
                {"attachment_type": "event.attachment"},
                type="attachment",
                content_type="application/json",
                filename="report.json",
            )
        )
    return envelope


def _down(host: str, error: BaseException) -> SinkDown:
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            reason = f"its certificate is not trusted: {cause.verify_message}"
            return SinkDown(
                f"{host}: {reason}", remedy="name the file of its CA in SSL_CERT_FILE; alerts wait meanwhile"
            )
        if isinstance(cause, ssl.SSLError):
            return SinkDown(f"{host}: TLS fails: {clean(cause.reason or str(cause), 200)}")
        if isinstance(cause, socket.gaierror):
            return SinkDown(f"{host}: its name does not resolve: {cause.strerror}")
        if isinstance(cause, TimeoutError):
            break
        if isinstance(cause, OSError) and cause.errno:
            where = f": {cause.filename}" if cause.filename else ""
            return SinkDown(f"{host}: {os.strerror(cause.errno)}{where}")
    kind = type(error).__name__
    return SinkDown(f"{host}: no answer in time" if "Timeout" in kind else f"{host}: the connection broke ({kind})")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what caused it; urllib3 keeps some causes among the arguments."""
    for _ in range(8):
        if error is None:
            return
        yield error
        inside = [argument for argument in error.args if isinstance(argument, BaseException)]
        error = inside[0] if inside else error.__cause__ or error.__context__


def _detail(header: str | None, said: bytes) -> str:
    """What the server says about the reason."""
    text = header or ""
    if not text:
        try:
            text = str(json.loads(said)["detail"])
        except (ValueError, LookupError, TypeError, RecursionError):
            return ""
    return f": {clean(text, 200)}"


def _limit_s(header: str) -> float:
    """For how long events are not welcome: "60:error;transaction:key, 2700::organization"."""
    longest = 0.0
    for limit in header.split(","):
        seconds, _, rest = limit.strip().partition(":")
        categories = rest.partition(":")[0]
        if (
            seconds.isascii()
            and seconds.isdigit()
            and (not categories or {"error", "default"} & set(categories.split(";")))
        ):
            longest = max(longest, float(seconds))
    return longest
