"""Files that are no checkpoints of a run, given as one: one line each, and no code of theirs is run."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rlhf_lightning.errors import UserError
from rlhf_lightning.run.atomic_checkpoints import AtomicCheckpoints
from rlhf_lightning.run.checkpoint_integrity import seal
from rlhf_lightning.run.last_checkpoint import check_checkpoint


class Runs:
    """A pickle that runs code."""

    def __reduce__(self) -> tuple[Callable[..., int], tuple[str]]:
        return os.system, ("touch ran",)


def torchscript(path: Path) -> None:
    torch.jit.script(torch.nn.Linear(1, 1)).save(str(path))  # type: ignore[no-untyped-call]


def legacy(path: Path) -> None:
    torch.save({"a": Runs()}, path, _use_new_zipfile_serialization=False)


def plain_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"a": 1}))


def other_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/readme.txt", "text")


def compressed(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"0" * 10**6)


def model_folder(path: Path) -> None:
    path.mkdir()
    (path / "config.json").write_text(json.dumps({}))


def encrypted(path: Path) -> None:
    torch.save({"a": 1}, path)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        content[archive.start_dir + 8] |= 1  # the flag of encryption of the first entry
    path.write_bytes(content)


def sealed(path: Path) -> None:
    """Add the digest, without which a file is refused before it is read."""
    with open(path, "r+b") as file:
        seal(file)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (torchscript, "it is a TorchScript program and no checkpoint of a run"),
        (legacy, "it is a pickle, as PyTorch wrote before 1.6, which can run code"),
        (plain_pickle, "it is a pickle, as PyTorch wrote before 1.6"),
        (other_zip, "it is a zip archive that PyTorch did not write"),
        (compressed, "it is compressed, as PyTorch writes no checkpoint"),
        (model_folder, "it is the folder of a model; set name_or_path to it instead"),
        (encrypted, "it is truncated or no checkpoint"),
        (lambda path: path.write_bytes(b""), "it is truncated or no checkpoint"),
        (lambda path: path.mkdir(), "it is incomplete"),
    ],
)
def test_a_file_of_another_kind(
    make: Callable[[Path], object], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "x.ckpt")
    with pytest.raises(UserError) as refused:
        check_checkpoint("x.ckpt")
    assert f"checkpoint x.ckpt is damaged: {expected}" in str(refused.value)
    assert not Path("ran").exists()


def test_a_file_of_tensors_that_is_no_checkpoint(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(1)}, tmp_path / "weights.ckpt")
    with pytest.raises(
        UserError, match=r"weights.ckpt is of an earlier version or of another program: it holds no digest"
    ):
        AtomicCheckpoints().load_checkpoint(tmp_path / "weights.ckpt")
    sealed(tmp_path / "weights.ckpt")
    with pytest.raises(UserError, match=r"weights.ckpt is no checkpoint of a run; set name_or_path to the weights"):
        AtomicCheckpoints().load_checkpoint(tmp_path / "weights.ckpt")


def test_an_archive_whose_pickle_is_none(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.ckpt", "w") as archive:
        archive.writestr("a/data.pkl", b"no pickle")
        archive.writestr("a/version", b"3")
    sealed(tmp_path / "x.ckpt")
    with pytest.raises(UserError, match=r"x.ckpt (holds|cannot be read)"):
        AtomicCheckpoints().load_checkpoint(tmp_path / "x.ckpt")
