"""The parser of all subcommands that are not Lightning's: errors in one line, with the nearest valid name."""

from __future__ import annotations

import argparse
import re
from typing import Any, NoReturn

from rlhf_lightning.errors import UserError, nearest


class CommandParser(argparse.ArgumentParser):
    """Raises errors instead of printing a usage; parsers of nested commands are of this class as well."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str) -> NoReturn:
        """Turn argparse's report into one line.

        Raises:
            UserError: always.
        """
        command = self.prog.removeprefix("rlhf_lightning ")
        if found := re.match(r"unrecognized arguments: (\S+)", message):
            word = found[1].partition("=")[0]
            hint = nearest(word, self._options()) if word.startswith("-") else f"{command} --help lists the arguments"
            raise UserError(f"{command}: unexpected argument '{word}'; {hint}")
        if found := re.match(r"argument (\S+): invalid choice: '([^']*)' \(choose from (.*)\)", message):
            choices = [choice.strip("' ") for choice in found[3].split(",")]
            kind = "option" if found[1].startswith("-") else "command"
            raise UserError(f"{command}: {found[1]} is {found[2]!r}, an unknown {kind}; {nearest(found[2], choices)}")
        if found := re.match(r"the following arguments are required: (.*)", message):
            raise UserError(f"{command}: {found[1]} is missing; {' '.join(self.format_usage().split())}")
        raise UserError(f"{command}: {message}")

    def _options(self) -> set[str]:
        """Collect the options of this parser and of its nested commands."""
        options = set(self._option_string_actions)
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                for nested in action.choices.values():
                    options |= nested._options()
        return {option for option in options if option.startswith("--")}
