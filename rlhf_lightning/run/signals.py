"""Signals that stop a run, among them SLURM's before the end of a job's time."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StoppedBySignal(Exception):
    """A signal stopped the run after its checkpoint was written."""

    def __init__(self, number: int) -> None:
        super().__init__(
            f"stopped by {signal.Signals(number).name} after a checkpoint was saved; resume with --ckpt_path last"
        )
        self.status = 128 + number


SAID = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
"""What a command says that one of these signals ended."""


class NotedSignals:
    """Notes SIGINT and SIGTERM, so that a command ends with 130 or 143 and one line wherever one of them comes.

    An import may catch the KeyboardInterrupt, or raise another error from it.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        """The signal that came; None if none did."""
        self._process = os.getpid()

    @property
    def said(self) -> str:
        """What the command says about the signal that came."""
        return SAID[signal.Signals(self.number or signal.SIGINT)]

    @property
    def status(self) -> int:
        """The status of the command that the signal ends."""
        return 128 + (self.number or signal.SIGINT)

    def check(self) -> None:
        """Stop if a signal came that an import has swallowed.

        Raises:
            KeyboardInterrupt: one did.
        """
        if self.number is not None:
            raise KeyboardInterrupt

    @contextmanager
    def running(self) -> Iterator[None]:
        """Note signals inside the block, in the main thread; a signal that the parent process ignores stays ignored."""
        self.number, self._process = None, os.getpid()
        handlers = {number: signal.getsignal(number) for number in SAID}
        own = [number for number in SAID if handlers[number] in (signal.SIG_DFL, signal.default_int_handler)]
        if threading.current_thread() is not threading.main_thread():
            own = []
        for number in own:
            signal.signal(number, self._note)
        try:
            yield
        finally:
            self.number = None
            for number in own:
                if signal.getsignal(number) == self._note:
                    signal.signal(number, handlers[number])

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # of a process that was forked
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self.number = number
        raise KeyboardInterrupt


NOTED = NotedSignals()
"""The signals of this process."""


def requeue() -> None:
    """Ask SLURM to start this job again; a failure is printed and not raised, since the checkpoint is saved already."""
    if os.environ.get("SLURM_PROCID", "0") != "0":
        return
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array else os.environ["SLURM_JOB_ID"]
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=60, check=False)
        said = "queued again" if done.returncode == 0 else f"not queued again: {done.stderr.strip()}"
    except (OSError, subprocess.TimeoutExpired) as error:
        said = f"not queued again: {error}"
    print(f"job {job}: {said}", flush=True)
