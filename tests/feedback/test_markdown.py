"""What a model generated is rendered and never run."""

from __future__ import annotations

import time
from html.parser import HTMLParser

import pytest

pytest.importorskip("markdown_it")

from rlhf_lightning.feedback.markdown import LONGEST_MARKDOWN, render

ALLOWED = {
    *("a", "blockquote", "br", "code", "div", "em", "h4", "h5", "h6", "hr", "li", "ol", "p", "pre", "s", "strong"),
    *("table", "tbody", "td", "th", "thead", "tr", "ul"),
}
ATTRIBUTES = {"href", "title", "rel", "target", "class", "tabindex", "role", "aria-label", "start"}
HOSTILE = [
    "<script>alert(1)</script>",
    '<img src=x onerror="alert(1)">',
    "<a href='javascript:alert(1)'>x</a>",
    "[x](javascript:alert(1))",
    "[x](JaVaScRiPt:alert(1))",
    "[x](java\nscript:alert(1))",
    "[x](&#106;avascript:alert(1))",
    "[x](vbscript:x) [y](data:text/html;base64,PHNjcmlwdD4=) [z](file:///etc/passwd)",
    '[x](https://a.example/"onmouseover="alert(1))',
    '[x](https://a.example "t\\" onclick=alert(1)")',
    "<javascript:alert(1)>",
    "![x](https://a.example/x.png)",
    '```x" onclick="alert(1)\ncode\n```',
    "<!-- --><svg/onload=alert(1)>",
    "| <b onclick=x> |\n| :-: |\n| <style>a</style> |",
    "# <h1 style=x>\n\n1. <iframe src=x>",
    "[x]: javascript:alert(1)\n\n[x]",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
]


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data: str) -> None:
        self.text += data


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(str(render(text)))
    return reader


@pytest.mark.parametrize("text", HOSTILE)
def test_only_harmless_elements_come_out(text: str) -> None:
    reader = read(text)
    assert {tag for tag, _ in reader.tags} <= ALLOWED
    for _, attributes in reader.tags:
        assert set(attributes) <= ATTRIBUTES
        assert (attributes.get("href") or "https:").startswith(("https:", "http:", "mailto:"))


def test_what_is_not_rendered_is_shown() -> None:
    assert read("<script>alert(1)</script>").text.strip() == "<script>alert(1)</script>"
    assert read("![cat](https://a.example/c.png)").text.strip() == "[image: cat](https://a.example/c.png)"


def test_links_tell_the_other_host_nothing() -> None:
    [(_, attributes)] = [tag for tag in read("[x](https://a.example/)").tags if tag[0] == "a"]
    assert attributes == {"href": "https://a.example/", "rel": "noopener noreferrer nofollow", "target": "_blank"}


def test_tables_lists_code_and_line_breaks() -> None:
    assert '<td class="align-right">' in render("| a |\n| --: |\n| b |")
    assert "<br" in render("one\ntwo")
    assert "<code>1 &lt; 2\n</code>" in render("```\n1 < 2\n```")
    assert [tag for tag, _ in read("# a\n\n## b\n\n### c").tags] == ["h4", "h5", "h6"]


@pytest.mark.parametrize(
    "text", ["[" * 50_000, "![" * 25_000, "[a](" * 12_000, "_a__ " * 10_000, "> " * 25_000, "*a " * 17_000]
)
def test_hostile_nesting_takes_no_long_time(text: str) -> None:
    start = time.process_time()
    render(text)
    assert time.process_time() - start < 10


def test_a_longer_text_is_plain() -> None:
    text = "**a** <b> " * (LONGEST_MARKDOWN // 10 + 1)
    assert read(text).text == text
