"""No config and no command line, however broken, ends in a traceback, in silence, or not at all."""

from __future__ import annotations

import dataclasses
import inspect
import json
import resource
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fuzzing import JSON, LONGEST_LINE, TEXT, budget, damaged
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import Trainer

from rlhf_lightning import DPO, GRPO, PPO, REINFORCE, PolicyStage, data
from rlhf_lightning.cli import show
from rlhf_lightning.cli.lightning import ParsedCLI
from rlhf_lightning.cli.main import main
from rlhf_lightning.models.config import LoraOptions, ModelConfig

CONFIGS = sorted(
    path for path in (Path(__file__).parents[2] / "configs").glob("*.yaml") if not path.stem.startswith("loop")
)
OVERLAYS = [path for path in CONFIGS if not yaml.safe_load(path.read_text()).get("model", {}).get("class_path")]
SECONDS, GIBIBYTE = 10, 2**20  # of processor time; resource counts KiB
HOSTILE = [
    *("", " ", "null", "~", "true", "[]", "{}", "[1, 2]", "{a: 1}", "-1", "0", "1e3", ".nan", ".inf", "-.inf", "1_000", "0x10"),
    *("9" * 30, "9" * 5000, "0." + "1" * 5000, "1e999999999", "1:" + "59:" * 2000 + "1", "2001-99-99", "on", "-", "--", "="),
    *("[" * 5000, "[" * 50_000 + "]" * 50_000, '{"a": ' * 500 + "1" + "}" * 500, "- " * 500 + "x", "&a [*a]"),
    *("*a", "!!set {a, b}", "{class_path: x.Y}"),
    *("!!python/object/apply:os.getcwd []", "!!binary /w==", "\x00", "a\x00b", "\ud800", "\udcff.yaml", "\x1b[31m\x07", "\u202e"),
    *("a\nb", "a" * 300, "a/" * 3000, "x" * 100_000, "{class_path: PPO}", "{class_path: [1]}", "{init_args: 1}"),
    *("PPO", "AdamW", "PromptData", "LengthReward", "json.dumps", "collections.OrderedDict", "torch.nn.Linear", "ppo.yaml", "."),
]  # fmt: skip
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 8)}]\n" for i in range(1, 10)
)
TEXTS = [
    BOMB,
    "a: &a {b: *a}\n",
    "&a [*a]",
    "model: " + "[" * 9000,
    "seed_everything: " + "9" * 6000,
    "? {a: b}\n: 1",
    "<<: 1",
]
HOSTILE_VALUES = JSON | st.sampled_from(HOSTILE) | st.integers(-(10**40), 10**40) | st.dates() | st.binary(max_size=3)


def _leaves(node: Any, path: str = "") -> Iterator[str]:
    if path:
        yield path
    if isinstance(node, dict):
        for name, value in node.items():
            yield from _leaves(value, path if name == "init_args" else f"{path}.{name}".lstrip("."))


def _parameters(prefix: str, owner: Any) -> list[str]:
    return [f"{prefix}.{name}" for name in inspect.signature(owner).parameters]


ALGORITHMS = (PPO, DPO, GRPO, REINFORCE)
KEYS = sorted({
    *(leaf for path in CONFIGS for leaf in _leaves(yaml.safe_load(path.read_text()))),
    *(f"model.algorithm.{field.name}" for each in ALGORITHMS for field in dataclasses.fields(each)),
    *(f"model.policy.{field.name}" for field in dataclasses.fields(ModelConfig)),
    *(f"model.policy.lora.{field.name}" for field in dataclasses.fields(LoraOptions)),
    *_parameters("trainer", Trainer),
    *_parameters("model", PolicyStage),
    *_parameters("data", data.PreferenceData),
    *("ckpt_path", "weights_only", "seed_everything", "$schema", "x", "model.init_args", "model.class_path", "a.b.c", "."),
    *("model.", "model..x", "trainer.callbacks+", "model.algorithm.help", "a" * 3000, ".".join("a" * 200), "model.reward.limit"),
})  # fmt: skip
"""Every option of the trainer, the policy stage, its models and algorithms, and some that are none."""


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    """A subcommand, perhaps a config, and up to four further words or options."""
    words = [draw(st.sampled_from(["fit", "fit", "fit", "validate", "test", "predict", "show"]))]
    if draw(st.integers(0, 9)):
        words += ["--config", draw(st.sampled_from([path.name for path in CONFIGS if path not in OVERLAYS]))]
        words += ["--config", draw(st.sampled_from(CONFIGS)).name] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(0, 4))):
        value = draw(st.sampled_from(HOSTILE) | TEXT | JSON.map(json.dumps))
        key = draw(st.sampled_from(KEYS))
        kind = draw(st.integers(0, 9))
        words += [f"--{key}={value}"] if kind < 4 else [f"--{key}", value] if kind < 8 else [value]
    return words


