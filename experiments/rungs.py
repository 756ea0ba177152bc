"""docs/ladder.md: the numbers of `experiments.ladder` in plain words, with plots."""

import itertools
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.toy_models import GAMMA_0
from vdm_jax import loss
from vdm_jax.evaluation.report import table, value

__all__ = ["write"]

Found = Mapping[str, Any]


def write(out: Path, found: Found) -> None:
    """ladder.md in `out`, its plots in `out`/ladder."""
    plots = out / "ladder"
    plots.mkdir(parents=True, exist_ok=True)
    _plot_rungs(plots / "rungs.png", found)
    _plot_objectives(plots / "objectives.png", found["objectives"])
    _plot_feller(plots / "feller.png", found["feller"])
    for kind in ("vdm", "cnf"):
        shutil.copyfile(found["points"][kind]["picture"], plots / f"swirl-{kind}.png")
    sections = (
        _head, _vae, _hierarchy, _restrictions, _forward, _reverse, _vdm, _variances, _objectives,
        _decoder, _bits, _flow,
    )  # fmt: skip
    (out / "ladder.md").write_text("\n".join(section(found) for section in sections))


def _head(found: Found) -> str:
    rows = [
        (
            row["name"],
            f"{row['bpd']:.4f} ± {row['standard_error']:.4f}",
            "" if row["gain"] is None else _signed(row["gain"]),
            f"{row['parameters']:,}",
            f"{row['steps']:,}",
            f"{row['minutes']:.1f}",
        )
        for row in found["rungs"]
    ]
    base = found["histogram"]
    first = (
        "no latents: each pixel by its own frequencies",
        f"{base['bpd']:.4f} ± {base['standard_error']:.4f}", "", "", "", "",
    )  # fmt: skip
    body = table(
        ("model", "test bits per dim", "lower than the row above by", "parameters", "steps",
         "minutes"),
        [first, *rows],
    )  # fmt: skip
    scale = found["scale"]
    shorter = "" if scale == 1 else f" with `--scale={scale:g}` (trainings that much as long)"
    return f"""# The ladder: from the VAE to the flow

Written by `python -m experiments.ladder`{shorter}; {found["minutes"]:.0f} minutes of training and
measuring on the CPU it ran on, which may have had other work.

If you know the variational autoencoder (VAE), you know nearly all of a diffusion model already.
This page climbs from one to the other, to the variational diffusion model (VDM, of T noising
steps). Every step adds one equation, every equation is code of this library, and every step is
measured on the same data: scikit-learn's handwritten digits, 8x8 pixels of 17 grey levels,
{found["train"]:,} to train on and {found["test"]} to test on.

The number in the tables of models is the cost of storing one pixel of a test image: **bits per
dim**, lower is better, each an upper bound on -log2 p(image) / 64. All models share the pixel
likelihood p(x | first latent): a Gaussian's density at each of the 17 grey levels, normalised so
that the 17 numbers sum to one (`pixels.log_prob`).

{body}

![Bits per dim of each rung](ladder/rungs.png)

± is the standard error over test images (and draws). "Lower by" compares image by image.
{_verdicts(found["rungs"])} (The last row is the model of
`make train` after {found["rungs"][-1]["steps"]:,} in place of 5,000 steps.)

How to read this fairly. What is held equal is the number of parameters and, within a factor of two,
the time; not the network. The VAEs are perceptrons with heavy dropout and weight decay, chosen on
validation images: there are few training images, and with less of either a VAE of this size was
past its best long before the time was up. The VDMs are small convolutional networks with a
bottleneck over the whole image, whose last layer gives the odds of the grey levels. So the gap
between the two groups is the networks' as well as the principle's; and among the hierarchical VAEs
depth goes with narrower networks and a harder optimisation. A VDM with few steps (T = 10) is poor
for a reason of its own: each of its steps is too long to be one Gaussian of the variance that it is
given (rung 5, and the table of variances in rung 6).
"""


def _verdicts(rows: list[Mapping[str, Any]]) -> str:
    words = []
    for before, row in itertools.pairwise(rows):
        gain, error = row["gain"]["mean"], row["gain"]["standard_error"]
        verdict = "is better than" if gain > 2 * error else "is worse than"
        if abs(gain) <= 2 * error:
            verdict = "can't be told apart from"
        words.append(f"{row['name']} {verdict} {before['name']}")
    return "By twice the error of the difference: " + "; ".join(words) + "."


