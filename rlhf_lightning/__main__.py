"""`python -m rlhf_lightning <subcommand>`: finds the config, names the run's folder, and only then loads anything heavy."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from rlhf_lightning import __version__
from rlhf_lightning.cli.arguments import FOLDER_OF_RUN, Arguments
from rlhf_lightning.cli.failures import user_error
from rlhf_lightning.cli.initialize import initialize
from rlhf_lightning.run.signals import StoppedBySignal

HELP = """usage: rlhf_lightning {fit,validate,test,predict} --config NAME [--config NAME ...] [--KEY VALUE ...]
       rlhf_lightning init DIR [--force]
       rlhf_lightning --version

fit        train: supervised, a reward model, or a policy, as the config says
validate   measure on the validation data
test       measure on the test data
predict    write completions as JSON lines
init       lay down configs/ and callbacks/ for you to own

A config is looked for as given, then in ./configs, then in the package; later ones overlay earlier ones.
`rlhf_lightning fit --help` lists every key, `rlhf_lightning fit --config ppo.yaml --print_config` shows a whole config."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 when it is done, 2 for something that the user can mend, 1 for anything else, 130 when interrupted,
        128 plus the number of the signal that stopped it, 143 for SIGTERM.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if words[:1] in (["-h"], ["--help"]):
            print(HELP)
        elif words[:1] == ["--version"]:
            print(__version__)
        elif words[:1] == ["init"]:
            initialize(words[1:])
        else:
            _run(Arguments.of(words))
    except StoppedBySignal as stop:
        return _fault(str(stop), stop.status) if os.environ.get("LOCAL_RANK", "0") == "0" else stop.status
    except KeyboardInterrupt:
        return _fault("interrupted", 130)
    except SystemExit as end:
        return _ended(end)
    except Exception as error:
        cause = user_error(error)
        if cause is not None:
            return _fault(f"error: {' '.join(str(cause).split())}", 2)
        text = " ".join(str(error).split())[:500]
        return _fault(f"error: {type(error).__name__}: {text} (RLHF_LIGHTNING_DEBUG=1 shows where)", 1)
    return 0


def _run(arguments: Arguments) -> None:
    """A run between the two lines that name its folder."""
    named = arguments.folder is not None and int(os.environ.get("LOCAL_RANK", "0")) == 0
    if named:
        os.environ[FOLDER_OF_RUN] = str(arguments.folder)
        print(f"run: {arguments.folder}", flush=True)
    from rlhf_lightning.cli.lightning import run

    run(arguments)
    if named:
        print(f"run: {arguments.folder}", flush=True)


def _ended(end: SystemExit) -> int:
    """The status of a run that Lightning ended: it leaves with 1 after an interruption and with none after SIGTERM."""
    if isinstance(end.__context__, KeyboardInterrupt):
        return _fault("interrupted", 130)
    if type(end).__name__ == "SIGTERMException":
        return _fault("terminated", 143)
    return end.code if isinstance(end.code, int) else 0 if end.code is None else 1


def _fault(line: str, status: int) -> int:
    if os.environ.get("RLHF_LIGHTNING_DEBUG") == "1":
        import traceback

        traceback.print_exc()
    print(line, file=sys.stderr, flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
