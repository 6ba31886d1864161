"""The timeouts of our own sockets, and what may be concluded from a socket that was not found."""

from __future__ import annotations

import os
import socket
from array import array

import pytest
from stucktrace.collectors import heap_search, python_sockets


@pytest.fixture
def connected():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        client.settimeout(7.5)
        yield client


def test_the_timeout_of_a_socket(connected: socket.socket):
    found = python_sockets.read(os.getpid(), {connected.fileno()})
    assert found.seconds == {connected.fileno(): 7.5}
    assert found.objects == {connected.fileno()}
    assert found.complete


def test_what_was_not_looked_at_proves_nothing(connected: socket.socket, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(heap_search, "MOST_BYTES", 1 << 16)
    found = python_sockets.read(os.getpid(), {connected.fileno()})
    assert not found.complete


def test_what_was_swapped_out_is_not_looked_at(connected: socket.socket, monkeypatch: pytest.MonkeyPatch):
    pages = heap_search._pages

    def first_swapped(*place) -> array[int]:
        found = pages(*place)
        found[0] = heap_search._SWAPPED
        return found

    monkeypatch.setattr(heap_search, "_pages", first_swapped)
    assert not python_sockets.read(os.getpid(), {connected.fileno()}).complete
