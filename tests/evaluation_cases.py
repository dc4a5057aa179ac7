"""Evaluations that fail in every way, as files of a user's folder, for runs on one and on two processes."""

from __future__ import annotations

from pathlib import Path

CODE = '''
import random, sys, time
import numpy, torch
from rlhf_lightning import Evaluation, EvaluationReport, SampleRequest

class Raises(Evaluation):
    def evaluate(self, results, ask):
        raise KeyError("no such column")

class Exits(Evaluation):
    def evaluate(self, results, ask):
        sys.exit(3)

class Sleeps(Evaluation):
    def evaluate(self, results, ask):
        time.sleep(2)
        return {"slept": 2}

class Text(Evaluation):
    def evaluate(self, results, ask):
        return {"text": "high"}

class NotANumber(Evaluation):
    def evaluate(self, results, ask):
        return {"nan": float("nan")}

class NoDict(Evaluation):
    def evaluate(self, results, ask):
        return [1.0, 2.0]

class Shape(Evaluation):
    def evaluate(self, results, ask):
        return {"shape": torch.ones(2, 3)}

class Unpicklable(Evaluation):
    def evaluate(self, results, ask):
        ask(SampleRequest([{"prompt": "a", "function": lambda: 0}]))

class UnknownReward(Evaluation):
    def evaluate(self, results, ask):
        ask(SampleRequest(results.rows, rewards=["absent"]))

class BadRow(Evaluation):
    """One rank of two fails, in the middle of its shard."""
    def evaluate(self, results, ask):
        ask(SampleRequest([{"prompt": "a", "response": "b"}, {"prompt": 7, "response": "b"}]))

class Random(Evaluation):
    """Takes random numbers, changes the samples, and asks."""
    def evaluate(self, results, ask):
        random.random(), numpy.random.rand(), torch.rand(3)
        results.samples[0]["response"] = "changed"
        greedy = ask(SampleRequest(results.rows, temperature=0, responses_per_prompt=2))
        scored = ask(SampleRequest([{**row, "response": s["response"]} for row, s in zip(results.rows, greedy[::2])]))
        one = ask(SampleRequest(results.rows[:1], rewards=()))
        assert list(one[0]) == ["prompt", "response"]
        assert [s["response"] for s in greedy[::2]] == [s["response"] for s in greedy[1::2]]
        gap = max(abs(a["reward"] - b["reward"]) for a, b in zip(greedy[::2], scored))
        return EvaluationReport({"greedy/gap": gap, "greedy/count": len(greedy)}, {"greedy": greedy})

class Falls(Evaluation):
    def evaluate(self, results, ask):
        return {"falls": -results.step}

class Sometimes(Evaluation):
    """Fails at every validation but the second."""
    def __init__(self):
        self.calls = 0
    def evaluate(self, results, ask):
        self.calls += 1
        if self.calls != 2:
            raise ValueError("down")
        return {"sometimes": 0.5}
    def state_dict(self):
        return {"calls": self.calls}
    def load_state_dict(self, state):
        self.calls = state["calls"]

class Hooks(Evaluation):
    """Counts the rollouts, whose advantages are there."""
    seen = 0
    def on_rollout_start(self, trainer, stage):
        self.started = True
    def on_rollout_end(self, trainer, stage, rollout):
        assert self.started and rollout.advantages.shape == rollout.mask.shape
        self.seen += 1
    def evaluate(self, results, ask):
        return {"rollouts": self.seen}

class HookRaises(Evaluation):
    def on_rollout_end(self, trainer, stage, rollout):
        if trainer.global_rank == trainer.world_size - 1:
            raise KeyError("in the hook")
    def evaluate(self, results, ask):
        return {}
'''
FAILING = (
    "Raises",
    "Exits",
    "Text",
    "NotANumber",
    "NoDict",
    "Shape",
    "Unpicklable",
    "UnknownReward",
    "BadRow",
    "Sometimes",
)
WORKING = ("Sleeps", "Random", "Falls", "Hooks")


def write(folder: Path, *names: str, more: str = "") -> str:
    """Write the classes and a config that has those of `names` as callbacks; return the name of the config."""
    (folder / "cases.py").write_text(CODE)
    callbacks = "".join(f"    - class_path: cases.{name}\n" for name in names)
    (folder / "cases.yaml").write_text(f"trainer:\n  callbacks:\n{callbacks}{more}")
    return "cases.yaml"
