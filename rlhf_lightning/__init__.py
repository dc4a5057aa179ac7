"""Align language models with human preferences, the PyTorch Lightning way."""

__version__ = "0.1.0"
