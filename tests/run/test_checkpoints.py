"""Checkpoints are whole or not there, and a damaged one is found before anything is loaded."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest
import torch

from rlhf_lightning.cli.arguments import Arguments
from rlhf_lightning.errors import UserError
from rlhf_lightning.run.atomic_checkpoints import AtomicCheckpoints, remove_abandoned
from rlhf_lightning.run.checkpoint_integrity import damage, seal_folder
from rlhf_lightning.run.checkpoints import Checkpoints
from rlhf_lightning.run.last_checkpoint import newest_complete, refuse_damaged
from tests.guarded import python_path

FULL = """
import resource, signal, sys, torch
from rlhf_lightning.errors import UserError
from rlhf_lightning.run.atomic_checkpoints import AtomicCheckpoints
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
writer = AtomicCheckpoints()
writer.save_checkpoint({"step": 1}, "checkpoints/step-1.ckpt")
resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))
for name in sys.argv[1:]:
    try:
        writer.save_checkpoint({"weights": torch.zeros(10**6)}, name)
    except UserError as error:
        print(error)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three checkpoints, the third the newest and named by a link."""
    for step in (1, 2, 3):
        path = tmp_path / f"checkpoints/step-{step}.ckpt"
        AtomicCheckpoints().save_checkpoint(
            {"step": step, "weights": torch.full((1000,), float(step)), "pytorch-lightning_version": "2.6"}, path
        )
        os.utime(path, (time.time(), time.time() + step))
    (tmp_path / "checkpoints/last.ckpt").symlink_to("step-3.ckpt")
    return tmp_path


WRITES = """
import sys, time, torch
from rlhf_lightning.run.atomic_checkpoints import AtomicCheckpoints
def save(checkpoint, file):
    print("writes", flush=True)
    time.sleep(60)
