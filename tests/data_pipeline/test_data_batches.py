"""Batches are a pure function of (seed, step), whatever the hosts; evaluation is exact."""

import grain
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vdm_jax.data import AUGMENTATIONS, eval_batches, iterate, train_batches


def _numbered(n: int) -> np.ndarray:
    """n images of 2 x 2 x 1 that tell their own number, [number // 256, number % 256, 7, 9]."""
    numbers = np.arange(n)
    pixels = np.stack([numbers // 256, numbers % 256, np.full(n, 7), np.full(n, 9)], axis=1)
    return pixels.astype(np.uint8).reshape(n, 2, 2, 1)


def _numbers(images: np.ndarray) -> np.ndarray:
    flat = images.reshape(-1, 4).astype(int)
    assert (flat[:, 2:] == (7, 9)).all()
    return flat[:, 0] * 256 + flat[:, 1]


def _equal(left, right) -> None:
    assert left.keys() == right.keys()
    for key in left:
        np.testing.assert_array_equal(left[key], right[key])
        assert left[key].dtype == right[key].dtype


@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_a_batch_is_a_function_of_seed_and_step(augment):
    images = np.random.default_rng(0).integers(0, 256, (11, 4, 4, 3), dtype=np.uint8)

    def make(seed):
        return train_batches(images, batch_size=4, seed=seed, augment=augment)

    once, again, other = make(5), make(5), make(6)
    forwards = [once[step] for step in range(20)]
    for step in (19, 3, 3, 0, 12):  # in any order, and repeatedly
        _equal(again[step], forwards[step])
    same = [np.array_equal(other[s]["images"], forwards[s]["images"]) for s in range(20)]
    assert not any(same)
    assert isinstance(once, grain.MapDataset)
    assert forwards[0]["images"].dtype == np.uint8
    assert forwards[0]["conditioning"].dtype == np.float32


@given(
    n=st.integers(1, 30),
    local=st.integers(1, 6),
    hosts=st.sampled_from([2, 3, 4]),
    step=st.integers(0, 10**9),
    augment=st.sampled_from(sorted(AUGMENTATIONS)),
)
@settings(max_examples=60, deadline=None)
def test_the_global_batch_does_not_depend_on_the_hosts(n, local, hosts, step, augment):
    def make(**hosts):
        return train_batches(
            _numbered(n), batch_size=local * count, seed=1, augment=augment, **hosts
        )

    count = hosts
    alone = make()[step]
    assert len(alone["images"]) == local * hosts
    parts = [make(process_index=p, process_count=hosts)[step] for p in range(hosts)]
    _equal({key: np.concatenate([part[key] for part in parts]) for key in alone}, alone)


@given(
    n=st.integers(1, 30),
    local=st.integers(1, 6),
    hosts=st.integers(1, 3),
    step=st.integers(0, 10**6),
    augment=st.sampled_from(["none", "flip", "flip_rot90"]),
)
@settings(max_examples=40, deadline=None)
def test_labels_come_with_their_images_and_change_nothing_else(n, local, hosts, step, augment):
    images = np.random.default_rng(0).integers(0, 256, (n, 4, 4, 3), dtype=np.uint8)
    images[..., 0] = np.arange(n)[:, None, None]  # channel 0 tells the number, however turned
    for host in range(hosts):
        arguments = {
            "batch_size": local * hosts,
            "seed": 3,
            "augment": augment,
            "process_index": host,
            "process_count": hosts,
        }
        plain = train_batches(images, **arguments)[step]
        batch = train_batches(images, **arguments, labels=np.arange(n) * 7 + 1)[step]
        np.testing.assert_array_equal(batch["images"], plain["images"])
        assert batch["conditioning"].dtype == np.float32
        flags, labels = batch["conditioning"].T
        np.testing.assert_array_equal(flags, plain["conditioning"])
        np.testing.assert_array_equal(labels, batch["images"][:, 0, 0, 0] * 7.0 + 1)


@given(n=st.integers(1, 40), local=st.integers(1, 9), hosts=st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_evaluation_with_labels(n, local, hosts):
    for host in range(hosts):
        arguments = {
            "batch_size": local * hosts,
            "process_index": host,
            "process_count": hosts,
        }
        plain = eval_batches(_numbered(n), **arguments)
        labelled = eval_batches(_numbered(n), **arguments, labels=np.arange(n) * 3)
        for batch, wanted in zip(labelled, plain, strict=True):
            conditioning = batch.pop("conditioning")
            np.testing.assert_array_equal(conditioning[:, 0], wanted.pop("conditioning"))
            np.testing.assert_array_equal(conditioning[:, 1], _numbers(batch["images"]) * 3)
            assert conditioning.dtype == np.float32
            _equal(batch, wanted)


@given(n=st.integers(1, 40), batch_size=st.integers(1, 50), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_each_epoch_has_every_image_once(n, batch_size, seed):
    epochs = 3
    batches = train_batches(_numbered(n), batch_size=batch_size, seed=seed)
    steps = -(-epochs * n // batch_size)
    numbers = np.concatenate([_numbers(batches[step]["images"]) for step in range(steps)])
    for epoch in range(epochs):
        assert sorted(numbers[epoch * n : (epoch + 1) * n]) == list(range(n))


def test_each_epoch_has_an_order_of_its_own():
    batches = train_batches(_numbered(300), batch_size=300, seed=0)
    orders = [_numbers(batches[epoch]["images"]) for epoch in range(4)]
    for i, first in enumerate(orders):
        assert np.mean(first == np.arange(300)) < 0.05
        for second in orders[i + 1 :]:
            assert np.mean(first == second) < 0.05


def test_memory_mapped_images_give_the_same_batches(tmp_path):
    np.save(tmp_path / "images.npy", _numbered(20))
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    for augment in ("none", "flip"):
        arguments = {"batch_size": 8, "seed": 2, "augment": augment}
        on_disk, in_memory = (train_batches(a, **arguments) for a in (mapped, _numbered(20)))
        _equal(on_disk[4], in_memory[4])
        assert type(on_disk[4]["images"]) is np.ndarray


@pytest.mark.parametrize("hosts", [1, 2])
def test_a_restart_goes_on_where_the_run_stopped(hosts):
    images = _numbered(13)

    def make(host, count):
        return train_batches(
            images, batch_size=6, seed=0, augment="flip", process_index=host, process_count=count
        )

    with iterate(make(0, 1), start=0) as stream:
        undisturbed = [next(stream) for _ in range(12)]
    parts = [iterate(make(p, hosts), start=7) for p in range(hosts)]  # perhaps on other hosts
    for step in range(7, 12):
        items = [next(part) for part in parts]
        joined = {key: np.concatenate([i[key] for i in items], axis=1) for key in items[0]}
        _equal(joined, undisturbed[step])
    for part in parts:
        part.close()


@given(n=st.integers(1, 40), local=st.integers(1, 9), hosts=st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_evaluation_meets_every_image_once_and_in_order(n, local, hosts):
    images = _numbered(n)
    passes = [
        list(eval_batches(images, batch_size=local * hosts, process_index=p, process_count=hosts))
        for p in range(hosts)
    ]
    assert {len(batches) for batches in passes} == {-(-n // (local * hosts))}
    joined = {
        key: np.concatenate([batch[key] for step in zip(*passes, strict=True) for batch in step])
        for key in passes[0][0]
    }
    padding = len(joined["mask"]) - n
    np.testing.assert_array_equal(joined["mask"], [1.0] * n + [0.0] * padding)
    np.testing.assert_array_equal(joined["index"], [*range(n)] + [-1] * padding)
    np.testing.assert_array_equal(joined["conditioning"], np.zeros(n + padding))
    np.testing.assert_array_equal(_numbers(joined["images"]), [*range(n)] + [n - 1] * padding)
    for batch in passes[-1]:
        assert {len(leaf) for leaf in batch.values()} == {local}
        kinds = {key: leaf.dtype for key, leaf in batch.items()}
        assert kinds == {
            "images": np.uint8,
            "conditioning": np.float32,
            "mask": np.float32,
            "index": np.int32,
        }


def test_evaluation_of_a_memory_mapped_set(tmp_path):
    np.save(tmp_path / "images.npy", _numbered(5))
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    batches = list(eval_batches(mapped, batch_size=3))
    np.testing.assert_array_equal(_numbers(batches[1]["images"]), [3, 4, 4])
    assert type(batches[1]["images"]) is np.ndarray
    batches[1]["images"][:] = 0  # the caller's own memory


@pytest.mark.parametrize("make", [train_batches, eval_batches])
@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"images": np.zeros((2, 4, 4), np.uint8)}, r"images are uint8 \(2, 4, 4\); wanted uint8"),
        ({"images": np.zeros((2, 4, 4, 1))}, r"images are float64 \(2, 4, 4, 1\); wanted uint8"),
        ({"images": np.zeros((0, 4, 4, 1), np.uint8)}, "images are empty"),
        ({"images": [1, 2]}, r"images are list \(2,\); wanted uint8"),
        ({"batch_size": 0}, "batch_size=0 must be a whole number of at least 1"),
        ({"batch_size": 2.0}, "batch_size=2.0 must be a whole number"),
        ({"process_count": 3}, "batch_size=4 can't be split evenly over process_count=3"),
        ({"process_count": 0}, "process_count=0 must be"),
        ({"process_index": 2, "process_count": 2}, r"process_index=2 must lie in \[0, 2\)"),
        ({"labels": np.arange(4)}, r"labels are int64 \(4,\); wanted one integer .* the 3 images"),
        ({"labels": np.zeros(3)}, r"labels are float64 \(3,\); wanted one integer"),
        ({"labels": np.array([0, 1, -1])}, "of at least 0 for each of the 3 images"),
        ({"process_index": -1}, r"process_index=-1 must lie in \[0, 1\)"),
    ],
)
def test_unfit_arguments(one_clear_line, make, arguments, match):
    seed = {"seed": 0} if make is train_batches else {}
    arguments = {"images": _numbered(3), "batch_size": 4} | seed | arguments
    with one_clear_line(match):
        make(arguments.pop("images"), **arguments)


@pytest.mark.parametrize("seed", [-1, 2**32, 0.5, True])
def test_unfit_seed(one_clear_line, seed):
    with one_clear_line(rf"seed={seed} must be a whole number in \[0, 2\*\*32\)"):
        train_batches(_numbered(3), batch_size=1, seed=seed)
