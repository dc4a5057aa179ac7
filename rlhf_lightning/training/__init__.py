"""The parts that a stage has: loss step, loaders, validation, metrics, resume, optimizers, precision."""
