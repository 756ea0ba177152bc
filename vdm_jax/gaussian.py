"""The Gaussian under its public name; see `vdm_jax.distributions`."""

from vdm_jax.distributions import Gaussian

__all__ = ["Gaussian"]
