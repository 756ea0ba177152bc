"""Own networks on own arrays: closed forms, restarts bit for bit, and what is refused."""

import os
import signal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from toy import assert_equal

from vdm_jax import VDM, schedule
from vdm_jax.data.examples import check_values, examples
from vdm_jax.train import fit, progress
from vdm_jax.train.model import Model

RNG = np.random.default_rng(0)
SPREAD, DIMS = 0.5, 8
X, TEST = (SPREAD * RNG.normal(size=(n, DIMS)) for n in (2000, 1000))  # float64, as NumPy has it
ADAM = optax.adam(0.02)
pytestmark = pytest.mark.usefixtures("programs_kept")


def linear(event_shape=(DIMS,), levels=None):
    """The best denoiser of normal data of mean 0 and variance exp(log_var), the parameter."""

    def bind(params, conditioning=None, dropout=None, mask=None):
        def denoise(z_t, gamma_t):
            gamma = gamma_t.reshape(-1, *[1] * len(event_shape))
            var = jax.nn.sigmoid(-gamma) * jnp.exp(params["log_var"]) + jax.nn.sigmoid(gamma)
            return jnp.sqrt(jax.nn.sigmoid(gamma)) * z_t / var

        return VDM(denoise, schedule.linear(-8.0, 5.0), event_shape, levels, mask=mask)

    return Model(lambda key: {"log_var": jnp.zeros(())}, bind)


def shifted():
    """x_hat = the condition + b: nothing is left to learn where x is its condition."""

    def bind(params, conditioning=None, dropout=None):
        told = conditioning["a"] + conditioning["b"]["c"]

        def denoise(z_t, gamma_t):
            return jnp.zeros_like(z_t) + told + params["b"]

        return VDM(denoise, schedule.linear(-8.0, 5.0), (2,), levels=None, kind="x")

    return Model(lambda key: {"b": jnp.zeros(2)}, bind)


def conditioned(count):
    x = RNG.normal(size=(count, 2)) / 9 + np.array([0.6, -0.3])
    a = RNG.normal(size=(count, 1))
    return {"x": x, "condition": {"a": a, "b": {"c": x - a}}}


def test_the_fit_of_normal_data_is_their_variance_and_its_bound_their_entropy():
    fitted = fit(linear(), X, ADAM, 250, test=TEST, ema_rate=0.95)
    found, bound = float(jnp.exp(fitted.params["log_var"])), fitted.evaluation.total
    assert abs(found / X.var() - 1) < 0.1  # 250 steps of 1,024 numbers
    entropy = 0.5 * np.log(2 * np.pi * np.e * SPREAD**2)
    assert bound.standard_error < 0.03
    assert abs(bound.mean - entropy) < 4 * bound.standard_error


def test_a_fit_that_was_stopped_ends_with_the_same_bits(tmp_path, monkeypatch):
    """Stopped by its end, and by Ctrl-C; wherever checkpoints and evaluations lie."""
    whole = fit(linear(), X, ADAM, 40, test=TEST)
    cut = {"workdir": tmp_path / "a", "test": TEST}
    fit(linear(), X, ADAM, 13, checkpoint_every=5, **cut)
    assert_equal(fit(linear(), X, ADAM, 40, eval_every=20, **cut), whole)
    assert_equal(fit(linear(), X, ADAM, 40, **cut), whole)  # nothing was left to do

    def interrupted(bar, step, scalars):
        if step >= 20:
            os.kill(os.getpid(), signal.SIGINT)
        return 1.0

    # In the background a shell's commands ignore Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(progress.TrainingBar, "metrics", interrupted)
            with pytest.raises(KeyboardInterrupt):
                fit(linear(), X, ADAM, 40, tmp_path / "b")
    finally:
        signal.signal(signal.SIGINT, before)
    saved = [int(path.name) for path in (tmp_path / "b" / "checkpoints").iterdir()]
    assert len(saved) == 1 and 20 <= saved[0] < 40
    assert_equal(fit(linear(), X, ADAM, 40, tmp_path / "b").params, whole.params)


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fit(linear(), X, ADAM, 2, test=TEST[:10])
    assert list(tmp_path.iterdir()) == []


