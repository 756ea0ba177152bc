"""Training: state, compiled step, sharding, checkpoints, the loop, and exact evaluation."""
