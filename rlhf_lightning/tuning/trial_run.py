"""The run of a trial: a `fit` in a process of its own, watched through its metrics file."""

from __future__ import annotations

import csv
import ctypes
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rlhf_lightning.errors import UserError, nearest, one_line
from rlhf_lightning.tuning.space import Objective
from rlhf_lightning.tuning.study import Claimed

SECONDS_TO_END = 60.0
"""For a run that was asked to stop to write its checkpoint."""
PR_SET_PDEATHSIG = 1


class TrialRun:
    """Run one trial.

    Args:
        claimed: the trial.
        words: of the command, without the folder.
        folder: of the run.
        objective: whose metric is watched.
        environment: further environment variables.
    """

    def __init__(
        self,
        claimed: Claimed,
        words: Sequence[str],
        folder: Path,
        objective: Objective,
        environment: Mapping[str, str],
    ) -> None:
        self.claimed, self.words, self.folder, self.objective = claimed, words, folder, objective
        self.environment = environment
        self.log = folder.with_suffix(".log")
        self.attempts = 0
        self.reported: set[int] = set(claimed.reported)
        """Validations that the pruner knows, counted from 1."""
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def command(self) -> list[str]:
        """The command that repeats the run."""
        return [sys.executable, "-m", "rlhf_lightning", *self.words, "--trainer.default_root_dir", str(self.folder)]

    @property
    def is_complete(self) -> bool:
        """The run has ended and left its summary, perhaps after the process that began it was killed."""
        return (self.folder / "summary.json").is_file()

    def start(self) -> None:
        """Start the run, or resume it from its newest checkpoint."""
        self.attempts += 1
        if self.is_complete:
            return
        has_checkpoint = any((self.folder / "checkpoints").glob("*.ckpt"))
        resume = ["--ckpt_path", "last"] if has_checkpoint else []
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.command, *resume],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.environment},
                start_new_session=True,  # Ctrl-C reaches `tune`, which has the run write a checkpoint
                pass_fds=(self.claimed.lock,),
                preexec_fn=_end_with_parent if sys.platform == "linux" else None,  # there are no threads here
            )

    def poll(self) -> int | None:
        """Return the status of the run; None while it is in progress."""
        return 0 if self.process is None else self.process.poll()

    def validations(self) -> list[tuple[float, float | None]]:
        """Return metric and KL divergence of every validation so far, without the one before training.

        Raises:
            UserError: validations do not measure the metric.
        """
        path = self.folder / "metrics.csv"
        if not path.is_file():
            return []
        whole = [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
        rows = list(csv.DictReader(whole))
        validated = [
            row for row in rows if any(value for name, value in row.items() if name and name.startswith("val/"))
        ]
        if validated and validated[0] is not rows[-1]:
            self._check_measured({name for name, value in validated[0].items() if value})
        numbers = [
            (_number(row.get(self.objective.metric)), _number(row.get(self.objective.kl_metric))) for row in validated
        ]
        return [(value, kl) for value, kl in numbers[1:] if value is not None]

    def result(self) -> tuple[float | None, float | None]:
        """Return metric and KL divergence of the last validation of a run that has ended; None for what is not finite.

        Raises:
            UserError: the run did not measure them.
        """
        summary = json.loads((self.folder / "summary.json").read_text(encoding="utf-8"))
        self._check_measured(set(summary))
        objective = self.objective
        value, kl = (summary.get(name, {}).get("after") for name in (objective.metric, objective.kl_metric))
        return value, kl

    def _check_measured(self, names: set[str]) -> None:
        needed = [self.objective.metric]
        needed += [] if self.objective.kl_limit is None else [self.objective.kl_metric]
        for name in needed:
            if name not in names:
                measured = [each for each in names if each.startswith("val/")]
                raise UserError(
                    f"no validation measures {name!r}, which the objective needs; a study keeps its objective, so remove "
                    f"{self.folder.parent.parent} or set --output to another folder, and fix the name: {nearest(name, measured)}"
                )

    def failure(self) -> str:
        """Return the last line that a failed run has printed."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines() if self.log.is_file() else []
        said = next(
            (line for line in reversed(lines) if line.strip() and not line.startswith("run: ")), "it printed nothing"
        )
        return one_line(said.removeprefix("error: "), 500)

    def stop(self) -> None:
        """Have the run write a checkpoint and end."""
        if self.process is None or self.process.poll() is not None:
            return
        self._signal(signal.SIGTERM)
        try:
            self.process.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End the run at once."""
        if self.process is not None:
            self._signal(signal.SIGKILL)
            self.process.wait()

    def _signal(self, number: int) -> None:
        """Send a signal to the run and to the processes that it started, which share its group."""
        assert self.process is not None
        if self.process.poll() is None:
            os.killpg(self.process.pid, number)


def _end_with_parent() -> None:
    """Have Linux send SIGTERM to this process when its parent ends, also by SIGKILL."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "nan")
    except ValueError:
        return None
    return value if math.isfinite(value) else None
