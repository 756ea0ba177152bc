"""The figures that go by the name bits per dim, right and wrong, on data of known entropy.

    python -m experiments.which_bpd --workdir=DIR [--out=docs]

Fills the first table of docs/which_bpd.md: for 2x2 images out of a table, whose entropy is known
and whose denoiser is exact, and for the models in the box. Leaves all numbers in
DIR/which_bpd.json.
"""

import math
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from PIL import Image

from experiments import tables
from vdm_jax import bounds, compression, files, flow, loss, pixels, schedule, timestep, transforms
from vdm_jax.evaluation.estimate import estimate
from vdm_jax.evaluation.report import table
from vdm_jax.ode import Solver
from vdm_jax.parameterization import split, to_eps, to_x
from vdm_jax.process import expand, marginal
from vdm_jax.related.mixture import Mixture
from vdm_jax.run import build, cli, restore, vdmz
from vdm_jax.types import Key, PerExample, Tensor
from vdm_jax.vdm import VDM

Bind = Callable[[Any], VDM]
Rows = dict[str, dict[str, float]]

LEVELS, ENDS = 4, (-5.0, 7.0)  # of the images in the table, and of their gamma
STEPS, CHAINS, FILE_STEPS = 20, 8, 50  # T and K of the chains, T of the file
FIRST = 0.05  # least time of the VP-SDE, beta from 0.1 to 20, where the draws miss the integrand
HAAR, SCALE = transforms.haar(1), 0.5  # averages and differences of 2x2 pixels: 0.5 W x
FILTERS = tuple(Image.Resampling[name] for name in ("BOX", "BICUBIC", "LANCZOS", "NEAREST"))
FILE, UNDEQUANTISED = "file that decodes", "wrong: ODE, no dequantisation"
AVERAGES = "wrong: ODE of averages and differences"


class Case(NamedTuple):
    """A model, the images that its figures are of, and how much is computed."""

    source: vdmz.Source
    images: np.ndarray
    repeats: int = 128  # times of the bound
    solver: Solver = Solver("hutchinson", rtol=1e-3, atol=1e-3)
    truth: float | None = None  # bits per dim
    given_low: Bind | None = None  # told the sum over each image
    copies: int = 1  # of the images in the file


def known() -> Case:
    """Returns a table of 2x2 images of four levels, each as often as it is likely."""
    states = np.stack(np.meshgrid(*[np.arange(LEVELS)] * 4), -1).reshape(-1, 2, 2, 1)
    rough = sum(np.square(np.diff(states, axis=axis)).sum((1, 2, 3)) for axis in (1, 2))
    counts = np.rint(48.0 * np.exp(-0.5 * rough - 0.2 * states.sum((1, 2, 3)))).astype(int)
    states, counts = states[counts > 0], counts[counts > 0]
    images, share = np.repeat(states, counts, axis=0), counts / counts.sum()

    def model(of: Mixture) -> VDM:
        return VDM(of.posterior_mean, schedule.linear(*ENDS), states.shape[1:], LEVELS, "x")

    def given_low(of: Mixture) -> VDM:
        same = images.sum((1, 2, 3))[:, None] == states.sum((1, 2, 3))
        means = jnp.broadcast_to(of.means, (len(images), *states.shape))
        return model(Mixture(jnp.where(same, of.logits, -jnp.inf), means, of.var))

    data = Mixture.of(share, pixels.encode(states, LEVELS), 0.0)
    entropy, exact = float(bits(-(share @ np.log(share)), images)), Solver(rtol=1e-3, atol=1e-3)
    source = vdmz.Source(model, data, {})
    return Case(source, images.astype(np.uint8), 2048, exact, entropy, given_low, 16)


