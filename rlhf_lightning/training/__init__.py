"""Parts of a stage: each owns its state and is built by the stage that uses it.

| part | file | job |
| --- | --- | --- |
| `TextEncoding` | text.py | tokenizer and encoder of a language model |
| `LoaderBinding` | loaders.py | wrap, shard, resume and limit the loaders of a data module |
| `LossStep` | loss_step.py | micro-batches, division by the weight of the step, backward pass |
| `NonFiniteGuard` | nonfinite.py | stop at, or skip, a step with a NaN or an infinity |
| `MetricLog` | metrics.py | accumulate metrics over micro-batches and ranks, log them |
| `Validation` | validation.py | held-out metrics and samples |
| `ResumeState` | resume.py | contents of a checkpoint besides weights and optimizer |
| `Roles` | roles.py | policy, critic, reference and rewards of policy optimisation |
| `RolloutSession` | rollout_session.py | rollout loader, collection and buffer |
| `UpdateStopper` | update_stopper.py | skip the rest of a rollout |

Private attributes of Lightning are used in lightning_compat.py and nowhere else.
"""
