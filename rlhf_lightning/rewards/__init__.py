"""Reward plug-ins."""
