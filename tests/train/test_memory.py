"""How much memory a step needs, against sizes that can be counted; and running out of it."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.train import memory

MIB = 2**20
CPU = jax.devices("cpu")[0]


def compiled(function, *shapes, **options):
    return jax.jit(function, **options).lower(*shapes).compile()


def floats(mib):
    return jax.ShapeDtypeStruct((mib * MIB // 4,), jnp.float32)


def test_arguments_outputs_and_temporaries_are_counted_and_donated_ones_once():
    assert memory.need(compiled(lambda x: x + 1, floats(4)), CPU) == 8 * MIB
    need = memory.need(compiled(lambda x: x + 1, floats(4), donate_argnums=0), CPU)
    assert need == 4 * MIB
    # A sort needs a copy of what it sorts; the sum of it is one number.
    need = memory.need(compiled(lambda x: jnp.sort(x)[:1], floats(4)), CPU)
    assert 8 * MIB <= need < 8.1 * MIB


def test_the_peak_is_what_an_accelerator_needs():
    """Its temporaries don't all live at once; a CPU's peak is not all of it."""
    sizes = {"argument": 5, "alias": 2, "temp": 30, "output": 4}
    sizes = {f"{name}_size_in_bytes": size for name, size in sizes.items()}
    for platform, peak, wanted in (
        ("tpu", 20, 20),
        ("gpu", 20, 20),
        ("gpu", 0, 37),
        ("cpu", 9, 37),
    ):
        found = types.SimpleNamespace(peak_memory_in_bytes=peak, **sizes)
        step = types.SimpleNamespace(memory_analysis=lambda found=found: found)
        assert memory.need(step, types.SimpleNamespace(platform=platform)) == wanted


def test_a_device_s_room_is_its_limit():
    for stats, found in (({"bytes_limit": 10, "bytes_in_use": 3}, (10, 10)), (None, None)):
        device = types.SimpleNamespace(platform="gpu", memory_stats=lambda stats=stats: stats)
        assert memory.room(device) == found


def test_devices_of_a_cpu_share_the_machine_s_memory(tmp_path):
    file = tmp_path / "meminfo"
    lines = ("MemTotal: 800 kB", "MemAvailable: 160 kB", "SwapTotal: 80 kB", "HugePages_Total: 0")
    file.write_text("\n".join(lines))
    count = jax.local_device_count()
    assert memory.room(jax.devices()[0], file) == (160 * 1024 // count, 880 * 1024 // count)
    assert memory.room(jax.devices()[0], tmp_path / "none") is None
    here = memory.room(jax.devices()[0])  # of this machine
    assert here is None or 2**24 < here.free <= here.most


def test_sizes_in_words():
    for size, said in ((2**29, "0.5 GiB"), (64 * MIB, "64.0 MiB")):
        assert memory.words(size) == said


def test_running_out_of_memory_is_told_from_other_errors():
    """By this back end's own error: 2^48 bytes are more than any machine here has."""

    class Told(Exception):
        pass

    said = r"^Out of memory allocating 281474976710656 bytes$"
    with pytest.raises(Told, match=said), memory.exhausted(Told):
        jax.jit(lambda: jnp.zeros(2**46))().block_until_ready()
    with pytest.raises(Told, match=r"^Unable to allocate 4.00 EiB"), memory.exhausted(Told):
        np.zeros(2**59)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), memory.exhausted(Told):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")
