"""Tiny real models and a real tokenizer, made once per session without a download; and which tests are unit tests."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start; other tests may run beside this one

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from tests.guarded import asked

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    "qwen2": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "gpt_neox": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    "gemma": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 8,
    },
    "mistral": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "sliding_window": 48,
    },
}
"""Model type to the sizes of a tiny model of it: hidden 32, two layers."""

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %}{{ '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


TESTS = Path(__file__).parent
RUN_TESTS = (
    "cli",
    "devices",
    "feedback/test_command.py",
    "feedback/test_durability.py",
    "feedback/test_load.py",
    "feedback/test_security.py",
    "integration",
    "invariance",
    "loop/test_loop.py",
    "playground",
    "run/test_checkpoints.py",
    "stages",
    "test_bad_input.py",
)
"""Folders and files of this folder whose tests train, start processes or go through Lightning's trainer."""
OTHER_TIERS = ("slow", "gpu", "distributed", "benchmark", "browser")
"""Markers of tests that the default run leaves to another command."""


@pytest.hookimpl(tryfirst=True)  # before `-m` selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as `unit` every test and doctest that is neither of `RUN_TESTS` nor of another tier."""
    run_tests = tuple(TESTS / name for name in RUN_TESTS)
    for item in items:
        other = any(item.get_closest_marker(name) for name in OTHER_TIERS)
        if not other and not any(item.path.is_relative_to(path) for path in run_tests):
            item.add_marker("unit")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _loopback_alone() -> Iterator[None]:
    """Fail a test that asked for an address outside this machine, or whose processes did (`guard/sitecustomize.py`)."""
    before = len(asked())
    yield
    assert not asked()[before:], asked()[before:]


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE of fewer than 300 tokens, any text round-trips; `<pad>` 0, `<bos>` 1, `<eos>` 2, a chat template."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=290,
        special_tokens=["<pad>", "<bos>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(["please say hello to the little dog and the cat, thank you"] * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


@pytest.fixture(scope="session")
def tokenizer_folder(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder that holds the tokenizer and no model."""
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_model_folder(
    tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], str]:
    """`tiny_model_folder("gpt2")`: a folder with a random model of that type (see `ARCHITECTURES`) and the tokenizer.

    The weights are five times the usual size, so that quantisation and dropout leave a trace. Do not write into it.
    """
    made: dict[str, Path] = {}

    def folder(arch: str = "llama") -> str:
        if arch not in made:
            made[arch] = tmp_path_factory.mktemp(f"tiny_{arch}")
            config = AutoConfig.for_model(
                arch,
                **ARCHITECTURES[arch],
                vocab_size=len(tokenizer),
                pad_token_id=tokenizer.pad_token_id,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                initializer_range=0.1,
            )
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(7)
                AutoModelForCausalLM.from_config(config).save_pretrained(made[arch])
            tokenizer.save_pretrained(made[arch])
        return str(made[arch])

    return folder
