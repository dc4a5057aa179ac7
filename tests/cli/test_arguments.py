"""Configs, checkpoint and folder of a command line, found before torch is imported."""

from __future__ import annotations

import os
import re
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from rlhf_lightning.__main__ import main
from rlhf_lightning.cli.arguments import Arguments
from rlhf_lightning.cli.config_files import find_config
from rlhf_lightning.cli.shipped import shipped_folder
from rlhf_lightning.errors import UserError
from rlhf_lightning.run.checkpoint_integrity import seal
from rlhf_lightning.run.folder import FOLDER_OF_RUN


def sealed(path: Path) -> None:
    """An empty checkpoint that is complete."""
    with open(path, "w+b") as file:
        zipfile.ZipFile(file, "w").close()
        seal(file)


def _folder_of(config: Path) -> Path:
    folder = Arguments.of(["fit", "--config", str(config)]).folder
    assert folder is not None
    return folder


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (FOLDER_OF_RUN, "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


def test_a_config_is_looked_for_here_then_in_configs_then_in_the_package() -> None:
    assert find_config("ppo.yaml") == find_config("ppo") == shipped_folder("configs") / "ppo.yaml"
    Path("configs").mkdir()
    Path("configs/ppo.yaml").write_text("a: 1\n")
    assert find_config("ppo") == Path("configs/ppo.yaml")
    Path("ppo.yaml").write_text("a: 1\n")
    assert find_config("ppo") == Path("ppo.yaml")
    assert find_config(str(Path("configs/ppo.yaml").absolute())) == Path("configs/ppo.yaml").absolute()
    with pytest.raises(UserError, match=r"did you mean 'reinforce.yaml'\?"):
        find_config("reinforse.yaml")


def test_both_ways_to_name_a_config() -> None:
    path = str(shipped_folder("configs") / "ppo.yaml")
    assert Arguments.of(["fit", "--config", "ppo"]).words[:3] == ["fit", "--config", path]
    assert Arguments.of(["fit", "--config=ppo"]).words[:2] == ["fit", f"--config={path}"]
    assert Arguments.of(["fit", "-c", "ppo"]).words[:3] == ["fit", "-c", path]


@pytest.mark.parametrize(
    "words", [["--model.policy.max_tokens_per_batch", "null"], ["--model.algorithm.kl.target=null"]]
)
def test_null_two_classes_deep_is_null(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--config", "ppo.yaml", "--model.algorithm.kl.target", "0.1", *words, "--print_config"]) == 0
    read = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]
    assert read["policy"]["name_or_path"] == "playground/sft"
    found = read["policy"]["max_tokens_per_batch"], read["algorithm"]["init_args"]["kl"]["target"]
    assert found == ((2048, None) if "kl" in words[0] else (None, 0.1))


def test_null_for_a_whole_section_stays_as_it_is() -> None:
    words = ["--model.reward", "null", "--seed_everything", "null"]
    assert Arguments.of(["fit", "--config", "ppo", *words]).words[3:7] == words


def test_a_run_gets_a_folder_of_its_own() -> None:
    first = Arguments.of(["fit", "--config", "ppo", "--config", "lora"])
    assert first.folder is not None
    assert first.folder.parent == Path("runs/ppo")
    for left in (first.folder, Path("elsewhere/ppo")):
        left.mkdir(parents=True)
        (left / "config.yaml").write_text("model: {}\n")
        assert _folder_of(left / "config.yaml").parent == Path("runs/config")
        (left / "metrics.csv").touch()  # as of a run
        assert _folder_of(left / "config.yaml").parent == Path("runs/ppo")
    assert first.words[-1] == f"--trainer.default_root_dir={first.folder}"
    assert Arguments.of(["fit", "--config", "ppo"]).folder != first.folder
    assert Arguments.of(["fit", "--help"]).folder is None


def test_the_last_word_on_the_folder_counts() -> None:
    Path("a.yaml").write_text("trainer:\n  default_root_dir: a\n")
    Path("b.yaml").write_text("trainer:\n  default_root_dir: b\n")
    Path("c.yaml").write_text("trainer:\n  default_root_dir: null\n")
    both = ["fit", "--config", "a.yaml", "--config", "b.yaml"]
    assert Arguments.of(both).folder == Path("b")
    assert Arguments.of([*both, "--config", "c.yaml"]).folder == Path("b")
    assert Arguments.of([*both, "--trainer.default_root_dir", "d"]).folder == Path("d")
    assert Arguments.of([*both, "--trainer.default_root_dir=e"]).folder == Path("e")


def test_a_path_may_begin_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    home = Path.cwd() / "home"
    monkeypatch.setenv("HOME", str(home))
    checkpoint = home / "run/checkpoints/last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    sealed(checkpoint)
    Path("a.yaml").write_text("trainer:\n  default_root_dir: ~/run\nckpt_path: ~/run/checkpoints/last.ckpt\n")
    words = ["--trainer.default_root_dir=~/run", "--ckpt_path=~/run/checkpoints/last.ckpt"]  # no shell expands these
    for found in (Arguments.of(["fit", "--config", "a.yaml"]), Arguments.of(["fit", "--config", "ppo", *words])):
        assert found.folder == home / "run"
        assert {f"--trainer.default_root_dir={home / 'run'}", f"--ckpt_path={checkpoint}"} <= set(found.words)


def test_a_resumed_run_stays_in_its_folder() -> None:
    for number, name in enumerate(("old", "new")):
        checkpoint = Path("runs/ppo", name, "checkpoints/last.ckpt")
        checkpoint.parent.mkdir(parents=True)
        sealed(checkpoint)
        os.utime(checkpoint, (time.time(), time.time() + number))
    assert Arguments.of(["fit", "--config", "ppo", "--ckpt_path", "last"]).folder == Path("runs/ppo/new")
    given = "runs/ppo/old/checkpoints/last.ckpt"
    assert Arguments.of(["fit", "--config", "ppo", "--ckpt_path", given]).folder == Path("runs/ppo/old")
    measured = Arguments.of(["validate", "--config", "ppo", "--ckpt_path", given]).folder
    assert measured not in (None, Path("runs/ppo/old"))
    with pytest.raises(UserError, match=r"checkpoint .*lost.ckpt does not exist; did you mean 'last.ckpt'\?"):
        Arguments.of(["fit", "--config", "ppo", "--ckpt_path", "runs/ppo/old/checkpoints/lost.ckpt"])


def test_every_process_of_a_run_writes_to_one_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER_OF_RUN, "runs/ppo/before")
    assert Arguments.of(["fit", "--config", "ppo"]).folder != Path("runs/ppo/before")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert Arguments.of(["fit", "--config", "ppo"]).folder == Path("runs/ppo/before")


