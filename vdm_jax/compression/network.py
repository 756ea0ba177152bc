"""A trained VDM as the codec uses it: in float64, on batches of one size; and its bound."""

import hashlib
import json
import os
import time
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax import loss, process, schedule
from vdm_jax.compression.chain import EPS_GRID, Chain
from vdm_jax.errors import UserError
from vdm_jax.mixed import Levels
from vdm_jax.parameterization import split, to_eps, to_x
from vdm_jax.transforms import Coefficients
from vdm_jax.types import Images, PerExample, Tensor
from vdm_jax.vdm import VDM

Bind = Callable[..., VDM]
"""Function parameters -> VDM, of images [height, width, channels] of up to 256 levels; or
(parameters, conditioning [batch, k]) -> VDM."""
_MOST_PARTS = 8  # of a batch
_PROBED = 4  # levels
_MEASURED = 8  # images, at least


def digest(vdm: VDM, params: Any, settings: Mapping[str, Any] | None = None) -> bytes:
    """Returns the SHA-256 of parameters and settings: of all that a model's files hold of it."""
    said = {name: getattr(vdm, name) for name in ("event_shape", "levels", "kind", "reverse_var")}
    if isinstance(vdm.levels, Coefficients):
        said |= {"levels": vdm.levels.levels, "transform": vdm.levels.transform.name}
    text = json.dumps(said | {"settings": settings or {}}, sort_keys=True)
    running = hashlib.sha256(text.encode())
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    for path, leaf in sorted(leaves, key=lambda pair: jax.tree_util.keystr(pair[0])):
        array = np.asarray(leaf)
        running.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
        running.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())
    return running.digest()


