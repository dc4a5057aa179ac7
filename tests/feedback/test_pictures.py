"""The page about a store: pictures with intervals, texts escaped, nothing loaded."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from feedback_items import pair

from rlhf_lightning.__main__ import main
from rlhf_lightning.feedback.agreement import AnnotatorRow, overview
from rlhf_lightning.feedback.charts import Curve, Point, curve_chart, interval_chart
from rlhf_lightning.feedback.pictures import reliability_intervals, store_page
from rlhf_lightning.feedback.store import Store

pytest.importorskip("krippendorff")


def numbers(picture: str, kind: str, name: str) -> list[float]:
    return [float(value) for value in re.findall(rf'<{kind}[^>]* {name}="([-\d.]+)"', picture)]


def test_a_row_has_its_point_inside_its_interval() -> None:
    picture = interval_chart("Reliability", [("Ada <b>", Point(0, 0.8, 0.6, 0.9)), ("Bo", Point(0, 0.2))], middle=0.5)
    assert "Ada &lt;b&gt;" in picture
    assert "<b>" not in picture
    assert "Ada &lt;b&gt;: 0.800 (0.600 to 0.900)" in picture
    first, second = numbers(picture, "circle", "cx")
    assert second < first
    whiskers = re.findall(r'class="c0 whisker" x1="([\d.]+)" y1="([\d.]+)" x2="([\d.]+)"', picture)
    assert len(whiskers) == 1
    assert float(whiskers[0][0]) < first < float(whiskers[0][2])
    assert (first - second) / 0.6 == pytest.approx((float(whiskers[0][2]) - float(whiskers[0][0])) / 0.3, abs=0.5)


def test_curves_rise_where_values_rise() -> None:
    picture = curve_chart("Reward", "round", [Curve("a", [Point(0, 0.1), Point(1, 0.3)]), Curve("b", [Point(0, 0.2)])])
    heights = numbers(picture, "circle", "cy")
    assert heights[1] < heights[2] < heights[0]
    assert 'class="key c1">b' in picture
    assert curve_chart("One value", "round", [Curve("a", [Point(0, 0.5)])]).count("<circle") == 1


def test_status_writes_the_page(
    store: Store, person: Callable[..., int], judge: Callable[..., int], tmp_path: Path
) -> None:
    store.add([pair(n, wanted=3) for n in range(4)])
    for name, choice in (("Ada", 0), ("Bo", 0), ("Cy", 1)):
        annotator = person(name)
        for _ in range(4):
            judge(annotator, choice=choice)
    found = {row.name: row.others for row in overview(store).annotators}
    assert found["Cy"] is not None
    assert (found["Cy"].share, found["Cy"].cases) == (0.0, 4)
    assert found["Ada"] is None  # of the two others one chose each response
    target = tmp_path / "status.html"
    words = ["feedback", "status", "--store", str(store.database.path), "--html", str(target)]
    assert main([*words, "--reconcile", "dawid-skene"]) == 0
    page = target.read_text()
    assert page.count("<svg") == 2
    assert "Reliability of each annotator" in page
    assert not re.search(r"<script|https?://|<link rel=.stylesheet", page)
    assert "Ada" not in page  # pseudonyms alone


def test_a_store_without_judgements_has_a_page(store: Store) -> None:
    page = store_page("feedback.db", overview(store))
    assert "Nothing was judged twice." in page
    assert "Nobody is invited yet." in page


def test_weights_of_annotators_have_no_interval(store: Store, person: Callable[..., int]) -> None:
    person("Ada")
    person("Bo")
    rows = [replace(row, judgements=20) for row in overview(store).annotators]

    def intervals(*values: float | None) -> dict[str, tuple[float, float]]:
        given: list[AnnotatorRow] = [replace(row, reliability=value) for row, value in zip(rows, values, strict=True)]
        return {name: (found.low, found.high) for name, found in reliability_intervals(given).items()}

    assert intervals(0.9, 1.1) == {}  # Bradley-Terry: their mean is 1
    assert intervals(None, 0.5).keys() == {rows[1].pseudonym}
    (low, high) = intervals(0.5, 1.0)[rows[0].pseudonym]
    assert 0.2 < low < 0.5 < high < 0.8
