"""Types of arguments of the command line."""

from __future__ import annotations

import argparse
from urllib.parse import urlsplit


def count(text: str) -> int:
    """Read a number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is less than 1")
    return value


def port(text: str) -> int:
    """Read the number of a port."""
    value = int(text)
    if not 0 <= value < 2**16:
        raise argparse.ArgumentTypeError(f"{value} is outside 0 to 65535")
    return value


def address(text: str) -> str:
    """Read the address of a page."""
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.query or parts.fragment:
        raise argparse.ArgumentTypeError(f"{text!r} is no address of a page; give one such as https://labels.example")
    return text
