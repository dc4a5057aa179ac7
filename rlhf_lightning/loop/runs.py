"""The runs of a round: ordinary `fit` commands with an overlay of paths and a seed, which can be repeated by hand."""

from __future__ import annotations

import contextlib
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_lightning import bounded_yaml
from rlhf_lightning.errors import UserError
from rlhf_lightning.loop.config import LoopConfig
from rlhf_lightning.loop.tree import EXPORT, Round
from rlhf_lightning.run.folder import is_claimed
from rlhf_lightning.run.resume_options import changes, flattened
from rlhf_lightning.seeding import derive_seed

ENDING_SECONDS = 60.0
"""For a run that was interrupted to save its checkpoint."""
REWARD, POLICY = 0, 1


def export_of(folder: Path) -> Path:
    """Return where a run leaves its model, as the last of its files."""
    return folder / EXPORT


def reward_overlay(config: LoopConfig, round_: Round, before: Round | None) -> dict[str, Any]:
    """Return the overlay of a round's reward model."""
    data = {"train": str(round_.labels)}
    if config.held_out:
        data["validation"] = str(round_.held_out)
    overlay: dict[str, Any] = {"seed_everything": _seed(config, round_, REWARD), "data": {"init_args": data}}
    if before is not None and config.reward_start == "last":
        overlay["model"] = {"init_args": {"model": {"name_or_path": str(export_of(before.reward))}}}
    return overlay


def policy_overlay(config: LoopConfig, round_: Round, before: Round | None) -> dict[str, Any]:
    """Return the overlay of a round's policy."""
    model: dict[str, Any] = {"reward": {"init_args": {"name_or_path": str(export_of(round_.reward))}}}
    if before is not None and config.policy_start == "last":
        model["policy"] = {"name_or_path": str(export_of(before.policy))}
    return {"seed_everything": _seed(config, round_, POLICY), "model": {"init_args": model}}


def _seed(config: LoopConfig, round_: Round, stage: int) -> int:
    return derive_seed(config.seed, round_.number, stage) % 2**32


def changed_options(before: Path, now: Mapping[str, Any], overlay: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return the options that differ from those of the round before, but for those that the loop sets: (key, earlier, now).

    A loop may be continued with other configs, since its labels took people's time; its rounds are then not alike.

    Args:
        before: folder of the run of the round before.
        now: every option.
        overlay: what the loop sets.
    """
    path = before / "config.yaml"
    earlier = bounded_yaml.load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    set_here = {key for key, _ in flattened(overlay)}
    return [(each.key, each.before, each.now) for each in changes(earlier, now) if each.key not in set_here]


def fit(configs: Sequence[str], overlay: Path, folder: Path) -> None:
    """Start a run, or resume it, until its export is there.

    Args:
        configs: the user's.
        overlay: file of the overlay.
        folder: of the run.

    Raises:
        UserError: the run ended with an error that the user can fix.
        RuntimeError: it ended with another error.
        KeyboardInterrupt: it was interrupted.
    """
    words = [word for config in (*configs, str(overlay)) for word in ("--config", config)]
    words += ["--trainer.default_root_dir", str(folder), "--ckpt_path", "last"]
    command = [sys.executable, "-m", "rlhf_lightning", "fit", *words]
    while not export_of(folder).is_dir():
        if is_claimed(folder):  # the loop was killed, and its run was not
            print(f"{folder}: another process continues this run; waiting until it ends", flush=True)
            while is_claimed(folder):
                time.sleep(1)
            continue
        print(f"starting: python -m {shlex.join(command[2:])}", flush=True)
        status = _run(command)
        if status == 130:
            raise KeyboardInterrupt
        if status and not is_claimed(folder):
            line = f"the run in {folder} ended with status {status}; the line before says why. Fix it and start the loop again"
            raise UserError(line) if status == 2 else RuntimeError(line)
        if not status and not export_of(folder).is_dir():
            raise RuntimeError(f"the run in {folder} left no export")


def _run(command: Sequence[str]) -> int:
    """Run a command to its end; an interruption is passed on once, and what the command saves at its end is waited for."""
    process = subprocess.Popen(command, start_new_session=True)
    try:
        return process.wait()
    except BaseException:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(ENDING_SECONDS)
        raise
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
