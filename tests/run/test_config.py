"""Settings of the model that don't go together are refused, each with its own message."""

import pytest

from experiments.configs import binomial, digits, mhvae, vae
from vdm_jax.run import config as check
from vdm_jax.run import defaults as base
from vdm_jax.run.cli import UserError
from vdm_jax.run.models import make_model
from vdm_jax.train import sharding

CONFIGS = {
    "digits": digits.get_config,
    "vae": vae.get_config,
    "mhvae": mhvae.get_config,
    "binomial": binomial.get_config,
}
LEVELS = {"binomial": 2}
VDM = {"hierarchy.data_size": True, "hierarchy.fixed_encoder": True}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_experiments_own_configurations_are_accepted(name):
    check.config(CONFIGS[name]())
    check.model(CONFIGS[name](), LEVELS.get(name, 17), 0)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("digits", {"model.decoder": "exact"}, "decoder is 'exact'; known: discretised, density"),
        ("digits", {"model.process": "poisson"}, "process is 'poisson'; known: gaussian, binomial"),
        (
            "digits",
            {"model.reverse_var": "free"},
            "reverse_var is 'free'; known: posterior, transition, learned",
        ),
        # How the U-Net is computed.
        ("digits", {"model.remat": "all"}, "remat is 'all'; known: none, matmuls, blocks"),
        ("digits", {"model.dtype": "float16"}, "dtype is 'float16'; known: float32, bfloat16"),
        (
            "digits",
            {"model.dtype": "bfloat16"},
            "config.model.dtype is 'bfloat16', which is for the network unet only; leave it out "
            "with resnet",
        ),
        ("vae", {"model.remat": "none"}, "config.model.remat is 'none', which is for the network"),
        (
            "digits",
            {"model.network": "unet", "model.fused_attention": True},
            "config.model.fused_attention is cuDNN's, for --config.model.dtype=bfloat16; this is "
            "float32",
        ),
        # What continuous time has no use for.
        (
            "digits",
            {"model.reverse_var": "learned"},
            "reverse_var is 'learned', which in continuous time makes no difference: give a number "
            "of steps, --config.model.num_steps=T",
        ),
        ("digits", {"model.reverse_var": "transition"}, "in continuous time makes no difference"),
        # Bits.
        (
            "digits",
            {"model.head": "logits"},
            "head is 'logits' and process 'gaussian': the head logits and the process binomial go "
            "together",
        ),
        ("binomial", {"model.head": "levels"}, "head is 'levels' and process 'binomial'"),
        ("binomial", {"model.num_steps": None}, "'binomial', which needs config.model.num_steps"),
        ("binomial", {"model.decoder": "density"}, "no config.model.decoder but discretised"),
        ("binomial", {"model.reverse_var": "learned"}, "no config.model.reverse_var but posterior"),
        ("binomial", {"model.gamma": "monotone"}, "no config.model.gamma but fixed, got monotone"),
        (
            "binomial",
            {"model.fourier_features": True},
            "no config.model.fourier_features but False, got True",
        ),
        ("binomial", {"hierarchy.depth": 2}, "'binomial', which goes with no hierarchy"),
        # Hierarchies.
        ("vae", {"hierarchy.depth": 0}, "depth must be at least 1 and latent_size at least 1"),
        ("vae", {"hierarchy.latent_size": 0}, "latent_size at least 1, got 1 and 0"),
        ("vae", VDM, "depth must be at least 2"),
        ("vae", {"model.num_steps": 5}, "num_steps is 5, but a hierarchy has as many steps as its"),
        ("mhvae", {**VDM, "model.num_steps": 5}, "leave it out"),
        ("vae", {"model.network": "resnet"}, "network is 'resnet'; a hierarchical VAE wants 'mlp'"),
        ("vae", {"model.head": "v"}, "head is 'v'; a hierarchical VAE wants 'eps'"),
        ("vae", {"model.gamma": "scalar"}, "gamma is 'scalar'; a hierarchical VAE wants 'fixed'"),
        ("vae", {"model.fourier_features": True}, "fourier_features is True; a hierarchical VAE"),
        ("vae", {"model.reverse_var": "learned"}, "a hierarchical VAE wants 'posterior' there: it"),
        ("vae", {"model.timesteps": "uniform"}, "a hierarchy draws no times: leave it out"),
        ("vae", {"model.gamma_max": 4.0}, "gamma_max is 4.0, which nothing reads here"),
        ("vae", {"model.attention": "all"}, "attention is all, which nothing reads here"),
        (
            "vae",
            {"hierarchy.ends_at_normal": True, "model.gamma_max": 2.0},
            "gamma_max is 2.0, where the latent is not N(0, I) yet",
        ),
        (
            "vae",
            {"hierarchy.data_size": True, "hierarchy.latent_size": 8},
            "latent_size is 8, but with data_size latents are as large as an image",
        ),
        (
            "mhvae",
            VDM | {"model.gamma": "scalar"},
            "gamma is 'scalar', whose end would be learned, but without",
        ),
        ("digits", {"model.decoder": "density", "model.gamma": "scalar"}, "no best gamma_0"),
        ("vae", {"classes": 10}, "class_labels: a hierarchical VAE is not conditioned on them"),
        (
            "digits",
            {"hierarchy.latent_size": 8},
            "config.hierarchy.latent_size is set, but there is no hierarchy: give "
            "--config.hierarchy.depth=L",
        ),
        *(
            ("digits", {f"hierarchy.{switch}": True}, f"config.hierarchy.{switch} is set, but")
            for switch in ("data_size", "fixed_encoder", "ends_at_normal")
        ),
        # The variance of the loss of one time; a hierarchy's loss has none.
        (
            "mhvae",
            {**VDM, "model.gamma": "monotone", "model.gamma_objective": "variance"},
            "config.model.gamma_objective is 'variance', which is for a VDM's own bound",
        ),
        # By the networks themselves.
        (
            "vae",
            {"hierarchy.latent_size": 65, "hierarchy.fixed_encoder": True},
            "config.model, config.hierarchy: latent_size is 65, but x has 64 elements",
        ),
        (
            "mhvae",
            {"hierarchy.fixed_encoder": True, "model.gamma_min": 1.0},
            "config.hierarchy: the schedule can't rise from gamma_min (1.0) up to 0.0",
        ),
    ],
)
def test_a_mistake_gets_one_line_that_names_it(name, changes, message):
    config, changes = CONFIGS[name](), dict(changes)
    classes = changes.pop("classes", 0)
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError) as error:
        make_model(config, (8, 8, 1), LEVELS.get(name, 17), classes)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert str(error.value).startswith("config.")


