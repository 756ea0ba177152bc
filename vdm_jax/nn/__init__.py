"""Flax (Linen) networks: denoisers, learned noise schedules, and the published checkpoints."""

from vdm_jax import extras

extras.need("nn")
