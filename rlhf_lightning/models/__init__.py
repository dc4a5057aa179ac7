"""Load transformers models, and add the parts that each role needs: policy, critic, reference, reward model."""
