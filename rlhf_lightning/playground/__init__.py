"""The embedded default: a seeded task with a known true reward, and tiny trained models."""
