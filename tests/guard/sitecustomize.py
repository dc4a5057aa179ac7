"""Refuses every address but the loopback, and notes it: in the tests, and in the processes that they start.

`tests/conftest.py` puts this folder on PYTHONPATH, and Python imports a module of this name at its start.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
import traceback
from typing import Any

LOG = "SOCKET_GUARD_LOG"
"""Environment variable with the file that addresses are noted in; without it nothing is refused."""
EVENTS = ("socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "socket.gethostbyname")


def is_local(host: Any) -> bool:
    """Tell whether a host is this machine, without asking a name server."""
    if host is None or isinstance(host, int):  # a socket of another family has no host
        return True
    name = host.decode("ascii", "replace") if isinstance(host, bytes) else str(host)
    if name.lower() in ("", "localhost", socket.gethostname().lower()):
        return True
    try:
        address = ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def is_address(host: Any) -> bool:
    """Tell whether a host is a number, which no name server is asked for."""
    try:
        ipaddress.ip_address(str(host).partition("%")[0])
    except ValueError:
        return False
    return True


def _host(event: str, arguments: tuple[Any, ...]) -> Any:
    if event in ("socket.getaddrinfo", "socket.gethostbyname"):
        return arguments[0]
    if arguments[0].family not in (socket.AF_INET, socket.AF_INET6) or not arguments[1]:
        return None
    return arguments[1][0]


def guard(event: str, arguments: tuple[Any, ...]) -> None:
    """Refuse an address outside this machine.

    Raises:
        ConnectionRefusedError: naming it.
    """
    if event not in EVENTS or LOG not in os.environ or is_local(host := _host(event, arguments)):
        return
    if event == "socket.getaddrinfo" and is_address(host):  # nobody is asked
        return
    with open(os.environ[LOG], "a") as file:
        file.write(f"{event} {host!r}\n{''.join(traceback.format_stack(limit=12)[:-1])}\n")
    raise ConnectionRefusedError(f"tests reach no address but the loopback: {host!r}")


sys.addaudithook(guard)
