"""What the kernel's TCP timers will do, computed from the options and counters of a live socket.

Sources: net/ipv4/tcp_timer.c (retransmits_timed_out, tcp_model_timeout, tcp_keepalive_timer) and tcp(7). The initial
timeout of a connection is its present one halved `backoff` times; every retransmit doubles it, up to RTO_MAX_S.
"""

from __future__ import annotations

import math

from stucktrace.facts import SocketFact

RTO_MIN_S, RTO_MAX_S = 0.2, 120.0
RETRIES2_DEFAULT, SYN_RETRIES_DEFAULT = 15, 6


def outage_s(socket: SocketFact) -> float | None:
    """How long the oldest unacknowledged data has been on its way; None when nothing is unacknowledged.

    The kernel's last send is the last retransmit, so the first send lies the sum of all timeouts before it. The age of
    the last ACK says nothing: a connection that was idle for a day has an old ACK and is healthy.
    """
    if not socket.unacked or socket.last_send_s is None:
        return None
    backoff, rto_s = _backoff(socket), socket.rto_s or 0.0
    if backoff == 0:
        return socket.last_send_s
    return socket.last_send_s + _doublings_s(rto_s, backoff)


def _backoff(socket: SocketFact) -> int:
    """How often the timeout was doubled; the kernel keeps it in a byte, and what was misread must not overflow here."""
    return min(max(socket.backoff or 0, 0), 255)


def _doublings_s(rto_s: float, backoff: int) -> float:
    """From the first send to the last retransmit, when the timeout has been doubled `backoff` times to `rto_s`."""
    if rto_s < RTO_MAX_S * 0.99:
        return rto_s * (1 - math.ldexp(1.0, -backoff))
    first_s = max(RTO_MIN_S, math.ldexp(RTO_MAX_S, -backoff))
    return sum(min(math.ldexp(first_s, step), RTO_MAX_S) for step in range(backoff))


def connecting_s(socket: SocketFact) -> float | None:
    """How long a connection in SYN_SENT has been asking; None in other states. The kernel's ages do not cover a SYN."""
    if socket.state != "SYN_SENT" or socket.rto_s is None:
        return None
    retransmits, backoff = socket.retransmits or 0, _backoff(socket)
    first_s = math.ldexp(socket.rto_s, -backoff)
    # Since 6.5 the first retransmits keep the timeout (tcp_syn_linear_timeouts); only later ones double it.
    linear = max(0, retransmits - backoff)
    sent_s = linear * first_s + first_s * (math.ldexp(1.0, backoff) - 1)
    if socket.timer_expires_s is None:
        return sent_s
    return sent_s + max(0.0, socket.rto_s - socket.timer_expires_s)


def keepalive_silence_s(socket: SocketFact) -> float | None:
    """For how long keepalive probes have gone unanswered; None when the last one was answered, or none was sent."""
    keepalive = socket.keepalive
    if keepalive is None or not keepalive.on or not keepalive.probes_unanswered or keepalive.interval_s is None:
        return None
    until_next_s = socket.timer_expires_s if socket.timer == "keepalive" else None
    since_last_s = max(0.0, keepalive.interval_s - until_next_s) if until_next_s is not None else 0.0
    return (keepalive.probes_unanswered - 1) * keepalive.interval_s + since_last_s


def first_timeout_s(socket: SocketFact) -> float:
    """The retransmission timeout that the connection began this outage with."""
    return max(RTO_MIN_S, math.ldexp(socket.rto_s or RTO_MIN_S, -min(_backoff(socket), 10)))


def model_timeout_s(retries: int) -> float:
    """For how long the kernel retransmits when it may do so `retries` times (15: 924.6 s)."""
    doublings = int(math.log2(RTO_MAX_S / RTO_MIN_S))
    if retries <= doublings:
        return ((2 << max(retries, 0)) - 1) * RTO_MIN_S
    return ((2 << doublings) - 1) * RTO_MIN_S + (retries - doublings) * RTO_MAX_S


