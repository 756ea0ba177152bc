"""Draws what a trained model does: digits to noise and back, what noise costs, a learned schedule.

    python -m experiments.pictures [--workdir=RUN | --pretrained=digits] [--beside=photos]

Leaves in --out, by default docs/pictures,

* noise_and_back.png: test images on their way to noise, and from there back to other images,
* noise_levels.png: the loss per unit of gamma, whose area is the diffusion term, beside that of
  another model,
* learned_schedule.png: a schedule learned for the network as it is, and how evenly it spreads the
  loss over t.
"""

import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

from vdm_jax import loss, process, sampling
from vdm_jax.errors import UserError
from vdm_jax.evaluation.estimate import Estimate, estimate
from vdm_jax.evaluation.sample_quality import conditioning_of
from vdm_jax.evaluation.subject import Subject
from vdm_jax.nn.gamma import MonotoneGamma
from vdm_jax.rule import Rule
from vdm_jax.run import build, cli, restore
from vdm_jax.train import schedule_variance
from vdm_jax.train.model import Batch, Model, Params
from vdm_jax.train.plots import figure
from vdm_jax.train.progress import Bar
from vdm_jax.types import Gamma, Images, Key, Tensor
from vdm_jax.vdm import VDM

ROWS, SHOWN = 5, 7  # images of the first picture, and noise levels on the way
CHAIN = 240  # steps of its chains
IMAGES, LEVELS = 36, 50  # of the second
STEPS, BATCH, LEARNING_RATE = 400, 64, 1e-2  # of the third's training


class Costs(NamedTuple):
    """The loss per unit of gamma, m(gamma) / 2: bits per dim [levels, images] at gamma [levels].

    The area is the diffusion term of these images.
    """

    gamma: np.ndarray
    bits: np.ndarray
    area: Estimate


def pictures(argv: list[str]) -> Costs:
    """Parses `argv`, draws the pictures, and returns what each noise level costs."""
    values = flags.FlagValues()
    text, _, _ = cli.definers(values)
    text("workdir", "folder of a run")
    text("pretrained", "a model in one file; default digits, if there is no --workdir")
    text("beside", "another run's folder or model's file, its costs beside; none if empty", "photos")
    text("out", "folder for the pictures", "docs/pictures")
    options, _ = cli.parse_flags(values, argv, __doc__)
    if options["workdir"] and options["pretrained"]:
        raise UserError("--workdir and --pretrained exclude each other")
    mesh, out = build.make_mesh(), build.make_workdir(Path(options["out"]), "out")
    named = [options["workdir"] or options["pretrained"] or "digits", options["beside"]]
    subjects = [restore.from_workdir(given, mesh) for given in named if given]
    key = jax.random.key(0)
    _draw_chains(out / "noise_and_back.png", subjects[0], key)
    found = [(of, measure(of, key)) for of in subjects]
    _draw_levels(out / "noise_levels.png", found)
    gamma = learn_schedule(subjects[0], key)
    _draw_schedules(out / "learned_schedule.png", found[0][1], gamma)
    print(f"{out}: noise_and_back.png, noise_levels.png, learned_schedule.png")
    return found[0][1]


def _bound(of: Subject, index: np.ndarray) -> tuple[VDM, Images]:
    """Returns the model in continuous time, and test images, by number."""
    if of.vdm.levels is None:
        raise UserError(f"{of.name} is a model of a density, whose loss is no number of bits")
    given = conditioning_of(index, of.images.given("test"))
    return of.at(None).model.bind(of.params, given), jnp.asarray(of.images.test[index])