torch.save = save
AtomicCheckpoints().save_checkpoint({"step": 1}, sys.argv[1])
"""


def test_what_a_killed_process_left_is_removed_and_what_another_writes_is_not(tmp_path: Path) -> None:
    names = [f"step-{number}.ckpt" for number in range(2)]
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITES, str(tmp_path / name)], stdout=subprocess.PIPE) for name in names
    ]
    for response_generator in writers:
        assert response_generator.stdout is not None
        assert response_generator.stdout.readline() == b"writes\n"
    writers[0].kill()
    writers[0].wait()
    for left in (tmp_path / f".{names[1]}.partial", None):
        remove_abandoned(tmp_path)
        assert list(tmp_path.iterdir()) == ([left] if left else [])
        writers[1].kill()
        writers[1].wait()


def test_an_interruption_leaves_nothing_half_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = sorted((folder / "checkpoints").iterdir())
    monkeypatch.setattr(torch, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        AtomicCheckpoints().save_checkpoint({"step": 4}, folder / "checkpoints/step-4.ckpt")
    assert sorted((folder / "checkpoints").iterdir()) == before


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def test_a_whole_checkpoint_is_whole(folder: Path) -> None:
    assert damage(folder / "checkpoints/step-1.ckpt") is None
    assert newest_complete(folder / "checkpoints") == (folder / "checkpoints/step-3.ckpt", [])
    assert not [path for path in (folder / "checkpoints").iterdir() if "partial" in path.name]


@pytest.mark.parametrize("harm", [cut, flip])
def test_a_damaged_one_is_refused_and_last_goes_back(
    harm: object, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    harm(folder / "checkpoints/step-3.ckpt")  # type: ignore[operator]
    os.utime(folder / "checkpoints/step-3.ckpt", (time.time(), time.time() + 3))
    with pytest.raises(UserError, match=r"step-3.ckpt is damaged: .+; pass step-2.ckpt beside it"):
        refuse_damaged(folder / "checkpoints/step-3.ckpt")
    monkeypatch.chdir(folder)
    words = ["fit", "--config", "ppo", "--trainer.default_root_dir", str(folder), "--ckpt_path", "last"]
    assert Arguments.of(words).words[-1] == f"--ckpt_path={folder}/checkpoints/step-2.ckpt"
    assert "step-3.ckpt is damaged" in capsys.readouterr().out
    with pytest.raises(UserError, match="is damaged"):
        Arguments.of([*words[:-1], str(folder / "checkpoints/last.ckpt")])


def test_without_a_checkpoint_last_begins_at_the_beginning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["fit", "--config", "ppo", "--trainer.default_root_dir", str(tmp_path), "--ckpt_path=last"]
    assert Arguments.of(words).words[-1] == "--ckpt_path=null"
    assert "starting from scratch" in capsys.readouterr().out


def test_a_full_disk_costs_no_checkpoint(tmp_path: Path) -> None:
    names = ["checkpoints/step-1.ckpt", "checkpoints/step-2.ckpt"]
    environment = {**os.environ, "PYTHONPATH": python_path(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", FULL, *names], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    said = done.stdout.splitlines()
    assert len(said) == 2, done.stderr
    for line, name in zip(said, names, strict=True):
        assert f"checkpoint {name} could not be written: File too large" in line
        assert "earlier checkpoints are complete" in line
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-1.ckpt"]
    assert torch.load(tmp_path / "checkpoints/step-1.ckpt", weights_only=True) == {"step": 1}


def test_options_that_cannot_be_are_refused() -> None:
    for options in ({"keep": 0}, {"every_n_steps": 0}, {"every_minutes": 0.0}):
        with pytest.raises(UserError, match="keep and every_n_steps"):
            Checkpoints(**options)  # type: ignore[arg-type]


def test_a_checkpoint_that_an_interruption_caused_is_replaced_by_the_next(tmp_path: Path) -> None:
    trainer = SimpleNamespace(default_root_dir=str(tmp_path), is_global_zero=True)
    trainer.save_checkpoint = lambda path, weights_only: AtomicCheckpoints().save_checkpoint({}, path)
    first, resumed = Checkpoints(), Checkpoints()

    def save(checkpoints: Checkpoints, step: int, is_extra: bool = False) -> set[str]:
        trainer.global_step = step
        checkpoints.save(trainer, is_extra)
        return {path.name for path in (tmp_path / "checkpoints").iterdir()} - {"last.ckpt"}

    assert [save(first, step) for step in (1, 2)][-1] == {"step-1.ckpt", "step-2.ckpt"}
    assert save(first, 3, is_extra=True) == {"step-1.ckpt", "step-2.ckpt", "step-3.ckpt"}
    resumed.load_state_dict(first.state_dict())
    assert save(resumed, 4) == {"step-2.ckpt", "step-4.ckpt"}
    assert save(resumed, 5) == {"step-4.ckpt", "step-5.ckpt"}


def test_no_flipped_byte_changes_what_is_loaded(folder: Path) -> None:
    path, random = folder / "checkpoints/step-1.ckpt", Random(0)
    whole = path.read_bytes()
    directory = whole.index(b"PK\x01\x02")
    places = [*range(directory, len(whole), 7), *random.sample(range(directory), 100), len(whole) - 1]
    for place in places:
        changed = bytearray(whole)
        changed[place] ^= 1 << random.randrange(8)
        path.write_bytes(changed)
        with pytest.raises(UserError, match=r"step-1.ckpt is (damaged|of an earlier version)"):
            AtomicCheckpoints().load_checkpoint(path)
    path.write_bytes(whole)
    assert AtomicCheckpoints().load_checkpoint(path)["step"] == 1


def test_a_checkpoint_without_a_digest_is_of_an_earlier_version(folder: Path) -> None:
    path = folder / "checkpoints/step-9.ckpt"
    torch.save({"step": 9}, path)
    with pytest.raises(UserError, match=r"step-9.ckpt is of an earlier version .*; pass step-3.ckpt beside it"):
        refuse_damaged(path)
    assert newest_complete(path.parent)[0] == folder / "checkpoints/step-3.ckpt"


def test_a_folder_checkpoint_is_complete_with_its_digests(tmp_path: Path) -> None:
    path = tmp_path / "step-1.ckpt"
    path.mkdir()
    files = {".metadata": b"a", "meta.pt": b"bb", "__0_0.distcp": b"ccc"}
    for name, content in files.items():
        (path / name).write_bytes(content)
    assert "of an earlier version" in str(damage(path))
    seal_folder(path)
    assert damage(path) is None
    assert newest_complete(tmp_path) == (path, [])
    for file in [*files, "digests"]:
        whole = (path / file).read_bytes()
        for place in range(len(whole)):
            (path / file).write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            assert str(damage(path)).startswith("damaged"), (file, place)
        (path / file).write_bytes(whole)
    (path / "__1_0.distcp").touch()
    assert "files are missing, or were added" in str(damage(path))
    (path / "digests").unlink()
    (path / "meta.pt").unlink()
    assert damage(path) == "damaged: it is incomplete"
    with pytest.raises(UserError, match="is a folder"):
        AtomicCheckpoints().load_checkpoint(path)
