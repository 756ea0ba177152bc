"""A trained VDM as the codec uses it: in float64, on batches of one size."""

import dataclasses
import hashlib
import json
import time
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax import loss, pixels, process, schedule
from vdm_jax.compression.ladder import EPS_GRID, Ladder
from vdm_jax.gaussian import Gaussian
from vdm_jax.parameterization import split, to_eps, to_x
from vdm_jax.types import Gamma, Images, Kind, PerExample, ReverseVar, Tensor

__all__ = ["Vdm", "digest"]

_PROBED = 4  # levels


@dataclasses.dataclass(frozen=True, eq=False)
class Vdm:
    """A model, any network: what is compressed with it can be read with it alone.

    Attributes:
      denoise: (params, z_t, gamma_t) -> prediction: z_t [batch, *event_shape] and gamma_t [batch],
        both float64, to an array like z_t, or with a learned variance a pair of such. What it says
        of one image must not depend on the others. It is compiled, and must compute in the type of
        its input (in Flax modules dtype=None), without dropout. As many images come at once as
        there are blocks.
      params: a tree of arrays, such as a Flax module's variables; taken to float64.
      gamma: t -> gamma(t), rising, of float64 too. Learned parameters that it closes over are no
        part of the digest unless they are in `params` as well.
      event_shape: of one image, (height, width, channels).
      levels: the number of values of a pixel, up to 256.
      kind: what denoise predicts.
      reverse_var: the variance of p(z_s|z_t), see `vdm_jax.loss.diffusion`.
      settings: of the network, what JSON can hold; they are part of the model's digest, as the code
        of `denoise` and `gamma` can't be.
    """

    denoise: Callable[[Any, Tensor, PerExample], Any]
    params: Any
    gamma: Gamma
    event_shape: tuple[int, int, int]
    levels: int
    kind: Kind = "eps"
    reverse_var: ReverseVar = "posterior"
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def digest(vdm: Vdm) -> bytes:
    """The SHA-256 of parameters and settings: of all that the model's files hold of it."""
    said = {
        "event_shape": list(vdm.event_shape),
        "levels": vdm.levels,
        "kind": vdm.kind,
        "reverse_var": vdm.reverse_var,
        "settings": vdm.settings,
    }
    running = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    leaves, _ = jax.tree_util.tree_flatten_with_path(vdm.params)
    for path, leaf in sorted(leaves, key=lambda pair: jax.tree_util.keystr(pair[0])):
        array = np.asarray(leaf)
        running.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
        running.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())
    return running.digest()


class Network:
    """`bits_back.Noise` of a model, for so many lanes. Needs 64-bit JAX.

    Attributes:
      seconds: what all calls took.
    """

    def __init__(self, vdm: Vdm, ladder: Ladder, lanes: int) -> None:
        self.seconds = 0.0
        self._ladder = ladder
        self._shape = (lanes, *vdm.event_shape)
        self._params = jax.tree.map(_wide, vdm.params)

        def noise(params: Any, z_t: Tensor, gamma_t: PerExample) -> tuple[Tensor, Any]:
            prediction, share = split(vdm.denoise(params, z_t, gamma_t), vdm.reverse_var)
            return to_eps(prediction, z_t, gamma_t, vdm.kind), share

        self._noise = jax.jit(noise)

    def __call__(self, z: np.ndarray, level: int) -> tuple[np.ndarray, np.ndarray | None]:
        """See `bits_back.Noise`."""
        began = time.perf_counter()
        gamma_t = np.full(self._shape[0], self._ladder.gammas[level])
        eps_hat, share = self._noise(self._params, z.reshape(self._shape), gamma_t)
        found = np.asarray(eps_hat).reshape(z.shape)
        if found.dtype != np.float64:
            raise ValueError(
                f"the network computes in {found.dtype} where its input is float64; compression "
                "needs one that computes in the type of its input"
            )
        shares = None if np.ndim(share) == 0 else np.asarray(share).reshape(z.shape)
        self.seconds += time.perf_counter() - began
        return found, shares

    def probe(self) -> int:
        """CRC32 of the rounded noise of fixed latents at some levels: alike, it decodes alike."""
        found = 0
        values = np.arange(np.prod(self._shape)).reshape(self._shape[0], -1)
        for level in np.linspace(1, self._ladder.num_steps, _PROBED).astype(int):
            z = (values * 7919 % 401 - 200) / 128.0  # in [-1.6, 1.6], exact in binary
            for part in self(z, int(level)):
                if part is not None:
                    with np.errstate(invalid="ignore"):  # what isn't finite, the coder refuses
                        rounded = np.rint(part / EPS_GRID).astype("<i8")
                    found = zlib.crc32(rounded.tobytes(), found)
        return found


