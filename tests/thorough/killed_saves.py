"""Kills a saving process again and again; what it printed and what came back goes to stdout.

`python killed_saves.py FOLDER COUNT`: this process imports JAX and starts no backend, so that it
can fork. Each child restores the newest checkpoint, verified, says which step it was and whether it
has the right bits, and then saves one step after the other until it is killed.
"""

import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import jax
import numpy as np

from vdm_jax.train.checkpoint import Checkpoints

MOST = 1.5  # moments are drawn from so many durations of a save, from the first one's begin on


def state_at(step):
    leaves = np.random.default_rng(step).normal(size=(4, 50_000)).astype(np.float32)
    return {
        "step": np.array(step, np.int32),
        "leaves": {str(i): leaf for i, leaf in enumerate(leaves)},
    }


def same(a, b):
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: bool((np.asarray(x) == y).all()), a, b)))


def child(folder, pipe):
    def say(**what):
        os.write(pipe, json.dumps(what).encode() + b"\n")

    checkpoints = Checkpoints(folder, {}, keep=2)
    step = checkpoints.latest_step() or 0
    if step:
        say(restored=step, same=same(checkpoints.restore(state_at(step)), state_at(step)))
    while True:
        step += 1
        state = state_at(step)
        began = time.monotonic()
        say(saving=step)
        checkpoints.save(step, state)
        checkpoints._manager.wait_until_finished()
        say(saved=step, seconds=time.monotonic() - began)


def main():
    folder, count, rng = Path(sys.argv[1]), int(sys.argv[2]), random.Random(0)
    seconds: float | None = None
    for _ in range(count + 1):
        out, pipe = os.pipe()
        process = os.fork()
        if process == 0:
            try:
                child(folder, pipe)
            except BaseException:
                traceback.print_exc()
            os._exit(1)
        os.close(pipe)
        with os.fdopen(out) as lines:
            told = [json.loads(lines.readline())]
            while "saving" not in told[-1]:
                told.append(json.loads(lines.readline()))
            while seconds is None:  # the first child's third save tells how long one takes
                told.append(json.loads(lines.readline()))
                seconds = told[-1]["seconds"] if told[-1].get("saved") == 3 else None
            time.sleep(rng.uniform(0, MOST * seconds))
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            told += map(json.loads, lines)
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
