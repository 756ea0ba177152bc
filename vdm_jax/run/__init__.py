"""Joins configurations, data, networks, training and evaluation into commands."""

from vdm_jax import extras

extras.need("train")
