"""`rlhf_lightning.fit` in a script or a notebook: objects of Python in a config, and what it leaves of the process around it."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import random
import sys
import types
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch
import yaml
from lightning.pytorch import Callback
from torch.utils.data import DataLoader

import rlhf_lightning
from rlhf_lightning import (
    GRPO,
    KLPenalty,
    LengthReward,
    LoraOptions,
    ModelConfig,
    PromptData,
    Run,
    Sampler,
    TransformersGenerate,
    UserError,
)
from rlhf_lightning.cli import in_process
from rlhf_lightning.cli.python_values import config_value
from rlhf_lightning.console import in_notebook
from rlhf_lightning.run import progress
from rlhf_lightning.session import named_object

FRAME = pandas.DataFrame({"prompt": ["say duck", "say owl", "say wolf", "say fox"] * 3, "wanted": range(12)})
SMALL = {
    "model__iterations": 1, "trainer__val_check_interval": 1.0, "data__batch_size": 4, "model__reference": "full",
    "trainer__enable_progress_bar": False,
}  # fmt: skip


def wanted_length(responses: list[str], wanted: list[int]) -> list[float]:
    assert all(type(number) is int for number in wanted)
    return [-abs(len(text.split()) - number) / 10 for text, number in zip(responses, wanted, strict=True)]


class Seen(Callback):
    steps = 0

    def on_train_batch_end(self, *_: Any) -> None:
        self.steps += 1


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Seen, list[str]]:
    asked: list[str] = []

    def count(responses: list[str]) -> list[float]:
        asked.extend(responses)
        return [float(len(text)) for text in responses]

    seen = Seen()
    run = rlhf_lightning.fit(
        "ppo.yaml",
        folder=tmp_path_factory.mktemp("run"),
        model__algorithm="REINFORCE",
        model__reward=count,
        model__evaluation_rewards={"wanted": wanted_length},
        model__generation=Sampler(5),
        data="PromptData",
        data__train=FRAME,
        trainer__callbacks=[seen],
        **SMALL,
    )
    return run, seen, asked


def test_objects_go_where_a_config_has_names(fitted: tuple[Run, Seen, list[str]]) -> None:
    run, seen, asked = fitted
    assert seen.steps == 2
    assert len(asked) > 4
    assert "val/reward/wanted" in run.metrics
    assert run.config["model"]["init_args"]["algorithm"]["class_path"].endswith("REINFORCE")
    assert run.config["model"]["init_args"]["generation"]["init_args"]["max_new_tokens"] == 5


def test_the_saved_config_says_in_one_line_that_it_cannot_be_repeated(
    fitted: tuple[Run, Seen, list[str]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    text = (fitted[0].folder / "config.yaml").read_text()
    first = text.splitlines()[0]
    assert first.startswith("# cannot be repeated from YAML: ")
    keys = ("model.init_args.reward.init_args.function", "data.init_args.train", "trainer.callbacks.class_path")
    assert all(key in first for key in keys)
    assert "evaluation_rewards" not in first  # a function of a module has an import path
    assert "cannot be repeated" not in "".join(text.splitlines()[1:])
    config = yaml.safe_load(text)
    config["data"]["init_args"]["train"] = "python:DataFrame#999"
    config["model"]["init_args"]["reward"] = None
    config["model"]["init_args"]["algorithm"] = {"class_path": "DPO"}
    config["trainer"]["callbacks"] = []
    with pytest.raises(
        UserError, match=r"'python:DataFrame#999', an object of the Python session that wrote this config"
    ):
        rlhf_lightning.fit(config, folder=tmp_path / "a")
    config["trainer"]["callbacks"] = [{"class_path": "rlhf_lightning.session._Object999"}]
    with pytest.raises(UserError, match=r"session._Object999 is an object of the Python session"):
        rlhf_lightning.fit(config, folder=tmp_path / "b")


def test_a_run_shows_what_is_in_its_folder(fitted: tuple[Run, Seen, list[str]]) -> None:
    run = Run(str(fitted[0].folder))
    assert list(run.metrics["step"]) == [0, 2]
    assert run.metrics["reward/mean"].isna().tolist() == [True, False]
    assert set(run.samples["step"]) == {0, 2}
    assert set(run.samples["prompt"]) <= set(FRAME["prompt"])
    assert set(run.summary["val/reward/mean"]) == {"before", "after"}
    assert run.export is not None
    assert (run.export / "config.json").is_file()
    assert run.curves.path == run.folder / "curves.png"
    assert (run.curves._repr_png_() or b"").startswith(b"\x89PNG")
    page = run._repr_html_()
    assert 'src="data:image/png;base64,' in page
    assert f"<td>val/reward/mean</td><td>{run.summary['val/reward/mean']['before']:.4f}</td>" in page
    assert run.predictions.empty
    assert repr(run) == f"Run({str(run.folder)!r})"


def test_a_run_in_progress_and_no_run(fitted: tuple[Run, Seen, list[str]], tmp_path: Path) -> None:
    (tmp_path / "later" / "run").mkdir(parents=True)
    with pytest.raises(UserError, match=r"later is no run's folder; it holds no config.yaml"):
        Run(tmp_path / "later")
    (tmp_path / "later" / "run" / "metrics.csv").write_text("step,loss/policy\n1,0.5\n2,0.")
    with pytest.raises(UserError, match=r"give one of those in it, such as .*later/run"):
        Run(tmp_path / "later")
    with pytest.raises(UserError, match=r"there is no such folder"):
        Run(tmp_path / "nothing")
    run = Run(tmp_path / "later" / "run")
    assert run.metrics.to_dict("records") == [{"step": 1, "loss/policy": 0.5}]
    assert (run.export, run.summary, run.config, run.curves.path) == (None, {}, {}, None)
    assert run.samples.empty
    (run.folder / "metrics.csv").write_text("")
    assert run.metrics.empty
    assert run.curves._repr_png_() is None
    assert "img" not in run._repr_html_()


@pytest.mark.parametrize(
    ("config", "overrides", "line"),
    [
        ("pppo", {}, "config pppo is neither here"),
        ("ppo", {"model__algorithn": "DPO"}, "unknown key 'model.algorithn'; did you mean 'algorithm'"),
        ("ppo", {"model__algorithm": "PPPO"}, "there is no class 'PPPO' for model.algorithm"),
        ("ppo", {"data__train": FRAME}, "PlaygroundPrompts"),
        ("ppo", {"data": FRAME}, "data is a DataFrame; pass rows as data__train"),
        ("ppo", {"data": "PromptData", "data__train": DataLoader([])}, "pass data=rlhf_lightning.LoaderData"),  # type: ignore[arg-type]
        ("ppo", {"model__optimizer": wanted_length}, "model.optimizer is <function .*; pass a class"),
        (3, {}, "fit takes the name of a config or a dictionary, found int 3"),
        ("ppo", {"trainer__devices": "no"}, "trainer"),
    ],
)
def test_bad_input_is_a_user_error_in_one_line(
    config: Any, overrides: dict[str, Any], line: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=line) as caught:
        rlhf_lightning.fit(config, folder=tmp_path, **overrides)
    assert "\n" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_the_process_is_as_it_was_before(tmp_path: Path) -> None:
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    random.seed(1)
    torch.manual_seed(1)
    before = [random.getstate(), torch.get_rng_state().tolist(), list(warnings.filters), logger.level, dict(os.environ)]
    rlhf_lightning.fit("ppo.yaml", folder=tmp_path, trainer__fast_dev_run=True, **SMALL)
    after = [random.getstate(), torch.get_rng_state().tolist(), list(warnings.filters), logger.level, dict(os.environ)]
    for was, now in zip(before, after, strict=True):
        assert was == now


def test_an_interruption_is_a_keyboard_interrupt(tmp_path: Path) -> None:
    def stop(responses: list[str]) -> list[float]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rlhf_lightning.fit("ppo.yaml", folder=tmp_path, model__reward=stop, model__algorithm="REINFORCE", **SMALL)


def test_a_run_that_exits_does_not_end_the_notebook(tmp_path: Path) -> None:
    def leave(responses: list[str]) -> list[float]:
        sys.exit(3)

    with pytest.raises(UserError, match=r"called sys\.exit: 3"):
        rlhf_lightning.fit("ppo.yaml", folder=tmp_path, model__reward=leave, model__algorithm="REINFORCE", **SMALL)


def test_no_exit_of_the_command_line_ends_the_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(arguments: Any) -> None:
        sys.exit(4)

    monkeypatch.setattr(in_process, "build_and_run", leave)
    with pytest.raises(UserError, match="ended with status 4"):
        rlhf_lightning.fit("ppo.yaml", folder=tmp_path, **SMALL)


def test_values_become_what_a_config_holds() -> None:
    kl = dataclasses.asdict(KLPenalty(coef=0.3))
    grpo = config_value(GRPO(kl=KLPenalty(coef=0.3)), "model.algorithm")
    assert grpo["class_path"] == "rlhf_lightning.algorithms.grpo.GRPO"
    assert grpo["init_args"]["kl"] == kl
    model = config_value(ModelConfig("m", lora=LoraOptions(r=4)), "model.policy")
    assert (model["name_or_path"], model["lora"]["r"]) == ("m", 4)
    assert config_value(Sampler, "model.generation") == "rlhf_lightning.generation.local.Sampler"
    generation = config_value(TransformersGenerate(7), "model.generation")  # not the class that the config names
    assert generation["class_path"] == "rlhf_lightning.generation.transformers.TransformersGenerate"
    assert generation["init_args"]["max_new_tokens"] == 7
    assert config_value(partial(torch.optim.SGD, lr=0.1), "model.optimizer") == {
        "class_path": "torch.optim.sgd.SGD",
        "init_args": {"lr": 0.1},
    }
    assert config_value(Path("a"), "data.train") == "a"
    assert config_value(["a.jsonl", Path("b.jsonl")], "data.train") == ["a.jsonl", "b.jsonl"]
    assert config_value(pandas.Series([0.5]).iloc[0], "model.algorithm.beta") == 0.5
    assert config_value(len, "model.reward")["init_args"] == {"function": "builtins.len"}
    rows = [{"prompt": "a"}]
    name = config_value(rows, "data.train")
    assert named_object(name, "data.train") is rows
    assert config_value(rows, "data.train") == name
    path = config_value(LengthReward(3), "model.reward")["class_path"]
    assert path.startswith("rlhf_lightning.session._Object")

    class Inner:
        pass

    with pytest.raises(UserError, match="is the class Inner, defined inside a function"):
        config_value(Inner, "model.algorithm")


def test_plug_ins_and_data_modules_of_ones_own(tmp_path: Path) -> None:
    reward, data = LengthReward(3), PromptData(train=FRAME, batch_size=4)
    options = {name: value for name, value in SMALL.items() if name != "data__batch_size"}
    run = rlhf_lightning.fit(
        ["ppo.yaml", {"model": {"generation": {"init_args": {"max_new_tokens": 4}}}}],
        folder=tmp_path, model__reward=reward, data=data, **options,
    )  # fmt: skip
    assert set(run.samples["prompt"]) <= set(FRAME["prompt"])
    assert run.samples["reward"].max() <= 0
    loader = DataLoader([{"prompt": text} for text in FRAME["prompt"]], batch_size=4)  # type: ignore[arg-type]
    run = rlhf_lightning.fit("ppo.yaml", folder=tmp_path / "loader", data=loader, model__reward=reward, **options)
    assert run.metrics["reward/mean"].notna().any()


def test_an_asynchronous_reward_inside_a_running_loop(tmp_path: Path) -> None:
    async def later(responses: list[str]) -> list[float]:
        await asyncio.sleep(0)
        return [1.0] * len(responses)

    async def cell() -> Run:
        return rlhf_lightning.fit(
            "ppo.yaml", folder=tmp_path, model__reward=later, model__algorithm="REINFORCE", **SMALL
        )

    assert asyncio.run(cell()).metrics["reward/mean"].dropna().tolist()[0] == 1.0


def test_a_notebook_gets_plain_lines_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not in_notebook()
    shell = type("ZMQInteractiveShell", (), {})()
    monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
    fake = types.ModuleType("IPython")
    fake.get_ipython = lambda: shell  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", fake)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert in_notebook()
    shown = progress.Progress()
    assert isinstance(shown, progress.PlainProgress)
    assert shown.every_seconds == 30.0
    fake.get_ipython = lambda: None  # type: ignore[attr-defined]
    assert not in_notebook()
    assert isinstance(progress.Progress(), progress.Bar)
