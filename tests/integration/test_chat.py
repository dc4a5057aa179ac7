"""`chat` through the command line, with lines as somebody types them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhf_lightning.cli import chat
from rlhf_lightning.cli.main import main
from rlhf_lightning.data.modules import PreferenceData


@pytest.fixture
def talk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., list[str]]:
    """Types lines, then Ctrl-D; returns what was printed."""
    monkeypatch.chdir(tmp_path)

    def run(words: str, *lines: str) -> list[str]:
        typed = iter(lines)

        def read(prompt: str) -> str:
            try:
                return next(typed)
            except StopIteration:
                raise EOFError from None

        monkeypatch.setattr("builtins.input", read)
        assert main(["chat", *words.split(), "--max-new-tokens", "12"]) == 0
        return capsys.readouterr().out.splitlines()

    return run


class Fake:
    """A model that replies with its name and the number of messages that it read."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.encoder = type("Encoder", (), {"tokenizer": type("Tokenizer", (), {"chat_template": "x"})})
        self.read: list[Any] = []

    def generate(self, rows: list[dict[str, Any]], copies: int, randomness: Any) -> Any:
        self.read.append(rows[0]["prompt"])
        text = f"{self.name} {len(rows[0]['prompt'])} {randomness.iteration}"
        return type("Texts", (), {"texts": lambda self, **_: [text]})()


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> dict[str, Fake]:
    made: dict[str, Fake] = {}
    monkeypatch.setattr(chat, "_load", lambda name, options: made.setdefault(name, Fake(name)))
    return made


def saved() -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path("preferences.jsonl").read_text().splitlines()]


def test_one_real_model_replies_and_a_second_reply_can_be_preferred(talk: Callable[..., list[str]]) -> None:
    printed = talk("playground/sft", "name two fruits .", "/again", "/save B")
    assert printed[0] == "1 model; /help lists the commands"
    assert printed[2].startswith("[B] ")
    (row,) = saved()
    assert (row["prompt"], row["chosen"], row["rejected"]) == ("name two fruits .", printed[2][4:], printed[1])
    assert len(PreferenceData(train="preferences.jsonl", validation_fraction=0).rows("train") or []) == 1


def test_two_models_are_blind_until_who(talk: Callable[..., list[str]], fakes: dict[str, Fake]) -> None:
    printed = talk("one two", *["hello"] * 12)
    labelled = [line for line in printed if line.startswith("[")]
    assert {line[:4] for line in labelled} == {"[A] ", "[B] "}
    assert {line.split()[1] for line in labelled if line.startswith("[A]")} == {"one", "two"}  # in either order
    printed = talk("one two", "hello", "/who", "hello", "hello")
    assert sum(line.startswith("A: ") for line in printed) == 1
    assert [line.split("]")[0] for line in printed if "(" in line] == ["[A (one)", "[B (two)"] * 2


def test_save_keeps_the_preferred_reply_and_continues_with_it(
    talk: Callable[..., list[str]], fakes: dict[str, Fake]
) -> None:
    talk("one two --system Brief.", "hello", "/save b", "and then?", "/save a")
    first, second = saved()
    assert [message["role"] for message in first["prompt"]] == ["system", "user"]
    assert {first["chosen_model"], first["rejected_model"]} == {"one", "two"}
    assert first["chosen"].startswith(first["chosen_model"])
    assert second["prompt"][2] == {"role": "assistant", "content": first["chosen"]}
    assert [message["role"] for message in second["prompt"]] == ["system", "user", "assistant", "user"]


def test_undo_and_new(talk: Callable[..., list[str]], fakes: dict[str, Fake]) -> None:
    talk("one", "a", "b", "/undo", "c", "/new", "d", "/undo", "/undo")
    contents = [[message["content"] for message in prompt] for prompt in fakes["one"].read]
    assert contents == [["a"], ["a", "one 1 1", "b"], ["a", "one 1 1", "c"], ["d"]]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["/save A"], "there is no reply yet; type a message"),
        (["hello", "/save"], "/save takes the letter of a reply: A, B"),
        (["hello", "/save C"], "/save takes the letter of a reply: A, B"),
        (["/undo"], "there is no message to take back"),
        (["/sav"], "there is no command /sav; /help lists the commands"),
    ],
)
def test_a_wrong_line_is_answered_and_the_talk_continues(
    talk: Callable[..., list[str]], fakes: dict[str, Fake], lines: list[str], expected: str
) -> None:
    printed = talk("one two", *lines, "/help")
    assert expected in printed
    assert printed[-2].startswith("/quit")
    assert not Path("preferences.jsonl").exists()


def test_an_only_reply_has_nothing_to_be_preferred_to(talk: Callable[..., list[str]], fakes: dict[str, Fake]) -> None:
    assert "there is no other reply to prefer this one to; /again asks for one" in talk("one", "hello", "/save A")


def test_terminal_codes_in_replies_are_shown(talk: Callable[..., list[str]], fakes: dict[str, Fake]) -> None:
    assert not any("\x1b" in line for line in talk("\x1b[31mred", "hello"))


def test_wrong_words_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "a", "b", "c"]) == 2
    assert "there are 3 models; pass one or two" in capsys.readouterr().err
    assert main(["chat", "no/such/model"]) == 2
