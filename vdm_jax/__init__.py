"""Variational diffusion models (Kingma et al. 2021) as pure functions, with training on top.

Importing this package imports JAX and nothing heavier; the Flax networks are in `vdm_jax.nn`,
training in `vdm_jax.train`, data sets in `vdm_jax.data`.
"""

from vdm_jax import (
    bernoulli,
    bounds,
    gaussian,
    loss,
    parameterization,
    pixels,
    process,
    sampler,
    schedule,
    solvers,
    spacing,
    timestep,
    types,
)
from vdm_jax.bernoulli import Bernoulli
from vdm_jax.gaussian import Gaussian
from vdm_jax.loss import ElboTerms, elbo
from vdm_jax.vdm import VDM

__all__ = [
    "VDM",
    "Bernoulli",
    "ElboTerms",
    "Gaussian",
    "bernoulli",
    "bounds",
    "elbo",
    "gaussian",
    "loss",
    "parameterization",
    "pixels",
    "process",
    "sampler",
    "schedule",
    "solvers",
    "spacing",
    "timestep",
    "types",
]
