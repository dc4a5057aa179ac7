"""A source resumes the order of its rows."""

from __future__ import annotations

import torch

from tests.rollouts.loaders import source


def test_a_source_resumes_its_order() -> None:
    torch.manual_seed(123)
    whole = [source_.next() for source_ in [source()] for _ in range(9)]
    before = torch.get_rng_state()
    stopped = source()
    first = [stopped.next() for _ in range(5)]
    resumed = source()
    resumed.load_state_dict(stopped.state_dict())
    assert first + [resumed.next() for _ in range(4)] == whole
    assert torch.equal(torch.get_rng_state(), before)  # the global random state is restored
    assert whole[:4] != whole[4:8]