def _vae(found: Found) -> str:
    row = found["rungs"][0]
    return f"""## Rung 1: the VAE

    -log p(x) <= E_q[-log p(x|z)] + KL(q(z|x) || p(z))

An encoder q(z|x), a decoder p(x|z), a prior p(z) = N(0, I). The first term asks how well x comes
back from its latent, the second what the latent itself costs. Here, in bits per dim:
{_said(row, reconstruction="the first", prior="the second")}.

Code: `hierarchy.elbo` with one encoder and no further decoder; `python -m experiments.vae`.
"""


def _hierarchy(found: Found) -> str:
    rows = {row["name"]: row for row in found["rungs"]}
    parts = _said(
        rows["hierarchical VAE, 4 latents"],
        reconstruction="the image from z_1",
        diffusion="levels 1 to 3",
        prior="the last level",
    )
    return f"""## Rung 2: the hierarchical VAE

    -log p(x) <= E_q[-log p(x|z_1) + sum_(i<L) log [q(z_i|z_(i-1)) / p(z_i|z_(i+1))]
                     + log [q(z_L|z_(L-1)) / p(z_L)]]

The latent gets a latent of its own, and so on, each seeing only its neighbour (a Markov chain;
z_0 is x). The bound has one cost per level: how much likelier the encoder finds the latent than the
decoder, coming from the level above, would have. With four latents, in bits per dim: {parts}.

The hope is that many easy steps are better than one hard one. {_hope(found["rungs"])} Encoder and
decoder must be learned together at every level; a level whose message the level below can do
without costs nothing and says nothing (posterior collapse), and then it might as well not be
there.

Code: `hierarchy.elbo`, `hierarchy.elbo_scan`; `python -m experiments.mhvae`.
"""


def _restrictions(found: Found) -> str:
    body = table(
        ("restriction", "test bits per dim", "reconstruction", "last level", "between",
         "parameters", "minutes"),
        [
            (
                row["name"], _number(row), *(_three(row) if "VDM" not in row["name"] else "---"),
                f"{row['parameters']:,}", f"{row['minutes']:.1f}",
            )
            for row in found["restrictions"]
        ],
    )  # fmt: skip
    return f"""## Rung 3: three restrictions make it a diffusion model

A diffusion model is a hierarchical VAE in which

1. every latent is as large as the data,
2. the encoder isn't learned: each step shrinks the latent a little and adds Gaussian noise,
   q(z_t|z_s) = N(alpha_(t|s) z_s, sigma_(t|s)^2 I),
3. the noise grows until nothing is left of x: the last latent is N(0, I), which is the prior.

From here on latents are counted as in the literature on diffusion: z_0 is the first latent, nearly
x, and the others follow at times t up to 1; s < t is the time of the latent before. L latents are
T = L - 1 steps from one to the next. How much noise a latent has is told by gamma, the logarithm of
noise over signal: z_t = alpha x + sigma eps with alpha^2 + sigma^2 = 1 and gamma = log(sigma^2 /
alpha^2); alpha_(t|s) and sigma_(t|s) are the same for a single step.

Each is a switch (`--config.hierarchy.data_size`, `.fixed_encoder`, `.ends_at_normal`). Turned on
one after the other, for four latents:

{body}

(Rows 1 and 2 are `experiments.mhvae`, the second with a `--config.model.channels=116` that keeps
the number of parameters; rows 3 and 4 `experiments.digits --config.hierarchy.depth=4
--config.train.steps=1500`, both with the switches; row 5 `experiments.digits
--config.model.num_steps=3 --config.train.steps=3000`.)

The first two rows are perceptrons, one for each conditional. With large latents these take the
way out that is always open: to say nothing in them (the columns "last level" and "between" are
near zero then), so that the image is told at the last moment, pixel by pixel, each by one
Gaussian that is the same for all images and fits worse than the histogram.

From the third row on the encoder is fixed and can't fall silent. Then one network, the
convolutional one, serves all levels (rung 6). But three steps are few: between two latents almost
all of the image has to appear at once, in Gaussians too narrow for that, which is what the bits
in the column "between" are. With more steps this cost goes away, the subject of rungs 5 and 6.

In the third row the schedule stops at gamma = 0, where signal and noise have equal weight
(alpha^2 = sigma^2 = 1/2), so that the last latent is far from the prior N(0, I), and part of its
cost is for that. In the fourth the same three steps go all the way to gamma = 5, each of them
longer: the last level costs next to nothing, and what is between so much more.

The last two rows are the same model, T = 3 steps of diffusion, and the same bound: in expectation
for any network, and to the last digit when both are given the same latents
(`tests/core/test_hierarchy.py`). Trained as a chain it computes all levels for each image; a VDM
takes one random step at a time and so has more training steps in the same time. It also groups
its terms otherwise; only the totals compare.
"""


