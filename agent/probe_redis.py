"""PING round trips against a Redis server. Nothing is written there.

PING is answered when it is the connection's turn, so a slow command, a fork or swapped-out memory delays it as it
delays everything else. It fails with MISCONF where Redis stopped taking writes because it cannot save (src/server.c,
processCommand).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from stucktrace.broker_urls import BrokerUrl
from stucktrace.collectors.resp import Resp, RespError
from stucktrace.probe_connect import STEP_S, Blocked, NoReply, Phases, ProbeFailed, Tls, connect

PING = "ping"
_LOGIN = ("NOAUTH", "WRONGPASS", "NOPERM")
_NO_WRITES = ("MISCONF", "OOM", "READONLY", "LOADING", "MASTERDOWN", "BUSY")


class RedisProbe:
    """One connection."""

    def __init__(self, url: BrokerUrl, tls: Tls, phases: Phases) -> None:
        self.url = url
        self.kinds: tuple[str, ...] = (PING,)
        self.notes: list[str] = []
        self._sock = connect(url, tls, phases)
        self._sock.settimeout(STEP_S)
        self._resp = Resp(self._sock)
        self.server = "Redis"
        with phases.timed("redis"), self._said("AUTH and SELECT"):
            self._resp.log_in(url.user, url.password, url.path)
            self._resp.ask("PING")
        # A user may not be allowed to ask for it.
        with self._said("INFO"), suppress(RespError):
            info = str(self._resp.ask("INFO", "server"))
            version = next((line[14:] for line in info.splitlines() if line.startswith("redis_version:")), "")
            self.server = f"Redis {version}".strip()

    def round_trip_s(self, kind: str) -> float:
        """Raises Blocked, NoReply."""
        began = time.perf_counter()
        try:
            self._resp.ask("PING")
        except TimeoutError:
            raise NoReply(f"no reply to PING for {STEP_S:.0f} s") from None
        except RespError as error:
            raise Blocked(str(error)) from None
        except ValueError as error:
            raise NoReply(f"what comes from the server is no Redis: {error}", "not-redis") from None
        except OSError:
            raise NoReply("the server ended the connection", "connection-lost") from None
        return time.perf_counter() - began

    def rest(self, seconds: float) -> None:
        time.sleep(seconds)

    def close(self, *, polite: bool = True) -> None:
        self._sock.close()

    @contextmanager
    def _said(self, step: str) -> Iterator[None]:
        try:
            yield
        except TimeoutError:
            raise ProbeFailed(
                "silent",
                f"{self.url.endpoint} accepts connections, but there is no reply to {step} for {STEP_S:.0f} s",
                "Redis hangs in a slow command or is stopped (SLOWLOG GET); or is this the port with TLS? Use rediss://",
                broken=True,
            ) from None
        except RespError as error:
            raise self._refused(error) from None
        except ValueError as error:
            raise ProbeFailed(
                "not-redis", f"{self.url.endpoint} does not speak Redis: {error}", "see what listens there"
            ) from None
        except OSError:
            raise ProbeFailed(
                "not-redis",
                f"{self.url.endpoint} ends the connection instead of an answer to {step}",
                "is this the port with TLS? Then use rediss://",
            ) from None

    def _refused(self, error: RespError) -> Exception:
        if error.code in _NO_WRITES:
            return Blocked(str(error))
        if error.code in _LOGIN or "AUTH" in str(error) or "password" in str(error):
            return ProbeFailed(
                "authentication", f"the login is refused: {error}", "check user and password (ACL LIST, requirepass)"
            )
        return ProbeFailed(
            "refused", f"the server refuses: {error}", "see its log, and the database's number in the URL"
        )
