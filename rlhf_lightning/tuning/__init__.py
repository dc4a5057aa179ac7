"""Tuning: search a config's values with Optuna, each trial a run of its own, in a study that survives kills."""
