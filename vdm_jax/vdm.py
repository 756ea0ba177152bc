"""The one record of a variational diffusion model."""

from typing import Any, NamedTuple

from vdm_jax import loss, sampling, timestep
from vdm_jax.loss import ElboTerms
from vdm_jax.rule import Rule, Sampler, Spacing
from vdm_jax.types import Denoise, Gamma, Images, Key, Kind, PerExample, ReverseVar, Tensor


class VDM(NamedTuple):
    """A network and a schedule, which close over parameters and conditioning, and their meaning."""

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
        """The explanation of its terms for reports: none is needed."""
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
        steps = sampling.default_steps(self) if num_steps is None else num_steps
        return sampling.sample(key, self, n, Rule(sampler, steps, spacing, eta))

    def log_prob(self, x: Tensor, key: Key | None = None, **solver: Any) -> PerExample:
        """Returns log p(x) [batch] in nats, by the probability-flow ODE (`vdm_jax.flow`).

        It is the density of x in [-1, 1] itself, taken for z_0 / alpha_0. `solver` are the fields
        of `vdm_jax.ode.Solver`; its trace "hutchinson" needs a key. Needs diffrax, and inside
        `jax.shard_map` check_vma=False.
        """
        from vdm_jax import flow, ode

        return flow.data_log_prob(self, x, ode.Solver(**solver), key).log_prob
