"""TCP's timers computed from live options; the expected figures are the kernel's formulas and measured sockets."""

from __future__ import annotations

import pytest
from stucktrace.diagnosis import tcp_timers
from stucktrace.facts import Keepalive

from tests.unit.snapshots import black_hole, tcp


def test_outage_is_the_sum_of_all_timeouts() -> None:
    """Measured: first send 35 s ago, the 7th retransmit 9.1 s ago, its timeout 26.1 s."""
    assert tcp_timers.outage_s(black_hole()) == pytest.approx(35.0, abs=0.1)


def test_outage_without_a_retransmit_is_the_age_of_the_send() -> None:
    assert tcp_timers.outage_s(tcp(unacked=1, last_send_s=0.1)) == pytest.approx(0.1)


def test_no_outage_when_all_is_acknowledged() -> None:
    """An old ACK on an idle connection says nothing."""
    assert tcp_timers.outage_s(tcp(last_ack_s=86400.0, last_send_s=86400.0)) is None


def test_outage_beyond_the_cap_of_the_timeout() -> None:
    """0.2 s doubled ten times reaches 120 s: 204.6 s pass until then, and 120 s for every further retransmit."""
    long = black_hole(rto_s=120.0, backoff=13, retransmits=13, last_send_s=10.0)
    assert tcp_timers.outage_s(long) == pytest.approx(10 + 204.6 + 3 * 120, rel=0.05)


def test_model_timeout_is_the_documented_one() -> None:
    assert tcp_timers.model_timeout_s(15) == pytest.approx(924.6)
    assert tcp_timers.model_timeout_s(8) == pytest.approx(102.2)
    assert tcp_timers.model_timeout_s(3) == pytest.approx(3.0)


def test_gives_up_by_retries2() -> None:
    left_s = tcp_timers.gives_up_s(black_hole())
    assert left_s is not None and 850 < left_s < 1100


def test_fewer_retries_give_up_sooner() -> None:
    left_s = tcp_timers.gives_up_s(black_hole(retries2=8))
    assert left_s is not None and 60 < left_s < 130


def test_gives_up_by_user_timeout() -> None:
    left_s = tcp_timers.gives_up_s(black_hole(user_timeout_s=60.0))
    assert left_s is not None and left_s == pytest.approx(25.0, abs=1.0)


def test_nothing_gives_up_an_idle_connection() -> None:
    assert tcp_timers.gives_up_s(tcp()) is None
    assert tcp_timers.gives_up_s(tcp(keepalive=Keepalive(True, 60.0, 10.0, 3, 0))) is None


def test_keepalive_gives_up_after_the_last_probe() -> None:
    socket = tcp(timer="keepalive", timer_expires_s=4.0, keepalive=Keepalive(True, 60.0, 10.0, 6, 2))
    assert tcp_timers.gives_up_s(socket) == pytest.approx(4 + 3 * 10)


def test_keepalive_with_user_timeout_needs_one_unanswered_probe() -> None:
    socket = tcp(timer="keepalive", timer_expires_s=2.0, user_timeout_s=1.0, keepalive=Keepalive(True, 5.0, 3.0, 9, 1))
    assert tcp_timers.gives_up_s(socket) == pytest.approx(2.0)


def test_keepalive_silence() -> None:
    socket = tcp(timer="keepalive", timer_expires_s=4.0, keepalive=Keepalive(True, 60.0, 10.0, 6, 3))
    assert tcp_timers.keepalive_silence_s(socket) == pytest.approx(26.0)
    assert tcp_timers.keepalive_silence_s(tcp(keepalive=Keepalive(True, 60.0, 10.0, 6, 0))) is None


@pytest.mark.parametrize(
    ("user_timeout_s", "window_s"),
    [
        (0.0, 5 + 3 * 9),  # measured: 32.7 s
        (1.0, 5 + 3),  # measured: 8.1 s
        (10.0, 5 + 2 * 3),
    ],
)
def test_detection_window(user_timeout_s: float, window_s: float) -> None:
    socket = tcp(keepalive=Keepalive(True, 5.0, 3.0, 9, 0), user_timeout_s=user_timeout_s)
    assert tcp_timers.detection_window_s(socket) == pytest.approx(window_s)


def test_no_detection_without_keepalive() -> None:
    assert tcp_timers.detection_window_s(tcp()) is None
    assert tcp_timers.detection_window_s(tcp(keepalive=None)) is None


def test_linux_defaults_take_more_than_two_hours() -> None:
    socket = tcp(keepalive=Keepalive(True, 7200.0, 75.0, 9, 0))
    assert tcp_timers.detection_window_s(socket) == pytest.approx(7875.0)


def _syn(retransmits: int, backoff: int, rto_s: float, expires_s: float):  # type: ignore[no-untyped-def]
    return tcp(
        state="SYN_SENT", retransmits=retransmits, backoff=backoff, rto_s=rto_s, timer="retransmit",
        timer_expires_s=expires_s, unacked=1, last_send_s=None, last_receive_s=None,
    )  # fmt: skip


def test_connect_with_doubling_from_the_start() -> None:
    """1 + 2 s are over, 3 s of the 4 s timeout too."""
    socket = _syn(2, 2, 4.0, 1.0)
    assert tcp_timers.connecting_s(socket) == pytest.approx(6.0)
    assert tcp_timers.gives_up_s(socket) == pytest.approx(1 + 8 + 16 + 32 + 64)


def test_connect_with_linear_timeouts_first() -> None:
    """Since 6.5: four retransmits 1 s apart before the doubling."""
    socket = _syn(3, 0, 1.0, 0.5)
    assert tcp_timers.connecting_s(socket) == pytest.approx(3.5)
    assert tcp_timers.gives_up_s(socket) == pytest.approx(0.5 + 1 + 2 + 4, abs=4)


def test_connecting_only_in_syn_sent() -> None:
    assert tcp_timers.connecting_s(tcp()) is None


def test_nothing_known_gives_nothing() -> None:
    blind = tcp(
        unacked=None, retransmits=None, backoff=None, rto_s=None, last_send_s=None, keepalive=None, user_timeout_s=None
    )
    assert tcp_timers.outage_s(blind) is None
    assert tcp_timers.gives_up_s(blind) is None
    assert tcp_timers.detection_window_s(blind) is None
    assert tcp_timers.in_flight_window_s(blind) == pytest.approx(924.6)
    assert tcp_timers.gives_up_s(black_hole(rto_s=None)) is None


@pytest.mark.parametrize("backoff", [-1, 255, 1 << 63])
def test_a_misread_backoff_is_bounded(backoff: int) -> None:
    asking = tcp(state="SYN_SENT", backoff=backoff, rto_s=120.0)
    assert tcp_timers.connecting_s(asking) >= 0
    assert tcp_timers.outage_s(tcp(unacked=1, backoff=backoff, rto_s=120.0)) >= 0
