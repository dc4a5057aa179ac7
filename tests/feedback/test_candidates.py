"""Items from files and from generated responses; what is wrong with a row is said by its line."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rlhf_lightning.errors import UserError
from rlhf_lightning.feedback.candidates import ItemBuilder, ItemTemplate, read_items, read_prompts

PAIR = ItemTemplate("pair", 3, ())
GIF, PNG = b"GIF89a" + bytes(20), b"\x89PNG\r\n\x1a\n" + bytes(20)


def lines(path: Path, *rows: Any) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def test_recorded_pairs_of_every_shape(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "hi"}]
    shared = "\n\nHuman: hi\n\nAssistant:"
    file = lines(
        tmp_path / "pairs.jsonl",
        {"prompt": "hi", "chosen": "good", "rejected": "bad", "chosen_model": "a"},
        {"prompt": messages, "responses": ["one", "two"], "models": ["a", "b"]},
        {"chosen": f"{shared} yes", "rejected": f"{shared} no"},
        {"prompt": "hi", "responses": ["one", "two"], "answer": {"choice": "tie"}},
        {"prompt": "hi", "chosen": "good", "rejected": "bad", "answer": "a column of one's own"},
    )
    items = read_items(file, PAIR, "item")
    assert [[r.content for r in item.responses] for item in items[:2]] == [["good", "bad"], ["one", "two"]]
    assert [[r.model for r in item.responses] for item in items[:2]] == [["a", None], ["a", "b"]]
    assert [item.answer for item in items] == [{"choice": 0}, None, {"choice": 0}, {"choice": "tie"}, {"choice": 0}]
    assert items[2].prompt == messages
    assert items[2].responses[0].content == [{"role": "assistant", "content": "yes"}]
    assert {item.wanted for item in items} == {3}


def test_images_are_read_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.gif").write_bytes(GIF)
    (tmp_path / "b.png").write_bytes(PNG)
    file = lines(tmp_path / "clips.jsonl", {"prompt": "which walks better?", "clips": ["a.gif", "b.png"]})
    (item,) = read_items(file, ItemTemplate("pair", 1, (), image_column="clips"), "item")
    media = [response.media for response in item.responses]
    assert [(m.type, m.data) for m in media if m] == [("image/gif", GIF), ("image/png", PNG)]
    assert [response.content for response in item.responses] == [None, None]


def test_an_images_content_says_its_kind(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"RIFF\x0a\x00\x00\x00WEBPVP8 ")
    (tmp_path / "b.png").write_text("<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>")
    (tmp_path / "c.png").write_bytes(b"")
    (tmp_path / "d.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    file = lines(tmp_path / "good.jsonl", {"prompt": "which?", "images": ["a.png", "d.jpg"]})
    (item,) = read_items(file, PAIR, "item")
    assert [response.media and response.media.type for response in item.responses] == ["image/webp", "image/jpeg"]
    for bad in ("b.png", "c.png", "/dev/zero", "."):
        file = lines(tmp_path / "bad.jsonl", {"prompt": "which?", "images": ["a.png", bad]})
        with pytest.raises(UserError, match=r"bad\.jsonl:1: image .* is none of png, jpeg, gif, webp; fix the row"):
            read_items(file, PAIR, "item")


def test_an_image_column_that_no_row_has(tmp_path: Path) -> None:
    file = lines(tmp_path / "p.jsonl", {"prompt": "hi", "chosen": "a", "rejected": "b"})
    with pytest.raises(UserError, match=r"--image-column is clips, and no row of .*p\.jsonl has it"):
        read_items(file, ItemTemplate("pair", 1, (), "clips"), "item")


def test_other_criteria_make_another_item(tmp_path: Path) -> None:
    file = lines(tmp_path / "p.jsonl", {"prompt": "hi", "response": "a"})
    (one,), (other,) = (read_items(file, ItemTemplate("rating", 1, (name,)), "item") for name in ("kind", "short"))
    assert one.key != other.key


@pytest.mark.parametrize(
    ("template", "purpose", "row", "said"),
    [
        (PAIR, "item", {"prompt": "hi", "responses": ["a"]}, r"a pair needs 2 responses, found 1"),
        (PAIR, "item", {"prompt": "hi", "responses": ["a", "a"]}, "two responses are the same"),
        (PAIR, "item", {"prompt": "hi"}, "a pair needs 2 responses, found 0"),
        (PAIR, "item", {"responses": ["a", "b"]}, "column 'prompt' is missing, found responses"),
        (PAIR, "item", {"prompt": "hi", "responses": "ab"}, "column 'responses' must be a list, found str"),
        (PAIR, "item", {"prompt": "hi", "responses": ["a", "b"], "models": ["x"]}, "2 responses, 1 models and 2 images"),
        (PAIR, "item", {"prompt": "hi", "responses": ["a", "\ud800"]}, "column 'responses' is not Unicode text"),
        (PAIR, "item", {"prompt": "hi", "images": ["x.svg", "y.gif"]}, "is none of png, jpeg, gif, webp"),
        (PAIR, "item", {"prompt": "hi", "images": ["x.gif", "y.gif"]}, "x.gif cannot be read: No such file"),
        (PAIR, "item", {"prompt": "hi", "responses": ["a", None]}, "a response has neither text nor an image"),
        (PAIR, "item", "{", "not JSON"),
        (PAIR, "gold", {"prompt": "hi", "responses": ["a", "b"]}, "a gold item needs a known answer"),
        (PAIR, "gold", {"prompt": "hi", "responses": ["a", "b"], "answer": {"skip": True}}, "needs a known answer"),
        (PAIR, "gold", {"prompt": "hi", "responses": ["a", "b"], "answer": {"choice": 2}}, "choice is 2"),
        (ItemTemplate("edit", 1, ()), "gold", {"prompt": "hi", "response": "a", "answer": {}}, "an edit has no known answer"),
        (ItemTemplate("ranking", 1, ()), "item", {"prompt": "hi", "responses": list("abcdef")}, "a ranking needs 2 to 5"),
        (ItemTemplate("rating", 1, ("a",)), "gold", {"prompt": "hi", "response": "x", "answer": {"scores": [{}]}}, "scores need"),
        (PAIR, "training", {"prompt": "hi", "chosen": "a", "rejected": "b", "explanation": 1}, "'explanation' must be"),
    ],
)  # fmt: skip
def test_a_bad_row_is_named_by_its_line(
    tmp_path: Path, template: ItemTemplate, purpose: str, row: Any, said: str
) -> None:
    good = {"prompt": "ok", "chosen": "a", "rejected": "b", "responses": ["a", "b"], "answer": {"choice": 0}}
    (tmp_path / "x.svg").write_text("<svg/>")
    file = lines(tmp_path / "rows.jsonl", *([good] if template is PAIR else []), row)
    line = 2 if template is PAIR else 1
    with pytest.raises(UserError, match=rf"rows\.jsonl:{line}: .*{said}.*; fix the (row or remove it|file)"):
        read_items(file, template, purpose)


def test_prompts_are_read_up_to_where_the_assistant_answers(tmp_path: Path) -> None:
    dialogue = "\n\nHuman: hi\n\nAssistant: hello"
    rows = read_prompts(lines(tmp_path / "p.jsonl", {"prompt": "plain"}, {"prompt": dialogue}))
    assert [row["prompt"] for row in rows] == ["plain", [{"role": "user", "content": "hi"}]]
    with pytest.raises(UserError, match=r"p\.jsonl:1: column 'prompt' is missing, found"):
        read_prompts(lines(tmp_path / "p.jsonl", {"text": "x"}))
    with pytest.raises(UserError, match="is empty: no row to use"):
        read_prompts(lines(tmp_path / "p.jsonl"))


def test_pairs_are_of_two_models_and_know_their_probability() -> None:
    candidates = [("a1", "a"), ("a2", "a"), ("b1", "b"), ("b2", "b"), ("a1", "b"), ("", "b")]
    (item,) = ItemBuilder(PAIR, None).items("prompt", candidates)
    assert {response.model for response in item.responses} == {"a", "b"}
    assert item.probability == 1 / 4  # {a1, a2} x {b1, b2}
    all_of_them = ItemBuilder(PAIR, 9).items("prompt", candidates)
    assert len({item.key for item in all_of_them}) == 4
    assert {item.probability for item in all_of_them} == {1.0}


def test_each_pair_is_as_likely_as_another_and_the_same_for_the_same_seed() -> None:
    candidates = [(text, "a") for text in "wxyz"]
    chosen = Counter(
        tuple(r.content for r in ItemBuilder(PAIR, 1).items(f"prompt {i}", candidates)[0].responses)
        for i in range(1200)
    )
    assert len(chosen) == 6
    assert all(150 < count < 250 for count in chosen.values())
    one, other = (ItemBuilder(PAIR, 2, seed).items("prompt", candidates) for seed in (0, 1))
    assert one == ItemBuilder(PAIR, 2, 0).items("prompt", candidates)
    assert one != other


@pytest.mark.parametrize(("kind", "per_prompt", "count", "size"), [
    ("ranking", None, 1, 5), ("ranking", 4, 4, 5), ("rating", None, 7, 1), ("edit", 2, 2, 1), ("pair", None, 1, 2)
])  # fmt: skip
def test_items_of_each_kind(kind: str, per_prompt: int | None, count: int, size: int) -> None:
    items = ItemBuilder(ItemTemplate(kind, 1, ()), per_prompt).items("prompt", [(text, "a") for text in "tuvwxyz"])
    assert len({item.key for item in items}) == count
    assert {len(item.responses) for item in items} == {size}


def test_identical_responses_make_no_pair_and_are_counted() -> None:
    builder = ItemBuilder(PAIR, None)
    assert builder.items("prompt", [("same", "a"), ("same", "b"), ("  ", "b")]) == []
    assert builder.identical == 1
