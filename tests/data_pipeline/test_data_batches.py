"""Batches are a pure function of (seed, step), whatever the processes; evaluation is exact."""

import hashlib
import threading

import grain
import numpy as np
import pytest

from vdm_jax.data import augmented, eval_batches, flagged, stacked, train_batches


def _numbered(n: int) -> np.ndarray:
    """n images of 2 x 2 x 1 that tell their own number, [number // 256, number % 256, 7, 9]."""
    numbers = np.arange(n)
    pixels = np.stack([numbers // 256, numbers % 256, np.full(n, 7), np.full(n, 9)], axis=1)
    return pixels.astype(np.uint8).reshape(n, 2, 2, 1)


def _batches(images, augment="none", labels=None, **arguments):
    """Training batches of pictures, as the commands have them."""
    transform = augmented(augment, images.shape[1:])
    condition = None if labels is None else np.asarray(labels)[:, None]
    examples = {"images": images, "conditioning": condition}
    return train_batches(examples, transform=transform, **arguments)


def _numbers(images: np.ndarray) -> np.ndarray:
    flat = images.reshape(-1, 4).astype(int)
    assert (flat[:, 2:] == (7, 9)).all()
    return flat[:, 0] * 256 + flat[:, 1]


def _equal(left, right) -> None:
    assert left.keys() == right.keys()
    for key in left:
        np.testing.assert_array_equal(left[key], right[key])
        assert left[key].dtype == right[key].dtype


@pytest.mark.parametrize("augment", ["none", "flip_rot90_channels"])
def test_a_batch_is_a_function_of_seed_and_step(augment):
    images = np.random.default_rng(0).integers(0, 256, (11, 4, 4, 3), dtype=np.uint8)

    def make(seed):
        return _batches(images, augment, batch_size=4, seed=seed)

    once, again, other = make(5), make(5), make(6)
    forwards = [once[step] for step in range(20)]
    for step in (19, 3, 3, 0, 12):  # in any order, and repeatedly
        _equal(again[step], forwards[step])
    assert not any(np.array_equal(other[s]["images"], forwards[s]["images"]) for s in range(20))
    assert isinstance(once, grain.MapDataset)
    assert forwards[0]["images"].dtype == np.uint8
    assert forwards[0]["conditioning"].dtype == np.float32


def test_batches_are_those_of_all_runs_so_far():
    """A change here would change what every seed trains on."""
    batch = _batches(_numbered(50), "flip", batch_size=8, seed=1)[10**6]
    content = batch["images"].tobytes() + batch["conditioning"].tobytes()
    assert hashlib.sha256(content).hexdigest()[:16] == "fc0a8960f148cd7b"


@pytest.mark.parametrize(
    ("n", "local", "processes", "step", "augment"),
    [(1, 1, 2, 10**9, "none"), (7, 3, 2, 5, "flip"), (13, 2, 3, 123, "flip_rot90")],
)
def test_the_global_batch_does_not_depend_on_the_processes(n, local, processes, step, augment):
    def make(labels=None, **where):
        where |= {"batch_size": local * processes, "seed": 1}
        return _batches(_numbered(n), augment, labels, **where)[step]

    for labels in (None, 7 * np.arange(n)):
        alone = make(labels)
        assert len(alone["images"]) == local * processes
        each = [make(labels, process_index=p, process_count=processes) for p in range(processes)]
        _equal({key: np.concatenate([part[key] for part in each]) for key in alone}, alone)


def test_labels_come_with_their_images_and_change_nothing_else():
    images = np.random.default_rng(0).integers(0, 256, (9, 4, 4, 3), dtype=np.uint8)
    images[..., 0] = np.arange(9)[:, None, None]  # channel 0 tells the number, however turned
    arguments = {"batch_size": 25, "seed": 3, "augment": "flip_rot90"}
    plain = _batches(images, **arguments)[8]
    batch = _batches(images, **arguments, labels=np.arange(9) * 7 + 1)[8]
    np.testing.assert_array_equal(batch["images"], plain["images"])
    assert batch["conditioning"].dtype == np.float32
    flags, labels = batch["conditioning"].T
    np.testing.assert_array_equal(flags, plain["conditioning"])
    np.testing.assert_array_equal(labels, batch["images"][:, 0, 0, 0] * 7.0 + 1)


@pytest.mark.parametrize(("n", "batch_size"), [(1, 3), (13, 5), (300, 300)])
def test_each_epoch_has_every_image_once_in_an_order_of_its_own(n, batch_size):
    batches = train_batches({"images": _numbered(n)}, batch_size=batch_size, seed=2**32 - 1)
    steps = -(-3 * n // batch_size)
    numbers = np.concatenate([_numbers(batches[step]["images"]) for step in range(steps)])
    epochs = numbers[: 3 * n].reshape(3, n)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), [np.arange(n)] * 3)
    for i, order in enumerate([*epochs, np.arange(n)] if n > 100 else []):
        assert np.mean(order == epochs[i - 1]) < 0.05


def test_memory_mapped_images_give_the_same_batches_in_memory_of_their_own(tmp_path):
    np.save(tmp_path / "images.npy", _numbered(20))
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    on_disk, in_memory = (
        train_batches({"images": images}, batch_size=8, seed=2)[4]
        for images in (mapped, _numbered(20))
    )
    _equal(on_disk, in_memory)
    batch = list(eval_batches({"images": mapped}, batch_size=7))[-1]
    for images in (on_disk["images"], batch["images"]):
        assert type(images) is np.ndarray
        images[:] = 0


def test_examples_are_any_trees_of_arrays_and_rows_stay_together():
    n, rng = 7, np.random.default_rng(0)
    numbers = np.arange(n)
    examples = {
        "images": np.stack([numbers, rng.normal(size=n)], axis=1),
        "conditioning": {
            "theta": np.repeat(numbers[:, None], 3, 1).astype(np.float32),
            "none": None,
        },
        "mask": numbers[:, None] % 2 == 1,
    }
    batches = train_batches(examples, batch_size=3, seed=0)
    passes = [list(eval_batches(examples, batch_size=3)), [batches[i] for i in range(7)]]
    for of in passes:
        for batch in of:
            theta, which = batch["conditioning"]["theta"], batch["images"][:, 0].astype(int)
            np.testing.assert_array_equal(batch["images"], examples["images"][which])
            np.testing.assert_array_equal(theta, which[:, None] * np.ones(3))
            np.testing.assert_array_equal(batch["mask"][:, 0], which % 2 == 1)
            assert (theta.dtype, batch["mask"].dtype) == (np.float32, bool)
            assert batch["conditioning"]["none"] is None
    drawn = np.concatenate([batch["images"][:, 0] for batch in passes[1]])
    np.testing.assert_array_equal(np.sort(drawn), np.repeat(numbers, 3))

    def noisy(example, rng):
        return example | {"noise": rng.normal()}

    first, again = (train_batches(examples, batch_size=3, seed=0, transform=noisy)[4] for _ in "ab")
    np.testing.assert_array_equal(first["images"], batches[4]["images"])
    np.testing.assert_array_equal(first["noise"], again["noise"])
    assert len({*first["noise"]}) == 3
    with stacked(batches, start=2, steps_per_call=2) as chunks:
        assert next(chunks)["conditioning"]["theta"].shape == (2, 3, 3)


def test_the_flag_stands_before_a_condition():
    np.testing.assert_array_equal(flagged([True, False], None), [1.0, 0.0])
    found = flagged([True, False], np.array([[5, 6], [7, 8]]))
    np.testing.assert_array_equal(found, [[1, 5, 6], [0, 7, 8]])
    np.testing.assert_array_equal(flagged(True, np.array([5, 6])), [1, 5, 6])
    assert found.dtype == flagged(False, None).dtype == np.float32


@pytest.mark.parametrize(
    ("n", "local", "processes"), [(1, 4, 3), (12, 3, 4), (13, 3, 4), (40, 9, 1)]
)
def test_evaluation_meets_every_image_once_and_in_order(n, local, processes):
    arguments = {"batch_size": local * processes, "process_count": processes}
    examples = {"images": _numbered(n), "conditioning": np.arange(n) * 3}
    passes = [list(eval_batches(examples, process_index=p, **arguments)) for p in range(processes)]
    assert {len(batches) for batches in passes} == {-(-n // (local * processes))}
    joined = {
        key: np.concatenate([batch[key] for step in zip(*passes, strict=True) for batch in step])
        for key in passes[0][0]
    }
    padding = len(joined["present"]) - n
    rows = np.array([*range(n)] + [n - 1] * padding)
    np.testing.assert_array_equal(joined["present"], [1.0] * n + [0.0] * padding)
    np.testing.assert_array_equal(joined["index"], [*range(n)] + [-1] * padding)
    np.testing.assert_array_equal(_numbers(joined["images"]), rows)
    np.testing.assert_array_equal(joined["conditioning"], rows * 3)
    for batch in passes[-1]:
        assert {len(leaf) for leaf in batch.values()} == {local}
        assert [batch[key].dtype for key in ("present", "index")] == [np.float32, np.int32]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"images": np.zeros((0, 4))}, r"examples are \['images'\] \(0, 4\); wanted arrays of one"),
        ({"images": None}, "examples are none; wanted arrays"),
        (
            {"conditioning": {"a": np.zeros(4)}},
            r"\['conditioning'\]\['a'\] \(4,\), .* \(3",
        ),
        ({"mask": 1.0}, r"\['mask'\] \(\); wanted arrays of one length of at least 1"),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1, got 0"),
        ({"process_count": 3}, "batch_size=4 is no multiple of process_count=3"),
        ({"process_count": 0}, "process_count must be"),
        ({"process_index": 2, "process_count": 2}, "process_index must be at most 1, got 2"),
        ({"seed": -1}, "seed must be an integer of at least 0"),
        ({"seed": 2**32}, "seed must be at most 4294967295"),
    ],
)
def test_unfit_arguments(arguments, match):
    named = {"images": _numbered(3), "batch_size": 4, "seed": 0} | arguments
    examples = {k: named.pop(k) for k in ("images", "conditioning", "mask") if k in named}
    with pytest.raises(ValueError, match=match):
        train_batches(examples, **named)