def test_conditions_reach_the_network_and_are_dropped_as_asked():
    """With its condition x_hat is x and b stays 0; without, b becomes the mean of x."""
    train, test = conditioned(500), conditioned(100)
    options = {"test": test, "ema_rate": 0.9}
    told = fit(shifted(), train, optax.adam(0.03), 150, **options)
    np.testing.assert_allclose(told.params["b"], 0, atol=1e-5)
    np.testing.assert_allclose(told.evaluation.diffusion.mean, 0, atol=1e-5)
    blind = fit(shifted(), train, optax.adam(0.03), 150, condition_dropout=1.0, **options)
    np.testing.assert_allclose(blind.params["b"], train["x"].mean(axis=0), atol=0.02)
    # Evaluated with its condition, it errs by b: 1/2 (SNR(0) - SNR(1)) b^2, the mean over both.
    wanted = 0.5 * (np.exp(8.0) - np.exp(-5.0)) * np.mean(np.square(blind.params["b"]))
    error = blind.evaluation.diffusion
    assert abs(error.mean - wanted) < 4 * error.standard_error < 0.2 * wanted


def sets(count, seed):
    """Sets of one number of deviation 0.9 or of seven of deviation 0.3, with padding of NaN."""
    rng = np.random.default_rng(seed)
    large = rng.random((count, 1, 1)) < 0.5
    mask = np.arange(7)[:, None] < np.where(large, 7, 1)
    x = np.where(mask, np.where(large, 0.3, 0.9) * rng.normal(size=(count, 7, 1)), np.nan)
    return {"x": x, "mask": mask}


def test_what_a_mask_leaves_out_plays_no_part():
    """The fit is of maximum likelihood: the variance of all numbers, not the mean of sets'."""
    train, test, model = sets(3000, 0), sets(1000, 1), linear((7, 1))
    fitted = fit(model, train, ADAM, 300, test=test, ema_rate=0.95)
    var = float(jnp.exp(fitted.params["log_var"]))
    assert abs(var / np.nanvar(train["x"]) - 1) < 0.15  # 0.17, whereas the sets' mean is 0.45
    log, mask = np.log(2 * np.pi * var) / 2, np.asarray(test["mask"])
    exact = np.sum(np.where(mask, log + test["x"] ** 2 / (2 * var), 0), axis=(1, 2))
    bound, exact = fitted.evaluation.total, (exact / mask.sum(axis=(1, 2))).mean()
    assert bound.monte_carlo < 0.03 and abs(bound.mean - exact) < 4 * bound.monte_carlo
    filled = {**train, "x": np.nan_to_num(train["x"], nan=1e30)}
    assert_equal(fit(model, filled, ADAM, 5).params, fit(model, train, ADAM, 5).params)


def test_a_model_that_forgets_its_mask_is_refused():
    forgets = linear((7, 1)).with_fields(mask=None)
    with pytest.raises(ValueError, match=r"the data have a mask, but bind.* return VDM\(..., mask"):
        fit(forgets, sets(8, 0), ADAM, 5, batch_size=8)


class Stateful(nnx.Module):
    """A module whose state isn't of parameters alone: random numbers, too."""

    def __init__(self, key):
        self.dropout = nnx.Dropout(0.1, rngs=nnx.Rngs(key))


def test_a_bind_of_fewer_arguments_and_whole_modules_are_refused_in_one_line():
    model = linear((2,))
    for given, said in (
        (Model(model.init, lambda params: model.bind(params)), "too many positional arguments."),
        (Model(lambda key: eqx.nn.MLP(2, 2, 8, 1, key=key), model.bind), "eqx.is_inexact_array"),
        (Model(Stateful, model.bind), "not uint32: .* nnx.Param"),
        (
            Model(lambda key: {"b": jnp.zeros(2, jnp.bfloat16)}, model.bind),
            "32 bits .* not bfloat16",
        ),
    ):
        with pytest.raises(ValueError, match=rf"^(bind must take|init must return)[^\n]*{said}"):
            fit(given, X, optax.adam(0.1), 1)
    plain = Model(model.init, lambda params, conditioning, dropout: model.bind(params))
    with pytest.raises(ValueError, match=r"^bind must take .*dropout, mask\): .*'mask'"):
        fit(plain, {"x": X, "mask": np.ones_like(X)}, optax.adam(0.1), 1)


def test_a_condition_is_dropped_as_a_whole_and_only_in_training():
    condition = {"a": jnp.ones((1000, 2), int), "b": jnp.ones(1000)}
    model = Model(None, lambda params, given, dropout=None: given).dropping(0.3)
    dropped = model.bind(None, condition, jax.random.key(0))
    assert dropped["a"].dtype == jnp.int32
    np.testing.assert_array_equal(dropped["a"], np.stack([dropped["b"]] * 2, axis=1))
    assert abs(dropped["b"].mean() - 0.7) < 4 * np.sqrt(0.21 / 1000)
    assert model.bind(None, condition, None) is condition
    assert model.bind(None) is None  # as is asked for the schedule alone


