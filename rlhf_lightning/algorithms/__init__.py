"""Algorithm plug-ins: one file per algorithm, imported by the loop below.

To add one, put a dataclass that extends `Algorithm` (or `PolicyGradient`, for rewards and a KL penalty) into a new file here.
A user's own file serves as well: `class_path: my_module.MyAlgorithm`. No other file knows its name.

The stage calls the hooks in this order:

    prepare(rollout)        once per rollout, no gradient: advantages, or the rows that form a pair
    weight(batch)           once per minibatch: the denominator of its loss
    loss(output, batch)     once per micro-batch: a sum over tokens or rows, and metrics
    stop(metrics)           after each optimiser step: True skips the rest of the rollout
    metrics()               once per rollout, at its end: values to log besides the loss
    state_dict()            in each checkpoint; `load_state_dict` on resume
"""

import importlib
import pkgutil

from rlhf_lightning.algorithms.base import Algorithm, PolicyGradient
from rlhf_lightning.algorithms.kl_penalty import KLPenalty

for _module in pkgutil.iter_modules(__path__):  # the CLI knows a class by its short name once its file is imported
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["Algorithm", "KLPenalty", "PolicyGradient"]
