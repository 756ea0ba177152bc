"""The two models of `experiments.toy2d`: how each is trained, and the functions it gives.

A VDM of continuous data (levels=None), trained on its variational bound, whose probability-flow ODE
is a normalising flow; and a normalising flow trained by maximum likelihood.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from experiments import trainings
from vdm_jax import cnf, flow, loss
from vdm_jax.nn import gamma as monotone
from vdm_jax.nn.small import SmoothMLP
from vdm_jax.train import fit, optimizer
from vdm_jax.train.model import Model, Params
from vdm_jax.types import Gamma, Key, PerExample, Tensor
from vdm_jax.vdm import VDM

STEPS = {"vdm": 2500, "cnf": 400}
PIECES = 60  # of a trajectory

# The end points stay as they are: of continuous data the bound has no best gamma_0. Noise of
# exp(-6) = 0.0025 is a twelfth of the swirl's own, which costs log(1 + 1/12^2) / 2 = 0.003 nats
# across the curve; at gamma_1 = 6 the prior costs less than 0.001.
GAMMA_0, GAMMA_1 = -12.0, 6.0


class Fitted(NamedTuple):
    """A trained model, as functions of points x [n, 2]."""

    log_prob: Callable[[Tensor, float], PerExample]
    """Function (x, tolerance) -> log-densities by the ODE, in nats."""
    sample: Callable[[Key, int], Tensor]
    """Function (key, n) -> samples [n, 2]."""
    paths: Callable[[Tensor], Tensor]
    """Function of noises z_1 [n, 2] -> the ODE's trajectories from them to data, [times, n, 2]."""
    bound: Callable[[Key, Tensor], PerExample] | None = None
    """Function (key, x) -> an unbiased sample of the bound on -log p(x), in nats; None without."""
    gamma: Gamma | None = None
    """Learned schedule; None without."""
    losses: Sequence[tuple[int, float]] = ()
    """Pairs (step, mean of the training loss since the last, in nats), of a model without gamma."""


def train_vdm(points: np.ndarray, steps: int, seed: int) -> Fitted:
    """Trains a VDM in continuous time, its schedule's shape for a low variance of the loss."""
    model = _vdm()
    rate = optimizer.learning_rate(3e-3, min(100, steps // 10), "cosine", steps)
    tx = optimizer.make(rate, decay_gamma=False)
    fitted = fit(model, points, tx, steps, batch_size=512, seed=seed, ema_rate=0.99)
    vdm: VDM = model.bind(fitted.params)
    return Fitted(
        jax.jit(
            lambda x, tol: vdm.log_prob(jax.random.key(0), x, rtol=tol, atol=tol), static_argnums=1
        ),
        jax.jit(lambda key, n: vdm.sample(key, n, 200), static_argnums=1),
        _paths(lambda gamma, z: flow.drift(vdm, z, gamma), vdm.gamma),
        jax.jit(lambda key, x: bound(key, x, vdm)),
        vdm.gamma,
    )


def train_cnf(points: np.ndarray, steps: int, seed: int) -> Fitted:
    """Trains a continuous normalising flow from N(0, I) at t = 1 to the data at t = 0."""
    network = SmoothMLP(width=64, num_blocks=2, frequencies=2)
    rate = optimizer.learning_rate(5e-3, min(20, steps // 10), "cosine", steps)
    tx = optimizer.make(rate, weight_decay=0.0, clip_norm=1.0)
    key_init, key_data = jax.random.split(jax.random.key(seed))
    data = jnp.asarray(points)

    def log_prob(params: Params, x: Tensor, tolerance: float) -> PerExample:
        solver = cnf.Solver(rtol=tolerance, atol=tolerance)
        return cnf.log_prob(x, _field(network, params), 0.0, 1.0, solver=solver).log_prob

    def nats(params: Params, key: Key) -> Tensor:
        rows = jax.random.randint(key, (256,), 0, len(data))
        return -log_prob(params, data[rows], 1e-3).mean()

    start = network.init(key_init, jnp.zeros((1, 2)), jnp.zeros(1))["params"]
    params, losses = trainings.minimise(nats, start, tx, steps, key_data)
    field = _field(network, params)

    def sample(key: Key, n: int) -> Tensor:
        return cnf.sample(jax.random.normal(key, (n, 2)), field, 0.0, 1.0).z

    return Fitted(
        jax.jit(lambda x, tolerance: log_prob(params, x, tolerance), static_argnums=1),
        jax.jit(sample, static_argnums=1),
        _paths(field, lambda t: t),
        losses=losses,
    )


def _field(network: SmoothMLP, params: Params) -> cnf.Field:
    return lambda t, z: cast(Tensor, network.apply({"params": params}, z, jnp.full(len(z), t)))


def _vdm() -> Model:
    network = SmoothMLP(width=96, num_blocks=3, frequencies=8)
    schedule = monotone.MonotoneGamma(GAMMA_0, GAMMA_1, features=128, learn_end_points=False)

    def init(key: Key) -> Params:
        variables = network.init(key, jnp.zeros((1, 2)), jnp.zeros(1))
        gamma = schedule.init(key, jnp.zeros(1))["params"]
        return {"gamma": gamma, "score_model": variables["params"]}

    def bind(params: Params, conditioning: Tensor | None = None, dropout: Key | None = None) -> VDM:
        def denoise(z_t: Tensor, gamma_t: PerExample) -> Tensor:
            t = (gamma_t - GAMMA_0) / (GAMMA_1 - GAMMA_0)
            return cast(Tensor, network.apply({"params": params["score_model"]}, z_t, t))

        gamma = partial(schedule.apply, {"params": params["gamma"]})
        return VDM(denoise, cast(Gamma, gamma), (2,), levels=None, kind="v")

    return Model(init, bind, end_points=monotone.END_POINTS)


def bound(key: Key, x: Tensor, vdm: VDM) -> PerExample:
    """Returns one sample of the bound [n] in nats, with most of its noise taken out; x is [n, 2].

    Where there is little noise a denoiser can't tell it, and the loss is that of eps itself,
    gamma'(t) / 2 ||eps||^2, whose mean is known: what it exceeds its mean by is subtracted, in
    the share that fits there. That has mean zero, whatever the share is as a function of t.
    """
    eps_0, eps, t = loss.draw(key, x.shape)
    terms = vdm.elbo_given(x, eps, t, eps_0)
    gamma_t, slope = jax.jvp(vdm.gamma, (t,), (jnp.ones_like(t),))
    share = jax.nn.sigmoid(-4.0 - gamma_t)

    of_eps_0, of_eps = (0.5 * jnp.sum(jnp.square(noise) - 1.0, axis=1) for noise in (eps_0, eps))
    return terms.total - of_eps_0 - share * slope * of_eps


def _paths(field: cnf.Field, clock: Gamma) -> Callable[[Tensor], Tensor]:
    """Returns the function of z -> its way along `field`, by times clock(1) to clock(0)."""
    times = clock(jnp.linspace(1.0, 0.0, PIECES + 1))

    def body(z: Tensor, ends: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        later, earlier = ends
        z = cnf.sample(z, field, earlier, later, cnf.Solver(rtol=1e-3, atol=1e-3)).z
        return z, z

    run = jax.jit(lambda z: jax.lax.scan(body, z, (times[:-1], times[1:]))[1])
    return lambda z: jnp.concatenate([z[None], run(z)])
