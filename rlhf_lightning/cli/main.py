"""The command line: a registry of subcommands, and the status that a command ends with."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from types import ModuleType

from rlhf_lightning import __version__
from rlhf_lightning.cli.failures import user_error
from rlhf_lightning.cli.openmp import sleep_when_idle
from rlhf_lightning.cli.parser import CommandParser
from rlhf_lightning.cli.plain_values import check_words
from rlhf_lightning.errors import UserError, nearest, text_of
from rlhf_lightning.run.signals import NOTED, StoppedBySignal

COMMANDS = {
    "show": "rlhf_lightning.cli.show",
    "init": "rlhf_lightning.cli.init",
    "schema": "rlhf_lightning.cli.schema",
    "report": "rlhf_lightning.report.command",
    "tune": "rlhf_lightning.cli.tune",
    "compare": "rlhf_lightning.cli.compare",
    "chat": "rlhf_lightning.cli.chat",
    "feedback": "rlhf_lightning.feedback.command",
    "loop": "rlhf_lightning.cli.loop",
}
"""Subcommand: its module, which has `HELP`, `arguments(parser)` and `run(options) -> int` and imports nothing heavy.

A module with `TAKES_OVERRIDES = True` gets the words that its parser does not know as `options.overrides`."""

LIGHTNING = {
    "fit": "train: supervised, a reward model, or a policy, as the config says",
    "validate": "measure on the validation data",
    "test": "measure on the test data",
    "predict": "generate responses as JSON lines",
}
"""Subcommands of Lightning's command line."""

USAGE = f"""usage: rlhf_lightning {{{",".join(LIGHTNING)}}} --config NAME [--config NAME ...] [--KEY VALUE ...]
       rlhf_lightning {{{",".join(COMMANDS)}}} ...
       rlhf_lightning --version"""

CONFIGS = """A config is searched for as given, then in ./configs, then in the package; later configs overlay earlier ones.
`rlhf_lightning fit --help` lists every key, `rlhf_lightning fit --config ppo.yaml --print_config` prints a whole config.
`rlhf_lightning COMMAND --help` lists the arguments of a command."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 for success, 2 for something that the user can fix, 1 for any other error, 130 after an interruption,
        128 plus the number of the signal that stopped the run, 143 for SIGTERM, and 141 after a closed pipe.
    """
    try:
        status = _run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # `… | head` has read enough
        return _close_output()
    except StoppedBySignal as stop:
        return _report(str(stop), stop.status) if os.environ.get("LOCAL_RANK", "0") == "0" else stop.status
    except BaseException as error:  # a plug-in may raise what is no Exception
        if NOTED.number is not None:
            return _report(NOTED.said, NOTED.status)
        if isinstance(error, KeyboardInterrupt):
            return _report("interrupted", 130)
        return _status_of(error) if isinstance(error, SystemExit) else _report_error(error)


def help_text() -> str:
    """Make the page of `--help` from the registry."""
    rows = {**LIGHTNING, **{name: command(name).HELP for name in COMMANDS}}
    width = max(map(len, rows)) + 2
    return "\n\n".join([USAGE, "\n".join(f"{name:{width}}{text}" for name, text in rows.items()), CONFIGS])


def command(name: str) -> ModuleType:
    """Import the module of a subcommand."""
    return import_module(COMMANDS[name])


def _run(words: list[str]) -> int:
    first = words[0] if words else ""
    if first in COMMANDS:
        check_words(words)
        module = command(first)
        parser = CommandParser(prog=f"rlhf_lightning {first}", description=module.HELP)
        module.arguments(parser)
        if not getattr(module, "TAKES_OVERRIDES", False):
            return int(module.run(parser.parse_args(words[1:])))
        options, overrides = parser.parse_known_args(words[1:])
        options.overrides = overrides
        return int(module.run(options))
    if first in LIGHTNING:
        sleep_when_idle()
        from rlhf_lightning.cli.reading import run

        run(words)
    elif first in ("-h", "--help"):
        print(help_text())
    elif first == "--version":
        print(__version__)
    else:
        fault = f"there is no subcommand {first!r}" if first[:1] not in ("", "-") else "the subcommand comes first"
        raise UserError(f"{fault}; {nearest(first, (*LIGHTNING, *COMMANDS))}")
    return 0


def _close_output() -> int:
    """Send what is left of the output nowhere, so that Python's last flush does not fail; return the status of SIGPIPE."""
    with suppress(OSError, ValueError):  # of an output that is no file, as in a notebook
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141


def _status_of(end: SystemExit) -> int:
    """Return the status of a run that Lightning ended: 1 after an interruption, none after SIGTERM."""
    if isinstance(end.__context__, KeyboardInterrupt):
        return _report("interrupted", 130)
    if type(end).__name__ == "SIGTERMException":
        return _report("terminated", 143)
    return end.code if isinstance(end.code, int) else 0 if end.code is None else 1


def _report_error(error: BaseException) -> int:
    cause = user_error(error)
    if cause is not None:
        return _report(f"error: {text_of(cause)}", 2)
    return _report(f"error: {type(error).__name__}: {text_of(error)[:500]} (RLHF_LIGHTNING_DEBUG=1 shows where)", 1)


def _report(line: str, status: int) -> int:
    if os.environ.get("RLHF_LIGHTNING_DEBUG") == "1":
        import traceback

        traceback.print_exc()
    print(line, file=sys.stderr, flush=True)
    return status
