"""The documents show the examples that the tests run, and what they link to and draw exists."""

from __future__ import annotations

import re
from importlib.metadata import metadata
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks" / "README.md"]


EXAMPLES = {
    "README.md": ["my_reward.py", "callbacks/longest_reply.py"],
    "docs/extending.md": [
        "my_algorithm.py",
        "callbacks/greedy_reward.py",
        "extended.yaml",
        "reward_server.py",
        "my_steps.py",
    ],
}


@pytest.mark.parametrize(("page", "name"), [(page, name) for page, names in EXAMPLES.items() for name in names])
def test_pages_quote_the_examples(page: str, name: str) -> None:
    assert (ROOT / "docs" / "examples" / name).read_text().strip() in (ROOT / page).read_text()


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 180


def test_the_picture_shows_classes_and_folders_that_exist() -> None:
    picture = (ROOT / "docs" / "architecture.svg").read_text()
    found = re.findall(r'<text [^>]*class="(?:name|folder|type)"[^>]*>([^<]+)</text>', picture)
    code = "\n".join(path.read_text() for path in (ROOT / "rlhf_lightning").rglob("*.py"))
    classes = [name for name in found if re.fullmatch(r"[A-Z]\w+", name)]
    folders = [name for text in found for name in re.findall(r"\w+(?=/)", text)]
    assert len(classes) > 8
    assert len(folders) > 8
    assert [name for name in classes if not re.search(rf"^class {name}\b", code, flags=re.MULTILINE)] == []
    assert [name for name in folders if not any((top / name).is_dir() for top in (ROOT, ROOT / "rlhf_lightning"))] == []


def test_links_lead_somewhere() -> None:
    """Every link of a page of ours leads to a file that exists and, behind a #, to a heading of that page."""
    links = [(page, link) for page in PAGES for link in re.findall(r"\]\(([^)]+)\)", page.read_text())]
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


def test_commands_of_the_pages_exist() -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    targets = set(re.findall(r"`?\bmake ([a-z][a-z-]+)\b(?=`|$| PARALLEL)", text, flags=re.MULTILINE))
    assert {"first-run", "test", "quick", "nightly"} <= targets
    defined = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert targets <= defined
    scripts = set(re.findall(r"python ((?:benchmarks|tests)/[\w/]+\.py)", text))
    assert len(scripts) > 5
    assert [script for script in sorted(scripts) if not (ROOT / script).is_file()] == []
