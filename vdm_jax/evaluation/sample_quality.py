"""Samples of a trained model by any sampler, step by step, and how good they are."""

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax import mixed, sampling
from vdm_jax.data import ImageData, flagged
from vdm_jax.errors import UserError
from vdm_jax.evaluation import sample_distances
from vdm_jax.evaluation.subject import Subject
from vdm_jax.rule import Rule
from vdm_jax.sampling import State
from vdm_jax.train import sharding
from vdm_jax.train.model import Params
from vdm_jax.train.progress import Bar
from vdm_jax.types import Key

POINTS = 1000  # of each sample, at most, that distances are measured with
PERMUTATIONS = 50

Row = dict[str, Any]


class Drawer:
    """A sampler of one model, compiled but for its loop over the steps.

    So a progress bar can be shown; and on a CPU some networks are slower within a compiled loop.
    """

    def __init__(self, subject: Subject, rule: Rule, guidance: float = 0.0):
        """Takes a VDM, a rule of which the number of steps and their spacing don't matter, and the
        scale of `sampling.guided`.
        """
        event_shape = subject.vdm.event_shape
        levels = mixed.of_images(subject.vdm.levels, subject.images.levels)
        whole, split = sharding.replicated(subject.mesh), sharding.split_over(subject.mesh)
        states = State._make((split, split, whole))

        def keys(key: Key, index: jax.Array) -> Key:
            return jax.vmap(jax.random.fold_in, (None, 0))(key, index)

        def begin(index: jax.Array, key: Key, gamma_1: jax.Array) -> State:
            return sampling.start(sampling.initial(keys(key, index), event_shape), gamma_1)

        def move(state: State, given: tuple, params: Params, key: Key, at: tuple) -> State:
            (index, conditioning), (i, gamma_s, gamma_t, last) = given, at
            vdm = subject.model.bind(params, conditioning)
            if guidance:
                other = subject.model.bind(params, conditioning[:, 0])
                vdm = sampling.guided(vdm, other, guidance)
            eps = sampling.noise(keys(key, index), i, event_shape) if rule.noisy else None
            return sampling.step(state, eps, vdm, gamma_s, gamma_t, rule, last)

        def finish(state: State, gamma_0: jax.Array) -> jax.Array:
            return sampling.to_images(state.z, gamma_0, levels)

        given = (states, split, whole, whole, whole)
        self._begin = jax.jit(begin, in_shardings=(split, whole, whole), out_shardings=states)
        self._move = jax.jit(move, in_shardings=given, out_shardings=states)
        self._finish = jax.jit(finish, in_shardings=(states, whole), out_shardings=whole)
        self._subject = subject

    def draw(self, rule: Rule, n: int, seed: int, turns: np.ndarray | None = None) -> np.ndarray:
        """Returns `n` samples, integers [n, *event]; the same whatever the batches and the devices.

        Sample number i is that of fold_in(key of `seed`, i) by `vdm_jax.sampling.solve`. `turns`
        are the conditions that they take in turn, [m, k]; by default `ImageData.turns`.
        """
        subject, mesh = self._subject, self._subject.mesh
        size = min(subject.batch_size, mesh.size * math.ceil(n / mesh.size))
        key = jax.random.key(seed)
        turns, found = subject.images.turns() if turns is None else turns, []
        with Bar("sampling steps", rule.num_steps * math.ceil(n / size)) as bar:
            move = bar.counted(self._move)
            for first in range(0, n, size):
                index = np.arange(first, first + size, dtype=np.int32)
                conditioning = conditioning_of(index, turns)
                vdm = subject.model.bind(subject.params, jnp.asarray(conditioning))
                gammas = np.asarray(rule.gammas(vdm.gamma))
                given = jax.device_put((index, conditioning), sharding.split_over(mesh))
                state = self._begin(given[0], key, gammas[0])
                for i, (gamma_t, gamma_s) in enumerate(itertools.pairwise(gammas)):
                    before, at = state, (i, gamma_s, gamma_t, i == rule.num_steps - 1)
                    state = move(before, given, subject.params, key, at)
                    before.z.block_until_ready()  # one step in flight, never a long queue
                found.append(np.asarray(self._finish(state, gammas[-1])))
                if found[-1].min() < 0:  # of a latent that is not a number
                    said = f"samples of {subject.name} are not finite"
                    raise UserError(f"{said}: it has NaN, or diverges in these steps")
        return np.concatenate(found)[:n]


