"""The files of a run's folder: metrics, samples, summary, curves, checkpoints and the export."""
