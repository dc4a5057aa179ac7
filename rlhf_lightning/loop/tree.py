"""The files of a loop, which are its whole state."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from rlhf_lightning import bounded_yaml
from rlhf_lightning.errors import UserError
from rlhf_lightning.io import atomic_write
from rlhf_lightning.loop.config import LoopConfig

Row = dict[str, Any]
Stage = Literal["reward", "policy"]
EXPORT = "export"
"""What a run leaves as the last of its files."""


@dataclass(frozen=True)
class Round:
    """The files of one round, in the order in which they appear."""

    number: int
    folder: Path

    @property
    def ask(self) -> Path:
        """The candidates: prompts and pairs of responses."""
        return self.folder / "ask.json"

    @property
    def held_out(self) -> Path:
        """Labels that measure reward models."""
        return self.folder / "held_out.jsonl"

    @property
    def labels(self) -> Path:
        """Labels that train the reward model, of this round and all before; it appears at the round's barrier and stays."""
        return self.folder / "labels.jsonl"

    @property
    def reward_config(self) -> Path:
        """The overlay of the reward model's run."""
        return self.folder / "reward.yaml"

    @property
    def reward(self) -> Path:
        """The folder of the reward model's run."""
        return self.folder / "reward"

    @property
    def policy_config(self) -> Path:
        """The overlay of the policy's run."""
        return self.folder / "policy.yaml"

    @property
    def policy(self) -> Path:
        """The folder of the policy's run."""
        return self.folder / "policy"

    def overlay(self, stage: Stage) -> Path:
        """Return the overlay of a stage."""
        return self.reward_config if stage == "reward" else self.policy_config

    def run(self, stage: Stage) -> Path:
        """Return the folder of the run of a stage."""
        return self.reward if stage == "reward" else self.policy

    @property
    def measured(self) -> Path:
        """What was measured; the last file of a round."""
        return self.folder / "measured.json"


@dataclass(frozen=True)
class Tree:
    """The folder of a loop."""

    folder: Path

    @property
    def store(self) -> Path:
        """The store of the judgements."""
        return self.folder / "feedback.db"

    @property
    def config(self) -> Path:
        """The options with which the loop began."""
        return self.folder / "loop.yaml"

    @property
    def page(self) -> Path:
        """The page about the loop."""
        return self.folder / "loop.html"

    def round(self, number: int) -> Round:
        """Return the files of a round."""
        return Round(number, self.folder / f"round-{number:02d}")

    def measured(self) -> list[Row]:
        """Return what was measured in each round that is done."""
        rows: list[Row] = []
        while (path := self.round(len(rows)).measured).is_file():
            rows.append(json.loads(path.read_text(encoding="utf-8")))
        return rows

    def next_step(self) -> str:
        """Say which step is the first that is not done."""
        round_ = self.round(len(self.measured()))
        steps = {
            "candidates": round_.ask,
            "judgements": round_.labels,
            "reward model": round_.reward / EXPORT,
            "policy": round_.policy / EXPORT,
        }
        step = next((name for name, last in steps.items() if not last.exists()), "measurements")
        return f"{round_.number} rounds are done; the next step is {step} of round {round_.number}."

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder, until the process ends, however it ends.

        Raises:
            UserError: another process runs this loop, or the folder cannot be made.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            held = os.open(self.folder / "loop.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise UserError(
                f"--folder {self.folder} cannot be used: {error.strerror}; set it to another folder"
            ) from error
        try:
            _lock(held, self.folder)
            yield
        finally:
            os.close(held)

    def check_config(self, config: LoopConfig) -> None:
        """Refuse to continue a loop with other options.

        Raises:
            UserError: naming the first of them.
        """
        if not self.config.is_file():
            return
        try:
            earlier = bounded_yaml.load(self.config.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"{self.config} cannot be read; restore it, or set --folder to another folder") from error
        for name, (before, now) in config.differences(earlier if isinstance(earlier, dict) else {}).items():
            raise UserError(
                f"{name} is {now}, and the loop in {self.folder} has {before}; set it to {before}, or set --folder to "
                "another folder"
            )

    def save_config(self, config: LoopConfig) -> None:
        """Write the options."""
        write_yaml(self.config, asdict(config))


def _lock(held: int, folder: Path) -> None:
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(
            f"another process runs the loop in {folder}; wait until it has ended, or set --folder to another folder"
        ) from error
    except OSError:  # a file system without locks
        return


def write_yaml(path: Path, content: Row) -> None:
    """Write a YAML file by rename."""
    write_text(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))


def write_json(path: Path, content: Row) -> None:
    """Write a JSON file by rename."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def write_lines(path: Path, rows: list[Row]) -> None:
    """Write a file of JSON lines by rename."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_text(path: Path, text: str) -> None:
    """Write a text by rename; a lone surrogate, which UTF-8 cannot encode, is escaped."""
    atomic_write(path, lambda partial: partial.write_text(text, encoding="utf-8", errors="backslashreplace"))