def test_init_copies_configs_and_callbacks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "mine"]) == 0
    generated = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert set(generated) == {path for path in Path("mine").rglob("*") if path.is_file()}
    assert {"mine/configs/ppo.yaml", "mine/configs/spaces/ppo.yaml", "mine/callbacks/win_rate.py"} <= {
        str(path) for path in generated
    }
    assert not list(Path("mine").rglob("__init__.py"))
    assert Path("mine/configs/ppo.yaml").read_bytes() == (shipped_folder("configs") / "ppo.yaml").read_bytes()


def test_init_overwrites_only_when_told_to(capsys: pytest.CaptureFixture[str]) -> None:
    Path("configs").mkdir()
    Path("configs/ppo.yaml").write_text("mine")
    assert main(["init", "."]) == 2
    assert re.search(r"configs/ppo.yaml exists already .*--force", capsys.readouterr().err)
    assert Path("configs/ppo.yaml").read_text() == "mine"
    assert not Path("callbacks").exists()
    assert main(["init", ".", "--force"]) == 0
    assert Path("configs/ppo.yaml").read_text() != "mine"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["fit"], "pass one, for example: fit --config ppo.yaml"),
        (["fit", "ppo.yaml"], "unexpected argument 'ppo.yaml'; did you mean '--config ppo.yaml'?"),
    ],
)
def test_a_command_without_a_flag(words: list[str], expected: str) -> None:
    with pytest.raises(UserError) as raised:
        Arguments.of(words)
    assert expected in str(raised.value)


def test_a_folder_that_cannot_be_written_to_is_known_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["fit", "--config", "ppo", "--trainer.default_root_dir"]
    Path("file").touch()
    with pytest.raises(UserError, match=r"folder file/run cannot be made: .*file is a file"):
        Arguments.of([*words, "file/run"])
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "locked")
    Path("locked").mkdir()
    with pytest.raises(UserError, match="folder locked/a/b cannot be written to"):
        Arguments.of([*words, "locked/a/b"])
    assert Arguments.of([*words, "free/a/b"]).folder == Path("free/a/b")


