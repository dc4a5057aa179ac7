"""A report as Markdown, for a pull request."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf_lightning.report.content import Report


def markdown_report(report: Report) -> str:
    """Format configs, warnings, the held-out metrics and the time by phase as Markdown; curves and samples are on the page."""
    blocks = [f"## {_cell(report.title)}"]
    for study in report.studies:
        blocks += ["### Tuning", _table(study.columns, study.rows)]
        rows = [[key, f"{value:.2f}"] for key, value in study.importances.items()]
        blocks += [_table(["parameter", "importance"], rows)] if rows else []
    if report.keys:
        rows = [[run.name, *(run.config.get(key, "") for key in report.keys)] for run in report.runs]
        blocks += ["### Configs", _table(["run", *report.keys], rows)]
    if report.warnings:
        blocks += ["### Warnings", "\n".join(f"- **{_cell(w.run)}**: {_cell(w.text)}" for w in report.warnings)]
    if report.main_changes:
        rows = [
            [name, c.group, c.before, c.after, c.attainable] for name, changes in report.main_changes for c in changes
        ]
        blocks += ["### Held-out metrics", _table(["metric", "run", "before", "after", "best attainable"], rows)]
    if report.phases:
        names = list(dict.fromkeys(name for each in report.phases for name in each.seconds))
        rows = [
            [
                each.run,
                *(f"{each.seconds[name]:.1f}" if name in each.seconds else "" for name in names),
                "" if each.memory is None else f"{each.memory:.2f}",
            ]
            for each in report.phases
        ]
        blocks += ["### Time and memory", _table(["run", *(f"{name}, s" for name in names), "peak, GiB"], rows)]
    return "\n\n".join(blocks) + "\n"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
    r"""Show text as it is.

    >>> print(_cell("a|b <i>"))
    a\|b &lt;i>
    """
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
