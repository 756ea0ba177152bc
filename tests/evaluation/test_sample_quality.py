"""Samples are those of the core, and their distances to images those of `sample_distances`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_vdm
from toy_vdm import IMAGES, LEVELS, SHAPE

from vdm_jax import sampling
from vdm_jax.evaluation import sample_distances, sample_quality
from vdm_jax.evaluation.sample_quality import Drawer
from vdm_jax.rule import Rule

LABELS = {"train": np.zeros(200), "test": np.zeros(60)}
CLASSES = {"labels": LABELS, "label_names": ("a", "b", "c")}


@pytest.mark.parametrize("name", ["ancestral", "dpm_solver"])
def test_samples_are_those_of_the_core_whatever_the_batch_size_and_devices(name):
    rule = Rule(name, 4, "gamma")
    subject = toy_vdm.subject(toy_vdm.curved, 7, **CLASSES)
    whole = Drawer(subject, rule).draw(rule, 7, 3)
    for other in (subject._replace(batch_size=3), toy_vdm.subject(toy_vdm.curved, 4, 2, **CLASSES)):
        parts = Drawer(other, rule).draw(rule, 7, 3)
        np.testing.assert_array_equal(whole, parts)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(3), jnp.arange(7))
    drawer = Drawer(subject, rule)
    for label, labels in ((None, np.arange(7) % 3), (2, np.full(7, 2))):
        given = np.stack([np.zeros(7), labels], 1).astype(np.float32)
        vdm = subject.model.bind(subject.params, given)
        z_0 = sampling.solve(sampling.initial(keys, SHAPE), vdm, rule, keys)
        expected = np.asarray(sampling.to_images(z_0, vdm.gamma(jnp.zeros(1))[0], LEVELS))
        # Rounding may tip a pixel between two levels.
        turns = None if label is None else np.array([[label]])
        assert np.mean(drawer.draw(rule, 7, 3, turns) != expected) < 0.05
    assert np.any(whole != drawer.draw(rule, 7, 4))


def test_distances_are_those_of_the_first_images_beside_what_chance_does():
    # In the place of samples, the test images themselves.
    samples, training = sample_quality.distances(IMAGES, IMAGES.test[:50])
    assert (samples["images"], samples["count"]) == ("samples", 50)
    assert (training["images"], training["count"]) == ("training images", 50)
    assert abs(samples["sliced_wasserstein"]) < 1e-9
    for row in (samples, training):
        for name in ("mmd", "sliced_wasserstein"):
            mean, deviation = row[f"{name}_by_chance"]
            assert abs(training[name] - mean) < 5 * deviation and deviation > 0.0
    x, y = (images[:50] / np.float32(LEVELS - 1) for images in (IMAGES.train, IMAGES.test))
    scales = sample_distances.median_distance(y) * np.array([0.5, 1.0, 2.0])
    np.testing.assert_allclose(training["mmd"], sample_distances.mmd(x, y, scales), rtol=1e-4)


def test_quality_has_a_row_of_the_data_and_one_a_rule():
    subject, said = toy_vdm.subject(toy_vdm.nothing), []
    rules = [Rule("ddim", 2, eta=0.5), Rule("ddim", 3, eta=0.5), Rule("heun", 2)]
    rows = sample_quality.quality(subject, rules, 3, said.append)
    assert said == rows
    assert [(row["sampler"], row["spacing"], row["calls"]) for row in rows] == [
        ("training images", "-", 0), ("ddim, eta = 0.5", "karras", 2),
        ("ddim, eta = 0.5", "karras", 3), ("heun", "karras", 4),
    ]  # fmt: skip
    # eps_hat = 0 is no model of these images.
    for row in rows[1:]:
        assert row["mmd"] > rows[0]["mmd"] + 5 * rows[0]["mmd_error"] and row["seconds"] > 0.0
        assert row["sliced_wasserstein"] > 2 * rows[0]["sliced_wasserstein"]
    drawn = [Drawer(subject, rules[2]).draw(rules[2], 60, seed) for seed in range(3)]
    y = IMAGES.test / np.float32(LEVELS - 1)
    scales = sample_distances.median_distance(y) * np.array([0.5, 1.0, 2.0])
    found = [sample_distances.mmd(x / np.float32(LEVELS - 1), y, scales) for x in drawn]
    np.testing.assert_allclose(rows[3]["mmd"], np.mean(found), rtol=1e-4)
    np.testing.assert_allclose(rows[3]["mmd_error"], np.std(found, ddof=1) / 3**0.5, rtol=1e-3)
