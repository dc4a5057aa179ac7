"""What a checkpoint says about the end of its run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from rlhf_lightning.run.ending import Ending


@pytest.mark.parametrize(("saved", "now", "stops"), [("a", "a", True), ("a", "b", False), (None, "a", False)])
def test_a_run_that_was_stopped_early_stops_again_unless_its_options_changed(
    saved: str | None, now: str, stops: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlhf_lightning.run.ending.stops_early", lambda trainer: saved is not None)
    checkpoint: dict[str, Any] = {}
    trainer: Any = SimpleNamespace(should_stop=False)
    Ending(saved).on_save_checkpoint(trainer, SimpleNamespace(), checkpoint)  # type: ignore[arg-type]
    Ending(now).on_load_checkpoint(trainer, SimpleNamespace(), checkpoint)  # type: ignore[arg-type]
    assert trainer.should_stop is stops
