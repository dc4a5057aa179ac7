"""`python -m rlhf_lightning`."""

from __future__ import annotations

import sys

from rlhf_lightning.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