def _forward(found: Found) -> str:
    steps = table(
        ("t", "gamma(t)", "KL(q(z_t), N(0, 1)), nats"),
        [(f"{r['t']:.2f}", f"{r['gamma']:.2f}", f"{r['kl']:.3g}") for r in found["forward"]],
    )
    ends = table(
        ("schedule", "KL(q(z_T given x), N(0, I)), bits per dim"),
        [
            (name, f"{float(loss.bits_per_dim(nats, (1,))):.3g}")
            for name, nats in found["priors"].items()
        ],
    )
    return f"""## Rung 4: what the fixed encoder buys

    q(z_t|x) = N(alpha_t x, sigma_t^2 I),   SNR(t) = alpha_t^2 / sigma_t^2 = exp(-gamma(t))

(SNR is the signal-to-noise ratio.)

Gaussian steps compose: t of them are one (`process.simulate` walks, `process.marginal` jumps, and
a two-sample test can't tell them apart). So the loss of any level can be computed without the
levels before it. Whatever the start, the chain forgets it. For data N(0.7, 0.3^2), say, along a
schedule linear in gamma:

{steps}

What is left at the end is a term of the bound, the "prior" in rung 6. On the digits, for the
schedules of the published papers (Kingma et al. 2021; Nichol & Dhariwal 2021; Ho et al. 2020,
"DDPM"; Song et al. 2021, "VP-SDE") and a cosine between the VDM's end points:

{ends}
"""


def _reverse(found: Found) -> str:
    steps = found["feller"]
    body = table(
        ("step in gamma", "KL to the best Gaussian, nats"),
        [(f"{row['step']:g}", f"{row['kl']:.3g}") for row in steps],
    )
    small = steps[-3:]
    slope = np.polyfit(
        np.log([row["step"] for row in small]), np.log([row["kl"] for row in small]), 1
    )[0]
    return f"""## Rung 5: why the decoder may be Gaussian

    q(z_s|z_t, x) = N(mu(z_t, x), sigma_Q^2 I)   by Bayes' rule, from three Gaussians

If x were known, going back a step would be exactly Gaussian (`process.posterior` has mu and
sigma_Q). The decoder doesn't know x, and the true q(z_s|z_t) is a mixture over all x. But the
smaller the step, the closer it is to one Gaussian (as Feller has shown for such processes). For
a mixture of three Gaussians, where everything is known (`mixture.reverse_negentropy`), from
gamma = 0 back by a step:

{body}

For small steps it falls like the step to the power {slope:.2f} (in theory the cube); so the sum
over many small steps vanishes, and a Gaussian decoder loses nothing in the limit.

![KL of the true reverse step to the best Gaussian](ladder/feller.png)
"""


def _vdm(found: Found) -> str:
    rows = {row["name"]: row for row in found["rungs"]}
    body = table(
        ("model", "test bits per dim", "reconstruction", "prior", "diffusion"),
        [(name, _number(row), *_three(row)) for name, row in rows.items() if "VDM" in name],
    )
    return f"""## Rung 6: the VDM

    diffusion = T/2 E[(SNR(s) / SNR(t) - 1) ||eps - eps_hat(z_t, t)||^2]      (T steps)
              = 1/2 E[gamma'(t) ||eps - eps_hat(z_t, t)||^2]                  (T to infinity)

With encoder and decoder Gaussian, each level's cost is a KL of two Gaussians of known variances: a
squared error. One network, told which level it is at, serves all levels: it looks at a noisy image
and says what the noise is (or, which is the same, what the image is). One random level at a time
is enough for training, so a thousand levels, or infinitely many, cost no more than one.

{body}

(The three are trained separately, each with its own T; E is over images, noise and times;
eps_hat is the network's guess of the noise eps.) "Reconstruction" is the image from z_0, "prior"
the KL of the last latent to N(0, I), "diffusion" the sum over all levels between. {_steps(rows)}

Code: `loss.elbo`; `python -m experiments.digits`.
"""


def _variances(found: Found) -> str:
    rows = found["variances"]
    body = table(
        ("T", "variance of p(z_s given z_t)", "test bits per dim", "lower than the posterior's by"),
        [
            (
                str(row["num_steps"]), _KINDS[row["kind"]], _number(row),
                "" if row["gain"] is None else _signed(row["gain"]),
            )
            for row in rows
        ],
    )  # fmt: skip
    return f"""### Which variance for the decoder?

    log sigma_theta^2 = w log sigma_(t|s)^2 + (1 - w) log sigma_Q^2

If the data were one point, the posterior's variance sigma_Q^2 (w = 0) would be right; if they
were N(0, I), that of the forward step (w = 1). Between the two a network can learn w for each
pixel. After {rows[0]["steps"]:,} steps of training:

{body}

The first two rows of each T are one network, trained with the posterior's variance; the third was
trained with its own. As T grows the two variances meet, and
the choice stops mattering: in continuous time there is none (`loss.diffusion` says why).
"""


