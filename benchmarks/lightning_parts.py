"""Run every part that Lightning ships with every stage: each must work, or be refused in one line before weights are loaded.

usage: python benchmarks/lightning_parts.py [--processes 1 2] [--stages sft …] [--parts TEXT …] [--sample N] [--out FILE]

Parts are the callbacks, profilers, plugins, loggers, strategies, precisions and accelerators that Lightning names, and the
flags of its Trainer. A part that this file has no arguments for is a fault, so that a new release of Lightning is noticed.
The exit status is 1 if a part fails: it hangs (120 s), ends in an exception or a refusal of several lines, is refused after
weights were loaded, or does nothing where that can be judged.
"""

import argparse
import inspect
import json
import os
import random
import re
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import lightning
import lightning.pytorch.callbacks
import lightning.pytorch.loggers
import lightning.pytorch.plugins
import lightning.pytorch.profilers
from lightning.fabric.connector import _PRECISION_INPUT_STR
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.strategies import StrategyRegistry

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "lightning_parts.md"
SECONDS = 120
LOADED = "[weights are loaded]"
"""A worker prints it when a stage loads its weights."""
SMALL = ["--data.size", "12", "--data.validation_size", "4", "--data.batch_size", "4", "--trainer.max_epochs", "1"]
OFTEN = ["--trainer.val_check_interval", "1.0"]
STAGES = {
    "sft": ["--config", "sft.yaml", *SMALL, "--trainer.check_val_every_n_epoch", "1"],
    "reward": ["--config", "reward.yaml", *SMALL, *OFTEN],
    "ppo": ["--config", "ppo.yaml", *SMALL, *OFTEN, "--model.iterations", "2", "--model.algorithm.minibatches", "1"],
    "dpo_offline": ["--config", "dpo_offline.yaml", *SMALL, *OFTEN],
}
"""Stage to its run, three or four optimiser steps long."""
TWO = ["--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp"]

ARGUMENTS: dict[str, dict[str, Any]] = {
    "EarlyStopping": {"monitor": "epoch", "strict": False},
    "GradientAccumulationScheduler": {"scheduling": {0: 2}},
    "ModelCheckpoint": {"filename": "kept", "save_weights_only": False},
    "ModelPruning": {"pruning_fn": "l1_unstructured"},
    "OnExceptionCheckpoint": {"dirpath": "."},
    "StochasticWeightAveraging": {"swa_lrs": 1e-3},
    "ThroughputMonitor": {"batch_size_fn": "builtins.len"},
    "BasePredictionWriter": {"write_interval": "epoch"},
    "BitsandbytesPrecision": {"mode": "nf4"},
    "DeepSpeedPrecision": {"precision": "32-true"},
    "MixedPrecision": {"precision": "bf16-mixed", "device": "cpu"},
    "FSDPPrecision": {"precision": "32-true"},
    "CSVLogger": {"save_dir": "csv"},
    "TensorBoardLogger": {"save_dir": "board"},
    "AdvancedProfiler": {"dirpath": ".", "filename": "profile"},
    "PyTorchProfiler": {"dirpath": ".", "filename": "profile"},
    "SimpleProfiler": {"dirpath": ".", "filename": "profile"},
    "RichProgressBar": {"console_kwargs": {"force_terminal": True, "width": 300}},
    "EMAWeightAveraging": {"decay": 0.5},
}
"""Class to the arguments that it is made with; a class without required arguments may be missing."""
FLAGS: dict[str, list[Any]] = {
    "fast_dev_run": [True, 2],
    "max_epochs": [2],
    "min_epochs": [1],
    "max_steps": [2],
    "min_steps": [1],
    "max_time": ["00:00:10:00"],
    "limit_train_batches": [2, 0.5],
    "limit_val_batches": [1, 0],
    "limit_test_batches": [1],
    "limit_predict_batches": [1],
    "overfit_batches": [1],
    "val_check_interval": [1, 0.5],
    "check_val_every_n_epoch": [1, 2],
    "num_sanity_val_steps": [0, 1],
    "log_every_n_steps": [2],
    "enable_checkpointing": [False],
    "enable_progress_bar": [False],
    "enable_model_summary": [True],
    "accumulate_grad_batches": [2],
    "gradient_clip_val": [0.5],
    "gradient_clip_algorithm": ["value"],
    "deterministic": [True, "warn"],
    "benchmark": [True],
    "inference_mode": [False],
    "use_distributed_sampler": [False],
    "detect_anomaly": [True],
    "barebones": [True],
    "sync_batchnorm": [True],
    "reload_dataloaders_every_n_epochs": [1],
    "enable_autolog_hparams": [False],
    "model_registry": ["name"],
    "num_nodes": [1],
}
"""Flag of the Trainer to the values that are tried."""
BY_KIND = {"callbacks", "logger", "plugins", "profiler", "strategy", "precision", "accelerator"}
"""Flags whose values are classes or names that Lightning lists."""
BY_RUN = {"self", "devices", "default_root_dir"}
"""Flags that every run here sets."""


