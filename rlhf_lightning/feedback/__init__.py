"""Human feedback: a store of judgements, a page to label on, several annotators, and an export for training.

The modules of this package load neither torch nor lightning, except `ask`, which reads data files and runs models.
"""
