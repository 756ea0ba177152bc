"""Variational diffusion models (Kingma et al. 2021) as pure functions, with training on top.

Importing this package imports JAX and nothing heavier; the Flax networks are in `vdm_jax.nn`,
training in `vdm_jax.train`, datasets in `vdm_jax.data`, each with an extra of the same name to
install what it needs (`pip install 'vdm_jax[nn]'`); the ODE of `vdm_jax.flow` with "ode".
"""

from vdm_jax import (
    bounds,
    distributions,
    gaussian,
    loss,
    parameterization,
    pixels,
    process,
    sampler,
    sampling,
    schedule,
    timestep,
    types,
    weighting,
)
from vdm_jax.distributions import Gaussian
from vdm_jax.loss import ElboTerms, elbo
from vdm_jax.sampling import sample
from vdm_jax.vdm import VDM

__version__ = "0.1.0"

__all__ = [
    "VDM", "ElboTerms", "Gaussian", "bounds", "distributions", "elbo", "gaussian", "loss",
    "parameterization", "pixels", "process", "sample", "sampler", "sampling", "schedule",
    "timestep", "types", "weighting",
]  # fmt: skip
