"""The numbers of the ladder that no network is trained for."""

import numpy as np

from experiments import ladder
from vdm_jax import schedule


def nichol_end(num_latents: int) -> float:
    """alpha_bar after all the clipped betas, each computed as the paper writes it."""
    u = np.arange(num_latents + 1) / num_latents
    f = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
    return float(np.prod(1 - np.minimum(1 - f[1:] / f[:-1], 0.999)))


# alpha_bar at t = 1 as each paper defines it.
ENDS = {
    "VDM, linear from -13.3 to 5": 1 / (1 + np.exp(5.0)),
    "cosine from -13.3 to 5": 1 / (1 + np.exp(5.0)),
    "Nichol & Dhariwal, cosine, T = 1000": nichol_end(1000),
    "Nichol & Dhariwal, cosine, T = 4000": nichol_end(4000),
    "DDPM, T = 1000": np.prod(1 - np.linspace(1e-4, 0.02, 1000)),
    "VP-SDE": np.exp(-(0.1 + 0.5 * (20 - 0.1))),
}


def test_the_prior_of_each_published_schedule_is_its_closed_form(monkeypatch):
    images = np.random.default_rng(0).integers(0, 17, (50, 4, 4, 1)) ** 2 // 17
    x = (2 * images + 1) / 17 - 1
    got = ladder.prior_nats_per_dim(images, 17)
    assert got.keys() == ENDS.keys()
    for name, alpha_bar in ENDS.items():
        expected = 0.5 * (alpha_bar * np.mean(x**2) - alpha_bar - np.log1p(-alpha_bar))
        # The ends of the tables are differences of cumulated logarithms, in float32 at the end.
        np.testing.assert_allclose(got[name], expected, rtol=5e-5, err_msg=name)
    # x = 0 at the middle level: KL(N(0, 1/2) || N(0, 1)) = (log 2 - 1/2) / 2.
    mine = {"mine": schedule.linear(-2.0, 0.0)}
    monkeypatch.setattr(ladder, "SCHEDULES", mine)
    got = ladder.prior_nats_per_dim(np.full((2, 3), 1), 3)
    np.testing.assert_allclose(got["mine"], 0.5 * (np.log(2) - 0.5), rtol=1e-5)
