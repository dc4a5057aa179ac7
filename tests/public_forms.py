"""Imitations of public data forms, three rows each, and what each data module makes of them.

The table in docs/data.md is made of this by `python tests/public_forms.py`, and a test holds it to this.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Row = dict[str, Any]
PAGE = Path(__file__).parents[1] / "docs" / "data.md"
BEGIN, END = "<!-- forms: begin -->", "<!-- forms: end -->"
TASKS = {"SFT": "InstructionData", "reward": "PreferenceData", "DPO": "PreferenceData", "KTO": "LabelledData"}


def u(text: str) -> Row:
    return {"role": "user", "content": text}


def a(text: str) -> Row:
    return {"role": "assistant", "content": text}


@dataclass
class Cell:
    """What one task makes of a form: rows as `learned` says, or a refusal that holds `refused`."""

    learned: tuple[str, ...] = ()
    """Texts of the answers that are learned (of pairs: the better ones), of all three rows."""
    options: dict[str, Any] = field(default_factory=dict)
    """Of the data module."""
    module: str | None = None
    """By default that of the task."""
    refused: str | None = None

    @property
    def said(self) -> str:
        if self.refused:
            return f"refused: “{self.refused}”"
        how = [f"`{self.module}`"] if self.module else []
        how += [f"`{name}: {json.dumps(value).replace(chr(34), '')}`" for name, value in self.options.items()]
        return ", ".join(how) or "as is"


@dataclass
class Form:
    name: str
    rows: list[Row]
    cells: dict[str, Cell]


NO_PAIRS = "has no column 'chosen'"
NO_LABELS = "has no column 'label'"
RATINGS = "these are rated answers"
PAIRS = "these are pairs or rated answers"
GOOD = ("good 0", "good 1", "good 2")
BOTH = ("good 0", "good 1", "good 2", "bad 0", "bad 1", "bad 2")


def instructions_only() -> dict[str, Cell]:
    refused = Cell(refused=NO_PAIRS)
    return {"SFT": Cell(GOOD), "reward": refused, "DPO": refused, "KTO": Cell(refused=NO_LABELS)}


def pairs(sft: Cell) -> dict[str, Cell]:
    return {"SFT": sft, "reward": Cell(GOOD), "DPO": Cell(GOOD), "KTO": Cell(BOTH)}


def tree(i: int) -> Row:
    replies = [
        {"text": f"bad {i}", "role": "assistant", "rank": 1, "replies": []},
        {"text": f"good {i}", "role": "assistant", "rank": 0, "replies": []},
    ]
    return {"prompt": {"text": f"Q{i}", "role": "prompter", "replies": replies}}


def steer(i: int) -> list[Row]:
    return [
        {"prompt": f"Q{i}", "response": f"{said} {i}", "helpfulness": rating}
        for said, rating in (("good", 4), ("bad", 1))
    ]


HH = "\n\nHuman: Q{i}\n\nAssistant: "
FORMS = [
    Form(
        "prompt and completion",
        [{"prompt": f"Q{i}", "completion": f"good {i}"} for i in range(3)],
        instructions_only(),
    ),
    Form(
        "OpenAI's fine-tuning format (messages, tools, weight)",
        [
            {
                "messages": [u(f"Q{i}"), {**a("BAD"), "weight": 0}, u("again"), a(f"good {i}")],
                "tools": [{"type": "function", "function": {"name": "f"}}],
            }
            for i in range(3)
        ],
        instructions_only(),
    ),
    Form(
        "ShareGPT (conversations, system, tools)",
        [
            {
                "conversations": [{"from": "human", "value": f"Q{i}"}, {"from": "gpt", "value": f"good {i}"}],
                "system": "Be kind.",
                "tools": '[{"name": "f"}]',
            }
            for i in range(3)
        ],
        instructions_only(),
    ),
    Form(
        "Alpaca (instruction, input, output)",
        [{"instruction": "Say it.", "input": f"Q{i}", "output": f"good {i}"} for i in range(3)],
        instructions_only(),
    ),
    Form(
        "HH-RLHF (chosen and rejected dialogues)",
        [{"chosen": HH.format(i=i) + f"good {i}", "rejected": HH.format(i=i) + f"bad {i}"} for i in range(3)],
        pairs(Cell(GOOD, {"columns": {"messages": "chosen"}})),
    ),
    Form(
        "UltraFeedback, binarized",
        [
            {
                "prompt": f"Q{i}",
                "chosen": [u(f"Q{i}"), a(f"good {i}")],
                "rejected": [u(f"Q{i}"), a(f"bad {i}")],
                "messages": [u(f"Q{i}"), a(f"good {i}")],
                "score_chosen": 8.0,
                "score_rejected": 3.0,
            }
            for i in range(3)
        ],
        pairs(Cell(GOOD)),
    ),
    Form(
        "soft labels (prompt, chosen, rejected, probability)",
        [
            {"prompt": "Q0", "chosen": "good 0", "rejected": "bad 0", "probability": 0.8},
            {"prompt": "Q1", "chosen": "bad 1", "rejected": "good 1", "probability": 0.3},
            {"prompt": "Q2", "chosen": "good 2", "rejected": "bad 2", "probability": None},
        ],
        pairs(Cell(refused=PAIRS)),
    ),
    Form(
        "LLaMA-Factory's pairs ({from, value})",
        [
            {
                "conversations": [{"from": "human", "value": f"Q{i}"}],
                "chosen": {"from": "gpt", "value": f"good {i}"},
                "rejected": {"from": "gpt", "value": f"bad {i}"},
            }
            for i in range(3)
        ],
        pairs(Cell(GOOD, {"columns": {"prompt": "conversations", "completion": "chosen"}})),
    ),
    Form(
        "OpenAI's preference format",
        [
            {
                "input": {"messages": [u(f"Q{i}")], "tools": []},
                "preferred_output": [a(f"good {i}")],
                "non_preferred_output": [a(f"bad {i}")],
            }
            for i in range(3)
        ],
        pairs(Cell(refused=PAIRS)),
    ),
    Form(
        "HelpSteer (a row per rated answer)",
        [row for i in range(3) for row in steer(i)],
        {
            "SFT": Cell(refused=RATINGS),
            "reward": Cell(BOTH, module="RatingData"),
            "DPO": Cell(refused=NO_PAIRS),
            "KTO": Cell(refused="has no column 'label'"),
        },
    ),
    Form(
        "KTO (prompt, completion, label)",
        [{"prompt": f"Q{i}", "completion": f"{'bad' if i == 1 else 'good'} {i}", "label": i != 1} for i in range(3)],
        {
            "SFT": Cell(("good 0", "good 2")),
            "reward": Cell(("good 0", "bad 1", "good 2"), module="LabelledData"),
            "DPO": Cell(refused=NO_PAIRS),
            "KTO": Cell(("good 0", "bad 1", "good 2")),
        },
    ),
    Form("Open Assistant's trees (and rows of a message each)", [tree(i) for i in range(3)], pairs(Cell(GOOD))),
    Form(
        "Stack Exchange (question, answers with pm_score)",
        [
            {
                "question": f"Q{i}",
                "answers": [{"text": f"bad {i}", "pm_score": 0 if i < 2 else 5}, {"text": f"good {i}", "pm_score": 5}],
            }
            for i in range(3)
        ],
        {
            "SFT": Cell(refused=PAIRS),
            "reward": Cell(("good 0", "good 1")),
            "DPO": Cell(("good 0", "good 1")),
            "KTO": Cell(("good 0", "good 1", "bad 0", "bad 1")),
        },
    ),
]
"""Of Stack Exchange the third row is a tie, which teaches nothing."""


def table() -> str:
    """The table of docs/data.md."""
    lines = ["| form | SFT | reward model | DPO | KTO (labels one by one) |", "| --- | --- | --- | --- | --- |"]
    lines += [f"| {form.name} | {' | '.join(form.cells[task].said for task in TASKS)} |" for form in FORMS]
    return "\n".join(lines)


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n{table()}\n{END}{after}", encoding="utf-8")
