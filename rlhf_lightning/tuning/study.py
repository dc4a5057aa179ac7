"""A study in a folder: Optuna's SQLite file, a lock for each trial, and what the other commands read."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from rlhf_lightning.errors import UserError
from rlhf_lightning.io import atomic_write
from rlhf_lightning.tuning.space import Space

if TYPE_CHECKING:
    import optuna

SECONDS_FOR_DATABASE = 60
STARTUP_TRIALS = 5
"""Complete trials before the pruner compares."""
FIRST_PRUNED = 2
"""Validation, counted from 1 after the one before training, from which on a trial may be pruned."""
TOP = 0.25
"""Share of the complete trials that importances explain."""
FEWEST_FOR_IMPORTANCES = 8
NAME = "tune"


@dataclass(frozen=True)
class Claimed:
    """Hold a trial that this process runs, until its lock is closed."""

    trial: optuna.trial.Trial
    lock: int
    """File descriptor; the run of the trial inherits it."""
    reported: tuple[int, ...] = ()
    """Validations that the pruner has of an earlier process."""

    @property
    def number(self) -> int:
        """Number of the trial in the study, from 0."""
        return self.trial.number

    @property
    def name(self) -> str:
        """Name of the trial's folder and files."""
        return trial_name(self.number)


def trial_name(number: int) -> str:
    """Name the folder and the files of a trial.

    >>> trial_name(7)
    '0007'
    """
    return f"{number:04d}"


