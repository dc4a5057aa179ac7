"""Functions that evaluation callbacks use."""

from rlhf_lightning.functional.statistics import win_rate

__all__ = ["win_rate"]