class Network:
    """The noise that a model sees in latents of `lanes` images (`bits_back.Noise`).

    Needs 64-bit JAX; parameters are taken to float64. `seconds` is the time that all calls took,
    `gammas` are those of the levels. `told` is the conditioning of all images, [n, k], if there is.
    On a CPU the cores share parts of the lanes, as XLA hardly spreads float64 over several cores.
    The size of a part depends on the number of lanes alone.
    """

    def __init__(
        self, bind: Bind, params: Any, gammas: np.ndarray, lanes: int,
        told: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        self.seconds, self.gammas, self._told = 0.0, gammas, told
        self._now = [] if told is None else [np.zeros((lanes, told.shape[1]), told.dtype)]
        self._shape = (lanes, *bind(params).event_shape)
        self._params = jax.tree.map(_wide, params)
        self._parts = _parts(lanes)
        self._threads = ThreadPoolExecutor(_cores())

        def noise(
            params: Any, z_t: Tensor, gamma_t: PerExample, *told: Tensor
        ) -> tuple[Tensor, Any]:
            vdm = bind(params, *told)
            prediction, share = split(vdm.denoise(z_t, gamma_t), vdm.reverse_var)
            return to_eps(prediction, z_t, gamma_t, vdm.kind), share

        self._noise = jax.jit(noise)

    def choose(self, images: np.ndarray) -> None:
        """Takes the conditioning of these images, by number, [lanes], for the calls to come."""
        if self._told is not None:
            self._now = [self._told[images]]

    def __call__(self, z: np.ndarray, level: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Returns eps_hat and share, see `bits_back.Noise`."""
        began = time.perf_counter()
        gamma_t = self.gammas[level]
        if np.ndim(gamma_t) == 2:  # of each element, [dims, 1]
            gamma_t = gamma_t.reshape(self._shape[1:])
        gamma_t = np.broadcast_to(gamma_t, (self._shape[0], *np.shape(gamma_t)))
        inputs = (z.reshape(self._shape), gamma_t, *self._now)
        run = self._threads.map if self._parts > 1 else map
        parts = list(run(self._part, *(np.split(each, self._parts) for each in inputs)))
        eps_hat = np.concatenate([found for found, _ in parts])
        shares = [share for _, share in parts if np.ndim(share)]
        if eps_hat.dtype != np.float64:
            raise UserError(f"the network computes in {eps_hat.dtype}; wanted its input's float64")
        self.seconds += time.perf_counter() - began
        share = np.concatenate(shares).reshape(z.shape) if shares else None
        return eps_hat.reshape(z.shape), share

    def _part(self, *inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns eps_hat and share of some lanes; a scalar share is that of a fixed variance."""
        with jax.enable_x64(True):  # which each thread has for itself
            eps_hat, share = self._noise(self._params, *inputs)
        return np.asarray(eps_hat), np.asarray(share)

    def probe(self) -> int:
        """Returns the CRC32 of the rounded noise of fixed latents, to compare two machines by."""
        found = 0
        values = np.arange(np.prod(self._shape)).reshape(self._shape[0], -1)
        for level in np.linspace(1, len(self.gammas) - 1, _PROBED).astype(int):
            z = (values * 7919 % 401 - 200) / 128.0  # in [-1.6, 1.6], exact in binary
            for part in self(z, int(level)):
                if part is not None:
                    with np.errstate(invalid="ignore"):  # what isn't finite, the coder refuses
                        found = zlib.crc32(np.rint(part / EPS_GRID).astype("<i8").tobytes(), found)
        return found

    def errors(self, images: np.ndarray, levels: Levels) -> np.ndarray:
        """Returns the mean squared error of a pixel's noise at each level.

        Measured on some of the images [n, *event_shape], with the same noise at each level.
        """
        lanes = self._shape[0]
        count = lanes * -(-_MEASURED // lanes)
        chosen = np.linspace(0, len(images) - 1, count).astype(int).reshape(-1, lanes)
        generator, total, now = np.random.default_rng(0), np.zeros(len(self.gammas)), self._now
        gammas = jnp.asarray(self.gammas)
        alphas, sigmas = (np.asarray(of(gammas)) for of in (schedule.alpha, schedule.sigma))
        for some in chosen:
            self.choose(some)
            x = np.asarray(loss.to_data(jnp.asarray(images[some]), levels)).reshape(lanes, -1)
            eps = generator.standard_normal(x.shape)
            for level in range(len(total)):
                eps_hat, _ = self(alphas[level] * x + sigmas[level] * eps, level)
                total[level] += np.mean((eps_hat - eps) ** 2)
        self._now = now  # `probe` is of fixed inputs alone
        return total / len(chosen)


def at_once(lanes: int) -> int:
    """Returns how many of so many images the network sees at once."""
    return lanes * min(_parts(lanes), _cores()) // _parts(lanes)


def _parts(lanes: int) -> int:
    most = _MOST_PARTS if jax.default_backend() == "cpu" else 1
    return max(n for n in range(1, most + 1) if lanes % n == 0)


def _cores() -> int:
    """Returns the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _wide(leaf: Any) -> jax.Array:
    array = jnp.asarray(leaf)
    return array.astype(float) if jnp.issubdtype(array.dtype, jnp.floating) else array


class Bound:
    """The variational bound of T steps (VDM eq. 11), summed up while images are encoded.

    Each image's is an unbiased estimate, over every level. Beside it what its latents would cost a
    perfect entropy coder, log q - log p; the mean is the bound if what was popped is fair noise.
    """

    def __init__(self, vdm: VDM, chain: Chain) -> None:
        self._chain = chain
        gamma_0, gamma_1, levels = chain.gammas[0].T, chain.gammas[-1].T, vdm.levels
        each = gamma_0.reshape(1, *vdm.event_shape) if gamma_0.ndim else gamma_0

        def start(images: Images, z_0: Tensor) -> tuple[Tensor, PerExample, PerExample]:
            images = images.reshape(-1, *vdm.event_shape)
            x = loss.to_data(images, levels).reshape(z_0.shape)
            ends = loss.expected_reconstruction(images, each, levels) + loss.prior(x, gamma_1)
            q = process.marginal(x, gamma_0)
            eps_0 = (z_0 - q.mean) / jnp.sqrt(q.var)
            p = loss.reconstruction(images, eps_0.reshape(images.shape), each, levels)
            return x, ends, loss.sum_event(q.log_prob(z_0)) + p

        def step(
            x: Tensor, z_s: Tensor, z_t: Tensor, eps_hat: Tensor, share: Any, times: Any
        ) -> tuple[PerExample, PerExample]:
            s, t = times
            p = process.reverse(z_t, to_x(eps_hat, z_t, t, "eps"), s, t, share)
            kl = process.posterior(z_t, x, s, t).kl(p)
            path = process.transition(z_s, s, t).log_prob(z_t) - p.log_prob(z_s)
            return loss.sum_event(kl), loss.sum_event(path)

        self._start, self._step = jax.jit(start), jax.jit(step)
        self._last = jax.jit(lambda z_1: -loss.sum_event(jax.scipy.stats.norm.logpdf(z_1)))

    def start(self, images: np.ndarray) -> None:
        """Begins anew with images [lanes, dims]."""
        self._images, self._z = images, np.zeros(())

    def observe(
        self, level: int, z: np.ndarray, eps_hat: np.ndarray | None, share: np.ndarray | None
    ) -> None:
        """Adds a level's terms, see `bits_back.Observe`."""
        if level == 0:
            self._x, self._bound, self._path = self._start(self._images, z)
        else:
            times = [gamma.T for gamma in self._chain.gammas[level - 1 : level + 1]]
            steps = self._chain.share
            shares = share if steps is None else steps[level - 1]
            kl, path = self._step(self._x, self._z, z, eps_hat, shares, times)
            self._bound, self._path = self._bound + kl, self._path + path
        if level == self._chain.num_steps:
            self._path = self._path + self._last(z)
        self._z = z

    def bits(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the bound of each image, and what its latents cost: [lanes] each."""
        return np.asarray(self._bound) / np.log(2.0), np.asarray(self._path) / np.log(2.0)
