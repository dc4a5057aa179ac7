"""bitsandbytes asks the hub for a kernel on some processors when it is imported; not in this library."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.guarded import python_path

ROOT = Path(__file__).parents[2]
KERNELS = """
def get_kernel(*words, **more):
    open("asked", "w").close()
    raise OSError
"""


@pytest.mark.parametrize("ours", [True, False])
def test_no_kernel_is_asked_for(ours: bool, tmp_path: Path) -> None:
    (tmp_path / "kernels.py").write_text(KERNELS)
    first = "import rlhf_lightning.models.quantization, " if ours else "import "
    code = f"{first}bitsandbytes, kernels; print(bool(bitsandbytes.functional.has_avx512bf16()), kernels.__file__)"
    environment = {**os.environ, "PYTHONPATH": python_path(tmp_path, ROOT)}
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert str(tmp_path) in ran.stdout  # code of others still finds the package
    if ours or "True" not in ran.stdout:
        assert not (tmp_path / "asked").exists()
    else:  # the check is able to fail
        assert (tmp_path / "asked").exists()
