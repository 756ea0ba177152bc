"""Draws what trained models do: images to noise and back, what noise costs, a learned schedule.

    python -m experiments.pictures [MODEL [OTHER]] [--out=docs/pictures]

MODEL is a run's folder, a model's file or the name of one in the package; without any, digits and
photos. Leaves noise_and_back.png: test images of MODEL on their way to noise, and from there to
others; noise_levels.png: the loss of both models per unit of gamma; learned_schedule.png: a
schedule learned for the network of MODEL as it is, beside a line; samples.png: samples of OTHER,
or of MODEL without one, beside test images.
"""

import sys
from functools import partial
from pathlib import Path
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

from experiments.paper_tables import draw_schedules, measure_schedules
from vdm_jax import loss, process, sampling, schedule, timestep
from vdm_jax.errors import UserError
from vdm_jax.evaluation.likelihood import Row
from vdm_jax.evaluation.sample_quality import Drawer, conditioning_of
from vdm_jax.evaluation.subject import Subject
from vdm_jax.nn.gamma import END_POINTS, MonotoneGamma
from vdm_jax.rule import Rule
from vdm_jax.run import build, cli, restore
from vdm_jax.train import fit
from vdm_jax.train.model import Model, Params
from vdm_jax.train.plots import figure, image_grid
from vdm_jax.types import Gamma, Key, Tensor
from vdm_jax.vdm import VDM

ROWS, COLUMNS, BETWEEN = 5, 7, 40  # of a chain: images, noise levels shown, steps between two
SHOWN, SAMPLED = 36, Rule("dpm_solver", 50)  # samples, and how
STEPS = 400  # of the schedule's training


def pictures(argv: list[str]) -> list[Row]:
    """Parses `argv`, draws the pictures, and returns the bounds that they show."""
    values = flags.FlagValues()
    text, _, _ = cli.definers(values)
    text("out", "folder for the pictures", "docs/pictures")
    options, names = cli.parse_flags(values, argv, __doc__, most=2)
    mesh, out = build.make_mesh(), build.make_workdir(Path(options["out"]), "out")
    subjects = [restore.from_workdir(name, mesh) for name in names or ("digits", "photos")]
    for of in subjects:
        _ = of.vdm  # refuses other kinds
        if (
            of.model.pixel_levels
            or of.settings.get("transform", "none") != "none"
            or of.settings["gamma"].endswith("path")
            or of.vdm.event_shape[-1] not in (1, 3)
        ):
            said = "its latents are no grey or RGB pixels, or have several schedules"
            raise UserError(f"{of.name} can't be drawn so: {said}; see experiments.sample")
    _draw_chains(out / "noise_and_back.png", subjects[0], jax.random.key(0))
    rows = [_measured(of, schedule.linear(*_ends(of)), "linear in t") for of in subjects]
    _draw_levels(out / "noise_levels.png", [of.images.name for of in subjects], rows)
    rows.append(_measured(subjects[0], learn_schedule(subjects[0]), "learned"))
    title = "A schedule learned for the least variance of the loss"
    draw_schedules(out / "learned_schedule.png", title, [rows[0], rows[-1]])
    _draw_samples(out / "samples.png", subjects[-1])
    print(f"{out}: noise_and_back.png, noise_levels.png, learned_schedule.png, samples.png")
    return rows


