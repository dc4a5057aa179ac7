"""One of two processes that run command after command together: each line of its input is a list of words.

Starting a process costs seconds, most of them imports; a pair that stays makes dozens of runs affordable.
"""

from __future__ import annotations

import json
import os
import sys
import traceback

import torch


def main() -> None:
    torch.set_num_threads(1)
    answers = os.fdopen(int(sys.argv[1]), "w", buffering=1)
    from rlhf_lightning.__main__ import main as command
    from rlhf_lightning.run import curves

    curves.sample = lambda rows, path: None  # the other process would wait for it
    for line in sys.stdin:
        try:
            status = command(json.loads(line))
        except BaseException:
            traceback.print_exc()
            status = -1
        sys.stdout.flush()
        answers.write(f"{status}\n")


if __name__ == "__main__":
    main()