_KINDS = {
    "posterior": "the posterior's (w = 0)",
    "transition": "the forward step's (w = 1)",
    "learned": "learned w",
}


def _objectives(found: Found) -> str:
    rows = found["objectives"]
    body = table(
        ("the network predicts", f"test bits per dim after {rows[0]['steps']:,} steps"),
        [(_WORDS[row["name"]], _number(row)) for row in rows],
    )
    return f"""### What should the network predict?

    z_t = alpha_t x + sigma_t eps,   E[x|z_t] = (z_t + sigma_t^2 grad log q(z_t)) / alpha_t

Given z_t, what a network can know is an average over the images that z_t may have come from: that
of x, of the noise eps, of v = alpha_t eps - sigma_t x, or the score, the gradient of log q(z_t),
which is the average of -eps / sigma_t. Each average gives the others (for the score this is
Tweedie's formula). The same function has the same loss in any of these forms
(`tests/core/test_parameterization.py`). But a network that is asked for one or the other learns
differently fast. Same network, same seed, same batches, early in training:

{body}

![Test bound during training](ladder/objectives.png)

(One seed, and the curves still fall and cross. The models of the other tables predict the odds of
the grey levels, and x as their mean, which is easier on data like these.)
"""


_WORDS = {"x": "the data x", "eps": "the noise eps", "score": "the score", "v": "v"}


def _decoder(found: Found) -> str:
    body = table(
        ("model", "nats per dim of a density", "reconstruction", "prior", "diffusion"),
        [(row["name"], _number(row), *_three(row)) for row in found["densities"]],
    )
    return f"""## Two kinds of numbers that must not be compared

Above, a pixel is one of 17 integers and the model gives it a probability: bits per dim. If instead
x is taken for a continuous variable, the last decoder is a Gaussian density log N(x | mu, sigma^2)
and the result is in nats of a density:

{body}

These may be negative, depend on the scale of x, and can be made as good as one likes on data that
are integers in truth, by ever narrower peaks at the grey levels. So they say little about digits,
and nothing beside the bits per dim above. Every report of this library names the kind
(`--config.model.decoder=density`).
"""


def _bits(found: Found) -> str:
    body = table(
        ("model", "test bits per dim", "parameters", "steps", "minutes"),
        [
            (
                row["name"], _number(row),
                *(("", "", "") if "steps" not in row else
                  (f"{row['parameters']:,}", f"{row['steps']:,}", f"{row['minutes']:.1f}")),
            )
            for row in found["bits"]
        ],
    )  # fmt: skip
    return f"""## A side step: diffusion without Gaussians

    q(z_t|z_s) = Bernoulli(z_s (1 - beta) + beta / 2)

The construction (an encoder that is fixed, noise that grows until nothing is left, a cost for each
level) needs no Gaussians. Sohl-Dickstein et al. (2015) flip bits: each step replaces some bits by
coin flips, until only coin flips are left. On the digits in black and white (grey
level 8 or more):

{body}

These are bits per dim of another data set, two levels in place of 17: not to be compared with the
tables above.

Code: `binomial.elbo`; `python -m experiments.binomial`.
"""


