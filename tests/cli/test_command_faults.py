"""What a command line that cannot work is told, and with which status it ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lightning.fabric.utilities.warnings import PossibleUserWarning

from rlhf_lightning.__main__ import main

Fails = Callable[..., str]


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """Lightning leaves SIGINT ignored after an interruption."""
    import signal

    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Fails:
    """Run a command line that must fail; the only line it says."""

    def command(*words: str, status: int = 2) -> str:
        assert main(words) == status
        said = capsys.readouterr().err.strip().splitlines()
        errors = [line for line in said if line.startswith("error: ")]
        assert len(errors) == 1, said
        assert "Traceback" not in "".join(said)
        return errors[0].removeprefix("error: ")

    return command


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--trainer.max_epoch", "3"], "unknown key 'trainer.max_epoch'; did you mean 'max_epochs'?"),
        (["--seed_everythin", "1"], "unknown key 'seed_everythin'; did you mean 'seed_everything'?"),
        (["--model.policy.nam", "x"], "unknown key 'model.policy.nam'; did you mean 'name_or_path'?"),
        (["--trainer.max_epochs", "x"], "trainer.max_epochs must be int or null, found 'x'"),
        (["--model.optimizer.lr", "abc"], "lr must be float or Tensor, found 'abc' (in model.optimizer)"),
        (["--model.policy.lora.r", "x"], "r must be int, found 'x' (in model.policy.lora)"),
        (["--model.policy.lora", "3"], "policy.lora must be LoraOptions or null, found '3' (in model)"),
        (["--model", "PolicyStag"], "there is no class 'PolicyStag' for model; did you mean 'PolicyStage'?"),
        (
            ["--model.algorithm", "rlhf_lightning.algorithms.PPPO"],
            "there is no class 'rlhf_lightning.algorithms.PPPO' for algorithm; did you mean 'PPO'? (in model)",
        ),
        (
            ["--trainer.callbacks+=callbacks.absent.WinRat"],
            "'callbacks.absent.WinRat' for trainer.callbacks; did you mean 'WinRate'?",
        ),
        (
            ["--model.reward", "json.dumps"],
            "reward is json.dumps, which is no Reward class; set it to {class_path: FunctionReward, "
            "init_args: {function: json.dumps}} for a function (in model)",
        ),
        (
            ["--model.algorithm", "lame.Thing"],
            "class_path 'lame.Thing' of algorithm cannot be imported: No module named 'crutch'",
        ),
        (
            ["--model.algorithm", "lamee.Zigzag"],
            "class_path 'lamee.Zigzag' of algorithm cannot be imported: No module named 'lamee' (in model)",
        ),
        (["--trainer.strategy", "dpp"], "trainer.strategy is 'dpp', which is unknown; did you mean 'ddp'?"),
        (["--trainer.accelerator", "gpuu"], "trainer: You selected an invalid accelerator name"),
        (["--ckpt_path", "absent.ckpt"], "checkpoint absent.ckpt does not exist; pass the path of a .ckpt file"),
        (["--ckpt_path", "last"], "--ckpt_path last: no run under runs/ppo has a checkpoint"),
    ],
)
def test_a_word_that_cannot_be_meant(fails: Fails, words: list[str], expected: str) -> None:
    Path("lame.py").write_text("import crutch\n")
    assert expected in fails("fit", "--config", "ppo.yaml", *words)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"trainer:\n  max_epoch: 3\n", "unknown key 'trainer.max_epoch'; did you mean 'max_epochs'?"),
        (b"modle:\n  class_path: PolicyStage\n", "did you mean 'model'?"),
        (b"trainer: 3\n", "config it.yaml: trainer must hold keys such as max_epochs:, found 3"),
        (b"ckpt_path: absent.ckpt\n", "checkpoint absent.ckpt does not exist"),
        (
            b"trainer:\n  callbacks:\n  - class_path: EarlyStopping\n    init_args: {monitr: x}\n",
            "did you mean 'monitor'?",
        ),
        (b"a: [1\nb: 2\n", "config it.yaml:2 is not valid YAML"),
        (b"a: \xe9\n", "config it.yaml is not UTF-8 text (byte 3)"),
        (b"", "config it.yaml must hold keys such as model: and data:"),
    ],
)
def test_a_config_that_cannot_be_meant(fails: Fails, content: bytes, expected: str) -> None:
    Path("it.yaml").write_bytes(content)
    assert expected in fails("fit", "--config", "ppo.yaml", "--config", "it.yaml")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "the subcommand comes first"),
        (["--config", "ppo.yaml", "fit"], "the subcommand comes first"),
        (["predikt"], "there is no subcommand 'predikt'; did you mean 'predict'?"),
        (["fit", "--config"], "--config has no value; pass the name of a file"),
        (["init"], "init: DIR is missing; usage: rlhf_lightning init"),
        (["init", "--forc", "x"], "init: unexpected argument '--forc'; did you mean '--force'?"),
        (["init", "own.py"], "own.py is a file; pass a folder"),
    ],
)
def test_a_command_that_is_none(fails: Fails, words: list[str], expected: str) -> None:
    assert expected in fails(*words)


def test_a_logger_whose_package_is_not_installed(fails: Fails) -> None:
    Path("lame.py").write_text(
        "from lightning.pytorch.loggers import CSVLogger\n"
        "class Lame(CSVLogger):\n"
        "    def __init__(self, save_dir: str = 'x'):\n"
        "        raise ModuleNotFoundError('Neither `a` nor `b` is available')\n"
    )
    said = fails("fit", "--config", "own.yaml", "--trainer.logger", "lame.Lame")
    assert said == "lame.Lame cannot be made: Neither `a` nor `b` is available"


def test_faults_of_a_run_that_has_begun(fails: Fails) -> None:
    own = ["fit", "--config", "own.yaml", "--trainer.default_root_dir", "out", "--model.fault"]
    assert fails(*own, "user") == "this cannot work"
    assert fails(*own, "oops", status=1) == "KeyError: 'oops' (RLHF_LIGHTNING_DEBUG=1 shows where)"
    assert Path("out/metrics.csv").read_text().splitlines()[1].startswith("0,")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["callbacks=EarlyStopping", "callbacks.monitor=val/reward/men"],
            "EarlyStopping: no metric is called 'val/reward/men'; did you mean 'val/reward/mean'? "
            "(monitor, in trainer.callbacks)",
        ),
        (
            ["callbacks=ModelCheckpoint", "callbacks.monitor=val/reward/men"],
            "ModelCheckpoint: no metric is called 'val/reward/men'; did you mean 'val/reward/mean'? "
            "(monitor, in trainer.callbacks)",
        ),
        (
            ["val_check_interval=5"],
            "trainer.val_check_interval is 5 and an epoch has 4 batches: validation would never run; set it to 4 or less, or "
            "set trainer.check_val_every_n_epoch to null to count batches over epochs",
        ),
        (
            ["val_check_interval=4", "limit_train_batches=3"],
            "trainer.val_check_interval is 4 and an epoch has 3 batches: validation would never run; set it to 3 or less, or "
            "set trainer.check_val_every_n_epoch to null to count batches over epochs",
        ),
    ],
)
def test_what_never_comes(fails: Fails, words: list[str], expected: str) -> None:
    assert fails("fit", "--config", "own.yaml", *(f"--trainer.{word}" for word in words)) == expected


def test_the_interval_is_judged_before_the_stage_is_set_up(fails: Fails) -> None:
    words = ["--trainer.val_check_interval=5", "--model.fault=setup"]
    assert "an epoch has 4 batches" in fails("fit", "--config", "own.yaml", *words)


@pytest.mark.parametrize(
    "words",
    [
        ["val_check_interval=4"],
        ["val_check_interval=5", "check_val_every_n_epoch=null"],
        ["val_check_interval=5", "limit_val_batches=0"],
        ["val_check_interval=00:00:01:00", "max_time=00:00:10:00"],
        ["callbacks=EarlyStopping", "callbacks.monitor=reward/mean", "callbacks.mode=max"],
        ["callbacks=EarlyStopping", "callbacks.monitor=nothing", "callbacks.strict=false"],
        ["callbacks=own.Brings", "callbacks+=EarlyStopping", "callbacks.monitor=brought"],
    ],
)
def test_what_comes_is_waited_for(words: list[str]) -> None:
    with Path("own.py").open("a") as file:
        file.write(
            "from lightning.pytorch import Callback\n"
            "class Brings(Callback):\n"
            "    def on_validation_epoch_end(self, trainer, module):\n"
            "        if not trainer.sanity_checking: module.log('brought', 1.0)\n"
        )
    assert main(["fit", "--config", "own.yaml", *(f"--trainer.{word}" for word in words)]) == 0


@pytest.mark.filterwarnings("ignore", category=PossibleUserWarning)
@pytest.mark.parametrize(
    ("fault", "word", "status"),
    [
        ("interrupt", "interrupted", 130),
        ("terminate", "stopped by SIGTERM after a checkpoint was saved; resume with --ckpt_path last", 143),
    ],
)
def test_an_end_from_outside(fault: str, word: str, status: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--config", "own.yaml", "--model.fault", fault]) == status
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-1] == word
    assert captured.out.splitlines()[0].startswith("run: runs/own/")


def test_a_traceback_is_there_for_the_asking(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RLHF_LIGHTNING_DEBUG", "1")
    assert main(["fit", "--config", "own.yaml", "--model.fault", "oops"]) == 1
    assert "Traceback" in capsys.readouterr().err
