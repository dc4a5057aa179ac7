"""What evaluation callbacks call."""

from rlhf_lightning.evaluation.win_rate import win_rate

__all__ = ["win_rate"]
