"""Tables, plots and CSV files of what was measured, between the markers of benchmarks/README.md."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from peers import flops
from peers.clock import PHASES
from peers.work import CUT_WORK, EQUAL_WORK, MEMORY, PIECES, PRECISIONS, SIZES, SWEEPS, Job, Work

HERE = Path(__file__).parent.parent
Result = dict[str, Any]
Results = dict[str, Result]
LABELS = {
    "ppo": "PPO, critic on the policy's backbone",
    "ppo-separate": "PPO, separate critic",
    "rloo": "RLOO",
    "grpo": "GRPO",
    "online-dpo": "DPO, online",
    "dpo": "DPO, offline",
    "reward": "reward model",
    "sft": "SFT",
}
FIELDS = [
    "study",
    "side",
    "kind",
    "shape",
    "batch",
    "size",
    "precision",
    "pieces",
    "seconds",
    "cpu_seconds",
    "fastest",
    "slowest",
]
FIELDS += ["tokens", "tokens_per_second", "peak_mib", "base_mib", *PHASES, "load"]


def write(studies: dict[str, Results], out: Path) -> None:
    """Everything that there are numbers for."""
    folder = HERE / "results"
    folder.mkdir(exist_ok=True)
    _write_csv(folder / "speed.csv", studies)
    machine = json.loads((out / "machine.json").read_text()) if (out / "machine.json").exists() else None
    tables = {
        "equal work": equal_table(studies["equal"]),
        "phases": phase_table(studies["equal"], machine),
        "pieces": pieces_table(studies["pieces"]),
        "growth": growth_table(SWEEPS, studies["sweep"]),
        "memory": memory_table(studies["memory"]),
    }
    for name, text in tables.items():
        if text:
            print(f"\n{name}\n{text}")
            _between_markers(name, text)
    if machine:
        _between_markers("machine", machine_text(machine))
    if studies["equal"]:
        draw_ratios(studies["equal"], folder / "speed.png")
    if studies["sweep"]:
        draw_growth(studies["sweep"], folder / "growth.png")


def found(
    results: Results, side: str, work: Work, size: str, precision: str, scored_by: str = "model", micro_batches: int = 0
) -> Result | None:
    chosen = work.for_trl() if side == "trl" else work
    return results.get(Job(side, chosen, size, precision, 0, 0, 0, scored_by, micro_batches).name)


def above(result: Result) -> float:
    """MiB that the work took, over the interpreter and its libraries."""
    return result["peak_mib"] - result["base_mib"]


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) if rows else ""


def each_pair(results: Results) -> list[tuple[str, str, Work, Result, Result]]:
    """Size, precision, work, ours and TRL's, where there are both."""
    pairs = []
    for size in SIZES:
        for precision in PRECISIONS:
            for work in EQUAL_WORK:
                ours, theirs = (found(results, side, work, size, precision) for side in ("ours", "trl"))
                if ours and theirs:
                    pairs.append((size, precision, work, ours, theirs))
    return pairs


def equal_table(results: Results) -> str:
    header = ["model", "precision", "work", "tokens", "ours, s", "TRL, s", "TRL / ours", "in CPU time", "ours, MiB"]
    header += ["TRL, MiB", "ours / TRL"]
    rows = []
    for size, precision, work, ours, theirs in each_pair(results):
        memory = [above(ours), above(theirs)]
        rows.append(
            [
                *(size, precision, LABELS[work.kind], work.shape),
                *(f"{r['seconds']:.2f}" for r in (ours, theirs)),
                f"**{theirs['seconds'] / ours['seconds']:.2f}**",
                f"{theirs['cpu_seconds'] / ours['cpu_seconds']:.2f}",
                *(f"{x:.0f}" for x in memory),
                f"{memory[0] / memory[1]:.0%}",
            ]
        )
    return table(header, rows)