def test_measuring_needs_the_checkpoint_that_is_passed() -> None:
    for subcommand in ("validate", "test", "predict"):
        with pytest.raises(UserError, match="--ckpt_path last: no run under runs/ppo has a checkpoint"):
            Arguments.of([subcommand, "--config", "ppo", "--ckpt_path", "last"])
        with pytest.raises(UserError, match="--ckpt_path last: no complete checkpoint in out"):
            Arguments.of([subcommand, "--config", "ppo", "--ckpt_path", "last", "--trainer.default_root_dir", "out"])
    whole = Path("runs/ppo/first/checkpoints/step-1.ckpt")
    whole.parent.mkdir(parents=True)
    sealed(whole)
    assert Arguments.of(["predict", "--config", "ppo", "--ckpt_path", "last"]).words[-1] == f"--ckpt_path={whole}"


def test_a_run_over_an_earlier_one_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["fit", "--config", "ppo", "--trainer.default_root_dir", "out"]
    Arguments.of(words)
    assert capsys.readouterr().out == ""
    Path("out").mkdir()
    Path("out/metrics.csv").touch()
    Arguments.of(words)
    assert "starting over in out" in capsys.readouterr().out
    Arguments.of([*words, "--ckpt_path", "last"])
    assert "over" not in capsys.readouterr().out


def _run_of(name: str, algorithm: str, model: str = "playground/sft", lora: str = "null") -> Path:
    """The folder of a run with a checkpoint, newer than those before."""
    checkpoint = Path("runs/ppo", name, "checkpoints/step-1.ckpt")
    checkpoint.parent.mkdir(parents=True)
    sealed(checkpoint)
    number = len(list(Path("runs/ppo").iterdir()))
    os.utime(checkpoint, (time.time(), time.time() + number))
    config = f"""model:
  class_path: rlhf_lightning.stages.policy.PolicyStage
  init_args:
    policy: {{name_or_path: {model}, config: null, lora: {lora}}}
    algorithm: {{class_path: rlhf_lightning.algorithms.x.{algorithm}, init_args: {{epochs: 2}}}}
"""
    (checkpoint.parent.parent / "config.yaml").write_text(config)
    return checkpoint.parent.parent


def test_last_finds_runs_of_the_same_stage_model_and_algorithm() -> None:
    words = ["predict", "--config", "ppo", "--ckpt_path", "last"]
    ppo, dpo = _run_of("1", "PPO"), _run_of("2", "DPO")
    adapted = _run_of("3", "PPO", lora="{r: 16, alpha: 32}")
    other = _run_of("4", "PPO", model="other")
    assert Arguments.of(words).folder == ppo
    assert Arguments.of([*words, "--model.algorithm", "DPO"]).folder == dpo
    assert Arguments.of([*words, "--model.algorithm.epochs", "3"]).folder == ppo
    assert Arguments.of([*words, "--config", "lora"]).folder == adapted
    assert Arguments.of([*words, "--model.policy.name_or_path", "other"]).folder == other
    with pytest.raises(UserError, match="no run with the stage, model and algorithm of this config under runs/ppo"):
        Arguments.of([*words, "--model.algorithm", "GRPO"])


def test_two_runs_that_start_in_one_second_have_folders_of_their_own() -> None:
    words = ["fit", "--config", "ppo"]
    first, second = Arguments.of(words), Arguments.of(words)
    assert first.folder is not None
    second = replace(second, folder=first.folder)
    with first.claimed() as one, second.claimed() as two:
        assert one.folder != two.folder
        assert one.folder.is_dir()
        assert two.words[-1] == f"--trainer.default_root_dir={two.folder}"
    assert not Path("runs").exists()  # neither left a file


def test_a_folder_in_use_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlhf_lightning.run.folder.SECONDS_TO_WAIT", 0.0)
    words = ["fit", "--config", "ppo", "--trainer.default_root_dir", "out"]
    with Arguments.of(words).claimed():
        with pytest.raises(UserError, match="another process writes to the run's folder out; wait"):
            Arguments.of([*words, "--ckpt_path", "last"]).claimed().__enter__()
        monkeypatch.setenv("LOCAL_RANK", "1")
        with Arguments.of(words).claimed() as of_second_process:
            assert of_second_process.folder == Path("out")
        monkeypatch.setenv("LOCAL_RANK", "0")
        Path("out/config.yaml").touch()
    with Arguments.of(words).claimed():
        pass
    assert Path("out/config.yaml").exists()
