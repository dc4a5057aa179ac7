"""Evaluations: what they get, what they may ask for, and how they run.

| file | content |
| --- | --- |
| `base` | the contract: `Evaluation`, `ValidationResults`, `SampleRequest`, `EvaluationReport` |
| `runner`, `answers` | user code on rank zero; requests that all ranks answer |
| `reports`, `tables`, `monitors` | checks of a result, its tables, callbacks that monitor a failed evaluation |
| `responses` | responses of several models to the same prompts, without a trainer |

The callbacks themselves are in `callbacks/`, one a file.
"""

from rlhf_lightning.evaluation.base import (
    Evaluation,
    EvaluationReport,
    ExportRequest,
    Sample,
    SampleRequest,
    ValidationResults,
)
from rlhf_lightning.functional.statistics import win_rate

__all__ = [
    "Evaluation",
    "EvaluationReport",
    "ExportRequest",
    "Sample",
    "SampleRequest",
    "ValidationResults",
    "win_rate",
]
