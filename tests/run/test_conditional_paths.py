"""`config.model.gamma=conditional_path`: a run whose schedule is that of each image's condition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import vdmz

from experiments import pictures
from experiments.sample import sample
from vdm_jax import sampling
from vdm_jax.data import Condition
from vdm_jax.errors import UserError
from vdm_jax.evaluation.sample_quality import Drawer
from vdm_jax.rule import Rule
from vdm_jax.run import build, defaults, restore, training
from vdm_jax.run.models import make_model

pytestmark = pytest.mark.usefixtures("compiled_once")
SHAPE, LEVELS = (2, 1, 1), 4
CLASSES = Condition(classes=3)
GIVEN = jnp.array([[0.0, 0.0], [1.0, 1.0], [0.0, 2.0], [1.0, 1.0]])
T = jnp.array([0.2, 0.4, 0.6, 0.8])


def made(gamma="conditional_path", condition=CLASSES, **settings):
    """A perceptron of a few hundred weights."""
    c = defaults.get_config()
    c.model.update(
        network="mlp", channels=16, num_blocks=1, fourier_features=False, gamma=gamma,
        gamma_min=-4.0, gamma_max=3.0, dropout=0.0, **settings,
    )  # fmt: skip
    return make_model(c, SHAPE, LEVELS, condition)


def disturbed(model):
    """Parameters away from their start, where the map of the condition is zero."""
    params, rng = jax.jit(model.init)(jax.random.key(0)), np.random.default_rng(0)
    return jax.tree.map(lambda w: w + np.float32(0.3 * rng.normal(size=w.shape)), params)


def test_it_starts_as_the_path_and_is_one_without_a_condition():
    model, plain = made(condition_dropout=0.1), made("path", condition_dropout=0.1)
    key = jax.random.key(0)
    started, of_plain = (jax.jit(of.init)(key) for of in (model, plain))
    images = jnp.arange(8).reshape(4, *SHAPE) % LEVELS
    own, other = (
        of.bind(params, GIVEN).elbo(key, images)
        for of, params in ((model, started), (plain, of_plain))
    )
    jax.tree.map(np.testing.assert_array_equal, own, other)
    params = disturbed(model)
    nothing = model.bind(params).gamma(T)
    np.testing.assert_array_equal(model.bind(params, GIVEN[:, 0]).gamma(T), nothing)
    told = model.bind(params, GIVEN).gamma(T)
    assert np.abs(told - nothing).min() > 1e-4
    # The class alone counts, not the flag of augmentation, and numbers are a case of it.
    same = model.bind(params, GIVEN * jnp.array([0.0, 1.0])).gamma(T)
    np.testing.assert_array_equal(told, same)
    numbers = made(condition=Condition(numbers=3), condition_dropout=0.1)
    rows = jnp.concatenate([GIVEN[:, :1], jnp.eye(3)[GIVEN[:, 1].astype(int)]], axis=1)
    np.testing.assert_array_equal(numbers.bind(params, rows).gamma(T), told)


def test_a_dropped_condition_is_dropped_from_the_schedule_and_the_network_at_once():
    model, count = made(condition_dropout=0.3), 500
    params, given = disturbed(model), jnp.tile(jnp.array([[0.0, 2.0]]), (count, 1))
    t, z_t, gamma_t = (jnp.full(n, 0.3) for n in (count, (count, *SHAPE), (count, *SHAPE)))

    @jax.jit
    def called(params):
        of = [model.bind(params, g, k) for g, k in ((given, None), (given, jax.random.key(5)))]
        return [(vdm.gamma(t), vdm.denoise(z_t, gamma_t)) for vdm in of]

    (gamma, seen), (gamma_dropped, seen_dropped) = called(params)
    there, heard = (
        np.asarray(a == b).all((1, 2, 3)) for a, b in ((gamma, gamma_dropped), (seen, seen_dropped))
    )
    np.testing.assert_array_equal(there, heard)
    assert abs(there.mean() - 0.7) < 5 * np.sqrt(0.3 * 0.7 / count)
    without = np.asarray(model.bind(params).gamma(t))
    np.testing.assert_array_equal(np.asarray(gamma_dropped)[~there], without[~there])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run on digits and their classes, with a path of their cosines."""
    c = tiny.config(name="digits", class_labels=True)
    c.model.update(network="mlp", head="eps", condition_dropout=0.2, transform="dct")
    c.model.gamma = "conditional_path"
    c.train.batch_size = 40
    c.eval.update(batch_size=180, final_repeats=1)
    c.sample.update(num_steps=2, count=2)
    folder = tmp_path_factory.mktemp("paths") / "run"
    with tiny.one_device():
        training.train(c, folder)
    return folder


def test_its_checkpoint_is_evaluated_and_sampled_by_class(run, tmp_path):
    moved = tiny.state_of(run)["ema_params"]["gamma"]
    assert np.all(np.abs(moved["moves"]).max((1, 2, 3)) > 0.0)
    with tiny.one_device():
        row, *_ = tiny.evaluate(run, "--repeats=2", "--chains=2", "--chain_images=8",
                                "--chain_steps=3")["rows"]  # fmt: skip
        assert 0.0 < row["bpd"] < 8.0
        steps = f"--workdir={run}", "--num_steps=3", "--sampler=ancestral", "--n=4"
        drawn = {}
        for number in (7, 3, 7):
            sample(["", *steps, f"--class={number}"])
            folder = max((run / "sampling").iterdir(), key=lambda f: f.stat().st_mtime_ns)
            images = np.load(folder / "samples.npz")["images"]
            np.testing.assert_array_equal(drawn.setdefault(number, images), images)
        assert np.any(drawn[7] != drawn[3])
        with pytest.raises(UserError, match="--guidance needs one schedule for all conditions"):
            sample(["", *steps, "--class=7", "--guidance=1"])
        with pytest.raises(UserError, match="its latents are no grey or RGB pixels, or have"):
            pictures.pictures(["", str(run), f"--out={tmp_path}"])
        with pytest.raises(UserError, match="has a schedule of each image, by its condition"):
            vdmz.compress(run, "--split=test", "-o", tmp_path / "a.vdmz")
        with pytest.raises(UserError, match="control variates need one schedule"):
            tiny.evaluate(run, "--repeats=2", "--control_variates")


def test_samples_take_the_steps_of_their_own_condition(run):
    """Those of the command are those of the solver that is given the bound model."""
    with tiny.one_device():
        subject = restore.from_workdir(str(run), build.make_mesh())
        rng = np.random.default_rng(0)
        far = dict(subject.params["gamma"])
        far["moves"] = far["moves"] + np.float32(3.0 * rng.normal(size=far["moves"].shape))
        subject = subject._replace(params=subject.params | {"gamma": far})
        rule, turns = Rule("ancestral", 4), np.array([[3], [8], [1]])
        found = Drawer(subject, rule).draw(rule, 3, 0, turns)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(3))
        vdm = subject.model.bind(subject.params, jnp.array([[0.0, 3.0], [0.0, 8.0], [0.0, 1.0]]))

        def solved(gamma):
            z_1 = sampling.initial(keys, vdm.event_shape)
            z_0 = sampling.solve(z_1, vdm._replace(gamma=gamma), rule, keys)
            return np.asarray(sampling.to_images(z_0, gamma(jnp.zeros(1)), vdm.levels))

        wanted, other = solved(vdm.gamma), solved(subject.vdm.gamma)
    assert np.mean(found != wanted) < 0.01 < np.mean(found != other)