def test_chunks_are_consecutive_batches_built_by_a_thread_that_ends_with_the_context():
    examples, of_second = {"images": _numbered(50)}, {"process_index": 1, "process_count": 2}
    batches = train_batches(examples, batch_size=4, seed=1, **of_second)
    with stacked(batches, start=10**6, steps_per_call=3) as chunks:
        for first in range(10**6, 10**6 + 9, 3):
            chunk, of = next(chunks), [batches[first + i] for i in range(3)]
            _equal(chunk, {key: np.stack([batch[key] for batch in of]) for key in of[0]})
        (worker, *_) = (each for each in threading.enumerate() if "grain" in each.name)
    worker.join(5.0)
    assert not worker.is_alive()


def test_what_building_a_batch_raises_comes_in_its_place():
    def broken(i):
        if i == 2:
            raise OSError("the disk is gone")
        return {"images": np.full(3, i)}

    with stacked(grain.MapDataset.range(9).map(broken), start=0) as chunks:
        for i in range(2):
            np.testing.assert_array_equal(next(chunks)["images"], np.full((1, 3), i))
        with pytest.raises(OSError, match="the disk is gone"):
            next(chunks)
    for name, least in (("start", 0), ("steps_per_call", 1)):
        with pytest.raises(ValueError, match=f"{name} must be an integer of at least {least}"):
            stacked(grain.MapDataset.range(9), **{"start": 0, name: least - 1})