@st.composite
def configs(draw: st.DrawFn) -> bytes:
    """A shipped config with up to three values replaced, removed or added, and perhaps its text damaged."""
    if not draw(st.integers(0, 6)):
        return draw(damaged(draw(st.sampled_from(TEXTS)).encode()))
    content = yaml.safe_load(draw(st.sampled_from(CONFIGS)).read_text())
    for _ in range(draw(st.integers(0, 3))):
        node: Any = content
        for _ in range(draw(st.integers(0, 4))):
            inner = [value for value in node.values() if isinstance(value, dict) and value]
            node = draw(st.sampled_from(inner)) if inner else node
        name = draw(st.sampled_from([*map(str, node), "class_path", "init_args"]) | TEXT | st.integers() | st.none())
        if draw(st.booleans()):
            node[name] = draw(HOSTILE_VALUES)
        else:
            node.pop(name, None)
    text = yaml.dump(content, allow_unicode=draw(st.booleans())).encode("utf-8", "surrogatepass")
    return draw(damaged(text)) if draw(st.booleans()) else text


@pytest.fixture(autouse=True)
def _before_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read and build, read the data, and stop; the parsers of the subcommands are made once."""

    def run(self: Any) -> None:
        if isinstance(self.datamodule, data.FileData):
            self.datamodule.setup("fit")

    made: dict[str, Any] = {}
    make = ParsedCLI.setup_parser

    def setup_parser(self: Any, *given: Any) -> None:
        names = ("parser", "_subcommand_parsers", "_subcommand_method_arguments")
        if self.asked not in made:
            make(self, *given)
            made[self.asked] = {name: getattr(self, name) for name in names}
        vars(self).update(made[self.asked])

    main(
        ["show", "--config", "sft.yaml", "--data.size", "8", "--data.validation_size", "4"]
    )  # imports take seconds, once
    monkeypatch.setattr(show, "_screen", lambda *_: None)  # thousands of valid rows, as long as they are
    monkeypatch.setattr(ParsedCLI, "run", run)
    monkeypatch.setattr(ParsedCLI, "setup_parser", setup_parser)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def limits() -> Iterator[None]:
    """An example that takes longer than `SECONDS` of processor time fails."""

    def refuse(*_: Any) -> None:
        raise TimeoutError(f"more than {SECONDS} s")

    before = signal.signal(signal.SIGPROF, refuse)
    yield
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.signal(signal.SIGPROF, before)


def check(words: list[str], said: pytest.CaptureFixture[str]) -> int:
    """Run a command line, and check its status, its lines, its time and its memory."""
    said.readouterr()
    before, memory = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.setitimer(signal.ITIMER_PROF, 2 * SECONDS)
    status = main(words)
    signal.setitimer(signal.ITIMER_PROF, 0)
    out, err = said.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert status in (0, 2), err
    assert len(lines) == (1 if status else 0), err
    assert "Traceback" not in err
    for line in lines:
        assert line.isprintable(), ascii(line)
        assert line.removeprefix("error: ").strip(), "refused without a word"
        assert len(line) < LONGEST_LINE
    assert "\x1b" not in out
    assert time.process_time() - before < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < GIBIBYTE
    return status


@pytest.mark.usefixtures("limits")
@budget(250, scale=10)
@given(words=command_lines())
def test_any_command_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    check(words, capsys)


@pytest.mark.usefixtures("limits")
@budget(250, scale=10)
@given(content=configs(), over=st.booleans())
def test_any_config(content: bytes, over: bool, capsys: pytest.CaptureFixture[str]) -> None:
    Path("any.yaml").write_bytes(content)
    check(["fit", *(["--config", "ppo.yaml"] if over else []), "--config", "any.yaml"], capsys)
