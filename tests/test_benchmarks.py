"""The harness under benchmarks/: its formulas against torch's own counts, and that either side is given the same work."""

from __future__ import annotations

import pytest
import torch
from peers import flops
from peers.models import _language_model, _tokenizer
from peers.text import pairs_of, rows_of, texts_of
from peers.work import EQUAL_WORK, SIDES, SIZES, Job, Size, Work, equal_jobs
from torch.utils.flop_counter import FlopCounterMode

pytestmark = pytest.mark.benchmark
SMALL = Size(layers=2, hidden=128, vocabulary=512)


@pytest.fixture(scope="module")
def pairs() -> list[dict[str, str]]:
    return pairs_of(None)[:300]


@pytest.fixture(scope="module")
def tokenizer(pairs: list[dict[str, str]]):
    return _tokenizer(SMALL, texts_of(pairs))


def test_operations_are_those_that_torch_counts_in_a_pass_of_the_same_model() -> None:
    """torch counts the whole square of attention and the head at every position, so both are asked for here."""
    model, rows, width = _language_model(SMALL), 3, 16
    model.set_attn_implementation("eager")  # torch does not count the fused kernel on the CPU
    with FlopCounterMode(display=False) as counted:
        model(torch.ones(rows, width, dtype=torch.long)).logits.sum().backward()
    whole = flops.Tokens(prompt=0, response=rows * width, prompt_context=0, response_context=width)
    assert counted.get_total_flops() == pytest.approx(3 * flops.forward(SMALL, whole), rel=0.001)


def test_the_weights_of_a_size_are_those_of_its_model() -> None:
    assert sum(p.numel() for p in _language_model(SMALL).parameters()) == SMALL.parameters
    assert SIZES["tiny"].parameters == pytest.approx(0.65e6, rel=0.02)
    assert SIZES["small"].parameters == pytest.approx(13.8e6, rel=0.02)


def test_no_text_makes_a_model_of_the_harness_end_its_response() -> None:
    model = _language_model(SMALL).eval()
    tokens = torch.randint(SMALL.vocabulary, (8, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        probabilities = model(tokens).logits.softmax(-1)
    assert probabilities[..., :3].max() < 1e-9
    assert probabilities[..., 3:].min() > 1e-6


@pytest.mark.parametrize("work", [w for w in EQUAL_WORK if w.length], ids=lambda w: w.name)
def test_rows_have_exactly_the_tokens_that_the_work_says(work: Work, pairs: list[dict[str, str]], tokenizer) -> None:
    for row in rows_of(work, 8, pairs, tokenizer):
        assert len(tokenizer(row["prompt"])["input_ids"]) == work.prompt
        for response in (row[name] for name in ("chosen", "rejected") if name in row):
            tokens = tokenizer(row["prompt"] + response)["input_ids"]
            assert tokens == tokenizer(row["prompt"])["input_ids"] + tokenizer(response)["input_ids"]
            assert len(tokens) == work.prompt + work.length - 1  # both libraries append the end token


def test_both_sides_get_the_same_responses_and_trl_none_twice() -> None:
    kinds = {work.kind for work in EQUAL_WORK}
    jobs = list(equal_jobs(kinds, ["tiny"], ["float32"], SIDES, updates=3, warmup=1, threads=1))
    assert len({job.name for job in jobs}) == len(jobs)
    for work in EQUAL_WORK:
        assert work.for_trl().rows == work.rows
        assert any(job.side == "trl" and job.work == work.for_trl() for job in jobs)


def test_a_job_is_written_and_read_whole() -> None:
    job = Job("ours", EQUAL_WORK[3], "small", "bf16-true", 3, 1, 2)
    assert Job.of(job.to_json()) == job
