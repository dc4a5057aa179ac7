"""Lightning data modules."""

from rlhf_lightning.data.loaders import LoaderData
from rlhf_lightning.data.module import FileData, RowData
from rlhf_lightning.data.modules import (
    InstructionData,
    LabelledData,
    PreferenceData,
    PromptData,
    RankingData,
    RatingData,
)

__all__ = [
    "FileData",
    "InstructionData",
    "LabelledData",
    "LoaderData",
    "PreferenceData",
    "PromptData",
    "RankingData",
    "RatingData",
    "RowData",
]
