"""Models without a network, whose bounds have closed forms, and images for them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax import schedule
from vdm_jax.data import ImageData
from vdm_jax.evaluation import bound
from vdm_jax.evaluation.subject import Subject
from vdm_jax.train import sharding
from vdm_jax.train.model import Model
from vdm_jax.vdm import VDM

SHAPE, LEVELS, DIMS = (2, 2, 1), 4, 4
GAMMA_0, GAMMA_1 = -6.0, 4.0
EXACT = 0.5 * DIMS * (GAMMA_1 - GAMMA_0)  # nats of eps_hat = 0 in continuous time

_RNG = np.random.default_rng(0)
IMAGES = ImageData(
    name="toy",
    train=_RNG.integers(0, LEVELS, (200, *SHAPE), np.uint8),
    test=_RNG.integers(0, LEVELS, (60, *SHAPE), np.uint8),
    levels=LEVELS,
    fingerprint="",
)


def nothing(z_t, gamma_t):
    """eps_hat = 0: the loss is gamma' / 2 ||eps||^2, of mean `EXACT` at every time."""
    return jnp.zeros_like(z_t)


def steep(z_t, gamma_t):
    """Errs more and more as gamma grows: the loss depends on the time, and on nothing else."""
    return jnp.exp(0.5 * gamma_t)[:, None, None, None] * jnp.ones_like(z_t)


def curved(z_t, gamma_t):
    """A denoiser that is neither linear nor right."""
    return jnp.tanh(z_t) * jax.nn.sigmoid(gamma_t)[:, None, None, None]


def evenly_spread(num_keys: int, images: int, repeats: int) -> np.ndarray:
    """The times of evaluations by so many keys, [num_keys, repeats, images]."""

    @jax.jit
    @jax.vmap
    def times(key):
        of = functools.partial(bound.two_groups, key, jnp.arange(images), repeats=repeats)
        return jax.vmap(lambda repeat: of(repeat=repeat))(jnp.arange(repeats))

    return np.asarray(times(jax.random.split(jax.random.key(0), num_keys)), float)


def model(denoise=nothing) -> Model:
    """eps_hat = `denoise` + the parameter c + the last of each example's conditioning."""

    def bind(params, conditioning=None, dropout=None):
        given = 0.0 if conditioning is None else conditioning.reshape(len(conditioning), -1)[:, -1:]
        assert dropout is None  # an evaluation has none

        def eps_hat(z_t, gamma_t):
            shift = jnp.reshape(given, (-1, 1, 1, 1)) + params["c"]
            return denoise(z_t, gamma_t) + shift

        return VDM(eps_hat, schedule.linear(GAMMA_0, GAMMA_1), SHAPE, LEVELS)

    return Model(lambda key: {"c": jnp.zeros(SHAPE)}, bind)


def subject(denoise=nothing, batch_size: int = 60, devices: int = 1, **images) -> Subject:
    """The model and the images, of which some fields may be others, on so many devices."""
    of, mesh = model(denoise), sharding.make_mesh(jax.devices()[:devices])
    data = dataclasses.replace(IMAGES, **images)
    return Subject(of, of.init(jax.random.key(0)), data, batch_size, mesh)