def gives_up_s(socket: SocketFact) -> float | None:
    """In how many seconds the kernel ends the wait with an error; None: never, or not known."""
    if socket.protocol != "tcp":
        return None
    if socket.state == "SYN_SENT":
        return _connect_gives_up_s(socket)
    if socket.unacked and socket.timer == "retransmit":
        return _retransmit_gives_up_s(socket)
    keepalive = socket.keepalive
    if keepalive and keepalive.on and keepalive.probes_unanswered and socket.timer in ("keepalive", ""):
        return _keepalive_gives_up_s(socket)
    return None


def _next_timer_s(socket: SocketFact) -> float:
    if socket.timer_expires_s is not None:
        return max(0.0, socket.timer_expires_s)
    return max(0.0, (socket.rto_s or RTO_MIN_S) - (socket.last_send_s or 0.0))


def _connect_gives_up_s(socket: SocketFact) -> float | None:
    if socket.rto_s is None:
        return None
    retries = SYN_RETRIES_DEFAULT if socket.syn_retries is None else socket.syn_retries
    left = max(0, retries - (socket.retransmits or 0))
    backoff = _backoff(socket)
    # Since 6.5 the first timeouts of a SYN do not double (tcp_syn_linear_timeouts); the backoff stays 0 meanwhile.
    linear = max(0, 4 - (socket.retransmits or 0)) if backoff == 0 and (socket.retransmits or 0) > 0 else 0
    rto_s, total_s = socket.rto_s, _next_timer_s(socket)
    for step in range(left):
        if step >= linear:
            rto_s = min(2 * rto_s, RTO_MAX_S)
        total_s += rto_s
    return total_s


def _retransmit_gives_up_s(socket: SocketFact) -> float | None:
    elapsed_s = outage_s(socket)
    if elapsed_s is None or socket.rto_s is None:
        return None
    # The kernel's clock for this starts at the first retransmit, one initial timeout after the first send.
    since_first_retransmit_s = max(0.0, elapsed_s - first_timeout_s(socket))
    if socket.user_timeout_s:
        return max(0.0, socket.user_timeout_s - since_first_retransmit_s)
    limit_s = model_timeout_s(RETRIES2_DEFAULT if socket.retries2 is None else socket.retries2)
    rto_s, ahead_s = socket.rto_s, _next_timer_s(socket)
    for _ in range(64):
        if since_first_retransmit_s + ahead_s >= limit_s:
            return ahead_s
        rto_s = min(2 * rto_s, RTO_MAX_S)
        ahead_s += rto_s
    return ahead_s


def _keepalive_gives_up_s(socket: SocketFact) -> float | None:
    keepalive = socket.keepalive
    if keepalive is None or keepalive.interval_s is None or not keepalive.probes_unanswered:
        return None
    next_s = keepalive.interval_s if socket.timer_expires_s is None else max(0.0, socket.timer_expires_s)
    if socket.user_timeout_s:
        known = [value for value in (socket.last_receive_s, socket.last_ack_s) if value is not None]
        left_s = socket.user_timeout_s - min(known, default=0.0)
        return next_s + max(0, math.ceil((left_s - next_s) / keepalive.interval_s)) * keepalive.interval_s
    if keepalive.count is None:
        return None
    return next_s + max(0, keepalive.count - keepalive.probes_unanswered - 1) * keepalive.interval_s


def detection_window_s(socket: SocketFact) -> float | None:
    """After how long keepalive notices that the peer of an idle connection is gone; None: never, or not known.

    Without TCP_USER_TIMEOUT `count` probes must go unanswered. With it the connection ends at the first check after a
    probe at which nothing was heard for that long (idle 5 s, interval 3 s, timeout 1 s: 8 s, measured).
    """
    keepalive = socket.keepalive
    if keepalive is None or not keepalive.on or keepalive.idle_s is None or keepalive.interval_s is None:
        return None
    if socket.user_timeout_s:
        checks = max(1, math.ceil((socket.user_timeout_s - keepalive.idle_s) / max(keepalive.interval_s, 1.0)))
        return keepalive.idle_s + checks * keepalive.interval_s
    if keepalive.count is None:
        return None
    return keepalive.idle_s + keepalive.interval_s * keepalive.count


def in_flight_window_s(socket: SocketFact) -> float:
    """After how long the kernel ends a connection on which sent data is never acknowledged."""
    if socket.user_timeout_s:
        return socket.user_timeout_s
    return model_timeout_s(RETRIES2_DEFAULT if socket.retries2 is None else socket.retries2)
