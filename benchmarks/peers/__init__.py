"""What `speed.py` runs: the work, the models, either side of a measurement, and what is made of the numbers."""
