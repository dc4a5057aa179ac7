"""The registry of subcommands, and the parser that they share."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_lightning.cli.main import COMMANDS, LIGHTNING, command, help_text, main
from rlhf_lightning.cli.parser import CommandParser
from rlhf_lightning.errors import UserError

HELP_OF_ALL = """
import sys
from rlhf_lightning.cli.main import COMMANDS, command, main
assert main(["--help"]) == main(["--version"]) == 0
for name in COMMANDS:
    module = command(name)
    assert isinstance(module.HELP, str) and callable(module.arguments) and callable(module.run), name
    assert main([name, "--help"]) == 0, name
loaded = {"torch", "lightning", "transformers", "jsonargparse"} & set(sys.modules)
assert not loaded, loaded
"""


def test_help_of_all_commands_imports_neither_torch_nor_lightning() -> None:
    done = subprocess.run([sys.executable, "-c", HELP_OF_ALL], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert all(f"\n{name} " in done.stdout for name in (*LIGHTNING, *COMMANDS))


def test_the_help_page_is_made_from_the_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COMMANDS, "copy", COMMANDS["init"])
    assert f"copy      {command('init').HELP}" in help_text()


@pytest.mark.parametrize(
    ("words", "essentials"),
    [
        (["init", "--forc", "x"], ["'--forc'", "did you mean '--force'?"]),
        (["init", "a", "b"], ["unexpected argument 'b'", "init --help"]),
        (["init"], ["DIR is missing"]),
        (["schema", "--ouput", "x"], ["did you mean '--output'?"]),
        (["shema"], ["'shema'", "did you mean 'schema'?"]),
    ],
)
def test_an_error_is_one_line_with_the_nearest_name(
    words: list[str], essentials: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert all(essential in lines[0] for essential in essentials), lines[0]


@pytest.mark.parametrize(
    ("words", "essentials"),
    [
        (["exprt"], ["COMMAND is 'exprt'", "did you mean 'export'?"]),
        (["export", "--formt", "x"], ["'--formt'", "did you mean '--format'?"]),
        (["export", "--format", "jsn"], ["--format is 'jsn'", "did you mean 'json'?"]),
        (["export", "--size", "x"], ["--size", "invalid int value: 'x'"]),
    ],
)
def test_nested_commands_have_the_same_errors(words: list[str], essentials: list[str]) -> None:
    parser = CommandParser(prog="rlhf_lightning tool")
    export = parser.add_subparsers(required=True, metavar="COMMAND").add_parser("export")
    export.add_argument("--format", choices=["json", "csv"])
    export.add_argument("--size", type=int)
    with pytest.raises(UserError) as raised:
        parser.parse_args(words)
    assert all(essential in str(raised.value) for essential in essentials), str(raised.value)
    assert Path(sys.executable).exists()