def _draw_samples(path: Path, of: Subject) -> None:
    count, test = min(SHOWN, len(of.images.test)), of.images.test
    drawn = Drawer(of, SAMPLED).draw(SAMPLED, count, 0)
    both = drawn, test[:: len(test) // count][:count]
    titles = f"samples, {SAMPLED.num_steps} steps of {SAMPLED.sampler}", "test images"
    with figure(path, f"Samples: {of.images.name}", (12, 6.6), (1, 2)) as axes:
        for one, images, title in zip(axes, both, titles, strict=True):
            one.imshow(image_grid(images, of.images.levels), cmap="gray", vmin=0, vmax=255)
            one.set_title(title)
            one.axis("off")


def _ends(of: Subject) -> tuple[float, float]:
    gamma_0, gamma_1 = timestep.end_points(of.vdm.gamma)
    return float(gamma_0), float(gamma_1)


def _measured(of: Subject, gamma: Gamma, name: str) -> Row:
    return measure_schedules(of.at(None), {name: {"gamma": gamma}}, of.repeats)[0]


def chains(vdm: VDM, key: Key, x: Tensor, gammas: Tensor) -> tuple[Tensor, Tensor]:
    """Returns z of the forward chain at rising gammas, and of the reverse chain from its end back.

    Each is [gammas, batch, *event], in the order of the chain.
    """
    key_up, key_down = jax.random.split(key)
    up = process.simulate(key_up, x, gammas)

    def back(z: Tensor, at: tuple[Key, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        key, gamma_t, gamma_s = at
        part = vdm._replace(gamma=lambda t: gamma_s + (gamma_t - gamma_s) * t)
        z = sampling.solve(z, part, Rule("ancestral", BETWEEN), jax.random.split(key, len(z)))
        return z, z

    keys, falling = jax.random.split(key_down, len(gammas) - 1), gammas[::-1]
    _, down = jax.lax.scan(back, up[-1], (keys, falling[:-1], falling[1:]))
    return up, jnp.concatenate([up[-1:], down])


def _draw_chains(path: Path, of: Subject, key: Key) -> None:
    index = np.arange(min(ROWS, len(of.images.test)))
    vdm = of.model.bind(of.params, conditioning_of(index, of.images.given("test")))
    x = loss.to_data(jnp.asarray(of.images.test[index]), of.images.levels)
    gammas = Rule("ancestral", COLUMNS - 1, "angle").gammas(vdm.gamma)[::-1]
    both, noise = jax.jit(partial(chains, vdm))(key, x, gammas), schedule.variance(gammas)
    shares, words = (noise, noise[::-1]), ("noise is added", "the network takes it out")
    title, size = f"From image to noise and back: {of.images.name}", (12, 0.8 * len(x) + 1.4)
    with figure(path, title, size, (1, 2)) as axes:
        for one, z, share, what in zip(axes, both, shares, words, strict=True):
            lined = np.pad(z, [(0, 0), (0, 0), (1, 0), (1, 0), (0, 0)], constant_values=1.0)
            columns, rows, height, width, channels = lined.shape
            whole = lined.transpose(1, 2, 0, 3, 4).reshape(rows * height, -1, channels)
            one.imshow(np.clip(0.5 + 0.5 * whole, 0.0, 1.0), cmap="gray", vmin=0, vmax=1)
            one.set_xticks(width * (np.arange(columns) + 0.5), [f"{v:.2f}" for v in share])
            one.set(title=what + r" $\rightarrow$", xlabel=r"variance of the noise, $\sigma_t^2$")
            one.set(yticks=[], frame_on=False)
            one.grid(visible=False)


def cost(row: Row) -> tuple[np.ndarray, np.ndarray]:
    """Returns noise levels gamma, and what a unit of gamma costs there, in the unit of the row.

    Its integral is the diffusion term, whatever schedule it was measured with (VDM eq. 18).
    """
    t, gamma, mean = (np.asarray(row["profile"][name]) for name in ("t", "gamma", "mean"))
    return gamma, mean / np.gradient(gamma, t)


def _draw_levels(path: Path, names: list[str], rows: list[Row]) -> None:
    title = "What each noise level costs: the area is the diffusion term"
    with figure(path, title, (8, 5)) as (axes,):
        for name, row in zip(names, rows, strict=True):
            area, (gamma, each) = row["terms"]["diffusion"], cost(row)
            words = f"{name}: area {area['mean']:.2f} ± {area['standard_error']:.2f} {row['unit']}"
            (line,) = axes.plot(gamma, each, label=words)
            axes.fill_between(gamma, each, color=line.get_color(), alpha=0.15)
        axes.set_xlabel(r"$\gamma = -\log\,\mathrm{SNR}$: from little noise to much")
        axes.set(ylabel=f"{rows[0]['unit']}\nfor each unit of " + r"$\gamma$", ylim=(0.0, None))


def learn_schedule(of: Subject) -> Gamma:
    """Returns a schedule with the same ends, trained for the least variance (VDM appendix I.2)."""
    shape = MonotoneGamma(*_ends(of), learn_end_points=False)

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
    return cast(Gamma, partial(shape.apply, {"params": fitted.params["gamma"]}))


if __name__ == "__main__":
    cli.guard(lambda: pictures(sys.argv))
