"""The page of nine runs in headless Chromium: charts, search, filter, hostile texts, narrow screens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser.conftest import WIDTHS
from report_runs import ATTACK, nine_runs

from rlhf_lightning.report.content import report_of
from rlhf_lightning.report.page import html_report
from rlhf_lightning.report.runs import read_runs

pytestmark = pytest.mark.browser


@pytest.fixture(params=WIDTHS, ids=str)
def page(chromium: Any, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The page from a file; no console error, and no request but the one for the file."""
    path = tmp_path / "report.html"
    path.write_text(html_report(report_of(read_runs(nine_runs(tmp_path)))))
    context = chromium.new_context(viewport={"width": request.param[0], "height": request.param[1]})
    opened, errors, requests = context.new_page(), [], []
    opened.on("console", lambda message: errors.append(message.text))
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.on("request", lambda each: requests.append(each.url))
    opened.goto(path.as_uri())
    yield opened
    assert errors == []
    assert [url for url in requests if url != path.as_uri() and not url.startswith("data:")] == []
    assert opened.evaluate("window.attacked") is None
    context.close()


def visible_prompts(page: Any) -> list[str]:
    found: list[str] = page.locator("#sample-list .prompt").all_inner_texts()
    return found


def test_every_chart_is_drawn(page: Any) -> None:
    charts = page.locator("#chart-grid figure, #metric-chart, #frontier-chart")
    assert charts.count() >= 6
    for place in range(charts.count()):
        painted = (
            charts.nth(place)
            .locator("canvas")
            .evaluate("c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some(x => x)")
        )
        assert painted
    assert page.locator("#frontier-chart").get_attribute("data-points") == "27"
    before = page.locator("#metric-chart canvas").evaluate("c => c.toDataURL()")
    page.locator("#metric").select_option("memory/peak")
    assert page.locator("#metric-chart canvas").evaluate("c => c.toDataURL()") != before


def test_pointing_at_the_frontier_names_run_and_step(page: Any) -> None:
    page.locator("#frontier-chart").scroll_into_view_if_needed()
    box = page.locator("#frontier-chart .u-over").bounding_box()
    page.mouse.move(box["x"] + 2, box["y"] + box["height"] - 2)
    page.mouse.move(box["x"] + 12, box["y"] + box["height"] - 12)
    assert "-0, step 0: reward/mean 0" in page.locator("#frontier-note").inner_text()


def test_search_filter_and_order(page: Any) -> None:
    assert page.locator("#count").inner_text() == "21 of 21 prompts"
    page.locator("#search").fill("PPO 1 replies 7 at 40")
    assert visible_prompts(page) == ["Question 7?"]
    assert page.locator("#sample-list mark").first.inner_text() == "PPO 1 replies 7 at 40"
    page.locator("#search").fill("")
    page.locator("#order").select_option("worst")
    assert visible_prompts(page)[0] == "Question 0?"
    page.locator("#order").select_option("best")
    assert visible_prompts(page)[0] == ATTACK
    page.locator("#filter").select_option("up")
    assert set(visible_prompts(page)) == {f"Question {number}?" for number in range(2, 20, 3)}
    page.locator("#filter").select_option("unscored")
    assert visible_prompts(page) == []


def test_runs_can_be_hidden(page: Any) -> None:
    shown = page.locator("#sample-list .sample").first.locator(".reply").count()
    page.locator("#run-boxes input").first.uncheck()
    assert page.locator("#sample-list .sample").first.locator(".reply").count() == shown - 2


def test_markup_in_replies_is_shown_and_not_run(page: Any) -> None:
    page.locator("#search").fill("window.attacked")
    assert ATTACK in page.locator("#sample-list .reply p").first.inner_text()
    assert ATTACK in page.locator("#token-list").inner_text()
    assert page.locator("main img, main svg, main b:not(.warnings b)").count() == 0


def test_tokens_are_coloured_by_their_numbers(page: Any) -> None:
    colours = page.locator("#token-list .tokens span").evaluate_all("spans => spans.map(s => s.style.background)")
    assert colours[0].startswith("rgba(214, 72, 60")  # below 0
    assert len(set(colours[:3])) == 3
    page.locator("#token-list .tokens span").first.click()
    assert page.locator("#token-note").inner_text() == '"Hello": log_ratio -0.2'


def test_nothing_is_wider_than_the_screen(page: Any) -> None:
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    for name in ("#chart-grid figure", "#frontier-chart", "#sample-list .reply", "h1"):
        box = page.locator(name).first.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= page.viewport_size["width"]