def chains(vdm: VDM, key: Key, x: Tensor, rule: Rule) -> tuple[Tensor, Tensor]:
    """Returns z of the forward chain from gamma_0 on, and of the reverse chain from its z_1 on.

    Each is [steps + 1, batch, *event], at the gammas of `rule`, of which the reverse chain's fall.
    """
    gammas, (key_up, key_down) = rule.gammas(vdm.gamma), jax.random.split(key)
    up = process.simulate(key_up, x, gammas[::-1])

    def back(state: sampling.State, at: tuple) -> tuple[sampling.State, Tensor]:
        i, gamma_t, gamma_s = at
        eps = jax.random.normal(jax.random.fold_in(key_down, i), x.shape)
        state = sampling.step(state, eps, vdm, gamma_s, gamma_t, rule)
        return state, state.z

    steps = jnp.arange(rule.num_steps), gammas[:-1], gammas[1:]
    _, down = jax.lax.scan(back, sampling.start(up[-1], gammas[0]), steps)
    return up, jnp.concatenate([up[-1:], down])


def _draw_chains(path: Path, of: Subject, key: Key) -> None:
    vdm, images = _bound(of, np.arange(min(ROWS, len(of.images.test))))
    rule = Rule("ancestral", CHAIN, "angle")
    up, down = jax.jit(partial(chains, vdm, rule=rule))(key, loss.to_data(images, vdm.levels))
    at = np.linspace(0, CHAIN, SHOWN).round().astype(int)
    noise = np.asarray(jax.nn.sigmoid(rule.gammas(vdm.gamma)))[at]
    title = f"From image to noise and back: {of.images.name}"
    with figure(path, title, (12, 0.8 * len(images) + 1.4), (1, 2)) as axes:
        for one, z, shares, label in (
            (axes[0], up[at], noise[::-1], r"forward, $q(z_t|z_s)$: noise is added $\rightarrow$"),
            (axes[1], down[at], noise, r"back, $p(z_s|z_t)$: the network takes it out $\rightarrow$"),
        ):
            tiles = np.clip(0.5 + 0.5 * np.asarray(z), 0.0, 1.0)
            tiles = np.pad(tiles, [(0, 0), (0, 0), (0, 1), (0, 1), (0, 0)], constant_values=1.0)
            columns, rows, height, width, channels = tiles.shape
            whole = tiles.transpose(1, 2, 0, 3, 4).reshape(rows * height, columns * width, channels)
            one.imshow(whole[:-1, :-1], cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")
            places = width * (np.arange(columns) + 0.5) - 1.0
            one.set_xticks(places, [f"{share:.2f}" for share in shares])
            one.set(title=label, xlabel=r"variance of the noise, $\sigma_t^2$", yticks=[])
            one.spines[:].set_visible(False)
            one.grid(visible=False)


def measure(of: Subject, key: Key) -> Costs:
    """Returns what each noise level costs on test images, evenly chosen, of one noise each."""
    count = len(of.images.test)
    index = np.linspace(0, count - 1, min(IMAGES, count)).round().astype(int)
    vdm, images = _bound(of, index)
    gamma_0, gamma_1 = (float(end) for end in vdm.gamma(jnp.array([0.0, 1.0])))
    gammas = gamma_0 + (gamma_1 - gamma_0) * (np.arange(LEVELS) + 0.5) / LEVELS
    one = jax.jit(partial(cost, vdm, images, jax.random.normal(key, images.shape)))
    with Bar("noise levels", LEVELS) as bar:
        counted = bar.counted(one)
        bits = np.stack([np.asarray(counted(gamma), np.float64) for gamma in gammas])
    areas = bits.mean(axis=0) * (gamma_1 - gamma_0)
    groups = None if of.groups is None else of.groups[index]
    return Costs(gammas, bits, estimate(areas[None], groups))


def cost(vdm: VDM, images: Images, eps: Tensor, gamma: Tensor) -> Tensor:
    """Returns the diffusion loss per unit of gamma, ||eps - eps_hat||^2 / 2, in bits per dim.

    It is `loss.diffusion` of the schedule of slope 1 through `gamma`, [batch]. The area below it
    from gamma_0 to gamma_1 is the diffusion term, whatever the schedule (VDM eq. 18).
    """
    x, start = loss.to_data(images, vdm.levels), jnp.zeros(len(images))
    nats = loss.diffusion(
        x, eps, start, vdm.denoise, lambda t: gamma + t, None, vdm.kind, vdm.reverse_var
    )
    return loss.bits_per_dim(nats, vdm.event_shape)


def _draw_levels(path: Path, found: list[tuple[Subject, Costs]]) -> None:
    title = "What each noise level costs: the area is the diffusion term"
    with figure(path, title, (8, 5)) as (axes,):
        for number, (of, costs) in enumerate(found):
            mean, area = costs.bits.mean(axis=1), costs.area
            label = f"{of.images.name}: area {area.mean:.2f} ± {area.standard_error:.2f} bits per dim"
            axes.plot(costs.gamma, mean, label=label)
            axes.fill_between(costs.gamma, mean, color=f"C{number}", alpha=0.15)
        axes.set_xlabel(r"$\gamma = -\log\,\mathrm{SNR}$: from little noise to much")
        axes.set_ylabel("bits per dim\nfor each unit of " + r"$\gamma$")
        axes.set_ylim(bottom=0.0)


def learn_schedule(of: Subject, key: Key) -> Gamma:
    """Returns the schedule of least variance (VDM appendix I.2) for the network as it is.

    It has the end points of the model's own, and is learned on training images.
    """
    gamma_0, gamma_1 = (float(end) for end in of.vdm.gamma(jnp.array([0.0, 1.0])))
    shape = MonotoneGamma(gamma_0, gamma_1, learn_end_points=False)

    def bind(params: Params, conditioning: Tensor | None = None, dropout: Key | None = None) -> VDM:
        gamma = partial(shape.apply, {"params": params["gamma"]})
        return of.at(None).model.bind(of.params, conditioning)._replace(gamma=gamma)

    gradient = schedule_variance.gradient(Model(lambda _: of.params, bind))
    optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, STEPS))

    @jax.jit
    def step(params: Params, state: optax.OptState, batch: Batch, key: Key) -> tuple:
        grads, _ = gradient({"gamma": params, "score_model": {}}, batch, key)
        updates, state = optimizer.update(grads["gamma"], state)
        return optax.apply_updates(params, updates), state

    params = shape.init(key, jnp.zeros(1))["params"]
    state, rng = optimizer.init(params), np.random.default_rng(0)
    with Bar("steps of the schedule's training", STEPS) as bar:
        counted = bar.counted(step)
        for i in range(STEPS):
            rows = rng.integers(len(of.images.train), size=BATCH)
            given = conditioning_of(rows, of.images.given("train"))
            batch = {"images": of.images.train[rows], "conditioning": given}
            params, state = counted(params, state, batch, jax.random.fold_in(key, i))
    return partial(shape.apply, {"params": params})


