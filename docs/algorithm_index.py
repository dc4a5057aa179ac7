"""The index of algorithms in docs/algorithms.md, made from their docstrings and declarations.

usage: python docs/algorithm_index.py     writes the table between the markers of docs/algorithms.md

tests/docs/test_algorithm_index.py fails where the page and the code differ.
"""

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from rlhf_lightning import algorithms
from rlhf_lightning.algorithms import Algorithm

PAGE = Path(__file__).parent / "algorithms.md"
BEGIN, END = "<!-- index: python docs/algorithm_index.py -->\n", "<!-- end of index -->\n"
ARXIV = re.compile(r"\b\d{4}\.\d{5}\b")


def kinds(base: type[Algorithm] = Algorithm) -> Iterator[type[Algorithm]]:
    """Yield every algorithm of the package."""
    for kind in base.__subclasses__():
        if not inspect.isabstract(kind) and kind.__module__.startswith(f"{algorithms.__name__}."):
            yield kind
        yield from kinds(kind)


def minimises(kind: type[Algorithm]) -> str:
    """Return the first sentence of a docstring, without its verb."""
    first = (kind.__doc__ or "").split("\n\n")[0]
    return " ".join(first.split()).removeprefix("Minimise ").rstrip(".")


def reads(kind: type[Algorithm]) -> str:
    """Return what an algorithm reads by default besides the policy and its data."""
    found = {
        "teacher": kind.needs_teacher,
        "reference": kind().needs_reference and not kind.needs_teacher,
        "critic": kind.needs_values,
        "greedy response": kind.greedy_baseline,
    }
    return ", ".join(name for name, needed in found.items() if needed) or "nothing"


def config(kind: type[Algorithm]) -> str:
    """Return the shipped config of an algorithm, or the words that swap it into one."""
    shipped = sorted((PAGE.parents[1] / "configs").glob("*.yaml"))
    own = [path.name for path in shipped if re.search(rf"class_path: {kind.__name__}$", path.read_text(), re.MULTILINE)]
    base = "dpo_offline.yaml" if "pairs" in kind.learns_from else "ppo.yaml"
    return ", ".join(f"`{name}`" for name in own) or f"`{base} --model.algorithm {kind.__name__}`"


def index() -> str:
    """Return the table, one row per algorithm."""
    lines = [
        "| algorithm | minimises | learns from | reads | paper | config |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for kind in sorted(kinds(), key=lambda kind: kind.__name__.lower()):
        papers = ARXIV.findall(sys.modules[kind.__module__].__doc__ or "")
        links = ", ".join(f"[{paper}](https://arxiv.org/abs/{paper})" for paper in papers)
        learns = " or ".join(kind.learns_from)
        lines.append(f"| `{kind.__name__}` | {minimises(kind)} | {learns} | {reads(kind)} | {links} | {config(kind)} |")
    return "\n".join(lines) + "\n"


def with_index(page: str) -> str:
    """Return the page with the table between its markers."""
    head, rest = page.split(BEGIN)
    return head + BEGIN + index() + END + rest.split(END, 1)[1]


if __name__ == "__main__":
    PAGE.write_text(with_index(PAGE.read_text()))
