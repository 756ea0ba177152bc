"""The published models, read from their files, give the published code's numbers."""

import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import serialization
from golden import NAMES, as_published, compiled, gradient, load
from ml_collections import ConfigDict

from vdm_jax import loss, sampler
from vdm_jax.nn import official
from vdm_jax.nn.published import modules
from vdm_jax.nn.unet import from_published, to_published
from vdm_jax.train import optimizer, step


@pytest.fixture(params=NAMES)
def name(request) -> str:
    return request.param


@pytest.fixture
def golden(name):
    return load(name)


def close(actual, expected, rtol, atol=0.0):
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize("num_steps", [None, 10, 1000])
def test_loss_terms_and_bits_per_dim(name, num_steps):
    golden = load(name)
    e, prefix = golden.expected, f"T{num_steps or 0}"
    terms = golden.terms(compiled(name), num_steps)
    rtol = 5e-4 if num_steps == 1000 else 1e-4
    close(terms.reconstruction, e[f"{prefix}/loss_recon"], rtol)
    close(terms.diffusion, e[f"{prefix}/loss_diff"], rtol)
    # The published code computes var - log(var) - 1 in float32 as it stands, which near var = 1
    # is off by up to half a unit in the last place of 1 for each dimension.
    rounding = golden.x[0].size * 0.5 * np.finfo(np.float32).eps
    close(terms.prior, e[f"{prefix}/loss_klz"], 1e-4, atol=rounding)
    bpd = loss.bits_per_dim(terms.total.mean(), golden.x.shape[1:])
    close(bpd, e[f"{prefix}/bpd"], 1e-4 if num_steps == 1000 else 1e-5)


# The others, and those of discrete time: tests/thorough/test_published_gradients.py.
@pytest.mark.parametrize("name", ["nnet_gamma_attention", "no_fourier_odd_batch"])
def test_gradient_norms(name):
    golden = load(name)
    bpd, grads = gradient(name, None, "matmuls")(golden.model.params)
    close(bpd, golden.expected["T0/bpd"], 1e-5)
    expected = golden.expected["T0/grad_norms"]
    # A key's bias moves all of a softmax's arguments alike: its gradient is 0 but for rounding.
    close(golden.norms(grads), expected, 1e-3, atol=1e-6 * expected.max())


def test_schedule_and_its_derivative(golden):
    e = golden.expected
    t = jnp.asarray(e["gamma/t"])
    gamma, derivative = jax.jvp(golden.model.gamma, (t,), (jnp.ones_like(t),))
    close(gamma, e["gamma/gamma"], 1e-6, atol=1e-6)
    close(derivative, e["gamma/dgamma_dt"], 1e-5)
    close(jax.nn.sigmoid(golden.model.gamma(jnp.zeros(1))), e["var_0"], 1e-5)
    close(jax.nn.sigmoid(golden.model.gamma(jnp.ones(1))), e["var_1"], 1e-6)


def test_parameters_go_to_the_published_tree_and_back_bit_for_bit(golden):
    file = golden.folder / "checkpoints-0" / "ckpt-7.flax"
    published = serialization.msgpack_restore(file.read_bytes())["ema_params"]["score_model"]
    paths = jax.tree_util.tree_flatten_with_path(as_published(golden.model.params))[0]
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]
    assert names == [each.strip("/") for each in golden.expected["T0/grad_names"]]
    ours = from_published(published)
    chex.assert_trees_all_equal(to_published(ours), published)
    chex.assert_trees_all_equal(ours, golden.model.params["score_model"])
    count = golden.config["sm_n_layer"]
    for i, name in enumerate(["down.block_0", f"up.block_{count}"]):  # what they have in common
        of_first = ours[("down", "up")[i]]["block"]["conv1"]["kernel"][0]
        np.testing.assert_array_equal(of_first, published[name]["conv1"]["kernel"])


