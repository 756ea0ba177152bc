"""The one record of a variational diffusion model."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from vdm_jax import loss, sampler, timestep
from vdm_jax.loss import ElboTerms
from vdm_jax.schedule import alpha
from vdm_jax.types import Denoise, Gamma, Images, Key, Kind, PerExample, ReverseVar, Tensor

__all__ = ["VDM"]


class VDM(NamedTuple):
    """A network and a noise schedule as plain callables, and what they are to be taken for.

    Parameters, conditioning and dropout are closed over by `denoise` and `gamma`.
    """

    denoise: Denoise
    """Network: (z_t [batch, *event], gamma_t [batch]) -> prediction, or (prediction, share) if the
    reverse variance is learned."""
    gamma: Gamma
    """Schedule t -> gamma(t) = -log SNR(t)."""
    event_shape: tuple[int, ...]
    """Shape of one example."""
    levels: int | None = 256
    """Number of values that a pixel can take; None for continuous data, with a density."""
    kind: Kind = "eps"
    """Quantity that the network predicts: "eps", "x", "v" or "score"."""
    num_steps: int | None = None
    """Number of steps T; None for continuous time."""
    reverse_var: ReverseVar = "posterior"
    """Variance of p(z_s|z_t): "posterior" (the paper's), "transition" or "learned"."""
    timesteps: timestep.Method = "antithetic"
    """Method by which `elbo` draws its times."""

    @property
    def words(self) -> str:
        """The kind of time, for reports."""
        return "continuous time" if self.num_steps is None else f"T = {self.num_steps}"

    @property
    def note(self) -> str:
        """Nothing: its terms need no explanation in reports."""
        return ""

    def elbo(self, key: Key, images: Images | Tensor) -> ElboTerms:
        """Returns one unbiased sample of the bound's three terms, [batch] nats (`loss.elbo`)."""
        return loss.elbo(
            key, images, self.denoise, self.gamma, self.levels, self.num_steps, self.kind,
            self.timesteps, self.reverse_var,
        )  # fmt: skip

    def elbo_given(
        self, images: Images | Tensor, eps: Tensor, t: PerExample, eps_0: Tensor | None = None
    ) -> ElboTerms:
        """Returns the terms for given noise and times; unbiased for t uniform on [0, 1].

        Without `eps_0` the reconstruction is its expectation (`loss.expected_reconstruction`).
        """
        x = loss.to_data(images, self.levels)
        at_t = loss.diffusion(
            x, eps, t, self.denoise, self.gamma, self.num_steps, self.kind, self.reverse_var
        )
        return loss.terms(images, at_t, self.gamma, self.levels, eps_0)

    def elbo_by_keys(self, images: Images | Tensor, t: PerExample, keys: Key) -> ElboTerms:
        """Returns `elbo_given` with the noise of one key per example, [batch]."""
        return self.elbo_given(images, loss.noise(keys, self.event_shape), t)

    def sample(self, key: Key, n: int, num_steps: int | None = None) -> Images | Tensor:
        """Returns `n` ancestral samples: integers in [0, levels), or x without levels.

        `num_steps` is the number of steps, by default that of the model, or 1000.
        """
        steps = num_steps or self.num_steps or 1000
        z_0 = sampler.ancestral(
            key, self.denoise, self.gamma, (n, *self.event_shape), steps, self.kind,
            self.reverse_var,
        )  # fmt: skip
        gamma_0 = self.gamma(jnp.zeros(1))[0]
        if self.levels is None:
            return z_0 / alpha(gamma_0)
        return sampler.to_images(z_0, gamma_0, self.levels)

    def log_prob(self, x: Tensor, key: Key | None = None, **solver: Any) -> PerExample:
        """Returns log p(x) [batch] in nats, by the probability-flow ODE (`vdm_jax.flow`).

        It is the density of x in [-1, 1] itself, taken for z_0 / alpha_0. `solver` are the fields
        of `vdm_jax.flow.Solver`; its trace "hutchinson" needs a key. Needs diffrax.
        """
        from vdm_jax import flow

        return flow.data_log_prob(self, x, flow.Solver(**solver), key).log_prob
