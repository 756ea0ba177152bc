"""Published checkpoints through `experiments.evaluate`, against the golden values of their code."""

import json
import math
import shutil

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from experiments.evaluate import steps_of
from vdm_jax import loss
from vdm_jax.nn import published as official
from vdm_jax.nn.published_configs import PUBLISHED
from vdm_jax.run import build as setup
from vdm_jax.run import restore as trained
from vdm_jax.run.cli import UserError

STEPS = {0: None, 10: 10, 1000: 1000}  # in the golden files 0 is continuous time


@pytest.fixture(scope="module", autouse=True)
def one_device():
    with tiny.one_device():
        yield


@pytest.fixture(scope="module", params=golden.NAMES)
def model(request, tmp_path_factory):
    """A golden model, and its images as a data set."""
    found = golden.load(request.param)
    images = found.expected["images"]
    file = tmp_path_factory.mktemp("images") / f"{request.param}.npz"
    np.savez(file, train=images, test=images)
    return found, (
        f"--official={found.folder / 'checkpoints-0'}", "--data=arrays", f"--path={file}",
        f"--data_dir={file.parent / 'cache'}",
    )  # fmt: skip


def bits(model, nats):
    return np.asarray(loss.bits_per_dim(np.asarray(nats, np.float64), model.x.shape[1:]))


def test_the_command_agrees_with_the_published_code(model, tmp_path):
    model, arguments = model
    repeats = 60
    found = tiny.evaluate(
        tmp_path, *arguments, f"--repeats={repeats}", "--num_steps=10,1000,inf", "--batch_size=4"
    )
    assert found["model"] == {"name": f"official {model.folder.name}", "step": 1234}
    assert (tmp_path / "evaluation" / "step-1234" / "result.json").is_file()
    expected = model.expected
    for row, steps in zip(found["rows"], (10, 1000, 0), strict=True):
        assert row["num_images"] == len(expected["images"])
        prior = row["terms"]["prior"]
        klz = expected[f"T{steps}/loss_klz"]
        assert prior["mean"] == pytest.approx(bits(model, klz).mean(), rel=1e-3)
        assert prior["monte_carlo"] < 1e-6  # no noise in it
        # It is the expectation; the golden value is one draw an image.
        recon, each = row["terms"]["reconstruction"], bits(model, expected[f"T{steps}/loss_recon"])
        assert recon["monte_carlo"] < 1e-6
        error = each.std(ddof=1) / math.sqrt(len(each))
        assert abs(recon["mean"] - each.mean()) < 5 * error < 0.1
        # Its times are few, so what it doesn't know of the integral over t is in their spread.
        each = bits(model, expected[f"T{steps}/loss_diff"])
        error = math.hypot(row["monte_carlo_error"], each.std(ddof=1) / math.sqrt(len(each)))
        assert abs(row["bpd"] - expected[f"T{steps}/bpd"]) < 5 * error
    # At its own times: what one draw cost there lies within what the profile has about there.
    mean, rms = (np.asarray(found["profile"][name]) for name in ("mean", "rms"))
    each = bits(model, expected["T0/loss_diff"])
    for value, t in zip(each, expected["t_continuous"], strict=True):
        k = int(t * len(mean))
        about = slice(max(k - 1, 0), k + 2)
        spread = 5 * np.sqrt(np.maximum(rms**2 - mean**2, 0))[about].max()
        assert mean[about].min() - spread < value < mean[about].max() + spread


