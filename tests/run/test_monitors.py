"""Errors of other libraries that end a run are one line that says what to do."""

from __future__ import annotations

import pytest

from rlhf_lightning.run.monitors import readable_late_error


@pytest.mark.parametrize(
    "text",
    [
        "[…/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:59580. This is typically caused by a remote …",
        "[…/gloo/transport/tcp/pair.cc:534] Read error [127.0.0.1]:2: Connection reset by peer",
        "NCCL communicator was aborted on rank 1: remote process exited or there was a network error",
    ],
)
def test_a_process_that_ended_is_named_by_the_others(text: str) -> None:
    said = readable_late_error(RuntimeError(text))
    assert said is not None
    assert said.startswith("another process of this run has ended")
    assert said.endswith("resume with --ckpt_path last")
    assert readable_late_error(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
