"""Generating, collecting, keeping and serving rollouts."""
