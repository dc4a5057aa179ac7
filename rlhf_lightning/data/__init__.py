"""Lightning data modules."""

from rlhf_lightning.data.loaders import LoaderData
from rlhf_lightning.data.module import FileData, RowData
from rlhf_lightning.data.modules import InstructionData, PreferenceData, PromptData, RankingData, RatingData

__all__ = [
    "FileData",
    "InstructionData",
    "LoaderData",
    "PreferenceData",
    "PromptData",
    "RankingData",
    "RatingData",
    "RowData",
]