def _wide(leaf: Any) -> jax.Array:
    array = jnp.asarray(leaf)
    return array.astype(float) if jnp.issubdtype(array.dtype, jnp.floating) else array


class Bound:
    """The variational bound of T steps (VDM eq. 11), summed up while images are encoded.

    Their latents are those of the chain, every level of it: each image's is an unbiased estimate.
    Beside it what these very latents cost, log q - log p of them all, which a perfect entropy coder
    would need; its mean is the bound if what was popped is as good as chance.
    """

    def __init__(self, vdm: Vdm, ladder: Ladder) -> None:
        self._ladder = ladder
        self._share = float(vdm.reverse_var == "transition")
        self._z = np.zeros(())  # of the level before
        gamma_0, gamma_1 = ladder.gammas[0], ladder.gammas[-1]

        def ends(images: Images) -> tuple[Tensor, PerExample]:
            x = loss.to_data(images, vdm.levels)
            at_0 = loss.expected_reconstruction(images, gamma_0, vdm.levels)
            return x, at_0 + loss.prior(x, gamma_1)

        def first(images: Images, x: Tensor, z_0: Tensor) -> PerExample:
            q = process.marginal(x, gamma_0).log_prob(z_0)
            z_0_rescaled = z_0 / schedule.alpha(gamma_0)
            return loss.sum_event(q - pixels.log_prob(images, z_0_rescaled, gamma_0, vdm.levels))

        def step(
            x: Tensor, z_s: Tensor, z_t: Tensor, eps_hat: Tensor, share: Any, s: Tensor, t: Tensor
        ) -> tuple[PerExample, PerExample]:
            x_hat = to_x(eps_hat, z_t, t, "eps")
            p = process.reverse(z_t, x_hat, s, t, share)
            kl = process.posterior(z_t, x, s, t).kl(p)
            path = process.transition(z_s, s, t).log_prob(z_t) - p.log_prob(z_s)
            return loss.sum_event(kl), loss.sum_event(path)

        def last(z_1: Tensor) -> PerExample:
            return -loss.sum_event(Gaussian(jnp.zeros(()), jnp.ones(())).log_prob(z_1))

        self._ends, self._first = jax.jit(ends), jax.jit(first)
        self._step, self._last = jax.jit(step), jax.jit(last)

    def start(self, images: np.ndarray) -> None:
        """Of images [lanes, dims]."""
        self._images = images
        self._x, nats = self._ends(images)
        self._bound, self._path = np.asarray(nats), np.zeros(len(images))

    def observe(
        self, level: int, z: np.ndarray, eps_hat: np.ndarray | None, share: np.ndarray | None
    ) -> None:
        """See `bits_back.Observe`."""
        if level == 0:
            self._path = np.asarray(self._first(self._images, self._x, z))
        else:
            s, t = self._ladder.gammas[level - 1], self._ladder.gammas[level]
            widened = np.float64(self._share) if share is None else share
            kl, path = self._step(self._x, self._z, z, eps_hat, widened, s, t)
            self._bound, self._path = self._bound + kl, self._path + path
        if level == self._ladder.num_steps:
            self._path = self._path + self._last(z)
        self._z = z

    def bits(self) -> tuple[np.ndarray, np.ndarray]:
        """Of each image the bound, and what its latents cost: [lanes] each."""
        return np.asarray(self._bound) / np.log(2.0), np.asarray(self._path) / np.log(2.0)
