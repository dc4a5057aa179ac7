"""`from rlhf_lightning import …`: which names there are, and that importing the package stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import rlhf_lightning

SOURCE = ast.parse(Path(rlhf_lightning.__file__).read_text())


def names_for_type_checkers() -> dict[str, str]:
    block = next(node for node in SOURCE.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    return {name.asname or "": str(node.module) for node in imports for name in node.names if name.asname == name.name}


def test_type_checkers_see_the_names_that_there_are() -> None:
    assert names_for_type_checkers() == rlhf_lightning._MODULES
    assert set(rlhf_lightning.__all__) == {*rlhf_lightning._MODULES, "__version__"}
    assert set(rlhf_lightning.__all__) <= set(dir(rlhf_lightning))


@pytest.mark.parametrize("name", sorted(rlhf_lightning._MODULES))
def test_every_name_can_be_imported(name: str) -> None:
    value = getattr(rlhf_lightning, name)
    assert value.__name__ == name
    assert value.__module__ == rlhf_lightning._MODULES[name]
    assert value.__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'PPOO'"):
        rlhf_lightning.PPOO  # noqa: B018
    with pytest.raises(ImportError):
        from rlhf_lightning import PPOO  # noqa: F401


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, rlhf_lightning, rlhf_lightning.__main__\n"
        "from rlhf_lightning import UserError\n"
        "heavy = {'torch', 'lightning', 'transformers', 'numpy', 'pandas', 'datasets'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "from rlhf_lightning import KLPenalty\n"
        "assert 'torch' in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