def test_noise_prediction_and_ancestral_steps(name):
    golden = load(name)
    e, model, denoise = golden.expected, golden.model, compiled(name).denoise
    close(golden.x, e["encode"], 0, atol=1e-7)
    z_t, eps = jnp.asarray(e["z_t"]), jnp.asarray(e["eps"])
    close(denoise(z_t, jnp.asarray(e["gamma_t"])), e["eps_hat"], 0, atol=1e-4)
    for i in (0, 437, 999):
        gamma_s, gamma_t = model.gamma(jnp.array([(1000 - i - 1) / 1000, (1000 - i) / 1000]))
        z_s = sampler.ancestral_step(z_t, eps, denoise, gamma_s, gamma_t)
        close(z_s, e[f"ancestral/i{i}_T1000"], 1e-5, atol=2e-5)


def test_decoding_to_pixels(golden):
    gamma_0 = golden.model.gamma(jnp.zeros(1))[0]
    images = sampler.to_images(jnp.asarray(golden.expected["z_t"]), gamma_0, 256)
    np.testing.assert_array_equal(images, golden.expected["generate_x_of_z_t"])


def test_three_optimiser_steps():
    name = "no_fourier_odd_batch"
    golden = load(name)
    e, start = golden.expected, golden.model.params
    adamw = optimizer.make(optimizer.learning_rate(2e-4, warmup_steps=100))
    compute = gradient(name, None, "matmuls")

    @jax.jit
    def update(params, ema, opt_state, grads):
        updates, opt_state = adamw.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        return params, step.ema_update(ema, params, 0.9999), opt_state

    params = ema = start
    opt_state, losses = jax.jit(adamw.init)(start), []
    for _ in range(3):
        value, grads = compute(params)
        losses.append(value)
        params, ema, opt_state = update(params, ema, opt_state, grads)
    close(losses, e["train3/losses"], 1e-5)
    # Where the gradient is nothing but rounding, Adam makes whole steps of it, in any direction:
    # a bias before a normalisation with one channel a group, or of an attention key.
    noise = e["T0/grad_norms"] < 1e-6 * e["T0/grad_norms"].max()
    assert noise.sum() < len(noise) / 3
    norms, expected = golden.norms(params), e["train3/param_norms"]
    close(norms[~noise], expected[~noise], 1e-6)
    close(norms[noise], expected[noise], 3e-5)
    moved = golden.norms(jax.tree.map(lambda a, b: a - b, ema, start))
    expected = e["train3/ema_minus_init_norm"]
    assert expected[~noise].max() > 1e-8
    close(moved[~noise], expected[~noise], 1e-2, atol=1e-9)


# ---- files and configurations ----


def test_a_file_its_folder_and_the_newest_of_several(tmp_path):
    golden = load("no_fourier_odd_batch")
    file = golden.folder / "checkpoints-0" / "ckpt-7.flax"
    assert official.load(file, golden.config).step == golden.model.step == 1234
    tree = serialization.msgpack_restore(file.read_bytes())
    for n, saved in ((9, 5), (10, 6)):  # 10 is newer than 9, though "9" sorts after "10"
        (tmp_path / f"ckpt-{n}.flax").write_bytes(
            serialization.msgpack_serialize({**tree, "step": saved})
        )
    assert official.load(tmp_path, golden.config).step == 6


def test_another_channel_count_fixed_schedule_and_discrete_time(tmp_path):
    channels = 1
    config = load("scalar_gamma").config | {
        "gamma_type": "fixed", "sm_n_timesteps": 100, "sm_n_layer": 1, "gamma_min": -6,
    }  # fmt: skip
    network = modules(config)[1]
    z_t = jnp.zeros((2, 8, 8, channels))
    shapes = jax.eval_shape(network.init, jax.random.key(0), z_t, jnp.zeros(2))["params"]
    params = jax.tree.map(lambda of: np.zeros(of.shape, of.dtype), shapes)
    tree = {"step": 3, "ema_params": {"score_model": to_published(params)}}
    (tmp_path / "ckpt-1.flax").write_bytes(serialization.msgpack_serialize(tree))
    model = official.load(tmp_path, config)
    assert model.num_steps == 100
    close(model.gamma(jnp.array([0.0, 0.5, 1.0])), [-6.0, -0.5, 5.0], 1e-6)
    assert jax.eval_shape(model.denoise, z_t, jnp.zeros(2)).shape == z_t.shape