class Study:
    """Open or create the study of a folder; several processes may have it open.

    Args:
        folder: holds `study.db`, `trials/`, `study.json` and `best.yaml`.
        space: objective and parameters.
        overlay: makes the overlay config of a trial's values.
        config: the merged config of the runs, for the check that a resumed study is of the same.
        target: number of complete or pruned trials to reach.
        pruning: stop a trial below the median of the others.
        seed: of the sampler.

    Raises:
        UserError: the folder has a study of another config, space or objective.
    """

    def __init__(
        self,
        folder: Path,
        space: Space,
        overlay: Callable[[Mapping[str, Any]], dict[str, Any]],
        config: Mapping[str, Any],
        target: int,
        pruning: bool = True,
        seed: int = 0,
    ) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.folder, self.space, self.overlay, self.target = folder, space, overlay, target
        self.trials_folder = folder / "trials"
        self.trials_folder.mkdir(parents=True, exist_ok=True)
        identity = json.loads(json.dumps({"config": config, **space.identity()}, default=str))
        median = optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS, n_warmup_steps=FIRST_PRUNED)
        with self._locked():
            earlier = (folder / "study.db").exists()
            storage = optuna.storages.RDBStorage(
                f"sqlite:///{folder / 'study.db'}",
                engine_kwargs={"connect_args": {"timeout": SECONDS_FOR_DATABASE}},
            )
            self.optuna = optuna.create_study(
                storage=storage,
                study_name=NAME,
                direction=space.objective.direction,
                load_if_exists=True,
                pruner=median if pruning else optuna.pruners.NopPruner(),
            )
            known = self.optuna.user_attrs.get("identity")
            if known is None:
                self.optuna.set_user_attr("identity", identity)
            elif known != identity:
                changed = ", ".join(name for name in identity if known.get(name) != identity[name])
                raise UserError(
                    f"{folder} holds a study with another {changed}; remove it, or set --output to another folder"
                )
            started = len(self.optuna.get_trials(deepcopy=False)) if earlier else 0
            # A process that resumes must not repeat the first random values: they depend on the trials so far.
            self.optuna.sampler = optuna.samplers.TPESampler(seed=(seed + 7919 * started) % 2**32)

    def finished(self) -> int:
        """Return the number of trials that ended with a result."""
        return len(self._in_states("COMPLETE", "PRUNED"))

    def has_open(self) -> bool:
        """Say whether the target is not reached, or a trial is in progress, of this process or another."""
        return self.finished() < self.target or bool(self._in_states("RUNNING"))

    def claim(self) -> Claimed | None:
        """Take a trial whose process was killed, else begin a new one; None if enough are finished or in progress."""
        import optuna

        with self._locked():
            for frozen in self._in_states("RUNNING"):
                if (lock := self._lock_of(frozen.number)) is None:
                    continue
                if set(frozen.params) == set(self.space.distributions):
                    trial = optuna.trial.Trial(self.optuna, frozen._trial_id)
                    return self._prepared(Claimed(trial, lock, tuple(frozen.intermediate_values)))
                self.optuna.tell(frozen.number, state=optuna.trial.TrialState.FAIL)  # killed before it had its values
                os.close(lock)
            if len(self._in_states("COMPLETE", "PRUNED", "RUNNING")) >= self.target:
                return None
            trial = self.optuna.ask(self.space.distributions)
            lock = self._lock_of(trial.number)
            assert lock is not None
            return self._prepared(Claimed(trial, lock, reported=()))

    def _prepared(self, claimed: Claimed) -> Claimed:
        text = yaml.safe_dump(self.overlay(claimed.trial.params), sort_keys=False)
        atomic_write(self.overlay_of(claimed), lambda partial: partial.write_text(text, encoding="utf-8"))
        return claimed

    def overlay_of(self, claimed: Claimed) -> Path:
        """Return the overlay config of a trial."""
        return self.trials_folder / f"{claimed.name}.yaml"

    def end(self, claimed: Claimed, state: str, value: float | None = None, kl: float | None = None) -> None:
        """Record the result of a trial, and release it.

        Args:
            claimed: the trial.
            state: COMPLETE, PRUNED or FAIL.
            value: of the objective's metric, for COMPLETE.
            kl: KL divergence, where it was measured.
        """
        import optuna

        objective = self.space.objective
        with self._locked():
            if kl is not None:
                claimed.trial.set_user_attr("kl", kl)
                if objective.kl_limit is not None:
                    claimed.trial.set_constraint("kl", kl - objective.kl_limit)
            self.optuna.tell(claimed.trial, value, state=optuna.trial.TrialState[state])
            os.close(claimed.lock)
            self.save_results()

    def save_results(self) -> None:
        """Write `study.json`, and `best.yaml` if a trial is complete within the limit."""
        objective = self.space.objective
        best = self.best()
        content = {
            "metric": objective.metric,
            "direction": objective.direction,
            "kl_metric": objective.kl_metric,
            "kl_limit": objective.kl_limit,
            "target": self.target,
            "best": None if best is None else best["number"],
            "importances": self.importances(),
            "trials": self.rows(),
        }
        text = json.dumps(content, indent=1) + "\n"
        atomic_write(self.folder / "study.json", lambda partial: partial.write_text(text, encoding="utf-8"))
        if best is not None:
            self._save_best(best)

    def _save_best(self, best: Mapping[str, Any]) -> None:
        objective = self.space.objective
        kl = "" if best["kl"] is None else f", {objective.kl_metric} {best['kl']:.4g}"
        text = f"# Trial {best['number']}: {objective.metric} {best['value']:.4g}{kl}\n"
        text += yaml.safe_dump(self.overlay(best["params"]), sort_keys=False)
        atomic_write(self.folder / "best.yaml", lambda partial: partial.write_text(text, encoding="utf-8"))

    def rows(self) -> list[dict[str, Any]]:
        """Return every trial as values of JSON, in the order of their numbers."""
        objective = self.space.objective
        return [
            {
                "number": trial.number,
                "state": trial.state.name.lower(),
                "value": trial.value if trial.state.name == "COMPLETE" else None,
                "kl": trial.user_attrs.get("kl"),
                "within_limit": objective.is_within_limit(trial.user_attrs.get("kl")),
                "params": trial.params,
                "folder": f"trials/{trial_name(trial.number)}",
            }
            for trial in self.optuna.get_trials(deepcopy=False)
        ]

    def ranked(self) -> list[dict[str, Any]]:
        """Return the complete trials, best first; those beyond the KL limit come last."""
        sign = -1 if self.space.objective.direction == "maximize" else 1
        complete = [row for row in self.rows() if row["value"] is not None]
        return sorted(complete, key=lambda row: (not row["within_limit"], sign * row["value"]))

    def best(self) -> dict[str, Any] | None:
        """Return the best complete trial within the KL limit."""
        return next((row for row in self.ranked() if row["within_limit"]), None)

    def importances(self) -> dict[str, float]:
        """Return each parameter's importance for reaching the best quarter of the complete trials; they sum to 1.

        PED-ANOVA (Watanabe et al. 2023). Empty with few trials.
        """
        import optuna

        if len(self._in_states("COMPLETE")) < FEWEST_FOR_IMPORTANCES:
            return {}
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=TOP)
        return dict(optuna.importance.get_param_importances(self.optuna, evaluator=evaluator))

    def _in_states(self, *names: str) -> list[optuna.trial.FrozenTrial]:
        return [trial for trial in self.optuna.get_trials(deepcopy=False) if trial.state.name in names]

    def _lock_of(self, number: int) -> int | None:
        """Lock a trial; None if another process, or the run of a killed one, holds it."""
        file = os.open(self.trials_folder / f"{trial_name(number)}.lock", os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return None
        return file

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the study's lock, so that processes count and begin trials one after the other."""
        file = os.open(self.folder / "study.lock", os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
        finally:
            os.close(file)
