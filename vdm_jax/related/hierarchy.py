"""The bound of any Markovian hierarchical VAE (Luo 2022, section "Hierarchical VAEs").

A chain of latents z_1, ..., z_L, encoded one from the other, q(z_i|z_{i-1}) with z_0 = x, and
decoded the other way, p(z_L), p(z_i|z_{i+1}), p(x|z_1) (Luo eq. 23 and 24). Its bound is

    -log p(x) <= E_q[-log p(x|z_1) + sum_{i<L} (log q(z_i|z_{i-1}) - log p(z_i|z_{i+1}))
                     + log q(z_L|z_{L-1}) - log p(z_L)]                       (Luo eq. 25 to 29).

A VAE is L = 1. A diffusion model of T steps is L = T + 1 with the encoder fixed (`of_diffusion`,
whose first latent the VDM paper calls z_0).

Conditionals are callables z -> distribution; a distribution has `sample(key)` and an elementwise
`log_prob(z)`, as `Gaussian` and `Bernoulli` have, for latents [batch, ...] of any shape.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vdm_jax import pixels
from vdm_jax.gaussian import Gaussian
from vdm_jax.loss import ElboTerms, sum_event, to_data
from vdm_jax.parameterization import split, to_x
from vdm_jax.process import reverse, transition
from vdm_jax.timestep import check_num_steps, steps
from vdm_jax.types import Images, Key, PerExample, Tensor
from vdm_jax.vdm import VDM

Conditional = Callable[[Tensor], Any]
"""A latent -> the distribution of the next one."""


class HierarchyTerms(NamedTuple):
    """The terms of the negative bound, in nats: -log p(x|z_1), [batch], and those of the latents.

    These are log q(z_i|z_{i-1}) - log p(z_i|z_{i+1}) for i = 1, ..., L, the last with p(z_L).
    """

    reconstruction: PerExample
    levels: Float[Array, "depth batch"]

    @property
    def total(self) -> PerExample:
        """The sum, [batch]; minus it is log p(x, z_1, ..., z_L) - log q(z_1, ..., z_L|x)."""
        return self.reconstruction + jnp.sum(self.levels, axis=0)


def sample_latents(key: Key, x: Tensor, encoders: Sequence[Conditional]) -> list[Tensor]:
    """Returns draws z_1, ..., z_L of q(z_1|x), q(z_2|z_1), ..., q(z_L|z_{L-1})."""
    latents: list[Tensor] = []
    for key_i, encode in zip(jax.random.split(key, len(encoders)), encoders, strict=True):
        latents.append(encode(latents[-1] if latents else x).sample(key_i))
    return latents


def elbo(
    x: Tensor,
    latents: Sequence[Tensor],
    encoders: Sequence[Conditional],
    decoders: Sequence[Conditional],
    log_likelihood: Callable[[Tensor], PerExample],
    prior: Any = None,
    closed_form: bool = True,
) -> HierarchyTerms:
    """Returns one unbiased sample of the bound's terms, at latents of `sample_latents`.

    The encoders are q(z_1|x), ..., q(z_L|z_{L-1}), the decoders p(z_1|z_2), ..., p(z_{L-1}|z_L);
    shapes may change from level to level. `log_likelihood` is z_1 -> log p(x|z_1), [batch] nats,
    `prior` p(z_L), by default N(0, I). `closed_form` takes KL(q(z_L|z_{L-1}) || p(z_L)) for the
    last term: it varies less, except near the true posterior. Without it minus `total` is the log
    weight of these latents, for `bounds.importance_weighted`.
    """
    depth = len(encoders)
    if depth < 1 or len(decoders) != depth - 1 or len(latents) != depth:
        got = f"{depth}, {len(decoders)} and {len(latents)}"
        raise ValueError(f"wanted L >= 1 encoders, L - 1 decoders and L latents, got {got}.")
    reconstruction = -log_likelihood(latents[0])
    if jnp.shape(reconstruction) != latents[0].shape[:1]:
        wanted = f"log_likelihood must return one number per example, [{len(latents[0])}]"
        got = f"got shape {jnp.shape(reconstruction)}"
        raise ValueError(f"{wanted}, {got}: sum over the elements of x.")
    last = latents[-1]
    if prior is None:
        prior = Gaussian(jnp.zeros_like(last), jnp.ones_like(last))
    of_q = [encode(z) for encode, z in zip(encoders, (x, *latents[:-1]), strict=True)]
    of_p = [decode(z) for decode, z in zip(decoders, latents[1:], strict=True)] + [prior]
    each = zip(of_q, of_p, latents, strict=True)
    levels = [sum_event(q.log_prob(z) - p.log_prob(z)) for q, p, z in each]
    if closed_form:
        levels[-1] = sum_event(jnp.broadcast_to(of_q[-1].kl(prior), last.shape))
    return HierarchyTerms(reconstruction, jnp.stack(levels))


def ancestral(key: Key, z_last: Tensor, decoders: Sequence[Conditional]) -> Tensor:
    """Returns z_1 of the generative model, from a draw z_L of the prior down the decoders."""
    keys = jax.random.split(key, len(decoders))
    for key_i, decode in zip(keys, reversed(decoders), strict=True):
        z_last = decode(z_last).sample(key_i)
    return z_last


def of_diffusion(
    vdm: VDM,
) -> tuple[Callable[[Any, Tensor], Gaussian], Callable[[Any, Tensor], Gaussian]]:
    """Returns encode(i, z) and decode(i, z) of a VDM of T = `vdm.num_steps` steps.

    By `functools.partial` they make the T + 1 encoders and T decoders of `elbo`. The latents are
    those of the VDM paper: encode(0, x) is q(z_0|x), encode(i, z) is q(z_i|z_{i-1} = z) and
    decode(i, z) is p(z_i|z_{i+1} = z). In expectation the total is that of `vdm.elbo`.
    """
    num_steps = vdm.num_steps or 0
    _ = vdm.elbo  # which a guided model hasn't
    check_num_steps(num_steps)
    if vdm.mask is not None:
        raise ValueError("a hierarchy knows no padding: give a VDM without a mask.")
    times = jnp.arange(num_steps + 1) / num_steps
    later = steps(vdm.gamma, times)
    if later.ndim > 1:
        raise ValueError("a hierarchy needs one schedule, not one of each feature or example.")
    # Before z_0 stands the data, without noise: gamma = -inf.
    gammas = jnp.concatenate([jnp.array([-jnp.inf]), later])

    def encode(i: Any, z: Tensor) -> Gaussian:
        return transition(z, gammas[i], gammas[i + 1])

    def decode(i: Any, z: Tensor) -> Gaussian:
        gamma_t = jnp.broadcast_to(gammas[i + 2], z.shape[:1])
        prediction, share = split(vdm.denoise(z, gamma_t), vdm.reverse_var)
        x_hat = to_x(prediction, z, gamma_t, vdm.kind)
        return reverse(z, x_hat, gammas[i + 1], gamma_t, share)

    return encode, decode


class HierarchicalVAE(NamedTuple):
    """A VAE (one latent) or Markovian hierarchical VAE with prior N(0, I)."""

    encoders: Sequence[Conditional]  # q(z_1|x), ..., q(z_L|z_{L-1})
    decoders: Sequence[Conditional]  # p(z_1|z_2), ..., p(z_{L-1}|z_L)
    likelihood: Conditional  # z_1 -> the Gaussian that p(x|z_1) is the density of, or discretises
    event_shape: tuple[int, ...]
    latent_shape: tuple[int, ...]  # of the last latent
    levels: int | None
    words: str  # its name in reports

    @property
    def note(self) -> str:
        """The meaning of its terms, for reports."""
        return (
            "prior is what the last latent costs given the one before, diffusion the latents "
            "between; only the total compares with a VDM's"
        )

    def elbo(self, key: Key, images: Images | Tensor) -> ElboTerms:
        """Returns one sample of the bound: reconstruction, last latent's KL, the rest."""
        x = to_data(images, self.levels)
        return self._terms(images, x, sample_latents(key, x, self.encoders))

    def elbo_by_keys(self, images: Images | Tensor, t: PerExample, keys: Key) -> ElboTerms:
        """Returns the same with the noise of one key per example, [batch]; it has no times."""
        depth = len(self.encoders)
        keys = jax.vmap(lambda key: jax.random.split(jax.random.split(key)[0], depth))(keys)
        x = to_data(images, self.levels)
        latents = [x]
        for i, encode in enumerate(self.encoders):
            q = encode(latents[-1])
            normal = functools.partial(jax.random.normal, shape=q.mean.shape[1:])
            latents.append(q.at(jax.vmap(normal)(keys[:, i])))
        return self._terms(images, x, latents[1:])

    def _terms(self, images: Images | Tensor, x: Tensor, latents: Sequence[Tensor]) -> ElboTerms:
        def log_likelihood(z_1: Tensor) -> PerExample:
            p = self.likelihood(z_1)
            if self.levels is None:
                return sum_event(p.log_prob(x))
            return sum_event(pixels.log_prob(images, p.mean, jnp.log(p.var), self.levels))

        found = elbo(x, latents, self.encoders, self.decoders, log_likelihood)
        return ElboTerms(found.reconstruction, found.levels[-1], found.levels[:-1].sum(0))

    def sample(self, key: Key, n: int, num_steps: int | None = None) -> Images | Tensor:
        """Returns the most likely pixels given z_1, or its mean; the steps are its latents."""
        key_last, key_rest = jax.random.split(key)
        z_last = jax.random.normal(key_last, (n, *self.latent_shape))
        p: Gaussian = self.likelihood(ancestral(key_rest, z_last, self.decoders))
        if self.levels is None:
            return p.mean
        return pixels.decode(p.mean, jnp.log(jnp.broadcast_to(p.var, p.mean.shape)), self.levels)
