"""A chat template is a program of a stranger: it ends, or it is refused."""

from __future__ import annotations

import copy
import threading
import time

import pytest
from transformers import PreTrainedTokenizerFast

from rlhf_lightning.errors import UserError
from rlhf_lightning.models import rendering
from rlhf_lightning.models.conversation import Conversation
from rlhf_lightning.models.rendering import TemplateRenderer
from rlhf_lightning.models.time_limit import TookTooLongError, time_limit

LOOPS = "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}"
RECURS = "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}"
MULTIPLIES = "{{ 'a' * 10 ** 14 }}"


def renderer(tokenizer: PreTrainedTokenizerFast, template: str) -> TemplateRenderer:
    own = copy.deepcopy(tokenizer)
    own.chat_template = template
    return TemplateRenderer(own)


@pytest.mark.parametrize("template", [LOOPS, RECURS])
@pytest.mark.parametrize("content", ["hi", [{"type": "text", "text": "hi"}]])
def test_a_template_that_loops_is_refused(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch, template: str, content: object
) -> None:
    monkeypatch.setattr(rendering, "LONGEST_RENDERING", 0.5)
    started = time.monotonic()
    with pytest.raises(UserError, match=r"the chat template renders a conversation for more than 0.5 s; it loops"):
        renderer(tokenizer, template).render(Conversation([{"role": "user", "content": content}]))
    assert time.monotonic() - started < 30


def test_a_template_that_fills_the_memory_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UserError, match="the chat template cannot render the conversation"):
        renderer(tokenizer, MULTIPLIES).render(Conversation([{"role": "user", "content": "hi"}]))


def test_a_limit_is_of_its_own_thread_and_ends_with_its_block() -> None:
    ended: list[str] = []

    def loops() -> None:
        try:
            with time_limit(0.5):
                while True:
                    pass
        except TookTooLongError:
            ended.append("interrupted")

    thread = threading.Thread(target=loops)
    thread.start()
    with time_limit(60):
        thread.join(30)
    with time_limit(0.1):
        pass
    time.sleep(0.8)  # beyond the limit of a block that has ended
    assert ended == ["interrupted"]
