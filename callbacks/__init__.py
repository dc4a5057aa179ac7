"""Evaluation callbacks, one behaviour a file; installed as `rlhf_lightning.callbacks`."""
