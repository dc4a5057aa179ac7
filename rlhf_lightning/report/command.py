"""`python -m rlhf_lightning report RUN [RUN …]`: one page about runs, from the files in their folders."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_lightning.errors import UserError

if TYPE_CHECKING:
    from rlhf_lightning.report.content import Report

HELP = "make one page about runs: curves, samples side by side, warnings"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the runs and the options."""
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="folder of a run, or of a study of tune")
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, help="(report.html; Markdown is printed)")
    parser.add_argument("--title", help="heading of the page")
    parser.add_argument("--markdown", action="store_true", help="Markdown for a pull request instead of a page")
    parser.add_argument(
        "--follow",
        nargs="?",
        type=float,
        const=10.0,
        metavar="SECONDS",
        help="make the page again whenever a run has new files, and have it reload itself (every %(const)g s); Ctrl-C ends it",
    )


def run(options: argparse.Namespace) -> int:
    """Make the page or the Markdown.

    Raises:
        UserError: a folder holds no run, or the page cannot be saved.
    """
    if options.follow is not None and not options.follow > 0:
        raise UserError(f"--follow is {options.follow:g}; set it to seconds above 0")
    if options.markdown and options.follow is not None:
        raise UserError("--follow reloads a page, and --markdown makes none; remove one of them")
    if options.markdown:
        return _markdown(options)
    output = options.output or Path("report.html")
    _page(options, output)
    print(f"{output} ({output.stat().st_size / 1e6:.2f} MB)", flush=True)
    if options.follow is not None:
        _follow(options, output)
    return 0


def _markdown(options: argparse.Namespace) -> int:
    from rlhf_lightning.report.markdown import markdown_report

    text = markdown_report(_report(options))
    if options.output is None:
        print(text, end="")
    else:
        save_page(options.output, text)
        print(options.output)
    return 0


def _report(options: argparse.Namespace) -> Report:
    from rlhf_lightning.report.content import report_of
    from rlhf_lightning.report.runs import read_runs
    from rlhf_lightning.report.studies import expand_studies

    folders, studies = expand_studies(options.runs)
    return report_of(read_runs(folders), options.title, studies)


def _page(options: argparse.Namespace, output: Path) -> None:
    from rlhf_lightning.report.page import html_report

    save_page(output, html_report(_report(options), options.follow))


def _follow(options: argparse.Namespace, output: Path) -> None:
    """Make the page again after every change, until the user interrupts."""
    known = _state(options.runs)
    try:
        while True:
            time.sleep(options.follow)
            if (state := _state(options.runs)) != known:
                known = state
                _page(options, output)
    except KeyboardInterrupt:
        options.follow = None
        _page(options, output)
        print(f"{output} is complete and no longer reloads", flush=True)


def _state(folders: Sequence[Path]) -> list[tuple[str, int, int]]:
    """Return names, sizes and times of the files that a page is made of."""
    paths = [path for folder in folders for pattern in ("*.*", "tables/*.jsonl") for path in folder.glob(pattern)]
    return sorted((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths)


def save_page(path: Path, text: str) -> None:
    """Save a page or a text, all or nothing.

    Raises:
        UserError: it cannot be saved there.
    """
    from rlhf_lightning.io import atomic_write

    if path.is_dir():
        raise UserError(f"{path} is a folder; set --output to a file")
    try:
        atomic_write(path, lambda partial: partial.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}; set --output to another file") from error
