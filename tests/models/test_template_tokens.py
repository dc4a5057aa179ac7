"""Ids of prompt and response are those of the template's whole text, for six tokenizers and generated conversations."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizers import KINDS

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.chat_templates import TEMPLATES
from rlhf_lightning.models.conversation import Conversation, learned_turns
from rlhf_lightning.models.encoding import Encoded, Encoder

TEXTS = st.one_of(
    st.sampled_from(
        [
            "The answer",
            "hi",
            "  indented",
            "tail \n",
            "\u05e9\u05dc\u05d5\u05dd",
            "\u0645\u0631\u062d\u0628\u0627",
            "\U0001f9d1\u200d\U0001f680",
            "a\n\nb",
        ]
    ),
    st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=20),
)


@st.composite
def conversations(draw: st.DrawFn) -> list[dict[str, Any]]:
    talk = [{"role": "system", "content": draw(TEXTS)}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        talk += [{"role": "user", "content": draw(TEXTS)}, {"role": "assistant", "content": draw(TEXTS)}]
    return talk


def plain_ids(tokenizer: Any, messages: list[dict[str, Any]], **options: Any) -> list[int]:
    """By transformers alone."""
    return list(tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **options))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(talk=conversations())
def test_the_ids_of_a_turn_are_the_rest_of_those_of_the_whole_text(kind: str, talk: list[dict[str, Any]]) -> None:
    tokenizer = KINDS[kind]()
    encoder = Encoder(tokenizer, [tokenizer.eos_token_id])
    for prompt, turn in learned_turns([], Conversation(talk)):
        encoder.retokenized = 0
        found = encoder.encode(prompt, turn)
        start = plain_ids(tokenizer, list(prompt), add_generation_prompt=True)
        whole = plain_ids(tokenizer, [*prompt, *turn])
        assert found.prompt == start == encoder.prompt(prompt)
        assert all(found.mask)
        if whole[: len(start)] == start:
            assert encoder.retokenized == 0
            rest = whole[len(start) :]
            assert rest[: len(found.response)] == found.response
            assert not tokenizer.decode(rest[len(found.response) :]).strip()  # the template's newline
        else:
            assert encoder.retokenized == 1
        assert found.response[-1] == tokenizer.eos_token_id


def own_text(tokenizer: Any, talk: list[dict[str, Any]]) -> str:
    """What the template adds to a prompt for its last turn, up to the stop token."""
    start = tokenizer.apply_chat_template(talk[:-1], tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(talk, tokenize=False)
    return str(whole[len(start) : whole.index(tokenizer.eos_token, len(start)) + len(tokenizer.eos_token)])


def letters(text: str) -> str:
    return "".join(text.split())


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(talk=conversations(), first=TEXTS)
def test_nothing_of_the_user_is_under_the_mask_of_a_response_of_several_turns(
    kind: str, talk: list[dict[str, Any]], first: str
) -> None:
    tokenizer = KINDS[kind]()
    encoder = Encoder(tokenizer, [tokenizer.eos_token_id])
    prompt, rest = [{"role": "user", "content": first}], [turn for turn in talk if turn["role"] != "system"][1:]
    found = encoder.encode(prompt, rest)
    whole = plain_ids(tokenizer, [*prompt, *rest])
    if encoder.retokenized:  # tokens merge over a turn
        learned_text = tokenizer.decode([i for i, mask in zip(found.response, found.mask, strict=True) if mask])
        answers = [
            own_text(tokenizer, [*prompt, *rest[: i + 1]]) for i, x in enumerate(rest) if x["role"] == "assistant"
        ]
        assert (
            letters(learned_text) == letters("".join(answers)) or kind == "wordpiece_like"
        )  # which has unknown tokens
        return
    assert whole[: len(found.prompt) + len(found.response)] == found.prompt + found.response
    learned = set()
    for place, turn in enumerate(rest):
        if turn["role"] == "assistant":
            start = len(plain_ids(tokenizer, [*prompt, *rest[:place]], add_generation_prompt=True))
            learned |= set(range(start, len(plain_ids(tokenizer, [*prompt, *rest[: place + 1]]))))
    own = {len(found.prompt) + place for place, mask in enumerate(found.mask) if mask}
    assert own
    assert own <= learned
    assert sum(found.response[i - len(found.prompt)] == tokenizer.eos_token_id for i in own) >= len(rest) // 2 + 1


def contexts(rows: list[Encoded]) -> list[tuple[list[int], int]]:
    """All tokens before each learned token, and that token."""
    found = []
    for row in rows:
        ids = row.prompt + row.response
        places = [len(row.prompt) + place for place, learned in enumerate(row.mask) if learned]
        found += [(ids[:place], ids[place]) for place in places]
    return sorted(found)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(talk=conversations(), weights=st.lists(st.integers(0, 1), min_size=7, max_size=7), limit=st.integers(8, 400))
def test_one_row_of_several_turns_learns_what_a_row_per_turn_learns(
    kind: str, talk: list[dict[str, Any]], weights: list[int], limit: int
) -> None:
    talk = [
        {**turn, "weight": weight} if turn["role"] == "assistant" else turn
        for turn, weight in zip(talk, weights, strict=False)
    ]
    talk[-1] = {**talk[-1], "weight": 1}
    tokenizer = KINDS[kind]()
    encoder = Encoder(tokenizer, [tokenizer.eos_token_id])
    per_turn = [encoder.fit(encoder.encode(*pair), limit) for pair in learned_turns([], Conversation(talk))]
    counts = (encoder.retokenized, encoder.truncated_counts)
    encoder = Encoder(tokenizer, [tokenizer.eos_token_id])
    found = encoder.learned([], Conversation(talk), limit)
    assert len(found) in (1, len(per_turn))
    assert contexts(found) == contexts(per_turn)
    assert (encoder.retokenized, encoder.truncated_counts) == counts


TALK = [{"role": role, "content": role[:1]} for role in ("user", "assistant", "user", "assistant")]
EARLIER_TURNS_OTHERWISE = {
    "the last turn has a thought": "{{ '<think></think>' if loop.last and message['role'] == 'assistant' else '' }}",
    "a question that has an answer and others behind it is old": (
        "{{ 'old ' if message['role'] == 'user' and loop.index0 + 2 < messages | length else '' }}"
    ),
}


@pytest.mark.parametrize("name", ["", *EARLIER_TURNS_OTHERWISE])
def test_a_conversation_is_one_row_where_its_template_extends_prompts(name: str) -> None:
    tokenizer = copy.deepcopy(KINDS["byte_level"]())
    changed = EARLIER_TURNS_OTHERWISE.get(name, "")
    tokenizer.chat_template = TEMPLATES["chatml"].replace("{{ message['content']", changed + "{{ message['content']")
    encoder = Encoder(tokenizer, [tokenizer.convert_tokens_to_ids("<|im_end|>")])
    assert encoder.joins_turns == (name == "")
    assert len(encoder.learned([], Conversation(TALK), None)) == (2 if name else 1)


def test_a_pair_of_which_a_template_renders_earlier_turns_otherwise_is_refused() -> None:
    tokenizer = copy.deepcopy(KINDS["byte_level"]())
    changed = EARLIER_TURNS_OTHERWISE["the last turn has a thought"]
    tokenizer.chat_template = TEMPLATES["chatml"].replace("{{ message['content']", changed + "{{ message['content']")
    with pytest.raises(UserError, match="renders turn 1 of 3 in a response otherwise once others follow"):
        Encoder(tokenizer, [tokenizer.eos_token_id]).encode(TALK[:1], TALK[1:])


def test_turns_without_a_stop_token_between_them_are_a_row_each() -> None:
    tokenizer = copy.deepcopy(KINDS["byte_level"]())  # which does not learn to stop after the first from the whole text
    prompted = "{% if add_generation_prompt %}assistant{% endif %}"
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] + m['content'] }}{% endfor %}" + prompted
    encoder = Encoder(tokenizer, [tokenizer.eos_token_id])
    rows = encoder.learned([], Conversation(TALK), None)
    assert not encoder.joins_turns
    assert [row.response[-1] for row in rows] == [tokenizer.eos_token_id] * 2


def test_a_conversation_that_is_too_long_for_one_row_is_a_row_per_turn() -> None:
    tokenizer = KINDS["byte_level"]()
    encoder = Encoder(tokenizer, [tokenizer.eos_token_id])
    (whole,) = encoder.learned([], Conversation(TALK), None)
    length = len(whole.prompt + whole.response)
    assert len(encoder.learned([], Conversation(TALK), length)) == 1
    assert len(encoder.learned([], Conversation(TALK), length - 1)) == 2


def test_a_prefix_space_is_only_where_the_whole_text_has_it() -> None:
    tokenizer = KINDS["sentencepiece_with_space"]()
    encoder = Encoder(tokenizer, [2])
    found = encoder.encode([{"role": "user", "content": "hi"}], "The answer")
    assert tokenizer.convert_ids_to_tokens(found.response) == ["The", "\u2581answer", "</s>"]
    plain = encoder.encode("Q:", "The")  # text without a template: the same
    assert tokenizer.convert_ids_to_tokens(plain.prompt)[0] == "<s>"
    assert tokenizer.convert_ids_to_tokens(plain.response) == ["The", "</s>"]


def test_a_text_behind_a_prompt_that_is_no_prefix_has_no_space_of_its_own() -> None:
    tokenizer = copy.deepcopy(KINDS["sentencepiece_with_space"]())
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "<|assistant|>\n{% endif", "<|assistant|>\n<think>\n{% endif"
    )
    encoder = Encoder(tokenizer, [2])
    found = encoder.encode([{"role": "user", "content": "hi"}], "The answer")
    assert tokenizer.convert_ids_to_tokens(found.response) == ["The", "\u2581answer", "</s>"]
    assert encoder.retokenized == 1


@pytest.mark.parametrize(
    ("turns", "said"),
    [
        ([{"role": "user", "content": "x"}], "turn of 'user' there"),
        ([{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}], "turn of 'user' there"),
        ([{"role": "assistant", "content": "y"}, {"role": "tool", "content": "x"}], "turn of 'tool' there"),
        ([{"role": "assistant", "content": "y", "weight": 0}], "no turn to learn"),
        ([], "turn of None there"),
    ],
)
def test_a_response_that_is_not_the_assistants_is_refused(turns: list[dict[str, Any]], said: str) -> None:
    encoder = Encoder(KINDS["byte_level"](), [3])
    with pytest.raises(UserError, match=said):
        encoder.encode([{"role": "user", "content": "q"}], turns)


def test_a_prompt_that_merges_with_its_answer_is_counted_and_the_prompt_stays_what_generation_is_given() -> None:
    tokenizer = KINDS["byte_level"]()
    encoder = Encoder(tokenizer, [tokenizer.eos_token_id])
    found = encoder.encode("hel", "lo world")
    alone = tokenizer("hel")["input_ids"]
    assert tokenizer("hello world")["input_ids"][: len(alone)] != alone  # else this text is no example
    assert found.prompt == alone
    assert tokenizer.decode(found.response) == "lo world<|im_end|>"
    assert encoder.retokenized == 1


def test_special_tokens_are_not_added_twice() -> None:
    tokenizer = KINDS["wordpiece_like"]()
    encoder = Encoder(tokenizer, [tokenizer.eos_token_id])
    for text in ("hello", "[CLS] hello"):
        ids = encoder.prompt(text)
        assert ids.count(tokenizer.bos_token_id) == 1
        assert tokenizer.eos_token_id not in ids
    found = encoder.encode("hello", "hello")
    assert (found.prompt + found.response).count(tokenizer.eos_token_id) == 1


THINKS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' %}{{ m['content'].split('</think>')[-1] }}{% else %}{{ m['content'] }}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)


def test_where_the_prompt_is_no_prefix_the_answer_is_counted_and_nothing_of_the_user_is_learned() -> None:
    tokenizer = copy.deepcopy(KINDS["byte_level"]())
    tokenizer.chat_template = THINKS
    encoder = Encoder(tokenizer, [tokenizer.eos_token_id])
    for answer in ("51", "<b>51", "think</think><t51"):
        encoder.retokenized = 0
        found = encoder.encode([{"role": "user", "content": "17*3?"}], answer)
        assert tokenizer.decode(found.prompt).endswith("<think>\n")
        assert tokenizer.decode(found.response) == answer.split("</think>")[-1] + "<|im_end|>"
        assert encoder.retokenized == 1
    tokenizer.chat_template = THINKS.replace("{% for", "{{ messages | length }}{% for", 1)
    with pytest.raises(UserError, match="does not continue a prompt"):
        encoder.encode([{"role": "user", "content": "17*3?"}], "51")


def test_tools_and_template_arguments_reach_the_template() -> None:
    tokenizer = copy.deepcopy(KINDS["byte_level"]())
    tokenizer.chat_template = (
        "{% if tools %}{{ tools | tojson }}{% endif %}"
        + CHATML_WITH_CALLS
        + "{% if add_generation_prompt and not (enable_thinking | default(true)) %}<think></think>{% endif %}"
    )
    encoder = Encoder(tokenizer, [tokenizer.eos_token_id])
    tools = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
    call = [{"id": "1", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}]
    talk = [{"role": "user", "content": "1+2?"}, {"role": "assistant", "content": None, "tool_calls": call}]
    prompt = Conversation(talk[:1], tools, {"enable_thinking": False})
    found = encoder.encode(prompt, talk[1:])
    theirs = tokenizer.apply_chat_template(
        talk[:1], tools=tools, tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    assert tokenizer.decode(found.prompt) == theirs
    assert tokenizer.decode(found.response) == '<call>{"name": "add", "arguments": {"a": 1}}</call><|im_end|>'
    bare = copy.deepcopy(KINDS["byte_level"]())
    with pytest.raises(UserError, match="renders no tool_calls"):
        Encoder(bare, [bare.eos_token_id]).encode(talk[:1], talk[1:])


CHATML_WITH_CALLS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] or '' }}"
    "{% for c in m.tool_calls or [] %}<call>{{ c['function'] | tojson }}</call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize("template", ["dialogue", "chatml"])
def test_a_shipped_template_knows_each_role_or_refuses_it(template: str) -> None:
    tokenizer = copy.deepcopy(KINDS["byte_level"]())
    tokenizer.chat_template = TEMPLATES[template]
    encoder = Encoder(tokenizer, [tokenizer.eos_token_id])
    user, answer = {"role": "user", "content": "Q1"}, {"role": "assistant", "content": "A1"}
    rendered = encoder.renderer.render([{"role": "system", "content": "S1"}, user, answer])
    assert all(text in rendered for text in ("S1", "Q1", "A1"))
    assert "Assistant: S1" not in rendered
    tool = [user, answer, {"role": "tool", "content": "T1"}]
    if template == "dialogue":
        for refused in (tool, [{"role": "narrator", "content": "x"}], [{**answer, "tool_calls": [{"name": "f"}]}]):
            with pytest.raises(UserError, match="the template dialogue"):
                encoder.renderer.render(refused)
    else:
        assert "<|im_start|>tool\nT1" in encoder.renderer.render(tool)
        called = encoder.renderer.render([{"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}])
        assert '{"name": "f"}' in called
        assert "None" not in called


def test_content_that_a_template_for_text_would_print_as_python_is_text() -> None:
    tokenizer = KINDS["byte_level"]()
    encoder = Encoder(tokenizer, [tokenizer.eos_token_id])
    parts = [{"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]}]
    assert encoder.prompt(parts) == encoder.prompt([{"role": "user", "content": "hi"}])
