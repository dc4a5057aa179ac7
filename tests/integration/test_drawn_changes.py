"""Options drawn at random, changed between a run and the run that resumes it: each takes effect or is refused by name."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml
from kill import differences, left
from leavings import SMALL

from rlhf_lightning.__main__ import main
from rlhf_lightning.run.resume_options import OnChange, entry, flattened

DRAWS = int(os.environ.get("CHANGES", "6"))
"""`CHANGES=60 pytest -m slow -k drawn_changes` tries as many, over all stages."""
STAGES = {
    "sft": ["fit", "--config", "sft.yaml", *SMALL, "--trainer.max_epochs", "2"],
    "reward": ["fit", "--config", "reward.yaml", *SMALL, "--trainer.max_epochs", "2"],
    "ppo": ["fit", "--config", "ppo.yaml", *SMALL, "--model.iterations", "2"],
    "dpo_offline": ["fit", "--config", "dpo_offline.yaml", *SMALL, "--trainer.max_epochs", "2"],
}
OF_THE_TEST = ("trainer.default_root_dir", "ckpt_path", "trainer.devices", "trainer.num_nodes", "trainer.max_steps")


def other(value: Any) -> Any:
    """Return another value of the type; None where there is no obvious one."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    return value / 2 or 0.25 if isinstance(value, float) else None


def changes(config: dict[str, Any]) -> list[tuple[str, Any]]:
    """Return every option of a saved config that has another value, but for those that the test itself sets."""
    found = [(key, other(value)) for key, value in flattened(config) if entry(key) and not key.startswith(OF_THE_TEST)]
    return [(key, value) for key, value in found if value is not None and ".callbacks" not in key]


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_drawn_changes_take_effect_or_are_refused(
    stage: str, run: Callable[..., Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words, random = STAGES[stage], Random(stage)
    before = run("start", *words, "--trainer.max_steps", "2")
    known = changes(yaml.safe_load((before / "config.yaml").read_text()))
    for key, value in random.sample(known, min(len(known), DRAWS // len(STAGES) or 1)):
        shutil.rmtree("out", ignore_errors=True)
        shutil.copytree(before, "out", symlinks=True)
        start = left(Path("out"))
        resumed = [*words, "--ckpt_path", "last", "--trainer.default_root_dir", "out", f"--{key}", json.dumps(value)]
        capsys.readouterr()
        status, kind = main(resumed), entry(key)
        said = capsys.readouterr().err.strip()
        if kind is OnChange.NAMED:
            assert status == 2, key
            assert f"--allow_change {key}" in said, said
            assert differences(start, left(Path("out"))) == []
            status = main([*resumed, "--allow_change", key])
        if kind is OnChange.FIXED or status == 2:  # refused, or no value that the option takes
            assert status == 2, key
            assert key.rpartition(".")[2] in said, said
            assert "\n" not in said
            assert differences(start, left(Path("out"))) == []
            continue
        assert status == 0, f"{key}: {said}"
        config = dict(flattened(yaml.safe_load(Path("out/config.yaml").read_text())))
        assert config[key] == value, key