def test_cudnns_attention_is_refused_where_a_run_would_train_without_a_gpu():
    config = digits.get_config()
    config.model.update(network="unet", fused_attention=True, dtype="bfloat16", channels=64)
    make_model(config, (8, 8, 1), 17)  # a run of a GPU can be evaluated anywhere
    with pytest.raises(UserError, match="fused_attention is cuDNN's, for a GPU; this is a cpu"):
        check.training(config, sharding.make_mesh())


def test_bits_need_images_of_two_levels():
    with pytest.raises(UserError, match=r"of 2 levels; these have 17 .*data\.name=digits_binary"):
        check.model(binomial.get_config(), 17, 0)


def test_with_all_its_networks_a_vdm_as_hierarchy_takes_what_a_vdm_takes():
    config = mhvae.get_config()
    config.update_from_flattened_dict(VDM)
    config.model.update(network="resnet", channels=8, head="levels")
    config.model.reverse_var = "learned"
    assert "VDM of T = 3" not in make_model(config, (8, 8, 1), 17, 10).words
    config.hierarchy.ends_at_normal = True
    config.model.gamma = "monotone"
    assert make_model(config, (8, 8, 1), 17, 10).words.endswith(", a VDM of T = 3")


def test_the_saved_configuration_of_a_run_without_decay_is_taken():
    config = base.get_config()
    config.optimizer.update(decay="none", decay_steps=0)
    check.config(config)
    config.optimizer.decay = "linear"
    with pytest.raises(UserError, match=r"config\.optimizer\.decay_steps must be above 0"):
        check.config(config)
