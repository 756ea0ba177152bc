"""Whatever a disk does to a checkpoint: one line that names it, or exactly what was saved."""

import collections
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from toy import assert_equal

from vdm_jax.train import sharding
from vdm_jax.train.checkpoint import (
    CheckpointError,
    Checkpoints,
    DamagedError,
    SettingsError,
    load_params,
)

META = {"config": {"seed": 1}}


def state_at(step, devices=1):
    """A state of every dtype; large enough that a block of it can be lost."""
    mesh = sharding.make_mesh(jax.devices()[:devices])
    rng = np.random.default_rng(step)
    params = {
        "kernel": rng.normal(size=(32, 40)).astype(np.float32),
        "bias": jnp.asarray(rng.normal(size=8)).astype(jnp.bfloat16),
        "scale": np.ones(64, np.float32),
        "mask": np.array([True, False, True]),
    }
    state = {"step": np.int32(step), "params": params, "ema_params": params}
    split = jax.device_put(state, sharding.replicated(mesh))
    if devices > 1:
        over = NamedSharding(mesh, P(None, "data"))
        split["params"] = {**split["params"], "kernel": jax.device_put(params["kernel"], over)}
    return split


def saved(folder, *steps, meta=META):
    checkpoints = Checkpoints(folder, meta)
    for step in steps:
        checkpoints.save(step, state_at(step))
    checkpoints.close()
    return folder


def files(folder):
    return sorted(file for file in folder.rglob("*") if file.is_file())


def damaged(content, kind, rng):
    """What a disk, a file system or a copy cut short makes of a file's content."""
    content = bytearray(content)
    if kind == "flip" and content:
        bit = int(rng.integers(8 * len(content)))
        content[bit // 8] ^= 1 << (bit % 8)
    elif kind == "zeros":
        start = int(rng.integers(len(content) + 1))
        content[start : start + 512] = bytes(len(content[start : start + 512]))
    elif kind == "cut":
        content = content[: int(rng.integers(len(content) + 1))]
    return bytes(content)


@pytest.mark.parametrize("part", ["arrays", "words"])
def test_hundreds_of_damages_are_errors_of_one_line_or_nothing_at_all(part, tmp_path):
    """Arrays: all that TensorStore wrote. Words: JSON and marks, among them settings and sums."""
    folder, template = saved(tmp_path / "c", 7), state_at(7)
    checkpoints, rng = Checkpoints(folder, META), np.random.default_rng(3)
    words = [f for f in files(folder) if f.suffix or f.name.startswith("_") or "meta" in str(f)]
    victims = [file for file in files(folder) if (file in words) == (part == "words")]
    seen, messages = collections.Counter(), []
    for number in range(200):
        file = victims[number % len(victims)]
        whole, kind = file.read_bytes(), rng.choice(["flip", "flip", "zeros", "cut", "gone"])
        if kind == "gone":
            file.unlink()
        else:
            file.write_bytes(damaged(whole, kind, rng))
        try:
            restored = checkpoints.restore(template)
        except DamagedError as error:
            messages.append(str(error))
            seen[kind] += 1
        else:
            assert_equal(restored, template)
            seen["the same"] += 1
        file.write_bytes(whole)
    assert_equal(checkpoints.restore(template), template)
    assert min(seen[kind] for kind in ("flip", "zeros", "cut", "gone", "the same")) >= 3, seen
    assert all(str(folder / "7") in line and "\n" not in line for line in messages)


def test_flips_in_the_numbers_that_orbax_would_not_see_are_seen(tmp_path):
    """In the file that holds the arrays, all along it: none comes back wrong."""
    folder, template = saved(tmp_path / "c", 7), state_at(7)
    checkpoints, messages = Checkpoints(folder, META), []
    [largest] = sorted(files(folder), key=lambda file: file.stat().st_size)[-1:]
    whole = largest.read_bytes()
    for byte in range(0, len(whole), len(whole) // 50):
        content = bytearray(whole)
        content[byte] ^= 1 << (byte % 8)
        largest.write_bytes(content)
        try:
            assert_equal(checkpoints.restore(template), template)
        except DamagedError as error:
            messages.append(str(error))
    assert sum("has other bits than were saved" in message for message in messages) > 10


def other_checkpoint(folder, change):
    """A whole, sealed checkpoint whose arrays are those of another state."""
    donor = Checkpoints(folder.parent / "donor", META)
    donor.save(7, change(state_at(7)))
    donor.close()
    shutil.rmtree(folder / "7" / "state")
    shutil.copytree(folder.parent / "donor" / "7" / "state", folder / "7" / "state")


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize(
    ("leaf", "change"),
    [
        ("kernel", lambda kernel: kernel.at[3].set(kernel[4]).at[4].set(kernel[3])),
        ("kernel", lambda kernel: kernel.at[8:16].set(0)),
        ("scale", lambda scale: scale.at[16:32].set(0)),
        ("mask", lambda mask: mask[::-1]),
        ("mask", lambda mask: ~mask),
    ],
)
def test_what_orbax_restores_without_complaint(leaf, change, devices, tmp_path):
    folder = saved(tmp_path / "c", 7)

    def of(state):
        return {**state, "params": {**state["params"], leaf: change(state["params"][leaf])}}

    other_checkpoint(folder, of)
    if leaf == "mask" and np.array_equal(
        change(state_at(7)["params"]["mask"]), [True, False, True]
    ):
        assert_equal(Checkpoints(folder, META).restore(state_at(0, devices)), state_at(7))
        return  # a palindrome: nothing has changed
    with pytest.raises(DamagedError, match=f"params/{leaf} has other bits than were saved"):
        Checkpoints(folder, META).restore(state_at(0, devices))


def test_leaves_that_changed_places_are_seen(tmp_path):
    folder = saved(tmp_path / "c", 7)

    def swapped(state):
        kernel = state["params"]["kernel"]
        return {
            **state,
            "params": {**state["params"], "kernel": state["ema_params"]["kernel"] + 1},
            "ema_params": {**state["ema_params"], "kernel": kernel},
        }

    other_checkpoint(folder, swapped)
    with pytest.raises(DamagedError, match="params/kernel has other bits"):
        Checkpoints(folder, META).restore(state_at(0))
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state_at(7)["params"])
    assert_equal(  # of these nothing has changed
        load_params(folder, shapes, sharding.make_mesh())[1], state_at(7)["ema_params"]
    )


def test_parameters_are_verified_where_they_are_all_that_is_read(tmp_path):
    folder = saved(tmp_path / "c", 7)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state_at(7)["params"])
    other_checkpoint(
        folder, lambda s: {**s, "ema_params": {**s["ema_params"], "bias": -s["params"]["bias"]}}
    )
    with pytest.raises(DamagedError, match="ema_params/bias has other bits than were saved"):
        load_params(folder, shapes, sharding.make_mesh())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"config": {"seed": 1}}', "it lacks its checksums"),  # as they once were
        ("[]", "it lacks its checksums"),
        ("null", "it lacks its checksums"),
        ('{"leaves": {}}', "its record of settings and checksums has changed"),
        ('{"settings": {}, "leaves": {}, "sha256": "00"}', "its record of settings and checksums"),
    ],
)
def test_a_record_that_is_none(content, message, tmp_path):
    folder = saved(tmp_path / "c", 7)
    (folder / "7" / "meta" / "metadata").write_text(content)
    with pytest.raises(DamagedError, match=rf"{message} .*|{message}.*others there: none\.$"):
        Checkpoints(folder, META).restore(state_at(0))


