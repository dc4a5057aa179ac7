"""Packed lines against padded rows: seconds of one forward and backward pass over the same responses.

    python benchmarks/packing.py [--repeats 3] [--rows PAIRS.jsonl]

A Llama of 13.8 M parameters with random weights (6 layers, width 384, vocabulary 4,096), float32, the threads of the machine
(`OMP_NUM_THREADS` sets them), processor time of the fastest repeat. `--rows` adds the lengths of a file of preference pairs
(`chosen` and `rejected`, whole dialogues), four bytes a token, up to 512 tokens.
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from rlhf_lightning.models.backbone import capabilities_of, supports_packing
from rlhf_lightning.models.logprobs import token_scores
from rlhf_lightning.models.packed_forward import final_hidden_states
from rlhf_lightning.types import Rows

VOCABULARY = 4096
Lengths = list[tuple[int, int, int]]
"""(which prompt, its tokens, tokens of the response) of each row."""


def small_model() -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 6}
    return AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=2048, **sizes))


def rows_of(lengths: Lengths) -> Rows:
    width, longest = max(prompt for _, prompt, _ in lengths), max(response for _, _, response in lengths)
    generator, count = torch.Generator().manual_seed(0), len(lengths)
    prompts = torch.randint(3, VOCABULARY, (1 + max(name for name, _, _ in lengths), width), generator=generator)
    names, prompt, response = torch.tensor(lengths).T
    tokens = torch.cat([prompts[names], torch.randint(3, VOCABULARY, (count, longest), generator=generator)], 1)
    prompt_mask = torch.arange(width)[None] >= width - prompt[:, None]
    mask = torch.arange(longest)[None] < response[:, None]
    return Rows(tokens, prompt_mask, mask, names, mask[:, -1])


def groups(prompts: int, responses: int, prompt: int, response: int) -> Lengths:
    return [(name, prompt, response) for name in range(prompts) for _ in range(responses)]


def recorded(path: Path, pairs: int) -> Lengths:
    """Two rows a pair of a file; a pair that is cut shares no prompt any more."""
    lines = (gzip.open if path.suffix == ".gz" else open)(path, "rt").readlines()[:pairs]
    found: Lengths = []
    for line in lines:
        row = json.loads(line)
        start = row["chosen"].rfind("Assistant:") + len("Assistant:")
        for text in (row["chosen"], row["rejected"]):
            response = min(400, max(1, (len(text) - start) // 4))
            prompt = max(1, start // 4)
            shared = prompt + response <= 512
            found.append((len(found) // 2 if shared else pairs + len(found), min(prompt, 512 - response), response))
    return found


def seconds(work: Callable[[], Tensor], model: Any, repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work().backward()
        times.append(time.process_time() - start)
        model.zero_grad()
    return min(times)


def compare(name: str, lengths: Lengths, model: Any, scores: bool, repeats: int) -> None:
    rows, backbone = rows_of(lengths), model.base_model

    def work() -> Tensor:
        return final_hidden_states(backbone, rows).sum() if scores else token_scores(model, rows).logprobs.sum()

    taken = {}
    for pack in (False, True):
        capabilities_of(backbone).packing = pack
        taken[pack] = seconds(work, model, repeats)
    print(f"| {name} | {taken[False]:.2f} | {taken[True]:.2f} | {taken[False] / taken[True]:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", type=Path, help="a file of preference pairs, .jsonl or .jsonl.gz")
    options = parser.parse_args()
    model = small_model()
    assert supports_packing(model.base_model)
    print("| rows | padded, s | packed, s | times faster |\n| --- | --- | --- | --- |")
    for prompts, responses, prompt in ((8, 4, 64), (4, 8, 256), (16, 2, 64), (16, 2, 256)):
        name = f"{prompts} x ({prompt} + {responses} x 64)"
        compare(name, groups(prompts, responses, prompt, 64), model, False, options.repeats)
    if options.rows:
        pairs = recorded(options.rows, 16)
        compare("scores of 16 recorded pairs", pairs, model, True, options.repeats)
        chosen = [(index, prompt, response) for index, (_, prompt, response) in enumerate(recorded(options.rows, 32))]
        compare("32 recorded completions", chosen[::2], model, False, options.repeats)


if __name__ == "__main__":
    main()