def test_samples_are_one_for_each_row_of_a_condition_of_several_arrays():
    condition = {"a": jnp.arange(5.0)[:, None], "b": {"c": jnp.zeros((5, 2))}}
    found = shifted().sample({"b": jnp.ones(2)}, jax.random.key(0), condition, 3)
    np.testing.assert_allclose(found, np.arange(1.0, 6.0)[:, None] * [1, 1], atol=0.2)


def test_lists_are_arrays():
    given = {"x": [[1.0, 2.0], [3.0, 4.0]], "mask": [[1, 0], [1, 1]]}
    found = examples(given, "data")
    np.testing.assert_array_equal(found["images"], [[1, 0], [3, 4]])


REFUSED = {
    "data has ['y']; wanted x": {"data": {"y": X}},
    "data: condition is float32 [3, 1]; wanted numbers, a row for each example": {
        "data": {"x": X, "condition": np.zeros((3, 1))}
    },
    "data: condition/theta holds NaN": {"data": {"x": X, "condition": {"theta": X + np.nan}}},
    "data: x holds NaN or infinity": {"data": np.where(X > 1, np.inf, X)},
    "data: x is <U1 [2]; wanted numbers": {"data": np.array(["a", "b"])},
    "data: x is float32 [2000, 7], the model's event (8,)": {"data": X[:, :7]},
    "data: x is int32 [2000, 8], levels=None; wanted integers for": {"data": X.astype(int)},
    "an example of test is {'images': 'float32 [1, 2]'}, but one of data": {"test": X[:5, :2]},
    "data: mask has shape (2000,) for data of (2000, 8); wanted the same axes": {
        "data": {"x": X, "mask": np.ones(2000)}
    },
    "data: int64 [2] holds integers that int32 can't; wanted smaller ones": {
        "data": {"x": X[:2], "condition": {"theta": np.array([3, 2**32 + 3])}}
    },
    "data: mask must hold 1 (there) and 0 (padding), and holds 0.5": {
        "data": {"x": X, "mask": np.full((2000, 1), 0.5)}
    },
    "steps must be an integer of at least 1, got 0": {"steps": 0},
    "batch size 3 can't be split evenly": {"batch_size": 3},
    "ema_rate must lie in [0, 1], got 1.5": {"ema_rate": 1.5},
    "condition_dropout needs data with a condition": {"condition_dropout": 0.1},
    "eval_every must be an integer": {"eval_every": 0.5},
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_does_not_fit_is_refused_in_one_line_and_nothing_written(tmp_path, said):
    arguments = {"data": X, "steps": 5, **REFUSED[said]}
    with pytest.raises(ValueError, match=r"\S") as error:
        fit(linear(), optimizer=ADAM, workdir=tmp_path / "w", **arguments)
    assert said in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "w").exists()


def test_integers_out_of_their_levels_are_refused_feature_by_feature():
    with pytest.raises(ValueError, match=r"x holds \[-\d\]; wanted integers in \[0, 4\)"):
        fit(linear(levels=4), np.clip(2 * X, -2, 1).astype(int), ADAM, 5)
    mask = np.array([[[1], [1]], [[1], [0]]])
    for odd in (0.4, 7.0, -1.0):
        x = np.array([[[0.3, 4.0], [9.9, 0.0]], [[-0.7, 2.0], [0.2, odd]]])
        check_values(examples({"x": x, "mask": mask}, "data"), (2, 2), (None, 5), "data")
        check_values(examples(mask[..., 0], "data"), (2,), np.int64(2), "data")
        with pytest.raises(ValueError, match=r"feature 1 of x holds .*; wanted .* in \[0, 5\)"):
            fit(linear((2, 2), (None, 5)), x, ADAM, 5)


def test_another_fit_than_that_of_the_folder_is_refused_by_name(tmp_path):
    fit(linear(), X, ADAM, np.int64(4), tmp_path, batch_size=np.int64(128), seed=np.uint8(0))
    other = X.copy()
    other[7, 3] += 1e-3
    for said, data, options in (
        ("data.images: float32 [2000, 8]", other, {}),
        ("batch_size: 128 -> 64", X, {"batch_size": 64}),
        ("seed: 0 -> 1", X, {"seed": 1}),
    ):
        with pytest.raises(ValueError, match=r"Give the old values again, or another wor") as error:
            fit(linear(), data, ADAM, 6, tmp_path, **options)
        assert f"({said}" in str(error.value) and "--" not in str(error.value)
    with pytest.raises(ValueError, match="steps is 3, but workdir holds a run that is at step 4"):
        fit(linear(), X, ADAM, 3, tmp_path)
    with pytest.raises(ValueError, match=r"opt_state.*belong to different models"):
        fit(linear(), X, optax.sgd(0.1), 6, tmp_path)