def test_a_changed_setting_in_a_record_is_damage_and_no_other_setting(tmp_path):
    folder = saved(tmp_path / "c", 7)
    file = folder / "7" / "meta" / "metadata"
    file.write_text(file.read_text().replace('"seed": 1', '"seed": 2'))
    with pytest.raises(DamagedError, match="has changed since it was saved"):
        Checkpoints(folder, META).restore(state_at(0))


def test_a_file_that_may_not_be_read_is_no_damage(tmp_path, monkeypatch):
    folder = saved(tmp_path / "c", 7)
    checkpoints = Checkpoints(folder, META)

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", "somewhere")

    monkeypatch.setattr(checkpoints._manager, "restore", refuse)
    with pytest.raises(CheckpointError, match=r"can't be read .*Permission denied") as error:
        checkpoints.restore(state_at(0), allow_fallback=True)
    assert not isinstance(error.value, DamagedError)


# ---- going on from the one before ----


def spoil(folder, step):
    for file in files(folder / str(step) / "state"):
        file.write_bytes(file.read_bytes()[:-3])


def test_the_newest_good_one_is_taken_and_damaged_ones_are_kept_aside(tmp_path):
    folder = saved(tmp_path / "c", 3, 5, 7)
    spoil(folder, 7)
    (folder / "5" / "meta" / "metadata").write_text("{}")
    before = {file.relative_to(folder / "7"): file.read_bytes() for file in files(folder / "7")}
    with pytest.raises(DamagedError, match=r"c/7 is damaged .*others there: 3, 5\."):
        Checkpoints(folder, META).restore(state_at(0))
    checkpoints, said = Checkpoints(folder, META), []
    assert checkpoints.check(state_at(0), allow_fallback=True) == 7  # whose record is whole
    restored = checkpoints.restore(state_at(0), allow_fallback=True, say=said.append)
    assert_equal(restored, state_at(3))
    aside = tmp_path / "damaged"
    assert [line.split(" is damaged (")[0] for line in said] == [
        f"the checkpoint {folder / '7'}", f"the checkpoint {folder / '5'}",
    ]  # fmt: skip
    assert said[0].endswith(f"Moved to {aside / '7'}; going on from step 3.")
    assert all("\n" not in line for line in said) and "lacks its checksums" in said[1]
    assert {f.relative_to(aside / "7"): f.read_bytes() for f in files(aside / "7")} == before
    assert checkpoints.latest_step() == 3
    checkpoints.save(5, state_at(5))  # the steps are free again
    checkpoints.save(7, state_at(7))
    checkpoints.close()
    spoil(folder, 7)
    restored = Checkpoints(folder, META).restore(state_at(0), allow_fallback=True, say=said.append)
    assert_equal(restored, state_at(5))
    assert sorted(path.name for path in aside.iterdir()) == ["5", "7", "7-2"]


def test_nothing_is_moved_where_none_is_good(tmp_path):
    folder = saved(tmp_path / "c", 5, 7)
    spoil(folder, 5), spoil(folder, 7)
    with pytest.raises(CheckpointError, match=r"none .* is whole, and none was moved: ") as error:
        Checkpoints(folder, META).restore(state_at(0), allow_fallback=True)
    assert "c/5 is damaged" in str(error.value) and "c/7 is damaged" in str(error.value)
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.name.isdigit()) == ["5", "7"]


def test_other_settings_behind_a_damaged_one_are_refused_as_ever(tmp_path):
    folder = saved(tmp_path / "c", 5)
    checkpoints = Checkpoints(folder, {"config": {"seed": 2}}, allow_change=True)
    checkpoints.save(7, state_at(7))
    checkpoints.close()
    spoil(folder, 7)
    with pytest.raises(SettingsError) as error:
        Checkpoints(folder, {"config": {"seed": 2}}).restore(state_at(0), allow_fallback=True)
    assert error.value.differences == ["config.seed: 1 -> 2"]
    assert not (tmp_path / "damaged").exists()
