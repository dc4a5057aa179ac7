"""Rollouts: from rows of a data set to the micro-batches that an algorithm learns from.

    row_source          a data loader as an endless, resumable stream of rows
    responses           prompts → completions of the policy
    pipeline            generates a rollout in chunks, and scores each while the next is generated
    preferences         recorded preference pairs → token ids
    reference_cache     reference log-probabilities of recorded responses
    collector           rows → `Rollout`: generate, score, policy and critic where needed, reference
    buffer              one `Batch` → minibatches → micro-batches
    rollout_loader      the loader that Lightning iterates: collects a rollout whenever the buffer is empty
    step_loader         the loader for recorded rows of supervised and reward stages

For each rollout `RolloutLoader` calls `RowSource.next`, `Collector.online` (or `recorded`) and `Algorithm.prepare`, and then
iterates over `RolloutBuffer`. A reward, an algorithm or a generator of your own needs no change here.
"""
