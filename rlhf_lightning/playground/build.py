"""`python -m rlhf_lightning.playground.build [FOLDER]`: train the playground's models with sft.yaml and reward.yaml.

Without a folder it replaces the models of the package.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rlhf_lightning.__main__ import main
from rlhf_lightning.playground.task import vocabulary

HERE = Path(__file__).resolve().parent


def tokenizer() -> PreTrainedTokenizerFast:
    """Build a tokenizer with one token per word."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary())}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", pad_token="<pad>", unk_token="<unk>")


def build(folder: Path) -> None:
    """Train the models, and save them in `folder`/sft and `folder`/reward.

    Raises:
        RuntimeError: a run failed; its message is on standard error.
    """
    with tempfile.TemporaryDirectory() as work:
        tokenizer().save_pretrained(f"{work}/tokenizer")
        sft, reward = ("--trainer.default_root_dir", f"{work}/sft"), ("--trainer.default_root_dir", f"{work}/reward")
        _run("fit", "--config", "sft.yaml", "--model.model.tokenizer", f"{work}/tokenizer", *sft)
        _run("fit", "--config", "reward.yaml", "--model.model.name_or_path", f"{work}/sft/export", *reward)
        for name in ("sft", "reward"):
            target = folder / name
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(f"{work}/{name}/export", target)


def _run(*arguments: str) -> None:
    if main(arguments):
        raise RuntimeError(f"failed: {' '.join(arguments)}")


if __name__ == "__main__":
    build(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
