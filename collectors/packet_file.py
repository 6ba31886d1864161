"""Capture files: reads pcap and pcapng (by scapy), writes pcap (pcap-savefile(5): nanoseconds, raw IP).

A file that is written is whole up to its last record at any time: what a full disk leaves of a record is taken back.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import IO, Any

_FILE_HEADER = struct.Struct("=IHHiIII")
_RECORD_HEADER = struct.Struct("=IIII")
_NANOSECONDS = 0xA1B23C4D
RAW_IP = 101
"""LINKTYPE_RAW: an IP header comes first."""
_LONGEST_PACKET_BYTES = 1 << 20
_AT_ONCE_BYTES = 1 << 20


class PacketFile:
    """`add` and `flush`; `failed` says why nothing is written any more."""

    def __init__(self, fd: int) -> None:
        self.failed = ""
        self._fd = fd
        self._kept_bytes = 0
        """Written, and whole."""
        self._buffer = bytearray()
        self._ends: list[int] = []
        """Where in the buffer a record ends."""
        self._append(_FILE_HEADER.pack(_NANOSECONDS, 2, 4, 0, 0, _LONGEST_PACKET_BYTES, RAW_IP))

    def add(self, time_s: float, packet: bytes, wire_bytes: int) -> None:
        nanoseconds = int(time_s * 1e9)
        head = _RECORD_HEADER.pack(nanoseconds // 10**9, nanoseconds % 10**9, len(packet), wire_bytes)
        self._append(head + packet)
        if len(self._buffer) > _AT_ONCE_BYTES:
            self.flush()

    def _append(self, data: bytes) -> None:
        if not self.failed:
            self._buffer += data
            self._ends.append(len(self._buffer))

    def flush(self) -> None:
        data, ends = bytes(self._buffer), self._ends
        self._buffer, self._ends = bytearray(), []
        written = 0
        try:
            while written < len(data):
                written += os.write(self._fd, data[written:])
        except OSError as error:
            self.failed = os.strerror(error.errno or 0)
        self._kept_bytes += max((end for end in ends if end <= written), default=0)
        if self.failed:
            with suppress(OSError):
                os.ftruncate(self._fd, self._kept_bytes)


def read(file: IO[bytes]) -> Iterator[tuple[int, float, bytes, int]]:
    """(link type, Unix time, packet, bytes on the wire) of each packet, up to one that is cut. ValueError: the file is
    no capture file."""
    from scapy.error import Scapy_Exception
    from scapy.utils import RawPcapReader

    try:
        # By the file's first bytes it is the reader of pcap or that of pcapng.
        reader: Any = RawPcapReader(file)  # type: ignore[arg-type]
    except (Scapy_Exception, EOFError, struct.error) as error:
        raise ValueError(str(error).rstrip("!").lower() or "it is empty") from None
    while True:
        try:
            # Its iterator cuts packets at 65535 bytes, which those of the loopback device pass.
            packet, about = reader._read_packet(_LONGEST_PACKET_BYTES)
        except (EOFError, Scapy_Exception, struct.error):
            return
        if hasattr(about, "sec"):
            yield reader.linktype, about.sec + about.usec / (1e9 if reader.nano else 1e6), packet, about.wirelen
        elif about.linktype is not None:
            ticks = (about.tshigh or 0) << 32 | (about.tslow or 0)
            yield about.linktype, ticks / (about.tsresol or 1e6), packet, about.wirelen or len(packet)
