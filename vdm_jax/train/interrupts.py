"""A run that is asked to stop, by Ctrl-C or by one of `signals.ENDING`.

Each is noted at once and takes effect where nothing is left half done: an exception raised
wherever the program is could hit the middle of a save, or a callback that swallows it.
"""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vdm_jax.signals import ENDING, handlers, hush
from vdm_jax.train import sharding

Vote = jax.Array | np.ndarray


class Stopped(BaseException):
    """A run's stop by the signal `number`, no `Exception`; its text says how it goes on."""

    def __init__(self, number: int, again: str = "") -> None:
        super().__init__(again)
        self.number = number


class Stop:
    """The first such signal, which `heed` and `check` raise as `Stopped`.

    A second Ctrl-C raises KeyboardInterrupt at once. In a run of several processes all stop at the
    same place, whichever of them was asked: each calls `vote`, `heed` and `check` equally often.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._asked: list[int] = []
        self._any = jax.jit(jnp.max, out_shardings=sharding.replicated(mesh))

    @contextlib.contextmanager
    def noted(self, say: Callable[[str], None]) -> Iterator[None]:
        """Notes signals within the block; `say` tells the user of each."""

        def note(number: int, frame: object) -> None:
            self._asked.append(number)
            if number == signal.SIGHUP:
                hush()
            if self._asked.count(signal.SIGINT) > 1:
                raise KeyboardInterrupt
            again = "; press Ctrl-C again to stop at once" if number == signal.SIGINT else ""
            say(f"{signal.Signals(number).name}: saving and stopping as soon as possible{again}")

        with handlers((signal.SIGINT, *ENDING), note):
            yield

    def vote(self) -> Vote:
        """Returns the signal that any process has noted, 0 if none; waits for no other process."""
        noted = np.asarray([self._asked[0] if self._asked else 0], np.int32)
        if jax.process_count() == 1:
            return noted
        here = noted.repeat(len(self._mesh.local_devices))
        return self._any(sharding.put({"noted": here}, self._mesh)["noted"])

    def heed(self, vote: Vote) -> None:
        """Raises `Stopped` if the vote says so; waits for it. A single process needs no vote."""
        number = int(np.max(self.vote() if jax.process_count() == 1 else vote))
        if number:
            raise Stopped(number)

    def check(self) -> None:
        """Calls `vote` and `heed`."""
        self.heed(self.vote())

    def wait_for(self, tree: Any) -> None:
        """Waits, maybe minutes, until arrays are there; a single process `check`s meanwhile."""
        leaves = jax.tree.leaves(tree)
        while jax.process_count() == 1 and not all(leaf.is_ready() for leaf in leaves):
            self.check()
            time.sleep(0.01)
        jax.block_until_ready(leaves)
