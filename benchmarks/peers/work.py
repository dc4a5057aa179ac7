"""What is measured: kinds of work, their shapes, model sizes, precisions, and what a job of each is called.

Imported on both sides, so it needs the standard library alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Size:
    """A Llama with untied heads of 64 (or two heads), about 8/3 hidden units in its feed-forward layers."""

    layers: int
    hidden: int
    vocabulary: int

    @property
    def intermediate(self) -> int:
        return self.hidden * 8 // 3 // 16 * 16

    @property
    def heads(self) -> int:
        return max(2, self.hidden // 64)

    @property
    def backbone(self) -> int:
        """Weights of the layers, which every token passes."""
        return self.layers * (4 * self.hidden**2 + 3 * self.hidden * self.intermediate)

    @property
    def parameters(self) -> int:
        return self.backbone + 2 * self.vocabulary * self.hidden + (2 * self.layers + 1) * self.hidden


SIZES = {
    "tiny": Size(2, 128, 1024),
    "small": Size(6, 384, 4096),
    "medium": Size(8, 640, 4096),
    "small-8k": Size(6, 384, 8192),
    "small-32k": Size(6, 384, 32768),
    "small-128k": Size(6, 384, 131072),
}
PRECISIONS = ("float32", "bf16-mixed", "bf16-true")
SIDES = ("ours", "trl")
PEER = "1.16"
PPO_PEER = "1.12"
"""The last TRL with PPO."""
ONLINE = ("ppo", "ppo-separate", "rloo", "grpo", "online-dpo")
REAL = ("reward", "sft")
"""Kinds of work on texts as long as they are."""
KINDS = (*ONLINE, "dpo", *REAL)
MAX_REAL_LENGTH = 512


@dataclass(frozen=True)
class Work:
    """An update: `batch` prompts (pairs, rows) of `prompt` tokens, `responses` responses of `length` tokens to each.

    A length of 0 means texts as they are, up to `MAX_REAL_LENGTH` tokens.
    """

    kind: str
    prompt: int
    responses: int
    length: int
    batch: int

    @property
    def shape(self) -> str:
        return f"{self.prompt}+{self.responses}x{self.length}" if self.length else f"up to {MAX_REAL_LENGTH}"

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.shape.replace(' ', '-')}-{self.batch}"

    @property
    def epochs(self) -> int:
        return 4 if self.kind.startswith("ppo") else 1

    @property
    def rows(self) -> int:
        """Responses of an update."""
        return self.batch * self.responses

    @property
    def tokens(self) -> int:
        """Of an optimiser step, each prompt counted once."""
        return self.batch * (self.prompt + self.responses * self.length)

    def for_trl(self) -> Work:
        """TRL's PPO has a separate critic whatever is asked; its online DPO writes two responses, so it gets more prompts."""
        if self.kind == "online-dpo" and self.responses != 2:
            return replace(self, batch=self.rows // 2, responses=2)
        return replace(self, kind="ppo") if self.kind == "ppo-separate" else self


EQUAL_WORK = (
    Work("ppo", 64, 1, 64, 32),
    Work("ppo-separate", 64, 1, 64, 32),
    Work("rloo", 64, 4, 64, 8),
    Work("rloo", 256, 8, 64, 8),
    Work("grpo", 64, 4, 64, 8),
    Work("online-dpo", 64, 2, 64, 16),
    Work("online-dpo", 64, 4, 64, 8),
    Work("online-dpo", 256, 8, 64, 8),
    Work("dpo", 64, 2, 64, 16),
    Work("dpo", 256, 2, 64, 16),
    Work("reward", 0, 2, 0, 16),
    Work("sft", 0, 1, 0, 32),
)
BASE = Work("rloo", 64, 4, 64, 8)
"""What `sweep` changes one thing of at a time."""
SWEEPS: dict[str, tuple[tuple[float, str, Work], ...]] = {
    "model, M parameters": tuple(
        (round(SIZES[name].parameters / 1e6, 1), name, BASE) for name in ("tiny", "small", "medium")
    ),
    "prompt, tokens": tuple((n, "small", replace(BASE, prompt=n)) for n in (16, 64, 256, 512)),
    "response, tokens": tuple((n, "small", replace(BASE, length=n)) for n in (16, 64, 128, 256)),
    "responses a prompt": tuple((n, "small", replace(BASE, responses=n)) for n in (2, 4, 8, 16)),
    "prompts an update": tuple((n, "small", replace(BASE, batch=n)) for n in (2, 4, 8, 16)),
}
MEMORY = {
    "vocabulary": tuple(
        (SIZES[name].vocabulary, name, EQUAL_WORK[0]) for name in ("small-8k", "small-32k", "small-128k")
    ),
    "responses a prompt": tuple((n, "small", replace(EQUAL_WORK[0], responses=n, batch=8)) for n in (1, 2, 4, 8)),
}
PIECES = (1, 2, 4)
CUT_WORK = tuple(work for work in EQUAL_WORK if work.kind in ("ppo", "ppo-separate", "dpo") or work.name == BASE.name)
"""What `micro_batches` takes in so many passes."""


@dataclass(frozen=True)
class Job:
    """One measurement, in a process of its own."""

    side: str
    work: Work
    size: str
    precision: str
    updates: int
    warmup: int
    threads: int
    scored_by: str = "model"
    """Who scores the responses of PPO: a reward `model` as large as the policy, or a `function`, as in all other work."""
    micro_batches: int = 0
    """Passes with gradient that an optimiser step is taken in; 0: as many as each side takes by default."""

    @property
    def name(self) -> str:
        scored = "" if self.scored_by == "model" else f"-by-{self.scored_by}"
        cut = f"-in-{self.micro_batches}" if self.micro_batches else ""
        return f"{self.side}-{self.work.name}{scored}-{self.size}-{self.precision}{cut}"

    @property
    def total(self) -> int:
        """Updates that the process makes; where lengths are real, whole passes, the first of which is the warm-up."""
        return 2 * self.updates if self.work.kind in REAL else self.warmup + self.updates

    @property
    def rows(self) -> int:
        """Rows of data that it reads."""
        return self.work.batch * (self.updates if self.work.kind in REAL else self.total)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, values: dict[str, Any]) -> Job:
        return cls(**{**values, "work": Work(**values["work"])})


MANY_TOKENS = 10_000
"""Of an update; of so long ones two are enough."""


def equal_jobs(
    kinds: Iterable[str],
    sizes: Iterable[str],
    precisions: Iterable[str],
    sides: Iterable[str],
    updates: int,
    **options: int,
) -> Iterator[Job]:
    """Ours and TRL's of the same work side by side, so that a drift of the machine meets both; TRL's PPO once."""
    kinds, sides, seen = list(kinds), list(sides), set()
    for size in sizes:
        for precision in precisions:
            for work in (w for w in EQUAL_WORK if w.kind in kinds):
                long = size != "tiny" and work.rows * (work.prompt + work.length) > MANY_TOKENS
                for side in sides:
                    given = work.for_trl() if side == "trl" else work
                    job = Job(side, given, size, precision, min(updates, 2) if long else updates, **options)
                    if job.name not in seen:
                        seen.add(job.name)
                        yield job
