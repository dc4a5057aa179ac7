"""The cache of reference log-probabilities against the policy that filled it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.encoding import Encoder
from rlhf_lightning.models.loading import ModelConfig, load_causal_lm
from rlhf_lightning.models.policy import Policy
from rlhf_lightning.rollouts.preferences import encode_pairs
from rlhf_lightning.rollouts.reference_cache import ReferenceCache

PAIRS = [
    {"prompt": "say", "chosen": "hello dog", "rejected": "no"},
    {"prompt": "please say hello to", "chosen": "the cat", "rejected": "the little dog"},
    {"prompt": "say", "chosen": "no", "rejected": "thank you"},
]


def test_the_cache_finds_recorded_responses_whatever_their_padding(
    tiny_model_folder: Callable[[str], str], tokenizer: Any, tmp_path: Path
) -> None:
    policy, encoder = Policy(load_causal_lm(ModelConfig(tiny_model_folder("gpt2")))), Encoder(tokenizer, [2])
    path = tmp_path / "run/reference_logprobs.safetensors"
    with torch.no_grad():
        cache = ReferenceCache(path, False)
        cache.fill(lambda rows: policy(rows).logprobs, [encode_pairs(encoder, PAIRS, None)])
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
    for pair in range(3):  # alone, without the padding of a batch
        rows = encode_pairs(encoder, PAIRS[pair : pair + 1], None)
        with torch.no_grad():
            expected = policy(rows).logprobs
        for reference in (cache, ReferenceCache(path, True)):
            logprobs = reference.logprobs(rows.tokens, rows.prompt_mask, rows.mask, 0.7)
            torch.testing.assert_close(logprobs, expected, atol=1e-5, rtol=0)
    unknown = encode_pairs(encoder, [{**PAIRS[0], "prompt": "thank"}], None)
    empty = cache.logprobs(unknown.tokens, unknown.prompt_mask, torch.zeros_like(unknown.mask), 0.7)
    assert not empty.any()  # of a rank without rows
    with pytest.raises(UserError, match="was not in it when the run began"):
        cache.logprobs(unknown.tokens, unknown.prompt_mask, unknown.mask, 0.7)
