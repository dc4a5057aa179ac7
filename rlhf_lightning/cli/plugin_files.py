"""Where the package and what it ships lie, and where others keep their classes; nothing is imported."""

from __future__ import annotations

import functools
import importlib.util
import re
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent
EVERYWHERE = ("lightning", "torch/optim", "torch/distributed", "bitsandbytes/optim", "transformers/optimization.py")
HOMES = {
    "Callback": ("lightning/pytorch/callbacks",),
    "Logger": ("lightning/pytorch/loggers",),
    "OptimizerCallable": ("torch/optim",),
    "LRSchedulerCallable": ("torch/optim/lr_scheduler.py", "torch/optim/swa_utils.py"),
}
"""Base of a plug-in: the files where others have theirs."""

OF_A_FAMILY = r"^class (\w+)\((?!.*(?:Enum|tqdm|Module))"


def shipped_folder(name: str) -> Path:
    """The package's folder of configs or callbacks, installed or in a checkout."""
    installed = PACKAGE / name
    return installed if installed.is_dir() else PACKAGE.parent / name


@functools.cache
def third_party_classes(family: str) -> frozenset[str]:
    """Names of the classes that other packages have for a base, as their source has them; of "", of all that they have."""
    found: set[str] = set()
    for name in HOMES.get(family, ()) if family else EVERYWHERE:
        package, _, inner = name.partition("/")
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or []) if spec else []:
            place = Path(folder, inner)
            for path in place.rglob("*.py") if place.is_dir() else [place] if place.is_file() else []:
                text = path.read_text(encoding="utf-8", errors="ignore")
                found |= set(re.findall(OF_A_FAMILY if family else r"^\s*class (\w+)", text, re.MULTILINE))
    return frozenset(found - third_party_classes("LRSchedulerCallable") if family == "OptimizerCallable" else found)