def pieces_table(results: Results) -> str:
    """The same optimiser steps in one pass and in several; memory against that of TRL's in one pass, and in as many."""
    header = ["work", "tokens", "passes", "ours, s", "TRL, s", "TRL / ours", "ours, MiB", "TRL, MiB", "ours / TRL"]
    header += ["ours / TRL in one"]
    rows = []
    for work in CUT_WORK:
        whole = found(results, "trl", work, "small", "float32", micro_batches=1)
        for count in PIECES:
            ours, theirs = (
                found(results, side, work, "small", "float32", micro_batches=count) for side in ("ours", "trl")
            )
            if ours and theirs and whole:
                seconds, memory = [ours["seconds"], theirs["seconds"]], [above(ours), above(theirs)]
                rows.append(
                    [
                        *(LABELS[work.kind], work.shape, str(count), *(f"{x:.2f}" for x in seconds)),
                        *(f"{seconds[1] / seconds[0]:.2f}", *(f"{x:.0f}" for x in memory)),
                        *(f"{memory[0] / memory[1]:.0%}", f"{memory[0] / above(whole):.0%}"),
                    ]
                )
    return table(header, rows)


def phase_table(results: Results, machine: dict[str, Any] | None) -> str:
    """Shares of an update's time on either side; the part of the machine's matrix rate that each phase of ours reaches."""
    header = ["model", "precision", "work", "tokens", "side", *PHASES, "tokens / s"]
    header += ["update: needed", "as rows", "reference: needed", "generate: bandwidth"] if machine else []
    rows = []
    for size in SIZES:
        for precision in PRECISIONS:
            for work in EQUAL_WORK:
                for side in ("ours", "trl"):
                    result = found(results, side, work, size, precision)
                    if result:
                        head = [size, precision, LABELS[work.kind], work.shape, {"ours": side}.get(side, "TRL")]
                        rows.append(head + _shares(result) + (_reached(result, machine) if machine else []))
    return table(header, rows)


def _shares(result: Result) -> list[str]:
    return [f"{result['phases'][p] / result['seconds']:.0%}" for p in PHASES] + [f"{result['tokens_per_second']:.0f}"]


def _reached(result: Result, machine: dict[str, Any]) -> list[str]:
    """Of the rate of matrix products in the precision, and of the memory's; blank where a phase is not there."""
    job = Job.of(result["job"])
    if job.side == "trl" and job.work.kind == "ppo":  # its critic is a model of its own
        job = Job.of({**result["job"], "work": {**result["job"]["work"], "kind": "ppo-separate"}})
    size, narrow = SIZES[job.size], job.precision != "float32"
    rates = machine["bfloat16" if narrow else "float32"]
    best = max(rates.values()) * 1e9
    counts = {
        needed: flops.phases(job.work, size, needed, result["lengths"], job.scored_by == "model")
        for needed in (True, False)
    }
    cells = []
    for phase, needed in (("update", True), ("update", False), ("reference", True)):
        seconds = result["phases"][phase]
        cells.append(f"{counts[needed][phase] / seconds / best:.0%}" if counts[needed][phase] and seconds > 0 else "")
    generating = result["phases"]["generate"]
    width = 2 if job.precision == "bf16-true" else 4
    read = flops.generation_bytes(job.work, size, width) / generating if generating else 0
    return [*cells, f"{read / machine['bandwidth'] / 1e9:.0%}" if generating else ""]


def machine_text(machine: dict[str, Any]) -> str:
    header = ["precision", "2048 × 2048 × 2048", "shapes of tiny", "shapes of small"]
    rows = [
        [name, *(f"{machine[name][key]:.0f}" for key in ("square", "tiny", "small"))]
        for name in ("float32", "bfloat16")
    ]
    tail = f"Memory: {machine['bandwidth']:.0f} GB/s of a copy, read and written, with {machine['threads']} threads."
    return f"{table(header, rows)}\n\nGFLOP/s. {tail}"


def growth_table(sweeps: dict[str, Any], results: Results) -> str:
    rows = []
    for name, points in sweeps.items():
        for at, size, work in points:
            result = found(results, "ours", work, size, "float32")
            if result:
                seconds = [f"{result['seconds']:.2f}", *(f"{result['phases'][p]:.2f}" for p in PHASES)]
                rows.append([name, str(at), *seconds, f"{result['tokens_per_second']:.0f}", f"{above(result):.0f}"])
    return table(["grows", "to", "seconds", *PHASES, "tokens / s", "MiB"], rows)


