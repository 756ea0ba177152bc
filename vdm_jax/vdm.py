"""The one record of a variational diffusion model."""

from typing import Any, NamedTuple

import numpy as np
from jax.typing import ArrayLike

from vdm_jax import checks, loss, masks, sampling, timestep
from vdm_jax.loss import ElboTerms
from vdm_jax.mixed import Levels
from vdm_jax.rule import Rule, Sampler, Spacing
from vdm_jax.transforms import Coefficients
from vdm_jax.types import Denoise, Gamma, Images, Key, Kind, PerExample, ReverseVar, Tensor


class VDM(NamedTuple):
    """A network and a schedule, which close over parameters and conditioning, and their meaning."""

    denoise: Denoise
    """Network: (z_t [batch, *event], gamma_t [batch]) -> prediction, or (prediction, share) if the
    reverse variance is learned."""
    gamma: Gamma
    """Schedule t -> gamma(t) = -log SNR(t): [n] -> [n], or [n, *event] for one of each feature,
    which is then what the network gets, too. For one of each example of a batch, by its condition,
    it maps [batch] to [batch, *event], a time of each, and [1], one for all, to the same; axes of
    the event may be 1."""
    event_shape: tuple[int, ...]
    """Shape of one example."""
    levels: Levels = 256
    """Number of values that a pixel can take; None for continuous data, with a density; a tuple of
    these for features of several kinds along the last axis; `transforms.Coefficients` for a model,
    network and schedule, of coefficients W x."""
    kind: Kind = "eps"
    """Quantity that the network predicts: "eps", "x", "v" or "score"."""
    num_steps: int | None = None
    """Number of steps T; None for continuous time."""
    reverse_var: ReverseVar = "posterior"
    """Variance of p(z_s|z_t): "posterior" (the paper's), "transition" or "learned"."""
    timesteps: timestep.Method = "antithetic"
    """Method by which `elbo` draws its times."""
    mask: ArrayLike | None = None
    """1 where an element is there, 0 where it is padding: [batch, *event], axes of size 1 allowed.
    It belongs to a batch, as conditioning does."""

    @property
    def predict(self) -> Denoise:
        """The network, which sees 0 and predicts 0 where there is padding."""
        if isinstance(self.levels, Coefficients):
            self.levels.unmasked(self.mask)
        return masks.denoiser(self.denoise, self.mask)

    @property
    def words(self) -> str:
        """The kind of time, for reports."""
        return "continuous time" if self.num_steps is None else f"T = {self.num_steps}"

    @property
    def note(self) -> str:
        """The explanation of its terms for reports: none is needed."""
        return ""

    def elbo(self, key: Key, images: Images | Tensor) -> ElboTerms:
        """Returns one unbiased sample of the bound's three terms, [batch] nats (`loss.elbo`)."""
        self._check(images)
        return loss.elbo(
            key, images, self.denoise, self.gamma, self.levels, self.num_steps, self.kind,
            self.timesteps, self.reverse_var, self.mask,
        )  # fmt: skip

    def _check(self, images: Images | Tensor) -> None:
        if np.shape(images)[1:] != tuple(self.event_shape):
            wanted = f"[batch, *event_shape], event_shape {self.event_shape}"
            raise ValueError(f"the data must be {wanted}, got {np.shape(images)}.")

    def elbo_given(
        self, images: Images | Tensor, eps: Tensor, t: PerExample, eps_0: Tensor | None = None
    ) -> ElboTerms:
        """Returns the terms for given noise and times; unbiased for t uniform on [0, 1].

        Without `eps_0` the reconstruction is its expectation (`loss.expected_reconstruction`).
        """
        self._check(images)
        x = loss.to_data(images, self.levels, self.mask)
        at_t = loss.diffusion(
            x, eps, t, self.denoise, self.gamma, self.num_steps, self.kind, self.reverse_var,
            self.mask,
        )  # fmt: skip
        return loss.terms(images, at_t, self.gamma, self.levels, eps_0, self.mask)

    def elbo_by_keys(self, images: Images | Tensor, t: PerExample, keys: Key) -> ElboTerms:
        """Returns `elbo_given` with the noise of one key per example, [batch]."""
        return self.elbo_given(images, loss.noise(keys, self.event_shape), t)

    def sample(
        self,
        key: Key,
        n: int,
        num_steps: int | None = None,
        sampler: Sampler = "ancestral",
        spacing: Spacing | None = None,
        eta: float = 0.0,
    ) -> Images | Tensor:
        """Returns `n` samples: integers in [0, levels), or x without levels (`sampling.sample`).

        `num_steps` is by default the model's, or 1000; the rest is as for `sampling.Rule`.
        """
        timestep.check_event(self.gamma, checks.event_shape(self.event_shape))
        steps = sampling.default_steps(self) if num_steps is None else num_steps
        return sampling.sample(key, self, n, Rule(sampler, steps, spacing, eta))

    def log_prob(self, key: Key, x: Images | Tensor, **solver: Any) -> PerExample:
        """Returns log p(x) [batch] in nats, by the probability-flow ODE (`vdm_jax.flow`).

        Of continuous data it is the density of x itself, which is z_0 / alpha_0. Integers are
        dequantised: it is an unbiased draw of a lower bound on log P(x) then. `solver` are the
        fields of `vdm_jax.ode.Solver`; `key` gives the dequantisation's noise and the probes of the
        trace "hutchinson". Needs diffrax, and inside `jax.shard_map` check_vma=False.
        """
        from vdm_jax import flow, ode

        self._check(x)
        timestep.check_event(self.gamma, self.event_shape)
        return -flow.dequantized_nats(self, key, x, solver=ode.Solver(**solver)).nats
