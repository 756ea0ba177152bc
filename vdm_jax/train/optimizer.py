"""AdamW as the published code uses it, Muon, and their learning-rate schedule."""

import functools
from typing import Any, Literal

import jax
import optax
from optax.contrib import MuonDimensionNumbers, muon

from vdm_jax.errors import UserError


def learning_rate(
    peak: float, warmup_steps: int, decay: str = "none", decay_steps: int = 0
) -> optax.Schedule:
    """Returns a linear warm-up from 0 to `peak`, then constant, or down to 0 at `decay_steps`."""
    length = decay_steps - warmup_steps
    if decay not in ("none", "linear", "cosine"):
        known = "none, linear, cosine"
        raise UserError(f"config.optimizer.decay must be one of {known}, got {decay!r}")
    if decay != "none" and length < 1:
        end = f"step {decay_steps} (decay_steps, by default train.steps)"
        hint = f"within the warm-up of {warmup_steps} steps; lower --config.optimizer.warmup_steps"
        raise UserError(f"the learning rate's decay ends at {end}, {hint}")
    after: optax.Schedule = optax.constant_schedule(peak)
    if decay == "linear":
        after = optax.linear_schedule(peak, 0.0, length)
    elif decay == "cosine":
        after = optax.cosine_decay_schedule(peak, length)
    if warmup_steps == 0:
        return after
    before = optax.linear_schedule(0.0, peak, warmup_steps)
    return optax.join_schedules([before, after], [warmup_steps])


def make(
    rate: optax.ScalarOrSchedule,
    betas: tuple[float, float] = (0.9, 0.99),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    clip_norm: float | None = None,
    decay_gamma: bool = True,
    name: Literal["adamw", "muon"] = "adamw",
) -> optax.GradientTransformation:
    """Returns AdamW with weight decay on every parameter that isn't named "bias", of any pytree.

    "muon" is Muon (Jordan 2024) for what is named "kernel", of dense layers and of convolutions:
    each is one matrix, or of layers that are scanned a stack of them, and updates are of AdamW's
    size. All else, and what lies below "gamma", goes by Adam with Nesterov's momentum.

    With `clip_norm`, gradients are first scaled down to that global norm. Without `decay_gamma` the
    parameters below "gamma" don't decay either: it would pull a learned shape towards a line.
    """

    def decays(path: Any, _: Any) -> bool:
        names = _names(path)
        return names[-1:] != ["bias"] and (decay_gamma or names[:1] != ["gamma"])

    mask = functools.partial(jax.tree_util.tree_map_with_path, decays)
    if name == "adamw":
        chosen = optax.adamw(rate, *betas, eps, weight_decay=weight_decay, mask=mask)
    elif name == "muon":
        chosen = muon(
            rate, ns_steps=3, weight_decay=weight_decay, weight_decay_mask=mask, eps=eps,
            adam_b1=betas[0], adam_b2=betas[1], muon_weight_dimension_numbers=_matrices,
            consistent_rms=0.2,
        )  # fmt: skip
    else:
        raise UserError(f"config.optimizer.name must be one of adamw, muon, got {name!r}")
    # With identity the state's form is the same: a run can go on with clip_norm set or unset.
    clip = optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm)
    return optax.chain(clip, chosen)


def _names(path: Any) -> list[str]:
    names = [jax.tree_util.keystr((part,), simple=True) for part in path]
    return names[:-1] if names[-1:] == ["value"] else names  # of an NNX variable


def _matrices(params: Any) -> Any:
    """Returns, for each kernel, which of its axes lead in and which, the last, out.

    Dense layers have two axes and convolutions four. The layers "down" and "up" of the U-Net are
    scanned: there the first axis is of the layers, each a matrix of its own.
    """

    def axes(path: Any, kernel: jax.Array) -> MuonDimensionNumbers | None:
        names, last = _names(path), kernel.ndim - 1
        first = int("down" in names or "up" in names)
        if names[-1:] != ["kernel"] or names[0] == "gamma" or last - first not in (1, 3):
            return None
        return MuonDimensionNumbers(tuple(range(first, last)), last)

    return jax.tree_util.tree_map_with_path(axes, params)
