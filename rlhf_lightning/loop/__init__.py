"""The feedback loop: candidates, judgements, reward model, policy, and again.

The state is the tree of files (`tree`): a step is done when its last file is there. `steps` runs the first step that is not done.
"""
