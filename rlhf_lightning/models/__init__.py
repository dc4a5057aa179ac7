"""Load transformers models, and add the modules that each role needs: policy, critic, reference, reward model."""
