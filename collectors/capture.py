"""The packets of some TCP connections, read by a packet socket in the target's network namespace.

Source: AF_PACKET (packet(7)) with a classic BPF filter on exactly these connections. Each packet begins with its IP
header and has the kernel's time of its passing (CLOCK_REALTIME). The socket stays in its namespace whoever holds it,
the filter goes with it, and the target notices neither. Needs NET_RAW, and SYS_ADMIN to enter another namespace.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Collection
from dataclasses import dataclass

from stucktrace.collectors import netns, packet_filter, permission, procfs
from stucktrace.collectors.packet_filter import Flow
from stucktrace.errors import CannotInspect, NotPermitted

ETH_P_ALL = 0x0003
SO_RCVBUFFORCE = 33
SO_ATTACH_FILTER = 26
SO_TIMESTAMPNS = 35
SOL_PACKET, PACKET_STATISTICS = 263, 6
STATISTICS = struct.Struct("=II")
TIME = struct.Struct("=qq")

BUFFER_BYTES = 64 << 20
"""What the kernel holds while we do not read."""
LONGEST_PACKET_BYTES = 1 << 20
"""The kernel joins segments on their way to the device: to 64 KiB, or to 512 KiB where an administrator says so."""


@dataclass
class Capture:
    """An open capture. Its fd may be handed to another process, whose `Reader` then reads the packets."""

    socket: socket.socket
    drops: int = 0
    """Packets that the kernel had to throw away because nobody read them in time."""
    packets: int = 0
    """Packets that the filter let through, dropped ones included."""

    def fileno(self) -> int:
        return self.socket.fileno()

    def count(self) -> None:
        """Brings `packets` and `drops` up to date: the kernel counts from one question to the next."""
        raw = self.socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, STATISTICS.size)
        packets, drops = STATISTICS.unpack(raw)
        self.packets += packets
        self.drops += drops

    def close(self) -> None:
        self.socket.close()


def open_in(pid: int, flows: Collection[Flow]) -> Capture:
    """A capture in the network namespace of `pid`. CannotInspect with what would help."""
    try:
        return Capture(netns.inside(pid, lambda: _open(flows)))
    except PermissionError:
        raise NotPermitted(
            f"process {pid}: not permitted to see its packets", permission.to_enter(pid, "NET_RAW")
        ) from None
    except FileNotFoundError as error:
        raise procfs.explained(pid, error) from None
    except OSError as error:
        if error.errno == errno.EAFNOSUPPORT:
            raise CannotInspect("this kernel has no packet sockets", "CONFIG_PACKET, or the module af_packet") from None
        raise CannotInspect(f"process {pid}: its packets cannot be seen: {error.strerror}", "look again") from None


def _open(flows: Collection[Flow]) -> socket.socket:
    # Protocol 0 receives nothing: not one packet passes before the filter is there.
    packet = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, 0)
    try:
        try:
            packet.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER_BYTES)
        except PermissionError:
            packet.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        packet.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        follow(packet, flows)
        _listen(packet)
        packet.setblocking(False)
    except BaseException:
        packet.close()
        raise
    return packet


def _listen(packet: socket.socket) -> None:
    """On all devices; Python's own bind() knows single ones only."""
    # struct sockaddr_ll: family, protocol in network order, interface 0, and no address.
    address = struct.pack("=HHi12x", socket.AF_PACKET, socket.htons(ETH_P_ALL), 0)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.bind(packet.fileno(), address, len(address)):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def follow(packet: socket.socket, flows: Collection[Flow]) -> None:
    """Lets these flows through, and in place of a program that the kernel finds too big, more than these."""
    for program in packet_filter.programs(flows):
        try:
            attach(packet, program)
            return
        except OSError as error:
            if error.errno not in (errno.ENOMEM, errno.EINVAL):
                raise
    raise OSError(errno.ENOMEM, "no room for a packet filter (net.core.optmem_max)")


def attach(packet: socket.socket, instructions: Collection[packet_filter.Instruction]) -> None:
    """Puts this program in the place of the one that is there."""
    encoded = packet_filter.encode(instructions)
    lines = ctypes.create_string_buffer(encoded, len(encoded))
    # struct sock_fprog: the number of instructions, padding, their address.
    program = struct.pack("@HP", len(instructions), ctypes.addressof(lines))
    packet.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


class Reader:
    """The other end of a capture: takes packets out one at a time, into one buffer."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0, fileno=fd)
        self._buffer = bytearray(LONGEST_PACKET_BYTES)
        self._view = memoryview(self._buffer)
        self._control = socket.CMSG_SPACE(TIME.size)

    def fileno(self) -> int:
        return self._socket.fileno()

    def follow(self, flows: Collection[Flow]) -> None:
        """From now on these connections, in one step: none of their packets is lost in between."""
        follow(self._socket, flows)

    def hold(self) -> None:
        """Nothing new from now on; what has been captured can still be read."""
        attach(self._socket, packet_filter.NOTHING)

    def read(self) -> tuple[float, bytes] | None:
        """(Unix time, packet from its IP header on); None when there is none now."""
        try:
            size, control, _, _ = self._socket.recvmsg_into([self._buffer], self._control)
        except BlockingIOError:
            return None
        except OSError as error:
            # A device of the namespace went down: the kernel says it once, in the place of a packet.
            if error.errno == errno.ENETDOWN:
                return None
            raise
        seconds, nanoseconds = TIME.unpack(control[0][2])
        return seconds + nanoseconds / 1e9, bytes(self._view[:size])
