"""Runs jobs one after the other, each in a process of its own, and keeps what they found: a job that is done is not run again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from peers.models import build
from peers.text import pairs_of, rows_of, texts_of
from peers.work import PEER, PPO_PEER, Job

TORCH = "2.13.0"
BENCHMARKS = Path(__file__).parent.parent


def make_peers(folder: Path, existing: dict[str, Path]) -> None:
    """`folder/trl-VERSION`: an environment with that TRL, or a link to one that exists."""
    folder.mkdir(parents=True, exist_ok=True)
    for version in (PPO_PEER, PEER):
        place = folder / f"trl-{version}"
        if version in existing:
            place.unlink(missing_ok=True)
            place.symlink_to(existing[version].resolve())
        if not place.exists():
            venv.create(place, with_pip=True)
        if not _versions(place):  # also where an earlier try was stopped
            for package in (f"torch=={TORCH}", f"trl=={version}.0"):
                subprocess.run([_python(place), "-m", "pip", "install", "-q", package], check=True)
        print(place, _versions(place), flush=True)


def _versions(environment: Path) -> str:
    """Of torch and TRL; nothing where they cannot be imported."""
    asked = "import torch, trl; print('torch', torch.__version__, 'trl', trl.__version__)"
    found = subprocess.run([_python(environment), "-c", asked], capture_output=True, text=True, check=False)
    return found.stdout.strip()


def _python(environment: Path) -> str:
    return str(environment / "bin" / "python")


class Laboratory:
    """A folder with models, rows and results, and the environments of the peers."""

    def __init__(self, out: Path, peers: Path | None, text: Path | None) -> None:
        self.out, self.peers, self.text = out.resolve(), peers, text
        self._pairs: list[dict[str, str]] | None = None

    @property
    def pairs(self) -> list[dict[str, str]]:
        if self._pairs is None:
            self._pairs = pairs_of(self.text)
        return self._pairs

    def run(self, jobs: Iterable[Job]) -> bool:
        """Run what is not done yet; False if any failed."""
        good = True
        for job in jobs:
            if not self.result(job).exists():
                good = self._measure(job) and good
        return good

    def results(self, jobs: Iterable[Job]) -> dict[str, dict[str, Any]]:
        """What was found, by the name of the job."""
        return {job.name: json.loads(self.result(job).read_text()) for job in jobs if self.result(job).exists()}

    def result(self, job: Job) -> Path:
        return self.out / f"{job.name}.json"

    def _measure(self, job: Job) -> bool:
        models = self.out / "models"
        tokenizer = AutoTokenizer.from_pretrained(build(models, job.size, texts_of(self.pairs)))
        given, data, log = (self.out / "jobs" / f"{job.name}.{kind}" for kind in ("json", "jsonl", "log"))
        given.parent.mkdir(parents=True, exist_ok=True)
        given.write_text(json.dumps(job.to_json()))
        rows = rows_of(job.work, job.rows, self.pairs, tokenizer)
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        command = [self._python(job), "-m", "peers.measure", *map(str, (given, models, data, self.result(job)))]
        with log.open("w") as file:
            status = subprocess.run(command, env=environment(job.threads), stdout=file, stderr=file, check=False)
        if not self.result(job).exists():
            print(f"{job.name}: failed with status {status.returncode}, see {log}", flush=True)
            return False
        found = json.loads(self.result(job).read_text())
        above = found["peak_mib"] - found["base_mib"]
        print(f"{job.name:58} {found['seconds']:8.3f} s {above:7.0f} MiB  load {found['load'][0]:.1f}", flush=True)
        return True

    def _python(self, job: Job) -> str:
        if job.side == "ours":
            return sys.executable
        assert self.peers is not None, "TRL's side needs --peers, a folder that `speed.py peers` made"
        return _python(self.peers / f"trl-{PPO_PEER if job.work.kind == 'ppo' else PEER}")


def environment(threads: int) -> dict[str, str]:
    """That of a measuring process: the repository's library, no network, so many threads."""
    paths = [str(BENCHMARKS), str(BENCHMARKS.parent)]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONWARNINGS": "ignore",
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
        "TRL_EXPERIMENTAL_SILENCE": "1",
    }
