"""Draws what a trained model does: images to noise and back, what noise costs, a learned schedule.

    python -m experiments.pictures [--workdir=RUN | --pretrained=digits] [--beside=photos]

Leaves in --out noise_and_back.png: test images on their way to noise, and from there to others;
noise_levels.png: the loss per unit of gamma, beside that of another model; learned_schedule.png: a
schedule learned for the network as it is, and how it spreads the loss over t.
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

from vdm_jax import loss, process, sampling, schedule, timestep
from vdm_jax.errors import UserError
from vdm_jax.evaluation.estimate import Estimate, estimate
from vdm_jax.evaluation.sample_quality import conditioning_of
from vdm_jax.evaluation.subject import Subject
from vdm_jax.nn.gamma import END_POINTS, MonotoneGamma
from vdm_jax.rule import Rule
from vdm_jax.run import build, cli, restore
from vdm_jax.train import fit
from vdm_jax.train.model import Model, Params
from vdm_jax.train.plots import figure
from vdm_jax.train.progress import Bar
from vdm_jax.types import Gamma, Images, Key, Tensor
from vdm_jax.vdm import VDM

ROWS, SHOWN, CHAIN = 5, 7, 240  # of the first picture: images, noise levels, steps of a chain
IMAGES, LEVELS = 36, 50  # of the second
STEPS = 400  # of the schedule's training


class Costs(NamedTuple):
    """The loss per unit of gamma, in bits per dim, and the area below it, the diffusion term."""

    gamma: np.ndarray  # [levels]
    bits: np.ndarray  # [levels, images]
    area: Estimate


def pictures(argv: list[str]) -> Costs:
    """Parses `argv`, draws the pictures, and returns what each noise level costs."""
    values = flags.FlagValues()
    text, _, _ = cli.definers(values)
    text("workdir", "folder of a run")
    text("pretrained", "a model in one file; default digits, if there is no --workdir")
    text("beside", "a run's folder or a model's file whose costs are drawn, too; or none", "photos")
    text("out", "folder for the pictures", "docs/pictures")
    options, _ = cli.parse_flags(values, argv, __doc__)
    if options["workdir"] and options["pretrained"]:
        raise UserError("--workdir and --pretrained exclude each other")
    mesh, out = build.make_mesh(), build.make_workdir(Path(options["out"]), "out")
    named = [options["workdir"] or options["pretrained"] or "digits", options["beside"]]
    subjects = [restore.from_workdir(given, mesh) for given in named if given]
    key = jax.random.key(0)
    _draw_chains(out / "noise_and_back.png", subjects[0], key)
    found = [measure(of, key) for of in subjects]
    _draw_levels(out / "noise_levels.png", [of.images.name for of in subjects], found)
    _draw_schedules(out / "learned_schedule.png", found[0], learn_schedule(subjects[0]))
    print(f"{out}: noise_and_back.png, noise_levels.png, learned_schedule.png")
    return found[0]


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
    rule, at = Rule("ancestral", CHAIN, "angle"), np.linspace(0, CHAIN, SHOWN).astype(int)
    found = jax.jit(partial(chains, vdm, rule=rule))(key, loss.to_data(images, vdm.levels))
    noise = np.asarray(schedule.variance(rule.gammas(vdm.gamma)))[at]
    shares, words = (noise[::-1], noise), ("noise is added", "the network takes it out")
    title, size = f"From image to noise and back: {of.images.name}", (12, 0.8 * len(images) + 1.4)
    with figure(path, title, size, (1, 2)) as axes:
        for one, z, share, what in zip(axes, found, shares, words, strict=True):
            lined = np.pad(z[at], [(0, 0), (0, 0), (0, 1), (0, 1), (0, 0)], constant_values=1.0)
            columns, rows, height, width, channels = lined.shape
            whole = lined.transpose(1, 2, 0, 3, 4).reshape(rows * height, -1, channels)
            one.imshow(np.clip(0.5 + 0.5 * whole[:-1, :-1], 0.0, 1.0), cmap="gray", vmin=0, vmax=1)
            one.set_xticks(width * (np.arange(columns) + 0.5) - 1.0, [f"{v:.2f}" for v in share])
            one.set(title=what + r" $\rightarrow$", xlabel=r"variance of the noise, $\sigma_t^2$")
            one.set_yticks([])
            one.grid(visible=False)
            one.spines[:].set_visible(False)


def measure(of: Subject, key: Key) -> Costs:
    """Returns what each noise level costs on test images, evenly chosen, each with one noise."""
    count = len(of.images.test)
    index = np.linspace(0, count - 1, min(IMAGES, count)).round().astype(int)
    vdm, images = _bound(of, index)
    edges = np.linspace(*timestep.end_points(vdm.gamma), LEVELS + 1)
    gammas = 0.5 * (edges[1:] + edges[:-1])
    with Bar("noise levels", LEVELS) as bar:
        one = bar.counted(jax.jit(partial(cost, vdm, images, jax.random.normal(key, images.shape))))
        bits = np.stack([np.asarray(one(gamma), np.float64) for gamma in gammas])
    areas = bits.mean(axis=0) * (edges[-1] - edges[0])
    groups = None if of.groups is None else of.groups[index]
    return Costs(gammas, bits, estimate(areas[None], groups))


def cost(vdm: VDM, images: Images, eps: Tensor, gamma: Tensor) -> Tensor:
    """Returns ||eps - eps_hat||^2 / 2 at one gamma, in bits per dim, [batch].

    Its integral from gamma_0 to gamma_1 is the diffusion term, whatever the schedule (VDM eq. 18).
    """
    x, line = loss.to_data(images, vdm.levels), lambda t: gamma + t  # a schedule of slope 1
    rest = vdm.denoise, line, None, vdm.kind, vdm.reverse_var
    return loss.bits_per_dim(loss.diffusion(x, eps, jnp.zeros(len(x)), *rest), vdm.event_shape)


def _draw_levels(path: Path, names: list[str], found: list[Costs]) -> None:
    title = "What each noise level costs: the area is the diffusion term"
    with figure(path, title, (8, 5)) as (axes,):
        for number, (name, costs) in enumerate(zip(names, found, strict=True)):
            mean, area = costs.bits.mean(axis=1), costs.area
            label = f"{name}: area {area.mean:.2f} ± {area.standard_error:.2f} bits per dim"
            axes.plot(costs.gamma, mean, label=label)
            axes.fill_between(costs.gamma, mean, color=f"C{number}", alpha=0.15)
        axes.set_xlabel(r"$\gamma = -\log\,\mathrm{SNR}$: from little noise to much")
        axes.set(ylabel="bits per dim\nfor each unit of " + r"$\gamma$", ylim=(0.0, None))


def learn_schedule(of: Subject) -> Gamma:
    """Returns a schedule trained for the least variance (VDM appendix I.2).

    The network and the end points of the schedule stay as they are.
    """
    ends = map(float, timestep.end_points(of.vdm.gamma))
    shape = MonotoneGamma(*ends, learn_end_points=False)

    def init(key: Key) -> Params:
        return {"gamma": shape.init(key, jnp.zeros(1))["params"], "score_model": {}}

    def bind(params: Params, conditioning: Tensor | None = None, dropout: Key | None = None) -> VDM:
        gamma = partial(shape.apply, {"params": params["gamma"]})
        return of.at(None).model.bind(of.params, conditioning)._replace(gamma=gamma)

    every = np.arange(len(of.images.train))
    data = {"x": of.images.train, "condition": conditioning_of(every, of.images.given("train"))}
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, STEPS))
    model = Model(init, bind, END_POINTS)
    fitted = fit(model, data, optimizer, STEPS, batch_size=64, ema_rate=0.9)
    return partial(shape.apply, {"params": fitted.params["gamma"]})


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
        below.axhline(least, color="black", linestyle=":", label="least possible, if even")
        below.legend()
        above.set_ylabel(r"$\gamma(t) = -\log\,\mathrm{SNR}$")
        below.set(xlabel="t", ylabel="root mean square of a draw,\nbits per dim")


if __name__ == "__main__":
    cli.guard(lambda: pictures(sys.argv))
