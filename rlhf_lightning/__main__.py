"""`python -m rlhf_lightning`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rlhf_lightning.run.signals import NOTED


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; see `rlhf_lightning.cli.main`. SIGINT and SIGTERM are noted from here on."""
    with NOTED.running():
        try:
            from rlhf_lightning.cli.main import main as run
        except BaseException:
            if NOTED.number is None:
                raise
            print(NOTED.said, file=sys.stderr, flush=True)
            return NOTED.status
        return run(argv)


if __name__ == "__main__":
    sys.exit(main())
