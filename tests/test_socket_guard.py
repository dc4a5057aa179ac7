"""The guard under which all tests run refuses and notes every address but the loopback."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.guard.sitecustomize import is_local
from tests.guarded import asked

ASK = "import socket; socket.create_connection(('192.0.2.1', 9), timeout=1)"


@pytest.fixture
def noted() -> Iterator[Callable[[], str]]:
    """The addresses that this test asked for, which are forgotten at its end."""
    before = asked()
    yield lambda: asked()[len(before) :]
    Path(os.environ["SOCKET_GUARD_LOG"]).write_text(before)


def test_an_address_outside_is_refused_and_noted(noted: Callable[[], str]) -> None:
    for ask in (
        lambda: socket.create_connection(("192.0.2.1", 9), timeout=1),
        lambda: socket.getaddrinfo("example.org", 443),
        lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("192.0.2.1", 9)),
    ):
        with pytest.raises(ConnectionRefusedError, match="tests reach no address but the loopback"):
            ask()
    assert "192.0.2.1" in noted()
    assert "example.org" in noted()
    assert "test_socket_guard.py" in noted()


def test_so_are_those_of_processes_that_tests_start(noted: Callable[[], str]) -> None:
    ran = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, check=False)
    assert "tests reach no address but the loopback" in ran.stderr
    assert "192.0.2.1" in noted()


def test_the_loopback_is_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()
    assert all(map(is_local, ("localhost", "127.0.0.2", "::1", b"127.0.0.1", "0.0.0.0", None, socket.gethostname())))
    assert not any(map(is_local, ("huggingface.co", "10.0.0.1", "192.0.2.1", "2001:db8::1")))
