"""The run of a stage: loop, compiled step, state, checkpoints, metrics."""
