"""How addresses are written and read back."""

from __future__ import annotations

import socket

import pytest
from stucktrace.collectors.addresses import (
    bare,
    endpoint,
    is_loopback,
    parse_endpoint,
    port_of,
    remote_endpoint,
    tcp_state,
    unix_name,
)

V4 = socket.inet_aton("10.0.0.1")
MAPPED = socket.inet_pton(socket.AF_INET6, "::ffff:10.0.0.1")
V6 = socket.inet_pton(socket.AF_INET6, "2001:db8::5")


@pytest.mark.parametrize(
    ("address", "text"), [(V4, "10.0.0.1:5672"), (MAPPED, "10.0.0.1:5672"), (V6, "[2001:db8::5]:5672")]
)
def test_endpoint(address, text):
    assert endpoint(address, 5672) == text
    assert parse_endpoint(text) == (bare(address), 5672)
    assert port_of(text) == 5672


def test_nobody_at_the_other_end():
    assert remote_endpoint(bytes(4), 0) == ""
    assert remote_endpoint(bytes(16), 0) == ""
    assert endpoint(bytes(16), 80) == "[::]:80"


@pytest.mark.parametrize("text", ["", "/run/app.sock", "@abstract", "10.0.0.1", "[zz]:1", "10.0.0:1"])
def test_not_an_endpoint(text):
    assert parse_endpoint(text) is None


def test_loopback():
    assert is_loopback(socket.inet_aton("127.8.0.1"))
    assert is_loopback(socket.inet_pton(socket.AF_INET6, "::1"))
    assert not is_loopback(V4)
    assert not is_loopback(V6)


def test_unix_names():
    assert unix_name(b"/run/a.sock\0\0\0") == "/run/a.sock"
    assert unix_name(b"\0name") == "@name"
    assert unix_name(b"\0a\0b") == "@a@b"
    assert unix_name(b"") == ""
    assert unix_name(b"/run/\xff") == "/run/�"


def test_states():
    assert [tcp_state(number) for number in (1, 2, 8, 10)] == ["ESTABLISHED", "SYN_SENT", "CLOSE_WAIT", "LISTEN"]
    assert tcp_state(200) == ""
