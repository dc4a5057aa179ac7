"""The command line: find configs, check them, run a subcommand."""
