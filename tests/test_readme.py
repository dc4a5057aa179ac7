"""The README shows the examples that the tests run, and the files it links to are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize(
    "name", ["my_reward.py", "callbacks/longest_reply.py", "my_algorithm.py", "extended.yaml", "reward_server.py"]
)
def test_the_readme_quotes_the_examples(name: str) -> None:
    assert (ROOT / "docs" / "examples" / name).read_text().strip() in README


def test_links_lead_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("http")]
    assert links
    assert all((ROOT / link).exists() for link in links)


def test_configs_that_the_readme_names_exist() -> None:
    names = set(re.findall(r"--config (\w+\.yaml)", README)) - {"extended.yaml"}
    assert names
    assert all((ROOT / "configs" / name).is_file() for name in names)