def _flow(found: Found) -> str:
    body = table(
        ("the same VDM, first 64 test images", "kind", "bits per dim"),
        [(row["quantity"], row["kind"], _number(row)) for row in found["flow"]],
    )
    points = found["points"]
    rows = []
    for kind, name in (("vdm", "VDM"), ("cnf", "flow trained by maximum likelihood")):
        of = points[kind]
        for key, quantity in (("bound", "variational bound"), ("ode", "density by the ODE")):
            if of[key] is not None:
                rows.append(
                    (
                        f"{name}, {quantity}",
                        f"{of[key]['nats']:.4f} ± {of[key]['standard_error']:.4f}",
                        _signed(
                            {"mean": of[key]["excess"]["nats"],
                             "standard_error": of[key]["excess"]["standard_error"]}
                        ),
                        f"{of['training_seconds']:.0f}",
                    )
                )  # fmt: skip
    truth = points["vdm"]["truth"]
    own = ("the data's own density", f"{truth['nats']:.4f} ± {truth['standard_error']:.4f}")
    swirl = table(
        ("a swirl in the plane", "nats per point (of a density)", "above the data's own",
         "seconds of training"),
        [(*own, "", ""), *rows],
    )  # fmt: skip
    return f"""## The last rung: the flow

    dz/dgamma = (alpha sigma / 2) v_hat(z, gamma),   d log p / dgamma = -tr(d drift / dz)

In continuous time the noise can be left out: an ordinary differential equation moves points so
that at every time they are distributed as in the diffusion. It is invertible, so x has one
latent and a likelihood without a bound (instantaneous change of variables). Only the pixels,
which are integers, still need a bound: z_0 is drawn about each, with the decoder's noise cut off
at the edges of its bin (dequantisation), and the density of z_0 held against that of the draw.
So both rows are bounds in bits of the same discrete images, though of two models, the chain and
the flow:

{body}

Such an object is called a continuous normalising flow. It is usually trained by maximum
likelihood, which means solving the equation, and differentiating through the solution, at every
training step (`cnf.log_prob`). The VDM's flow is the same object (`flow.log_prob` calls it) with
a drift that was never trained that way. In two dimensions, where the density of the data is
known:

{swirl}

(The bound is for x, the ODE's density for the first latent, which is x with noise of standard
deviation {np.exp(GAMMA_0 / 2):.4f} added: nearly the same.)

![The swirl by a VDM](ladder/swirl-vdm.png)

![The swirl by a flow trained by maximum likelihood](ladder/swirl-cnf.png)

Code: `cnf.log_prob`, `flow.log_prob`; `python -m experiments.toy2d`.
"""


# ---- helpers ----


def _number(row: Mapping[str, Any]) -> str:
    return f"{value(row):.4f} ± {row['standard_error']:.4f}"


def _signed(gain: Mapping[str, float]) -> str:
    return f"{gain['mean']:+.4f} ± {gain['standard_error']:.4f}"


def _said(row: Mapping[str, Any], **names: str) -> str:
    return ", ".join(f"{words}: {row['terms'][t]['mean']:.3f}" for t, words in names.items())


def _hope(rows: list[Mapping[str, Any]]) -> str:
    """Whether depth helped, by the numbers."""
    vaes = {row["name"]: row["bpd"] for row in rows if "VAE" in row["name"]}
    best = min(vaes, key=lambda name: vaes[name])
    if best == "VAE":
        return "It isn't borne out here: none of the deeper ones is below the VAE."
    return f"Here the {best} is the best of them."


def _steps(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Whether more steps lowered the bound, by the numbers."""
    bpd = [row["bpd"] for name, row in rows.items() if "VDM" in name]
    if bpd == sorted(bpd, reverse=True):
        return "More steps lower the bound."
    return "More steps don't always lower the bound here."


def _three(row: Mapping[str, Any]) -> list[str]:
    return [f"{row['terms'][t]['mean']:.4f}" for t in ("reconstruction", "prior", "diffusion")]


def _plot_rungs(path: Path, found: Found) -> None:
    rows = found["rungs"]
    names = [row["name"] for row in rows]
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.add_subplot()
    bpd = [row["bpd"] for row in rows]
    axes.errorbar(
        range(len(rows)), bpd, [row["standard_error"] for row in rows], fmt="o", capsize=4
    )
    axes.axhline(found["histogram"]["bpd"], color="black", linestyle=":", label="no latents")
    axes.set_xticks(range(len(rows)), names, rotation=25, ha="right")
    axes.set_ylabel("test bits per dim")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def _plot_objectives(path: Path, rows: list[Mapping[str, Any]]) -> None:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for row in rows:
        axes.plot(*zip(*row["curve"], strict=True), "o-", markersize=3, label=_WORDS[row["name"]])
    low = min(value for row in rows for _, value in row["curve"])
    axes.set_ylim(low - 0.1, low + 3.0)
    axes.set_xlabel("step (values more than 3 above the best are cut off)")
    axes.set_ylabel("test bits per dim")
    axes.legend(title="the network predicts")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def _plot_feller(path: Path, rows: list[Mapping[str, float]]) -> None:
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    steps, kl = np.array([(row["step"], row["kl"]) for row in rows]).T
    axes.loglog(steps, kl, "o-", label="mean over z_t")
    axes.loglog(steps, kl[-1] * (steps / steps[-1]) ** 3, ":", label="the cube of the step")
    axes.set_xlabel("step in gamma")
    axes.set_ylabel("KL to the best Gaussian, nats")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
