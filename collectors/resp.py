"""A few commands to a Redis server over a socket that stands already: RESP2, by redis.io's protocol specification.

Raises RespError for an error reply, OSError for the connection, ValueError where the answer is no RESP.
"""

from __future__ import annotations

import socket
import time

Reply = str | int | None | list["Reply"]
LONGEST_BYTES = 64 << 20
LONGEST_ERROR = 200
_MOST_ITEMS = 1 << 16
_DEEPEST = 4


class RespError(Exception):
    """An error reply, as much of it as fits a line: `code` is its first word ("NOAUTH")."""

    def __init__(self, text: str) -> None:
        super().__init__(text[:LONGEST_ERROR])
        self.code = text.partition(" ")[0]


class Resp:
    """One connection. Its socket's timeout holds for each command and its whole reply."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._timeout_s = sock.gettimeout()
        self._until: float | None = None
        self._buffer = bytearray()

    def ask(self, *words: str | int) -> Reply:
        """Sends one command and gives its reply."""
        parts = [str(word).encode() for word in words]
        self._sock.settimeout(self._timeout_s)
        self._until = time.monotonic() + self._timeout_s if self._timeout_s else None
        self._sock.sendall(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts))
        return self._reply(0)

    def log_in(self, user: str, password: str, database: str) -> None:
        if password:
            self.ask(*(("AUTH", user, password) if user else ("AUTH", password)))
        if database not in ("", "0"):
            self.ask("SELECT", database)

    def _reply(self, depth: int) -> Reply:
        line = self._line()
        kind, rest = line[:1], line[1:]
        if kind == b"+":
            return rest.decode(errors="replace")
        if kind == b"-":
            raise RespError(rest.decode(errors="replace"))
        if kind == b":":
            return int(rest)
        if kind == b"$":
            return self._bulk(int(rest))
        if kind == b"*" and depth < _DEEPEST:
            count = int(rest)
            if count > _MOST_ITEMS:
                raise ValueError(f"{count} items in one reply")
            return None if count < 0 else [self._reply(depth + 1) for _ in range(count)]
        raise ValueError(f"no RESP: {line[:40].decode('ascii', 'backslashreplace')!r}")

    def _line(self) -> bytes:
        while b"\r\n" not in self._buffer:
            if len(self._buffer) > 1 << 16:
                raise ValueError("no RESP: a line without an end")
            self._more()
        line, _, self._buffer = self._buffer.partition(b"\r\n")
        return bytes(line)

    def _bulk(self, length: int) -> str | None:
        if length < 0:
            return None
        if length > LONGEST_BYTES:
            raise ValueError(f"{length} bytes in one reply")
        while len(self._buffer) < length + 2:
            self._more()
        data, self._buffer = self._buffer[:length], self._buffer[length + 2 :]
        return data.decode(errors="replace")

    def _more(self) -> None:
        if self._until is not None:
            # A server that sends byte by byte must not hold us for longer.
            left_s = self._until - time.monotonic()
            if left_s <= 0:
                raise TimeoutError
            self._sock.settimeout(left_s)
        data = self._sock.recv(1 << 16)
        if not data:
            raise ConnectionResetError("the server ended the connection")
        self._buffer += data