def boxed(name: str, every: int, how: Image.Resampling | None = None) -> Case:
    """Returns a model in the box, one in `every` test images, at half their size by a filter."""
    images = restore.from_workdir(name, build.make_mesh()).images.test[::every]
    if how is not None:
        size = (images.shape[2] // 2, images.shape[1] // 2)
        images = np.stack([np.asarray(Image.fromarray(of).resize(size, how)) for of in images])
    options = dict.fromkeys(("workdir", "checkpoint", "official", "model")) | {"pretrained": name}
    return Case(vdmz.load(options, images.shape[1:])[0], np.ascontiguousarray(images))


def bits(nats: Any, images: Any) -> np.ndarray:
    """Returns bits per dim as float64."""
    return np.asarray(loss.bits_per_dim(nats, images.shape[1:]), np.float64)


def grid(bind: Bind, params: Any, images: Any, repeats: int) -> tuple[Any, Any, Any, Any]:
    """Returns t, gamma(t), the low-pass part of the loss there, and `ElboTerms`, bits per dim.

    All are [repeats, images]. Times of one repeat lie in one of as many equal parts of [0, 1].
    """

    def at(vdm: VDM, x: Tensor, i: jax.Array) -> tuple[Tensor, ...]:
        key_t, key_eps = jax.random.split(jax.random.fold_in(jax.random.key(0), i))
        u = jnp.minimum(jax.random.uniform(key_t, (len(x),)), 0.999)  # t = 1 has no density
        t = (i + u) / repeats
        level, eps = timestep.noise_level(t, vdm.gamma, None), jax.random.normal(key_eps, x.shape)
        z_t = marginal(x, level.gamma_t).at(eps)
        prediction, _ = split(vdm.predict(z_t, level.gamma_t), vdm.reverse_var)
        error = eps - to_eps(prediction, z_t, level.gamma_t, vdm.kind)
        n, height, width, channels = x.shape
        blocks = error.reshape(n, height // 2, 2, width // 2, 2, channels)
        squares = (loss.sum_event(jnp.square(e)) for e in (0.5 * blocks.sum((2, 4)), error))
        return t, level.gamma_t, *(0.5 * level.weight * square for square in squares)

    def run(params: Any) -> Any:
        vdm = bind(params)
        draw = partial(at, vdm, loss.to_data(images, vdm.levels))
        *times, low, diffusion = jax.lax.map(draw, jnp.arange(repeats))
        return times, (low, loss.terms(images, diffusion, vdm.gamma, vdm.levels))

    times, nats = jax.jit(run)(params)
    return *map(np.asarray, times), *jax.tree.map(partial(bits, images=images), nats)


def measure(case: Case) -> Rows:
    """Returns bits per dim of each figure, the error of the draws, and by how much it is off."""
    bind, params, _ = case.source
    draws = grid(bind, params, case.images, case.repeats)
    found = {"true entropy": {"bpd": case.truth}} if case.truth else {}
    found |= {"bound, continuous time": (bound := _row(draws[-1].total))}
    found |= chains(case) | flows(case) | wrong(bind(params).levels, *draws)
    if case.given_low:
        *_, terms = grid(case.given_low, params, case.images, case.repeats // 4)
        found["wrong: given the low-pass image, which nobody paid"] = _row(terms.total)
    found[FILE] = {"bpd": file_bits(case)}
    return _off(found, case.truth or bound["bpd"])


def chains(case: Case) -> Rows:
    """Returns the bound of T steps, and what the mean of K weights makes of it."""

    def weights(params: Any, key: Key) -> Tensor:
        vdm = case.source.bind(params)._replace(num_steps=STEPS)
        return bounds.chains(vdm, key, jnp.asarray(case.images), CHAINS)

    nats, images = -jax.jit(weights)(case.source.params, jax.random.key(1)), case.images
    weighted, name = bits(bounds.importance_weighted(-nats), images).mean(), f"K = {CHAINS}"
    forgotten = bits(-np.logaddexp.reduce(-np.asarray(nats)), images).mean()  # of a sum, no mean
    return {
        f"bound, T = {STEPS}": _row(bits(nats, images)),
        f"importance-weighted bound, {name}": {"bpd": float(weighted)},
        f"wrong: {name}, log K forgotten": {"bpd": float(forgotten)},
    }


def flows(case: Case) -> Rows:
    """Returns what the probability-flow ODE gives."""
    images, solver, found = jnp.asarray(case.images), case.solver, Rows()

    def nats(method: Any, params: Any, key: Key) -> PerExample:
        vdm = case.source.bind(params)
        if method in pixels.DEQUANTIZATIONS:
            return flow.dequantized_nats(vdm, key, images, method, solver=solver).nats
        x, width = loss.to_data(images, vdm.levels), 2.0 / jnp.asarray(vdm.levels)
        if method == AVERAGES:
            x += width * jax.random.uniform(key, x.shape, minval=-0.5, maxval=0.5)
            vdm, x = averaged(vdm), SCALE * HAAR.forward(x)
        density = flow.dequantized_nats(vdm._replace(levels=None), key, x, solver=solver)
        return density.nats - jnp.log(width) * math.prod(vdm.event_shape)  # for a level's width

    for method in (*pixels.DEQUANTIZATIONS, UNDEQUANTISED, AVERAGES):
        each = jax.jit(partial(nats, method))(case.source.params, jax.random.key(2))
        words = f"ODE, {method}" if method in pixels.DEQUANTIZATIONS else method
        found[words] = {"bpd": float(bits(each, images).mean())}
    right = found[AVERAGES]["bpd"] - math.log2(SCALE)  # the determinant's, of each dimension
    return found | {AVERAGES.removeprefix("wrong: "): {"bpd": right}}


def averaged(vdm: VDM) -> VDM:
    """Returns the VDM of averages and differences y = SCALE W x that a VDM of x makes.

    Noise in y is noise in x that is 1 / SCALE times as large: the model's own, of a higher gamma.
    """
    higher = -2.0 * math.log(SCALE)

    def denoise(z: Tensor, gamma: PerExample) -> Tensor:
        at, noisier = expand(gamma, z), gamma + higher
        of_x = schedule.alpha(at + higher) / schedule.alpha(at) * HAAR.inverse(z) / SCALE
        prediction, _ = split(vdm.predict(of_x, noisier), vdm.reverse_var)
        return SCALE * HAAR.forward(to_x(prediction, of_x, noisier, vdm.kind))

    return vdm._replace(denoise=denoise, gamma=lambda t: vdm.gamma(t) - higher, kind="x")


def wrong(levels: Any, t: Any, gamma: Any, low: Any, terms: Any) -> Rows:
    """Returns what goes wrong with draws of the bound."""
    loss_t, rest = terms.diffusion, terms.reconstruction + terms.prior
    seen = gamma > 2.0 * math.log(2.0 / levels)  # sigma / alpha is above a level's width
    density = np.exp(-0.5 * np.log(t / (1.0 - t)) ** 2) / (math.sqrt(2.0 * math.pi) * t * (1.0 - t))
    drawn = gamma > math.log(math.expm1(0.1 * FIRST + 9.95 * FIRST**2))
    claimed = math.sqrt(terms.total.var(axis=1, ddof=1).mean() / len(terms.prior))
    errors = {"claimed": claimed, "true": float(terms.total.mean(axis=1).std(ddof=1))}
    return {
        "wrong: low-pass error counted at a quarter": _row(terms.total - 0.75 * low),
        "wrong: no decoder, noise from one level on": _row(seen * loss_t + terms.prior),
        f"wrong: VP-SDE, times from {FIRST} on": _row(drawn * loss_t / (1.0 - FIRST) + rest),
        "wrong: logit-normal times, no weights": _row(density * loss_t + rest),
        "one t for all images: claimed, true error": _row(terms.total) | errors,
    }


def file_bits(case: Case) -> float:
    """Returns the size, in bits per dim, of a file that decodes to the images."""
    images, options = np.tile(case.images, (case.copies, 1, 1, 1)), compression.Options(FILE_STEPS)
    content, summary = compression.compress(images, *case.source, options)
    compression.decompress(content, *case.source)  # raises for other images, by a checksum
    return summary.gross


def resized(name: str, every: int) -> Rows:
    """Returns the bound of images at half their size, by each filter, beside the first."""
    found = Rows()
    for how in FILTERS:
        bind, params, *_ = (case := boxed(name, every, how)).source
        *_, terms = grid(bind, params, case.images, 32)
        found[f"another resize: {how.name.lower()}"] = _row(terms.total)
    return _off(found, next(iter(found.values()))["bpd"])


def _row(draws: np.ndarray) -> dict[str, float]:
    return {"bpd": float(draws.mean()), "error": estimate(draws).monte_carlo}


def _off(found: Rows, best: float) -> Rows:
    return {name: row | {"off": row["bpd"] - best} for name, row in found.items()}


def which_bpd(argv: list[str]) -> dict[str, Rows]:
    """Parses `argv`, measures, and puts the numbers, which are returned, into the page."""
    values = flags.FlagValues()
    text, _, _ = cli.definers(values)
    text("workdir", "folder for the numbers")
    text("out", "folder that holds which_bpd.md", "docs")
    options, _ = cli.parse_flags(values, argv, __doc__)
    workdir, page = tables.places(options, "which_bpd.md", ("figures",))
    found = {"table": measure(known()), "digits": measure(boxed("digits", 5))}
    found["photos"] = measure(boxed("photos", 32)) | resized("photos", 4)
    files.write_json(workdir / "which_bpd.json", found)
    names = sorted({name: 0 for of in found.values() for name in of}, key=FILE.__eq__)
    rows = [(name, *(_cell(of.get(name, {})) for of in found.values())) for name in names]
    tables.replace(page, {"figures": table(("figure", *found), rows)})
    return found


def _cell(row: dict[str, float]) -> str:
    if "true" in row:
        return f"± {row['claimed']:.4f}, ± {row['true']:.4f}"
    return f"{row['bpd']:.4f} ({row['off']:+.4f})" if row else "-"


if __name__ == "__main__":
    cli.guard(lambda: which_bpd(sys.argv))
