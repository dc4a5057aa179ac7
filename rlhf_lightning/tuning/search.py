"""The loop of a search: keep the workers busy, report validations, prune, record results."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass

from rlhf_lightning.errors import UserError
from rlhf_lightning.tuning.study import Study
from rlhf_lightning.tuning.trial_run import TrialRun

SECONDS_BETWEEN_POLLS = 0.5
SECONDS_BETWEEN_CLAIMS = 5.0
"""While another process runs the last trials, which may be killed."""
ATTEMPTS = 2
"""Starts of a trial whose process is killed, within one search."""
WEIGHTS = ("checkpoints", "export")


@dataclass(frozen=True)
class SearchOptions:
    """Say how a search runs its trials."""

    words: Sequence[str]
    """Of every `fit`, before the overlay of the trial."""
    overrides: Sequence[str] = ()
    """Options of every `fit`, after it."""
    workers: int = 1
    gpus: Sequence[str] = ()
    """CUDA devices, one for each worker in turn; empty: all workers have all devices."""
    max_failures: int = 3
    keep_weights: bool = False


class Search:
    """Run trials until the study has as many as it should.

    Args:
        study: where trials come from and results go.
        options: how trials run.
    """

    def __init__(self, study: Study, options: SearchOptions) -> None:
        self.study, self.options = study, options
        self.slots: list[TrialRun | None] = [None] * options.workers
        self.failures = 0
        self.claimed_at = float("-inf")

    def run(self) -> None:
        """Run the search.

        Raises:
            UserError: too many trials failed, or no validation measures the objective.
        """
        try:
            while any(self.slots) or self.study.has_open():
                for place, run in enumerate(self.slots):
                    if run is None:
                        self.slots[place] = self._begin(place)
                    elif self._watch(run):
                        self.slots[place], self.claimed_at = None, float("-inf")
                time.sleep(SECONDS_BETWEEN_POLLS)
        finally:
            for run in filter(None, self.slots):
                run.stop()

    def _begin(self, place: int) -> TrialRun | None:
        if time.monotonic() - self.claimed_at < SECONDS_BETWEEN_CLAIMS:
            return None
        claimed = self.study.claim()
        if claimed is None:
            self.claimed_at = time.monotonic()
            return None
        words = [*self.options.words, "--config", str(self.study.overlay_of(claimed)), *self.options.overrides]
        folder = self.study.trials_folder / claimed.name
        run = TrialRun(claimed, words, folder, self.study.space.objective, self._environment(place))
        resumed = folder.is_dir()
        run.start()
        values = ", ".join(f"{key.rpartition('.')[2]} {_short(value)}" for key, value in claimed.trial.params.items())
        print(f"trial {claimed.number}{' resumed' if resumed else ''}: {values}", flush=True)
        return run

    def _environment(self, place: int) -> dict[str, str]:
        found = {}
        if self.options.gpus:
            found["CUDA_VISIBLE_DEVICES"] = self.options.gpus[place % len(self.options.gpus)]
        if self.options.workers > 1 and "OMP_NUM_THREADS" not in os.environ:
            found["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // self.options.workers))
        return found

    def _watch(self, run: TrialRun) -> bool:
        """Look at a run in progress; True once it has ended and is recorded."""
        status = run.poll()
        if status is None:
            return self._prune(run)
        if status != 0:
            return self._fail(run, status)
        value, kl = run.result()
        if value is None:
            return self._failed(run, f"{self.study.space.objective.metric} is not finite")
        beyond = "" if self.study.space.objective.is_within_limit(kl) else ", beyond the limit"
        self.study.end(run.claimed, "COMPLETE", value, kl)
        self._clean(run)
        said = "" if kl is None else f" at KL {kl:.4g}{beyond}"
        print(f"trial {run.claimed.number}: {self.study.space.objective.metric} {value:.4g}{said}", flush=True)
        return True

    def _prune(self, run: TrialRun) -> bool:
        """Report new validations, and end a trial that is below the median of the others.

        A validation beyond the KL limit is not reported: its reward would have others pruned that keep to the limit.
        """
        trial = run.claimed.trial
        for step, (value, kl) in enumerate(run.validations(), 1):
            if step in run.reported or not self.study.space.objective.is_within_limit(kl):
                continue
            trial.report(value, step)
            run.reported.add(step)
            if trial.should_prune():
                run.kill()
                self.study.end(run.claimed, "PRUNED", kl=kl)
                self._clean(run)
                print(f"trial {run.claimed.number}: pruned after validation {step} ({value:.4g})", flush=True)
                return True
        return False

    def _fail(self, run: TrialRun, status: int) -> bool:
        """Resume a run that was killed; record one that failed."""
        if status < 0 and run.attempts < ATTEMPTS:
            print(f"trial {run.claimed.number}: killed by signal {-status}, resumed", flush=True)
            run.start()
            return False
        return self._failed(run, run.failure())

    def _failed(self, run: TrialRun, reason: str) -> bool:
        self.study.end(run.claimed, "FAIL")
        self.failures += 1
        line = f"trial {run.claimed.number} failed: {reason} ({run.log})"
        if self.failures >= self.options.max_failures:
            self.slots[self.slots.index(run)] = None
            raise UserError(f"{line}; {self.failures} trials have failed, fix the cause or set --max-failures")
        print(line, flush=True)
        return True

    def _clean(self, run: TrialRun) -> None:
        """Remove the weights of an ended trial, unless the user keeps them."""
        for name in () if self.options.keep_weights else WEIGHTS:
            shutil.rmtree(run.folder / name, ignore_errors=True)


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
