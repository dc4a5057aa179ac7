"""`python -m rlhf_lightning <subcommand>`: finds the config, names the run's folder, and only then loads anything heavy."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from rlhf_lightning.errors import UserError
from rlhf_lightning.run.arguments import Arguments, initialize


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 when it is done, 2 for something that the user can mend, 1 for anything else, 130 when interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if words[:1] == ["init"]:
            return initialize(words[1:])
        arguments = Arguments.of(words)
        if arguments.folder is not None and int(os.environ.get("LOCAL_RANK", "0")) == 0:
            print(f"run: {arguments.folder}", flush=True)
        from rlhf_lightning.cli import run

        run(arguments)
    except KeyboardInterrupt:
        return _fault("interrupted", 130)
    except Exception as error:
        cause = _user_error(error)
        if cause is not None:
            return _fault(f"error: {' '.join(str(cause).split())}", 2)
        text = " ".join(str(error).split())[:500]
        return _fault(f"error: {type(error).__name__}: {text} (RLHF_LIGHTNING_DEBUG=1 shows where)", 1)
    if arguments.folder is not None and int(os.environ.get("LOCAL_RANK", "0")) == 0:
        print(f"run: {arguments.folder}", flush=True)
    return 0


def _user_error(error: BaseException | None) -> UserError | None:
    """The fault that a user can mend, also inside what jsonargparse or Lightning made of it."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__ or error.__context__
    return error


def _fault(line: str, status: int) -> int:
    if os.environ.get("RLHF_LIGHTNING_DEBUG") == "1":
        import traceback

        traceback.print_exc()
    print(line, file=sys.stderr, flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
