"""A `fit` of a tenth of a second for tests of the search: it leaves the files of a run whose metrics its overlay decides.

`python tuning_runs.py --config OVERLAY … --trainer.default_root_dir FOLDER [--ckpt_path last]`
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import yaml

VALIDATIONS = 4
SPACE: dict[str, Any] = {
    "objective": {"metric": "val/reward/true", "kl_limit": 1.0},
    "parameters": {"model.lr": {"low": 0.0, "high": 1.0}, "model.mode": {"choices": ["steady", "steady too"]}},
}
PLACES = {"model.lr": ("model", "lr"), "model.mode": ("model", "mode")}


def command_of_tests(run: Any) -> list[str]:
    """Stand in for `TrialRun.command`."""
    return [sys.executable, __file__, *run.words, "--trainer.default_root_dir", str(run.folder)]


def main(words: list[str]) -> int:
    folder = Path(words[words.index("--trainer.default_root_dir") + 1])
    overlays = [Path(value) for word, value in itertools.pairwise(words) if word == "--config"]
    model = yaml.safe_load(overlays[-1].read_text())["model"]
    mode = words[words.index("--mode") + 1] if "--mode" in words else model["mode"]
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "checkpoints" / "last.ckpt"
    first = int(checkpoint.read_text()) if "--ckpt_path" in words else 0
    if mode == "fails":
        print("error: lr is wrong; set lr to another value")
        return 2
    for step in range(first, VALIDATIONS + 1):
        value, kl = model["lr"] * step / VALIDATIONS, 2.0 * model["lr"] * step / VALIDATIONS
        rows = [
            f"{each},{model['lr'] * each / VALIDATIONS},{2.0 * model['lr'] * each / VALIDATIONS}"
            for each in range(step + 1)
        ]
        name = "val/other" if mode == "other" else "val/reward/true"
        (folder / "metrics.csv").write_text("\n".join([f"step,{name},val/kl/reference", *rows, ""]))
        checkpoint.write_text(str(step))
        if mode == "killed" and step == 2 and first == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(float(os.environ.get("SECONDS_PER_VALIDATION", "0")))
    after = None if mode == "nan" else value
    (folder / "summary.json").write_text(json.dumps({name: {"after": after}, "val/kl/reference": {"after": kl}}))
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": model}))
    (folder / "starts").open("a").write(f"{first}\n")
    return 0


def search_process(folder: str, trials: int, workers: int) -> None:
    """Search with these runs, as a process that a test kills."""
    from unittest.mock import patch

    from rlhf_lightning.tuning.search import Search, SearchOptions
    from rlhf_lightning.tuning.space import overlay, read_space
    from rlhf_lightning.tuning.study import Study
    from rlhf_lightning.tuning.trial_run import TrialRun

    study = Study(Path(folder), read_space(SPACE, "space.yaml"), lambda values: overlay(PLACES, values), {}, trials)
    with patch.object(TrialRun, "command", property(command_of_tests)):
        Search(study, SearchOptions([], workers=workers)).run()


if __name__ == "__main__":
    if sys.argv[1] == "search":
        search_process(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        sys.exit(main(sys.argv[1:]))
