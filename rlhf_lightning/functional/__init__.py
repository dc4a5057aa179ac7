"""Compute advantages, KL, losses and statistics with pure functions of tensors: no class, no state.

A new formula goes beside its kind: `advantages`, `kl`, `policy_losses`, `preference_losses`, `statistics`. A new kind is one
file here. Its docstring names the paper and the equation. Sums over ranks belong in `masked`, and no loss divides.
"""
