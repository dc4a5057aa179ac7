"""Pure maths on tensors: no class, no state."""
