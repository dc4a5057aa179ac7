"""Signals that stop a run, among them SLURM's before the end of a job's time."""

from __future__ import annotations

import os
import signal
import subprocess


class StoppedBySignal(Exception):
    """A signal stopped the run after its checkpoint was written."""

    def __init__(self, number: int) -> None:
        super().__init__(
            f"stopped by {signal.Signals(number).name} after a checkpoint was saved; resume with --ckpt_path last"
        )
        self.status = 128 + number


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
