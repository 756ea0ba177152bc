"""Flax (Linen) networks: denoisers, learned noise schedules, and the published checkpoints."""