@dataclass(frozen=True)
class Part:
    """One part of Lightning, and the overlay of a config that uses it; None if this file does not know its arguments."""

    kind: str
    name: str
    trainer: dict[str, Any] | None


@dataclass(frozen=True)
class Outcome:
    """How a run ended: `works`, `refused` or `FAILED`, and the line that says why."""

    part: Part
    stage: str
    processes: int
    result: str
    line: str = ""


def classes(module: Any, base: type) -> Iterator[type]:
    """Yield the classes that a module of Lightning names and that can be made."""
    for name in module.__all__:
        kind = getattr(module, name)
        if inspect.isclass(kind) and issubclass(kind, base) and not inspect.isabstract(kind):
            yield kind


def arguments_of(kind: type) -> dict[str, Any] | None:
    """Return the arguments to make a class with; None if it needs some and this file has none."""
    parameters = inspect.signature(kind.__init__).parameters.values()  # type: ignore[misc]
    required = [p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    return ARGUMENTS.get(kind.__name__, None if required[1:] else {})


def parts() -> list[Part]:
    """List every part of the installed Lightning."""
    found = []
    pytorch = lightning.pytorch
    for key, module, base in (
        ("callbacks", pytorch.callbacks, pytorch.Callback),
        ("profiler", pytorch.profilers, pytorch.profilers.Profiler),
        ("plugins", pytorch.plugins, object),
        ("logger", pytorch.loggers, pytorch.loggers.Logger),
    ):
        for kind in classes(module, base):
            arguments = arguments_of(kind)
            made = {"class_path": f"{module.__name__}.{kind.__name__}", "init_args": arguments}
            value = made if key == "profiler" else [made]
            found.append(Part(key, kind.__name__, None if arguments is None else {key: value}))
    named = {
        "strategy": [name for name in StrategyRegistry.available_strategies()],
        "precision": list(_PRECISION_INPUT_STR.__args__),
        "accelerator": sorted(AcceleratorRegistry.available_accelerators()),
    }
    found += [Part(key, name, {key: name}) for key, names in named.items() for name in names]
    for name in inspect.signature(Trainer.__init__).parameters:
        if name not in BY_KIND | BY_RUN:
            values = FLAGS.get(name)
            found += [Part("flag", f"{name}={value}", {name: value}) for value in values or ()]
            found += [Part("flag", name, None)] if values is None else []
    return found


# -- judging -----------------------------------------------------------------------------------------------------------


def exists(pattern: str) -> Callable[[Path, str], bool]:
    """Return a judge: the run left a file that is not empty."""
    return lambda folder, said: any(path.stat().st_size for path in folder.parent.rglob(pattern) if path.is_file())


def says(text: str) -> Callable[[Path, str], bool]:
    """Return a judge: the run printed a text."""
    return lambda folder, said: text in said


def rows(count: int) -> Callable[[Path, str], bool]:
    """Return a judge: the last step that the run logged."""
    return lambda folder, said: (folder / "metrics.csv").read_text().splitlines()[-1].split(",")[0] == str(count)


def absent(pattern: str) -> Callable[[Path, str], bool]:
    """Return a judge: the run left no such file."""
    return lambda folder, said: not list(folder.rglob(pattern))


JUDGES: dict[str, Callable[[Path, str], bool]] = {
    "ModelCheckpoint": exists("kept*.ckpt"),
    "CSVLogger": exists("csv/**/metrics.csv"),
    "TensorBoardLogger": exists("board/**/events.out*"),
    "SimpleProfiler": exists("*profile*"),
    "AdvancedProfiler": exists("*profile*"),
    "PyTorchProfiler": exists("*profile*"),
    "RichProgressBar": says("loss"),
    "ModelSummary": says("params"),
    "RichModelSummary": says("Params"),
    "LearningRateMonitor": lambda folder, said: "lr-" in (folder / "metrics.csv").read_text().splitlines()[0],
    "DeviceStatsMonitor": lambda folder, said: "DeviceStats" in (folder / "metrics.csv").read_text().splitlines()[0],
    "max_steps=2": rows(2),
    "fast_dev_run=True": absent("step-*.ckpt"),
    "enable_checkpointing=False": absent("step-*.ckpt"),
    "enable_model_summary=True": says("arams"),
    "limit_val_batches=0": lambda folder, said: "val/" not in (folder / "metrics.csv").read_text().splitlines()[0],
}
"""Part to a function of the run's folder and of what it printed: whether the part did what it is for."""


def judged(part: Part, statuses: list[int], said: list[str], folder: Path) -> tuple[str, str]:
    """Return the result of a run and the line that says why."""
    texts = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text) for text in said]
    errors = [line for text in texts for line in text.splitlines() if re.match(r"(error: |Traceback|Fatal)", line)]
    last = next((line for text in texts for line in reversed(text.splitlines()) if line.strip()), "nothing was printed")
    if set(statuses) == {0}:
        judge = JUDGES.get(part.name)
        return ("works", "") if judge is None or judge(folder, "\n".join(texts)) else ("FAILED", "it did nothing")
    if set(statuses) != {2} or not errors or not all(line.startswith("error: ") for line in errors):
        return "FAILED", f"status {statuses}: {(errors or [last])[-1]}"
    if any(LOADED in text for text in texts):
        return "FAILED", f"refused after weights were loaded: {errors[0]}"
    return "refused", errors[0].removeprefix("error: ")


