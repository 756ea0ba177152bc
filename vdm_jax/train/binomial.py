"""Binomial diffusion of black-and-white images as something to be trained."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from vdm_jax import loss, timestep
from vdm_jax.related import binomial
from vdm_jax.train.model import BITS, Batch, Drawn, Params, Unit
from vdm_jax.types import Images, Key, PerExample, Tensor

__all__ = ["BinomialModel"]


@dataclasses.dataclass(frozen=True)
class BinomialModel:
    """Diffusion of bits (`vdm_jax.binomial`) with the paper's schedule, keep(t) = 1 - t.

    Attributes:
      init: key -> parameters.
      bind: (parameters, conditioning, dropout key or None) -> the denoiser, (z_t in {-1, 1},
        keep_t) -> logits of x = 1.
      event_shape: of one image.
      num_steps: T.
      timesteps: how times are drawn.
    """

    init: Callable[[Key], Params]
    bind: Callable[[Params, Tensor, Key | None], binomial.Denoise]
    event_shape: tuple[int, ...]
    num_steps: int
    timesteps: timestep.Method = "antithetic"
    levels: int = 2

    @property
    def unit(self) -> Unit:
        """Of the bound."""
        return BITS

    @property
    def words(self) -> str:
        """Its kind and T."""
        return f"binomial diffusion, T = {self.num_steps}"

    @property
    def note(self) -> str:
        """What its terms are."""
        return "the reconstruction is the last of the steps, and within diffusion"

    def terms(
        self, params: Params, batch: Batch, key: Key, dropout: bool = False
    ) -> loss.ElboTerms:
        """One sample of the bound; the reconstruction is one of the steps (`vdm_jax.binomial`)."""
        key_elbo, key_dropout = jax.random.split(key)
        denoise = self.bind(params, batch["conditioning"], key_dropout if dropout else None)
        return binomial.elbo(
            key_elbo,
            batch["images"],
            denoise,
            binomial.constant_erasure,
            self.num_steps,
            self.timesteps,
        )

    def drawn(self, params: Params, batch: Batch, u: PerExample, keys: jax.Array) -> Drawn:
        """The same at given times, each image's latent by its own key."""
        noise = jax.vmap(lambda key: jax.random.uniform(key, self.event_shape))(keys)
        denoise = self.bind(params, batch["conditioning"], None)
        keep = binomial.constant_erasure
        terms = binomial.elbo_given(batch["images"], noise, u, denoise, keep, self.num_steps)
        return Drawn(terms, u, jnp.ones_like(u))

    def sample(self, params: Params, key: Key, conditioning: Tensor, num_steps: int) -> Images:
        """Ancestral samples, integers in {0, 1}, by `num_steps` steps."""
        denoise = self.bind(params, conditioning, None)
        shape = (len(conditioning), *self.event_shape)
        return binomial.sample(key, denoise, binomial.constant_erasure, shape, num_steps)
