"""What evaluation callbacks call."""

from rlhf_lightning.functional.statistics import win_rate

__all__ = ["win_rate"]