def test_damaged_files_are_refused_in_one_line(tmp_path):
    golden = load("no_fourier_odd_batch")
    whole = (golden.folder / "checkpoints-0" / "ckpt-7.flax").read_bytes()
    file = tmp_path / "ckpt-1.flax"
    for content in (whole[:-1], whole[: len(whole) // 2], b"", b"\x93NUMPY", b"\x01", b"text"):
        file.write_bytes(content)
        with pytest.raises(ValueError, match="published checkpoint") as error:
            official.load(file, golden.config)
        assert str(file) in str(error.value) and "\n" not in str(error.value)


def test_a_configuration_that_does_not_fit_names_the_first_leaf(tmp_path):
    golden = load("no_fourier_odd_batch")
    folder = golden.folder / "checkpoints-0"
    with pytest.raises(ValueError, match=r"\[32\] for .*score_model/GroupNorm_0/bias.*\[64\]"):
        official.load(folder, golden.config | {"sm_n_embd": 64})
    with pytest.raises(
        ValueError, match=r"has nothing for the parameter score_model/down\.block_1"
    ):
        official.load(folder, golden.config | {"sm_n_layer": 2})
    with pytest.raises(ValueError, match=r"parameter gamma/b, .* calls for nothing"):
        official.load(folder, {**golden.config, "gamma_type": "fixed"})


def test_configurations_are_checked_key_by_key():
    golden = load("no_fourier_odd_batch")
    folder, config = golden.folder / "checkpoints-0", golden.config
    for change, message in (
        ({"gamma_type": "cosine"}, "gamma_type must be one of learnable_nnet"),
        ({"sm_n_embd": "32"}, r"model_config\['sm_n_embd'\] must be an integer, got '32'"),
        ({"sm_n_embed": 32}, "unknown key 'sm_n_embed'"),
        ({"sm_n_embd": True}, "must be an integer, got True"),
        ({"vocab_size": 0}, r"'vocab_size'\] must lie in \[1, inf\), got 0"),
        ({"sm_n_timesteps": -5}, r"'sm_n_timesteps'\] must lie in \[0, inf\)"),
        ({"sm_pdrop": 2.0}, r"'sm_pdrop'\] must lie in \[0, 1\), got 2.0"),
        ({"gamma_max": -99.0}, "must be below gamma_max"),
    ):
        with pytest.raises(ValueError, match=message):
            official.load(folder, config | change)
    for wrong in (None, "config"):
        with pytest.raises(ValueError, match="model_config must be a dict"):
            official.load(folder, wrong)
    with pytest.raises(ValueError, match="path must be a string or Path, got NoneType"):
        official.load(None, config)
    given = ConfigDict(config | {"vocab_size": np.int64(256)})
    assert official.load(folder, given).levels == 256
    with pytest.raises(ValueError, match="has no 'gamma_max'"):
        official.load(folder, {k: v for k, v in config.items() if k != "gamma_max"})


def test_missing_paths_and_non_finite_parameters(tmp_path):
    golden = load("no_fourier_odd_batch")
    with pytest.raises(FileNotFoundError, match="no checkpoint file or folder"):
        official.load(tmp_path / "nothing", golden.config)
    with pytest.raises(ValueError, match=r"holds no checkpoint ckpt-N\.flax"):
        official.load(tmp_path, golden.config)
    shutil.copytree(golden.folder / "checkpoints-0", tmp_path / "copy")
    file = tmp_path / "copy" / "ckpt-7.flax"
    tree = serialization.msgpack_restore(file.read_bytes())
    tree["ema_params"]["gamma"]["w"] = np.array([np.nan], np.float32)
    file.write_bytes(serialization.msgpack_serialize(tree))
    with pytest.raises(ValueError, match=r"gamma/w .*not finite"):
        official.load(file, golden.config)