def memory_table(results: Results) -> str:
    """MiB above the base; less what the embedding and the head weigh and need, which grow with the vocabulary and must."""
    rows = []
    for name, points in MEMORY.items():
        for at, size, work in points:
            result = found(results, "ours", work, size, "float32", "function")
            if result:
                weights = 2 * SIZES[size].vocabulary * SIZES[size].hidden * 4 / 2**20
                own = 6 * weights  # policy, its gradient, that of the piece at hand, two moments, reference
                numbers = (above(result), own, above(result) - own)
                rows.append([name, str(at), str(round(result["tokens"])), *(f"{x:.0f}" for x in numbers)])
    return table(["grows", "to", "tokens", "MiB", "of which for embedding and head", "the rest"], rows)


def _write_csv(path: Path, studies: dict[str, Results]) -> None:
    with path.open("w", newline="") as file:
        response_generator = csv.DictWriter(file, FIELDS)
        response_generator.writeheader()
        for study, results in studies.items():
            for result in results.values():
                job = Job.of(result["job"])
                row = {
                    "study": study,
                    "side": job.side,
                    "size": job.size,
                    "precision": job.precision,
                    "pieces": job.micro_batches,
                }
                row |= {"kind": job.work.kind, "shape": job.work.shape, "batch": job.work.batch}
                row |= {name: result[name] for name in FIELDS if name in result} | result["phases"]
                response_generator.writerow(row | {"load": result["load"][0]})


def _between_markers(study: str, text: str) -> None:
    page = HERE / "README.md"
    whole, begin, end = page.read_text(), f"<!-- {study} -->\n", f"<!-- end of {study} -->"
    head, rest = whole.split(begin)
    page.write_text(head + begin + text + "\n" + end + rest.split(end, 1)[1])


def draw_ratios(results: Results, path: Path) -> None:
    """How many times as fast as TRL, and the part of its memory, of every kind of work."""
    from matplotlib.figure import Figure

    pairs = each_pair(results)
    groups = list(dict.fromkeys((size, precision) for size, precision, *_ in pairs))
    works = [work for work in EQUAL_WORK if any(pair[2] == work for pair in pairs)]
    if not pairs:
        return
    figure = Figure(figsize=(12, 1 + 0.12 * len(works) * (len(groups) + 1)), layout="constrained")
    titles = ("time: TRL / ours, higher is better", "memory above the libraries' own: ours / TRL, lower is better")
    for place, title in enumerate(titles):
        panel = figure.add_subplot(1, 2, place + 1)
        for i, group in enumerate(groups):
            bars = [
                (
                    works.index(w) + 0.85 * i / len(groups),
                    t["seconds"] / o["seconds"] if place == 0 else above(o) / above(t),
                )
                for size, precision, w, o, t in pairs
                if (size, precision) == group
            ]
            heights, values = zip(*bars, strict=True)
            panel.barh(heights, values, 0.8 / len(groups), label=", ".join(group), align="edge", color=f"C{i}")
        panel.axvline(1, color="black", lw=0.8)
        names = [f"{LABELS[w.kind]}\n{w.shape}" for w in works] if place == 0 else [""] * len(works)
        panel.set_yticks([i + 0.4 for i in range(len(works))], names, fontsize=8)
        panel.set_ylim(len(works), -0.1)
        panel.set_title(title, fontsize=10)
        panel.spines[["top", "right"]].set_visible(False)
    panel.legend(fontsize=8, loc="lower right")
    figure.savefig(path, dpi=120)


def draw_growth(results: Results, path: Path) -> None:
    """Seconds of an update by phase, and memory, against one thing at a time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16, 5.5), layout="constrained")
    for place, (name, points) in enumerate(SWEEPS.items()):
        known = [(at, found(results, "ours", work, size, "float32")) for at, size, work in points]
        series = [(at, result) for at, result in known if result]
        if not series:
            continue
        x = [at for at, _ in series]
        upper, lower = (figure.add_subplot(2, len(SWEEPS), place + 1 + row * len(SWEEPS)) for row in (0, 1))
        upper.stackplot(x, *([r["phases"][p] for _, r in series] for p in PHASES), labels=PHASES, alpha=0.8)
        lower.plot(x, [above(r) for _, r in series], "o-", color="C4")
        lower.set_xlabel(name)
        for panel in (upper, lower):
            panel.set_ylim(bottom=0)
            panel.spines[["top", "right"]].set_visible(False)
        if place == 0:
            upper.set_ylabel("seconds an update")
            lower.set_ylabel("MiB above the libraries")
            upper.legend(fontsize=8, loc="upper left")
    figure.savefig(path, dpi=120)