def conditioning_of(index: np.ndarray, turns: np.ndarray | None) -> np.ndarray:
    """Returns the conditioning of samples by number: no augmentation, and a condition in turn."""
    condition = None if turns is None else turns[index % len(turns)]
    return flagged(np.zeros(len(index)), condition)


def _scaled(images: np.ndarray, levels: int) -> np.ndarray:
    """Returns pixels in [0, 1], as distances take them."""
    return np.asarray(images, np.float32) / max(levels - 1, 1)


def distances(data: ImageData, images: np.ndarray) -> list[Row]:
    """Returns two rows: how far samples, and training images, are from the test images.

    Equally many of each, the first ones, with pixels in [0, 1]. Beside each distance the mean and
    the standard deviation of those by chance (`sample_distances.permuted`).
    """
    count = min(len(images), len(data.test), len(data.train), POINTS)
    held_out, rows = _scaled(data.test[:count], data.levels), []
    by_name = sample_distances.compiled(held_out)
    for name, points in (("samples", images), ("training images", data.train)):
        x, row = _scaled(points[:count], data.levels), {"images": name, "count": count}
        for which, of in by_name.items():
            mixed = sample_distances.permuted(jax.random.key(0), x, held_out, of, PERMUTATIONS)
            chance = np.asarray(mixed)
            row[which] = float(of(x, held_out))
            row[f"{which}_by_chance"] = [float(chance.mean()), float(chance.std(ddof=1))]
        rows.append(row)
    return rows


def quality(
    subject: Subject,
    rules: list[Rule],
    sets: int = 5,
    say: Callable[[Mapping[str, Any]], None] = lambda row: None,
) -> list[Row]:
    """Returns how far each rule's samples are from the test images: a row a rule, after the data's.

    Each rule draws `sets` sets of as many images as the test set has (1000 at most), of the seeds
    0, 1, ...; a row has the mean of their squared distances and its standard error, and the
    seconds a set took. The data's row is of sets drawn at random from the training images.
    """
    data = subject.images
    count = min(len(data.test), len(data.train), POINTS)
    held_out, rows = _scaled(data.test[:count], data.levels), list[Row]()
    by_name = sample_distances.compiled(held_out)

    def add(name: str, spacing: str, calls: int, seconds: float, drawn: list[np.ndarray]) -> None:
        row: Row = {"sampler": name, "spacing": spacing, "calls": calls, "seconds": seconds}
        for which, of in by_name.items():
            values = np.array([float(of(_scaled(one, data.levels), held_out)) for one in drawn])
            row[which] = float(values.mean())
            row[f"{which}_error"] = float(values.std(ddof=1) / math.sqrt(sets))
        rows.append(row)
        say(row)

    rng = np.random.default_rng(0)
    chosen = [data.train[rng.permutation(len(data.train))[:count]] for _ in range(sets)]
    add("training images", "-", 0, 0.0, chosen)
    drawers: dict[tuple[str, float], Drawer] = {}
    with Bar("sets of samples", sets * len(rules)) as bar:
        for rule in rules:
            which = rule.sampler, rule.eta
            if which not in drawers:
                drawers[which] = Drawer(subject, rule)
                drawers[which].draw(dataclasses.replace(rule, num_steps=1), count, 0)  # compiles
            draw, began = bar.counted(drawers[which].draw), time.monotonic()
            drawn = [draw(rule, count, seed) for seed in range(sets)]
            seconds = (time.monotonic() - began) / sets
            name = rule.sampler + (f", eta = {rule.eta:g}" if rule.eta else "")
            add(name, str(rule.spacing), rule.network_calls, seconds, drawn)
    return rows
