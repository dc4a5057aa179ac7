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

`RolloutStage` is the part of `PolicyStage` that knows no language model: another kind of actor, such as a controller, subclasses
it and defines `configure_model` and four methods:

| method | returns |
| --- | --- |
| `actor()` | the network that acts and learns: log-probabilities, entropy and values of existing rows |
| `generator()` | the source of `Completions`; where it brings `rewards`, no `judge` is needed |
| `judge()` | the reward, or None |
| `reference()` | log-probabilities to compare with, or None where the algorithm needs none |

Callbacks get Lightning's own hooks, and read `stage.validation_samples` and `stage.best`. All else is private.
"""

from rlhf_lightning.stages.policy import PolicyStage
from rlhf_lightning.stages.reward import RewardStage
from rlhf_lightning.stages.rollout import RolloutStage
from rlhf_lightning.stages.supervised import SupervisedStage

__all__ = ["PolicyStage", "RewardStage", "RolloutStage", "SupervisedStage"]
