"""Hostile values of every kind end in one line with status 2, before anything is built."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from rlhf_lightning import bounded_yaml
from rlhf_lightning.__main__ import main

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 8)}]\n" for i in range(1, 10)
)
Fails = Callable[..., str]


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Fails:
    """Run a command line that must fail; the only line it says."""

    def command(*words: str) -> str:
        assert main(words) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1, lines
        assert lines[0].isprintable()
        assert len(lines[0]) < 2000
        return lines[0].removeprefix("error: ")

    return command


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model: &a\n  init_args: *a\n", "x.yaml:2 is not valid YAML: the alias *a is inside its own anchor"),
        ("model: &a [*a]\n", "x.yaml:1 is not valid YAML: the alias *a is inside its own anchor"),
        (BOMB, "x.yaml:5 is not valid YAML: it has more than 20000 values, aliases included"),
        ("a: &a " + "x" * 60_000 + "\nb: [" + "*a, " * 900 + "]", "it has more than 20000 values"),
        ("model: " + "[" * 100_000, "x.yaml:1 is not valid YAML: values are nested more than 60 deep"),
        ("model: " + '{"a": ' * 61 + "1" + "}" * 61, "values are nested more than 60 deep"),
        ("a: " + "x " * 600_000, "it has 1200003 characters; the limit is 1000000"),
        ("a: 1\nseed_everything: " + "9" * 6000, "x.yaml:2 is not valid YAML: a value cannot be read"),
        ("seed_everything: 4294967296", "seed_everything is 4294967296; set it to a number from 0 to 4294967295"),
        ("seed_everything: 1:" + "59:" * 3000 + "1", "seed_everything is a number of about 5337 digits"),
        ("trainer:\n  max_epochs: " + "9" * 30, "trainer.max_epochs is a number of about 30 digits"),
        ('model: "a\\0"', "model is 'a\\x00', which has a NUL character; remove it"),
        ("null: 1", "has the key None, which is no text; put it into quotes"),
        ("trainer: {true: 1}", "trainer has the key True, which is no text; put it into quotes"),
        ("model: {class_path: [1]}", "model has the class_path [1]; set it to the name of a class"),
        ("model: {class_path: PolicyStage, init_args: 3}", "model has init_args 3; set them to a mapping"),
        ("model: !!set {a, b}", "; set it to text, a number, true, false, null, a list or a mapping"),
        ("model: !!binary aGk=", "model is b'hi'; set it to text, a number"),
        ("model: {init_args: {iterations: 3}}", "model has arguments and no class; pass a whole config before"),
        ("ckpt_path: 5", "ckpt_path is 5; set it to a path"),
    ],
)
def test_a_config_file(fails: Fails, text: str, expected: str) -> None:
    Path("x.yaml").write_text(text)
    assert expected in fails("fit", "--config", "x.yaml")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--config", "a\0b"], "the argument 'a\\x00b' has a NUL character; remove it"),
        (["--config", "a" * 5000], "File name too long"),
        (["--config", "\udcff"], "the argument '\\udcff' is not UTF-8 text (character 1)"),
        (["--config", "ppo.yaml", "--model.iterations", "[" * 100_000], "cannot be read as YAML: values are nested"),
        (["--config", "ppo.yaml", "--model.iterations", "9" * 5000], "is a number of 5000 digits"),
        (["--config", "ppo.yaml", "--model.iterations", "0x" + "f" * 5000], "iterations is a number of about 6021"),
        (["--config", "ppo.yaml", "--model.iterations", "a" * 100_000], "iterations must be int or null, found 'aaa"),
        (["--config", "ppo.yaml", "--" + "a" * 50_000, "1"], "unknown key 'aaa"),
        (["--config", "ppo.yaml", "--" + ".".join("a" * 100), "1"], "has more than 60 nested keys"),
        (["--config", "ppo.yaml", "--seed_everything", "-1"], "seed_everything is -1; set it to a number from 0"),
        (["--config", "ppo.yaml", "--data.seed", "-1"], "data.seed is -1; set it to a number from 0"),
        (["--config", "ppo.yaml", "--model.policy.seed", "-1"], "seed is -1; set it to a number from 0"),
        (["--config", "ppo.yaml", "--trainer.default_root_dir", "a" * 300], "File name too long"),
        (["--config", "ppo.yaml", "--ckpt_path", "a" * 300], "File name too long"),
        (["--config", "ppo.yaml", "--trainer.gradient_clip_val", "-1"], "trainer.gradient_clip_val is -1; set it to a"),
        (
            ["--config", "ppo.yaml", "--trainer.gradient_clip_val", ".nan"],
            "trainer.gradient_clip_val is nan; set it to",
        ),
        (
            ["--config", "ppo.yaml", "--trainer.max_epochs", "-5"],
            "trainer.max_epochs is -5; set it to a number from -1",
        ),
        (
            ["--config", "ppo.yaml", "--model.algorithm.kl.target", "-.inf"],
            "has no value; where the value begins with a",
        ),
        (
            ["--config", "ppo.yaml", "--model.predict_temperature", "-1"],
            "model.predict_temperature is -1.0; set it to 0",
        ),
    ],
)
def test_a_word_of_the_command_line(
    fails: Fails, capsys: pytest.CaptureFixture[str], words: list[str], expected: str
) -> None:
    assert expected in fails("fit", *words)


@pytest.mark.parametrize(
    "words", [["init", "a\0b"], ["init", "a" * 5000], ["schema", "a\0b"], ["show", "--rows", "9" * 5000]]
)
def test_other_subcommands(fails: Fails, words: list[str]) -> None:
    fails(*words)


def test_escape_sequences_are_shown_as_text(fails: Fails) -> None:
    line = fails("fit", "--config", "ppo.yaml", "--model.algorithm", "\x1b[31mPPO\x07\u202e")
    assert all(text in line for text in ("x1b[31mPPO", "x07", "u202e"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "import sys; sys.exit(0)",
            "quits.py:1 ended the run with sys.exit(0); raise an error that says what is wrong",
        ),
        ("class Odd(BaseException): pass\nraise Odd('x')", "the config cannot be read: Odd: x"),
    ],
)
def test_a_module_that_ends_the_process(fails: Fails, text: str, expected: str) -> None:
    Path("quits.py").write_text(text)
    assert expected in fails("fit", "--config", "ppo.yaml", "--model.algorithm", "quits.Thing")


def test_a_plug_in_that_ends_the_process_during_the_run(fails: Fails, capsys: pytest.CaptureFixture[str]) -> None:
    code = Path("own.py").read_text().replace("raise KeyboardInterrupt", "raise SystemExit(0)")
    Path("own.py").write_text(code)
    assert main(["fit", "--config", "own.yaml", "--model.fault", "interrupt"]) == 2
    assert "own.py:41 ended the run with sys.exit(0)" in capsys.readouterr().err.splitlines()[-1]


def test_a_document_within_the_limits_is_read_as_it_stands() -> None:
    text = "a: &x {b: [1, 2.5, null, yes, 2001-01-01]}\nc: *x\n<<: *x\n"
    inner = {"b": [1, 2.5, None, True, "2001-01-01"]}
    assert bounded_yaml.load(text) == {"a": inner, "c": inner, **inner}
    deep: object = 1
    for _ in range(bounded_yaml.MAX_DEPTH - 1):
        deep = [deep]
    assert bounded_yaml.load(yaml.dump({"a": deep})) == {"a": deep}