def spread(costs: Costs, gamma: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, float]:
    """Returns the root mean square of a draw at times t [n] for gamma(t), and its least mean.

    A draw is gamma'(t) times the loss per unit of gamma. No schedule with these end points has a
    smaller mean square than one for which it is the same at every t, int rms dgamma.
    """
    rms = np.sqrt(np.mean(costs.bits**2, axis=1))
    least = float(rms.mean() * (gamma[-1] - gamma[0]))
    return np.gradient(gamma, t) * np.interp(gamma, costs.gamma, rms), least


def _draw_schedules(path: Path, costs: Costs, gamma: Gamma) -> None:
    t = np.linspace(0.0, 1.0, 101)
    learned = np.asarray(gamma(jnp.asarray(t)), np.float64)
    line = learned[0] + (learned[-1] - learned[0]) * t
    title = "A schedule learned for the least variance of the loss"
    with figure(path, title, (8, 7), (2, 1)) as (above, below):
        for name, of_t in (("linear in t", line), ("learned", learned)):
            rms, least = spread(costs, of_t, t)
            variance = np.trapezoid(rms**2, t) - costs.area.mean**2
            above.plot(t, of_t, label=f"{name}: variance of a draw {variance:.2f}")
            below.plot(t, rms)
        below.axhline(least, color="black", linestyle=":", label="the least that can be")
        below.legend()
        above.set_ylabel(r"$\gamma(t) = -\log\,\mathrm{SNR}$")
        below.set(xlabel="t", ylabel="root mean square of a draw,\nbits per dim")


if __name__ == "__main__":
    cli.guard(lambda: pictures(sys.argv))