def test_the_bound_at_the_golden_draws_is_the_golden_value(model, tmp_path):
    model, arguments = model
    data = dict(argument.removeprefix("--").split("=") for argument in arguments[1:])
    data = {"name": data["data"], "path": data["path"], "dir": data["data_dir"]}
    path = model.folder / "checkpoints-0"
    of = trained.from_official(path, None, data, setup.make_mesh())
    expected = {k: jnp.asarray(v) for k, v in model.expected.items() if "names" not in k}
    np.testing.assert_array_equal(of.images.test, expected["images"])
    params = jax.device_put(jax.device_get(of.params), jax.devices()[0])
    denoise, gamma = of.model.bind(params, expected["conditioning"], None)
    # The command's own conditioning is 0 throughout; another reaches the network too (a large one:
    # these weights hardly heed it).
    at = [expected[k] for k in ("z_t", "gamma_t")]
    other, _ = of.model.bind(params, expected["conditioning"] + 1e4, None)
    np.testing.assert_allclose(denoise(*at), expected["eps_hat"], atol=1e-4)
    assert float(jnp.abs(other(*at) - denoise(*at)).max()) > 1e-3
    for name, num_steps in STEPS.items():
        terms = loss.elbo_given(
            *(expected[k] for k in ("images", "eps_0", "eps", "t_continuous")),
            denoise, gamma, of.model.levels, num_steps, of.model.kind,
        )  # fmt: skip
        close = 1e-4 if name == 1000 else 1e-5
        bpd = bits(model, terms.total).mean()
        assert bpd == pytest.approx(float(expected[f"T{name}/bpd"]), rel=close)
        np.testing.assert_allclose(
            terms.diffusion, expected[f"T{name}/loss_diff"], rtol=2e-3 if name == 1000 else 1e-4
        )


def test_a_configuration_from_a_file(tmp_path):
    """Without model_config.json beside the checkpoint, --model=FILE says the same."""
    source = golden.load("no_fourier_odd_batch")
    images = source.expected["images"]
    np.savez(tmp_path / "a.npz", train=images, test=images)
    shutil.copytree(source.folder / "checkpoints-0", tmp_path / "c")
    (tmp_path / "mine.json").write_text(json.dumps(source.config))
    data = (
        "--data=arrays", f"--path={tmp_path / 'a.npz'}", f"--data_dir={tmp_path / 'cache'}",
        "--repeats=1", "--batch_size=4",
    )  # fmt: skip
    by_file = tiny.evaluate(
        tmp_path / "w", f"--official={tmp_path / 'c' / 'ckpt-7.flax'}", *data,
        f"--model={tmp_path / 'mine.json'}",
    )  # fmt: skip
    beside = tiny.evaluate(tmp_path / "w", f"--official={source.folder / 'checkpoints-0'}", *data)
    assert by_file["rows"][0]["bpd"] == beside["rows"][0]["bpd"]
    assert by_file["rows"][0]["num_steps"] is None  # of the configuration: sm_n_timesteps is 0


def test_another_architecture_is_refused_by_its_first_leaf(tmp_path):
    path = golden.load("scalar_gamma").folder / "checkpoints-0"
    with pytest.raises(UserError) as error:
        tiny.evaluate(tmp_path, f"--official={path}", "--model=cifar10")
    # In alphabetical order the first of all; 32 channels instead of 128.
    message = str(error.value)
    assert message.startswith("--official: the parameter score_model/") and "\n" not in message
    assert "is [" in message and "but the configuration calls for [" in message
    assert "32" in message.split("is [")[1].split("]")[0]
    assert "128" in message.split("calls for [")[1]


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        ("cifar10", 30.55e6, 30.65e6),
        ("cifar10_aug", 121.5e6, 122.5e6),
        ("imagenet32", 121.5e6, 122.5e6),
        ("imagenet64", 237e6, 239e6),
    ],
)
def test_the_published_configurations_have_the_published_sizes(name, least, most):
    gamma, network = official.modules(PUBLISHED[name]["model"])
    size = 64 if name == "imagenet64" else 32

    def init(key):
        ones = jnp.ones(1)
        z_t = jnp.zeros((1, size, size, 3))
        return gamma.init(key, ones), network.init(key, z_t, ones)["params"]

    shapes = jax.eval_shape(init, jax.random.key(0))
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    assert least < count < most


def test_steps_of_reads_a_list_once_each():
    model = type("Model", (), {"num_steps": 7})()
    assert steps_of(None, model) == (7,)
    assert steps_of("10, 100,inf,10", model) == (10, 100, None)
