"""Render what a model or an annotator generated as Markdown that cannot run anything.

Raw HTML is shown as text. Links lead to http, https and mailto only. Images are shown as text, because loading one
would tell another host that somebody reads the reply.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup

LINK_SCHEMES = frozenset({"http", "https", "mailto"})
LONGEST_MARKDOWN = 200_000  # characters; longer texts are shown as plain text
HEADINGS = {"h1": "h4", "h2": "h5"}  # a page's own headings end at h3


def _safe_link(url: str) -> bool:
    try:
        return urlsplit(url).scheme.lower() in LINK_SCHEMES
    except ValueError:
        return False


def _image(self: Any, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    token = tokens[index]
    return html.escape(f"[image: {token.content}]({token.attrGet('src')})")


def _heading(self: Any, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    tokens[index].tag = HEADINGS.get(tokens[index].tag, "h6")
    return str(self.renderToken(tokens, index, options, env))


def _link(self: Any, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    tokens[index].attrSet("rel", "noopener noreferrer nofollow")
    tokens[index].attrSet("target", "_blank")
    return str(self.renderToken(tokens, index, options, env))


def _table(self: Any, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    return '<div class="scroll" tabindex="0" role="group" aria-label="Table"><table>'


def _table_end(self: Any, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    return "</table></div>"


def _code(self: Any, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    return f'<pre tabindex="0" role="group" aria-label="Code"><code>{html.escape(tokens[index].content)}</code></pre>\n'


def _cell(self: Any, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    style = str(tokens[index].attrs.pop("style", ""))  # the content-security policy forbids style attributes
    if style:
        tokens[index].attrSet("class", style.replace("text-align:", "align-"))
    return str(self.renderToken(tokens, index, options, env))


def _renderer() -> MarkdownIt:
    markdown = MarkdownIt("commonmark", {"html": False, "breaks": True, "maxNesting": 20}).enable(
        ["table", "strikethrough"]
    )
    markdown.validateLink = _safe_link  # type: ignore[method-assign]
    rules = {"image": _image, "heading_open": _heading, "heading_close": _heading, "link_open": _link}
    rules |= {"table_open": _table, "table_close": _table_end, "fence": _code, "code_block": _code}
    rules |= {"th_open": _cell, "td_open": _cell}
    for name, rule in rules.items():
        markdown.add_render_rule(name, rule)
    return markdown


_MARKDOWN = _renderer()


@lru_cache(maxsize=512)
def render(text: str) -> Markup:
    """Render a text as safe HTML.

    >>> print(render("**Yes** <script>alert(1)</script>"), end="")
    <p><strong>Yes</strong> &lt;script&gt;alert(1)&lt;/script&gt;</p>
    >>> "<a" in render("[x](javascript:alert)")
    False
    """
    if len(text) > LONGEST_MARKDOWN:
        return Markup('<div class="plain">{}</div>').format(text)
    return Markup(_MARKDOWN.render(text))