# -- running -----------------------------------------------------------------------------------------------------------


@dataclass
class Workers:
    """One process, or two as a launcher starts them, that run command after command; started again after a hang."""

    count: int
    folder: Path
    processes: list[subprocess.Popen[str]] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)

    def start(self) -> None:
        """Start the processes."""
        self.stop()
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        for rank in range(self.count):
            reading, writing = os.pipe()
            own: dict[str, Any] = {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
            if self.count > 1:
                own |= {"LOCAL_RANK": rank, "RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
                own |= {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "parts"}
            self.processes.append(
                subprocess.Popen(
                    [sys.executable, __file__, "--worker", str(writing)],
                    stdin=subprocess.PIPE,
                    stdout=open(self.folder / f"said.{rank}", "w"),  # noqa: SIM115
                    stderr=subprocess.STDOUT,
                    pass_fds=[writing],
                    cwd=self.folder,
                    env={**os.environ, **{name: str(value) for name, value in own.items()}},
                    text=True,
                    start_new_session=True,
                )
            )
            os.close(writing)
            self.answers.append(reading)

    def stop(self) -> None:
        """End the processes and those that they started."""
        for process in self.processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
            process.wait()
        for reading in self.answers:
            os.close(reading)
        self.processes, self.answers = [], []

    def run(self, words: list[str]) -> tuple[list[int], list[str]]:
        """Return the status of each process and what it printed; status -1 for one that ended, -2 for one that hangs."""
        if not self.processes:
            self.start()
        places = [(self.folder / f"said.{rank}").stat().st_size for rank in range(self.count)]
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write(json.dumps(words) + "\n")
            process.stdin.flush()
        end, statuses = time.monotonic() + SECONDS, []
        for reading in self.answers:
            ready, _, _ = select.select([reading], [], [], max(0.0, end - time.monotonic()))
            answer = os.read(reading, 100).decode().strip() if ready else "-2"
            statuses.append(int(answer or "-1"))
        said = [
            (self.folder / f"said.{rank}").read_bytes()[place:].decode(errors="replace")
            for rank, place in enumerate(places)
        ]
        if set(statuses) not in ({0}, {2}):
            self.stop()  # a run that failed may have left something behind
        return statuses, said


def work(answers: int) -> None:
    """Run the commands of the standard input, one a line, and write their statuses."""
    from rlhf_lightning.__main__ import main as command
    from rlhf_lightning.run import curves
    from rlhf_lightning.stages import PolicyStage, RewardStage, SupervisedStage

    curves.draw = lambda rows, path: None
    for stage in (PolicyStage, RewardStage, SupervisedStage):
        stage.configure_model = _announced(stage.configure_model)  # type: ignore[method-assign]
    with os.fdopen(answers, "w", buffering=1) as out:
        for line in sys.stdin:
            status = command(json.loads(line))
            sys.stdout.flush()
            sys.stderr.flush()
            out.write(f"{status}\n")


def _announced(load: Callable[[Any], None]) -> Callable[[Any], None]:
    def configure_model(self: Any) -> None:
        print(LOADED, flush=True)
        load(self)

    return configure_model


def outcomes(chosen: list[tuple[Part, str, int]], folder: Path) -> Iterator[Outcome]:
    """Run the chosen parts with stages on one process or two, in a folder for all."""
    workers: dict[int, Workers] = {}
    try:
        for number, (part, stage, processes) in enumerate(chosen):
            if part.trainer is None:
                yield Outcome(
                    part, stage, processes, "FAILED", "its arguments are not in benchmarks/lightning_parts.py"
                )
                continue
            own = folder / f"{number}"
            own.mkdir()
            if processes not in workers:
                (folder / f"on-{processes}").mkdir(exist_ok=True)
                workers[processes] = Workers(processes, folder / f"on-{processes}")
            words = ["fit", *STAGES[stage], *(TWO if processes > 1 else ["--trainer.accelerator", "cpu"])]
            (own / "part.yaml").write_text(json.dumps({"trainer": in_folder(part.trainer, own)}))
            words += ["--config", str(own / "part.yaml"), "--trainer.default_root_dir", str(own / "run")]
            statuses, said = workers[processes].run(words)
            if -2 in statuses:
                yield Outcome(part, stage, processes, "FAILED", f"it hangs: no end within {SECONDS} s")
            else:
                yield Outcome(part, stage, processes, *judged(part, statuses, said, own / "run"))
    finally:
        for each in workers.values():
            each.stop()


def in_folder(trainer: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Put the files of a part into the folder of its run."""
    text = json.dumps(trainer)
    for name in ("dirpath", "save_dir"):
        text = re.sub(rf'"{name}": "([^"]*)"', lambda found: f'"{name}": "{folder / found[1]}"', text)  # noqa: B023
    return json.loads(text)  # type: ignore[no-any-return]


# -- results -----------------------------------------------------------------------------------------------------------


def report(found: list[Outcome]) -> str:
    """Return the page of results: a table of all runs, and every refusal and failure with its line."""
    counts = Counter(each.result for each in found)
    columns = sorted({(each.processes, each.stage) for each in found}, key=lambda c: (c[0], list(STAGES).index(c[1])))
    known = {(each.part.kind, each.part.name, each.processes, each.stage): each.result for each in found}
    names = dict.fromkeys((each.part.kind, each.part.name) for each in found)
    lines = [
        "# Parts of Lightning",
        "",
        f"Lightning {lightning.__version__}, {len(found)} runs: "
        + ", ".join(f"{count} {result}" for result, count in sorted(counts.items()))
        + ". A part that is refused ends in one line with status 2 before weights are loaded.",
        "",
        "| kind | part | " + " | ".join(f"{stage}, {n} process{'es' * (n > 1)}" for n, stage in columns) + " |",
        "| --- " * (2 + len(columns)) + "|",
        *(
            f"| {kind} | `{name}` | " + " | ".join(known.get((kind, name, *column), "") for column in columns) + " |"
            for kind, name in names
        ),
        "",
        "## Refusals and failures",
        "",
        "| part | result | line |",
        "| --- | --- | --- |",
    ]
    reasons: dict[tuple[str, str, str], None] = {}
    for each in found:
        if each.result != "works":
            text = each.line.replace("|", "/").replace(tempfile.gettempdir(), "…")
            reasons[(each.part.name, each.result, text[:300])] = None
    lines += [f"| `{name}` | {result} | {line} |" for name, result, line in reasons]
    return "\n".join([*lines, "", "```bash", "python benchmarks/lightning_parts.py", "```", ""])


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--processes", nargs="+", type=int, choices=[1, 2], default=[1, 2], help="processes per run (1 2)"
    )
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES), help="stages (all)")
    parser.add_argument(
        "--parts", nargs="+", metavar="TEXT", help="parts whose kind or name has one of these texts (all)"
    )
    parser.add_argument("--sample", type=int, metavar="N", help="run a seeded random sample of N of the runs (all)")
    parser.add_argument("--out", type=Path, help=f"the page to write (of a whole matrix {RESULTS.relative_to(ROOT)})")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        work(options.worker)
        return 0
    texts = options.parts or [""]
    wanted = [part for part in parts() if any(text in f"{part.kind} {part.name}" for text in texts)]
    chosen = [(part, stage, n) for n in options.processes for stage in options.stages for part in wanted]
    if options.sample is not None:
        places = sorted(random.Random(0).sample(range(len(chosen)), min(options.sample, len(chosen))))
        chosen = [chosen[place] for place in places]
    whole = not options.parts and options.sample is None and len(options.stages) == len(STAGES)
    out = options.out or (RESULTS if whole and len(options.processes) == 2 else None)
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        for each in outcomes(chosen, Path(scratch)):
            found.append(each)
            if out is not None:
                out.write_text(report(found))
            line = f"{each.processes} {each.stage:12} {each.part.kind} {each.part.name}: {each.result} {each.line}"
            print(line.rstrip(), flush=True)
    failed = sum(each.result == "FAILED" for each in found)
    print(f"{len(found)} runs, {failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
