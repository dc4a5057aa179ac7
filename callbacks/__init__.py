"""Evaluation callbacks, one behaviour per file; installed as `rlhf_lightning.callbacks`."""
