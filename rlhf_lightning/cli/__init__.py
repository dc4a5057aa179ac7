"""The command line: find configs, check them, run a subcommand.

`read` checks a command line without making anything; `build` makes the stage, the data module and the trainer. A new
subcommand is a module with `HELP`, `arguments(parser)` and `run(options) -> int`, and one line in `main.COMMANDS`.
"""

from rlhf_lightning.cli.reading import Config, build, read

__all__ = ["Config", "build", "read"]
