"""The win rate against the first replies."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from rlhf_lightning.callbacks.win_rate import WinRate


class Log:
    def __init__(self) -> None:
        self.rows: list[tuple[int, float]] = []

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.rows.append((step, metrics["val/win_rate"]))


def validated(callback: WinRate, log: Log, step: int, scores: list[float], name: str = "reward") -> None:
    stage: Any = SimpleNamespace(validation_samples=[{name: score} for score in scores])
    callback.on_validation_end(SimpleNamespace(loggers=[log], global_step=step), stage)  # type: ignore[arg-type]


def test_later_replies_are_held_against_the_first() -> None:
    callback, log = WinRate(), Log()
    validated(callback, log, 0, [0.0, 1.0, 2.0, 3.0])
    validated(callback, log, 4, [1.0, 1.0, 3.0, 4.0])
    resumed = WinRate()
    resumed.load_state_dict(callback.state_dict())
    validated(resumed, log, 8, [0.0, 0.0, 0.0, 0.0])
    assert log.rows == [(0, 0.5), (4, 0.875), (8, 0.125)]


def test_a_first_validation_that_was_cut_short_is_held_against_the_same_prompts() -> None:
    callback, log = WinRate(), Log()
    validated(callback, log, 0, [0.0, 1.0])
    validated(callback, log, 4, [1.0, 0.0, 3.0, 4.0])
    assert log.rows == [(0, 0.5), (4, 0.5)]


def test_another_score_can_decide() -> None:
    callback, log = WinRate(score="reward/true"), Log()
    validated(callback, log, 0, [0.0, 0.0], "reward/true")
    validated(callback, log, 2, [1.0, 1.0], "reward/true")
    assert log.rows[-1] == (2, 1.0)
