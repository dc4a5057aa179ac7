"""Algorithm plug-ins, one a file; `base` is the contract."""

import importlib
import pkgutil

from rlhf_lightning.algorithms.base import Algorithm, PolicyGradient
from rlhf_lightning.algorithms.kl_penalty import KLPenalty

for _module in pkgutil.iter_modules(__path__):  # a new file is an algorithm: nothing else has to know its name
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["Algorithm", "KLPenalty", "PolicyGradient"]
