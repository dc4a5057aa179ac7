"""OpenMP's settings, which torch reads when it is imported."""

from __future__ import annotations

import os

WAIT_POLICY = "OMP_WAIT_POLICY"


def sleep_when_idle() -> None:
    """Let threads that wait for work sleep, where the user has set neither this nor the number of threads.

    By default they spin, and a run beside another busy process takes twice as long. Call it before torch is imported.
    """
    if not {WAIT_POLICY, "OMP_NUM_THREADS"} & os.environ.keys():
        os.environ[WAIT_POLICY] = "PASSIVE"
