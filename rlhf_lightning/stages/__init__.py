"""Stages of alignment, one LightningModule each: supervised fine-tuning, reward modelling, policy optimisation.

A new stage subclasses `Stage`; a variant of a stage subclasses that one. These methods are made to be overridden, and keep
their signatures between minor versions:

| method | job | called |
| --- | --- | --- |
| `encode(rows)` | rows of a data set → a batch with `weight` | by the train loader, on rows of this rank |
| `loss(batch)` | undivided loss and metrics of a micro-batch | in `training_step`, with gradient |
| `measure(rows)` | held-out metrics, added to `self.validation.held_out` | in validation and test, in eval mode |
| `predict(rows, index)` | one dictionary per row for `predictions.jsonl` | in `predict`, in eval mode |
| `export(folder)` | the trained model as files | after `fit`, on every rank |

Callbacks get Lightning's own hooks, and read `stage.validation_samples` and `stage.best`. All else is private.
"""

from rlhf_lightning.stages.policy import PolicyStage
from rlhf_lightning.stages.reward import RewardStage
from rlhf_lightning.stages.supervised import SupervisedStage

__all__ = ["PolicyStage", "RewardStage", "SupervisedStage"]
