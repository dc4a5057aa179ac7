"""The README shows the examples that the tests run, and the files it links to are there."""

from __future__ import annotations

import re
from importlib.metadata import metadata
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize(
    "name", ["my_reward.py", "callbacks/longest_reply.py", "my_algorithm.py", "extended.yaml", "reward_server.py"]
)
def test_the_readme_quotes_the_examples(name: str) -> None:
    assert (ROOT / "docs" / "examples" / name).read_text().strip() in README


def test_links_lead_somewhere() -> None:
    """Every link of a page of ours leads to a file that is there and, behind a #, to a heading of that page."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks" / "README.md"]
    links = [(page, link) for page in pages for link in re.findall(r"\]\(([^)]+)\)", page.read_text())]
    ours = [(page, link) for page, link in links if not link.startswith("http")]
    assert ours
    assert [link for page, link in ours if not _leads_somewhere(page, link)] == []


def _leads_somewhere(page: Path, link: str) -> bool:
    name, _, anchor = link.partition("#")
    target = page.parent / name if name else page
    return target.exists() and (not anchor or anchor in _anchors(target.read_text()))


def _anchors(text: str) -> set[str]:
    """The names that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_configs_that_the_readme_names_exist() -> None:
    names = set(re.findall(r"--config (\w+\.yaml)", README)) - {"extended.yaml"}
    assert names
    assert all((ROOT / "configs" / name).is_file() for name in names)


def test_what_is_tested_together_can_be_installed_on_every_python_that_the_readme_names() -> None:
    found = re.search(r"Python (3\.\d+) to (3\.\d+)", README)
    assert found
    pinned = re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)
    assert len(pinned) > 10
    wanted = {name: SpecifierSet(metadata(name)["Requires-Python"]) for name in [*pinned, "rlhf_lightning"]}
    assert [name for name, pythons in wanted.items() if not all(v in pythons for v in found.groups())] == []
