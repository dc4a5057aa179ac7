"""What this machine can do: matrix products a second in either precision, and bytes of memory a second."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from peers.work import SIZES, Size

TOKENS = 4096
"""Rows of the matrices: the tokens of an update of PPO."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BUFFER = 2**26
"""float32 numbers that are copied to measure memory: 256 MiB."""


def measure_machine(out: Path, threads: int) -> dict[str, Any]:
    """GFLOP/s at a square product and at the shapes of each model, GB/s of a copy; into `out/machine.json`, once."""
    path = out / "machine.json"
    if path.exists():
        return json.loads(path.read_text())
    torch.set_num_threads(threads)
    found: dict[str, Any] = {"threads": threads, "bandwidth": round(_bandwidth(), 1)}
    for name, dtype in DTYPES.items():
        found[name] = {"square": round(_rate([(2048, 2048, 2048)], dtype), 1)}
        for size in ("tiny", "small"):
            found[name][size] = round(_rate(_shapes(SIZES[size]), dtype), 1)
    found["load"] = [round(x, 2) for x in os.getloadavg()]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")
    return found


def _shapes(size: Size) -> list[tuple[int, int, int]]:
    """Rows, width, outputs of the products of a layer and of the head, as often as each occurs."""
    hidden, wide = size.hidden, size.intermediate
    layer = 4 * [(TOKENS, hidden, hidden)] + 2 * [(TOKENS, hidden, wide)] + [(TOKENS, wide, hidden)]
    return layer * size.layers + [(TOKENS, hidden, size.vocabulary)]


def _rate(shapes: list[tuple[int, int, int]], dtype: torch.dtype) -> float:
    pairs = [(torch.randn(m, k, dtype=dtype), torch.randn(n, k, dtype=dtype).T) for m, k, n in shapes]

    def products() -> None:
        for left, right in pairs:
            left @ right

    return sum(2 * m * k * n for m, k, n in shapes) / _seconds(products) / 1e9


def _bandwidth() -> float:
    source, target = torch.zeros(BUFFER), torch.zeros(BUFFER)
    return 2 * source.nbytes / _seconds(lambda: target.copy_(source)) / 1e9


def _seconds(work: Callable[[], Any], least: float = 1.0) -> float:
    """The fastest of at least five times and a second: a limit is what the machine does when nothing else holds it up."""
    work()
    times: list[float] = []
    while len(times) < 5 or sum(times) < least:
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)
