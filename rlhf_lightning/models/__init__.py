"""What a role (policy, reference, critic, reward model) adds to a transformers model."""
