"""What comes from elsewhere runs no code, and a run talks to nobody."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_lightning.__main__ import main
from rlhf_lightning.run.checkpoint_integrity import seal

SFT = ["fit", "--config", "sft.yaml", "--data.size", "16", "--data.validation_size", "4", "--trainer.max_steps", "1"]
QUIET = ["--trainer.enable_progress_bar", "false"]


class Harm:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("touch harmed",)


@pytest.fixture
def checkpoint(run: Callable[..., Path]) -> Path:
    return run("out", *SFT) / "checkpoints/last.ckpt"


def saved(content: dict[str, Any], name: str) -> None:
    """Save a checkpoint with its digest, without which it is refused before it is read."""
    with open(name, "w+b") as file:
        torch.save(content, file)
        seal(file)


@pytest.mark.parametrize("subcommand", ["fit", "validate"])
def test_a_checkpoint_that_holds_code_is_refused_and_runs_none(
    subcommand: str, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held = torch.load(checkpoint, weights_only=True)
    saved({**held, "callbacks": {"Harm": Harm()}}, "evil.ckpt")
    words = SFT[1:]
    assert main([subcommand, *words, "--ckpt_path", "evil.ckpt", "--trainer.default_root_dir", "again", *QUIET]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "checkpoint evil.ckpt holds posix.system, and only plain tensors and numbers are read" in said.replace(
        os.getcwd() + "/", ""
    )
    assert "--weights_only false" in said
    assert not Path("harmed").exists()


def test_a_checkpoint_of_ones_own_with_objects_in_it_is_read_on_demand(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held = torch.load(checkpoint, weights_only=True)
    saved({**held, "noted": Path("a path")}, "own.ckpt")
    words = [*SFT[:-1], "2", "--ckpt_path", "own.ckpt", *QUIET]
    assert main([*words, "--trainer.default_root_dir", "refused"]) == 2
    assert "pathlib" in capsys.readouterr().err.splitlines()[-1]
    assert main([*words, "--trainer.default_root_dir", "taken", "--weights_only", "false"]) == 0


ALONE = """
import socket, sys
from rlhf_lightning.__main__ import main
from rlhf_lightning.run.checkpoint_integrity import seal

asked = []
def refuse(*args, **kwargs):
    asked.append(args)
    raise OSError("no network")
socket.getaddrinfo = socket.create_connection = refuse
class Closed(socket.socket):
    def connect(self, address):
        refuse(address)
    connect_ex = connect
socket.socket = Closed
status = main(sys.argv[1:])
print("asked", asked)
sys.exit(status or bool(asked))
"""


def test_a_run_sends_nothing_anywhere_and_gives_no_advertisement() -> None:
    """In a process of its own, with the hub's and Lightning's own switches as a user has them."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    words = ["fit", "--config", "ppo.yaml", "--data.size", "8", "--data.validation_size", "2", "--data.batch_size", "4"]
    found = subprocess.run(
        [sys.executable, "-c", ALONE, *words, "--trainer.max_steps", "1", "--trainer.default_root_dir", "out"],
        capture_output=True,
        text=True,
        env={**kept, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    said = found.stdout + found.stderr
    assert found.returncode == 0, said
    assert "asked []" in said
    assert not any(
        word in said.lower() for word in ("tip:", "litlogger", "litmodels", "lightning.ai", "http", "weights_only")
    )


def test_sockets_that_are_refused_are_noticed() -> None:
    """The check above is able to fail."""
    script = ALONE.replace(
        "main(sys.argv[1:])", "None\ntry: socket.create_connection(('127.0.0.1', 9))\nexcept OSError: pass"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, check=False).returncode == 1
    assert socket.socket.__name__ == "socket"
