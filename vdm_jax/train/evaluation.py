"""Bits per dimension of a test set: one exact pass, with standard errors."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping

import jax
import numpy as np
from jax.sharding import Mesh

from vdm_jax import loss, timestep
from vdm_jax.train import sharding
from vdm_jax.train.model import Batch, Model, Params
from vdm_jax.types import Key

__all__ = ["Estimate", "Evaluation", "evaluate", "make_eval_step", "summarise"]

EvalStep = Callable[[Params, Batch, Key, int, int], tuple[loss.ElboTerms, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over images and its standard error."""

    mean: float
    standard_error: float

    def __str__(self) -> str:
        return f"{self.mean:.4f} ± {self.standard_error:.4f}"


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The bound on a test set in bits per dim, whole and term by term.

    The standard error is that of the mean over images drawn from the same source: the standard
    deviation between images (each the mean of its `repeats` draws, so it holds what is left of the
    Monte-Carlo error), divided by the root of their number.
    """

    bpd: Estimate
    reconstruction: Estimate
    prior: Estimate
    diffusion: Estimate
    num_images: int
    repeats: int

    def scalars(self) -> dict[str, float]:
        """Flat numbers for a log; no standard error of a single image."""
        numbers = {
            "bpd": self.bpd.mean,
            "bpd_standard_error": self.bpd.standard_error,
            "reconstruction": self.reconstruction.mean,
            "prior": self.prior.mean,
            "diffusion": self.diffusion.mean,
        }
        return {name: value for name, value in numbers.items() if not np.isnan(value)}


def make_eval_step(model: Model, mesh: Mesh) -> EvalStep:
    """Compile (params, batch, key, repeat, repeats) -> (ElboTerms in nats, mask), each [batch].

    One draw of each image's terms, number `repeat` of `repeats`. Noise and time are functions of
    the key, the repeat and the image's `index` alone: batch size, padding and devices don't matter.
    """

    def draw(
        params: Params, batch: Batch, key: Key, repeat: jax.Array, repeats: jax.Array
    ) -> tuple[loss.ElboTerms, jax.Array]:
        key_t, key_noise = jax.random.split(key)
        t = timestep.spread(jax.random.uniform(key_t), batch["index"], repeat, repeats)
        key_noise = jax.random.fold_in(key_noise, repeat)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key_noise, batch["index"])
        shape = (2, *model.event_shape)
        noise = jax.vmap(lambda image_key: jax.random.normal(image_key, shape))(keys)
        denoise, gamma = model.bind(params, batch["conditioning"], None)
        terms = loss.elbo_given(
            batch["images"],
            noise[:, 0],
            noise[:, 1],
            t,
            denoise,
            gamma,
            levels=model.levels,
            num_steps=model.num_steps,
            kind=model.kind,
        )
        return terms, batch["mask"]

    whole, split = sharding.replicated(mesh), sharding.split_over(mesh)
    return jax.jit(draw, in_shardings=(whole, split, whole, whole, whole), out_shardings=whole)


def evaluate(
    eval_step: EvalStep,
    params: Params,
    batches: Callable[[], Iterable[Mapping[str, np.ndarray]]],
    model: Model,
    mesh: Mesh,
    key: Key,
    repeats: int = 1,
) -> Evaluation:
    """The bound over every image that `batches()` gives, each exactly once per repeat.

    Args:
      batches: called once; each of its dicts has `images` [batch, *event], and `conditioning`,
        `index` (the image's number in the set) and `mask` (0 where the last batch is padded).
      key: settles all times and noise.
      repeats: draws of time and noise per image.

    Raises:
      ValueError: if there are no images.
    """
    total = []
    for batch in batches():
        on_devices = sharding.put(batch, mesh)
        draws = []
        for repeat in range(repeats):
            terms, mask = jax.device_get(eval_step(params, on_devices, key, repeat, repeats))
            draws.append(np.stack(terms)[:, mask > 0])
        total.append(np.mean(draws, axis=0, dtype=np.float64))
    if not total:
        raise ValueError("there are no images to evaluate.")
    return summarise(loss.ElboTerms(*np.concatenate(total, axis=1)), model.event_shape, repeats)


def summarise(terms: loss.ElboTerms, event_shape: tuple[int, ...], repeats: int) -> Evaluation:
    """Per-image nats, [num_images] each -> means and standard errors in bits per dim."""
    count = len(terms.total)

    def estimate(nats: jax.Array) -> Estimate:
        bits = np.asarray(loss.bits_per_dim(nats, event_shape), np.float64)
        error = bits.std(ddof=1) / np.sqrt(count) if count > 1 else float("nan")
        return Estimate(float(bits.mean()), float(error))

    return Evaluation(
        bpd=estimate(terms.total),
        reconstruction=estimate(terms.reconstruction),
        prior=estimate(terms.prior),
        diffusion=estimate(terms.diffusion),
        num_images=count,
        repeats=repeats,
    )
