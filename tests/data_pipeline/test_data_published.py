"""CIFAR-10 and MNIST, from archives in the original layout to memory-mapped pixels."""

import hashlib
import json
import shutil
import sys

import numpy as np
import pytest

from vdm_jax.data import load, published


def test_cifar10_from_its_archive(cifar10, tmp_path, capfd):
    data = load("cifar10", data_dir=tmp_path / "d", manual_dir=cifar10.manual_dir)
    cifar10.check(data)
    assert isinstance(data.train, np.memmap)
    assert (data.name, data.levels, data.event_shape) == ("cifar10", 256, (32, 32, 3))
    assert data.source is None
    assert "tensorflow" not in sys.modules
    assert not list(tmp_path.rglob("*escaped*"))  # nor anywhere: no member is ever unpacked
    out, err = capfd.readouterr()
    assert out == ""
    assert f"vdm_jax: preparing cifar10 in {tmp_path / 'd'} (once)" in err.splitlines()
    assert "examples" not in err  # no progress bars


def test_the_official_builder_reads_the_prepared_folder(cifar10, tmp_path):
    data = load("cifar10", data_dir=tmp_path / "d", manual_dir=cifar10.manual_dir)
    import tensorflow_datasets as tfds

    builder = tfds.builder_cls("cifar10")(data_dir=str(tmp_path / "d"))
    assert builder.info.features["label"].names == [f"label{i}" for i in range(10)]
    for split, images in cifar10.images.items():
        records = list(builder.as_data_source(split))
        order = [int(record["id"].decode().removeprefix(f"{split}_")) for record in records]
        assert sorted(order) == list(range(len(images)))
        np.testing.assert_array_equal([record["image"] for record in records], images[order])
        np.testing.assert_array_equal(getattr(data, split), images[order])


def test_cifar10_records_keep_the_official_order(cifar10, tmp_path):
    # The official builder's keys are the images' places; records are sorted by the keys' hashes.
    from tensorflow_datasets.core.hashing import Hasher

    data = load("cifar10", data_dir=tmp_path / "d", manual_dir=cifar10.manual_dir)
    for split, images in cifar10.images.items():
        order = sorted(range(len(images)), key=Hasher(split).hash_key)
        np.testing.assert_array_equal(getattr(data, split), images[order])


def _number_of(image: np.ndarray, images: np.ndarray) -> int:
    (number,) = np.flatnonzero((images == image).all(axis=(1, 2, 3)))
    return int(number)


@pytest.mark.parametrize("name", ["cifar10", "mnist"])
def test_every_image_keeps_its_class_label(name, request, tmp_path):
    small = request.getfixturevalue(name)
    for _ in range(2):  # as decoded, and from the copy
        data = load(name, data_dir=tmp_path / "d", manual_dir=small.manual_dir)
        for split, images in small.images.items():
            numbers = np.array([_number_of(image, images) for image in getattr(data, split)])
            np.testing.assert_array_equal(data.labels[split], numbers % 10)  # as they were written
        named = "label{}" if name == "cifar10" else "{}"
        assert data.label_names == tuple(named.format(i) for i in range(10))


def test_the_decoded_copy_suffices(cifar10, tmp_path):
    first = load("cifar10", data_dir=tmp_path / "d", manual_dir=cifar10.manual_dir)
    shutil.rmtree(tmp_path / "d" / "cifar10")
    shutil.rmtree(cifar10.manual_dir)
    again = load("cifar10", data_dir=tmp_path / "d")
    np.testing.assert_array_equal(again.train, first.train)
    assert again.fingerprint == first.fingerprint


def test_manual_dir_defaults_to_data_dir_manual(cifar10, tmp_path):
    data = load("cifar10", data_dir=tmp_path)
    cifar10.check(data)


def test_mnist_from_its_archives(mnist, tmp_path):
    data = load("mnist", data_dir=tmp_path / "d", manual_dir=mnist.manual_dir)
    mnist.check(data)
    assert (data.name, data.levels, data.event_shape) == ("mnist", 256, (28, 28, 1))


@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_wrong_checksum_in_manual_dir(cifar10, tmp_path, one_clear_line, damage):
    archive = cifar10.archives[0]
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 1
    archive.write_bytes(content if damage == "flip" else content[:-1000])
    found = hashlib.sha256(content).hexdigest() if damage == "flip" else f"{len(content) - 1000} by"
    with one_clear_line(f"{archive} has a wrong checksum: it has .*{found}.*wanted.*http://"):
        load("cifar10", data_dir=tmp_path / "d", manual_dir=cifar10.manual_dir)


def test_archive_without_a_member(cifar10, cifar10_writer, tmp_path, monkeypatch, one_clear_line):
    cifar10_writer(cifar10.archives[0], cifar10.images, without="data_batch_3.bin")
    cifar10.register(monkeypatch)
    with one_clear_line("holds no cifar-10-batches-bin/data_batch_3.bin"):
        load("cifar10", data_dir=tmp_path / "d", manual_dir=cifar10.manual_dir)


def test_archive_with_a_cut_member(cifar10, cifar10_writer, tmp_path, monkeypatch, one_clear_line):
    cifar10_writer(cifar10.archives[0], cifar10.images, cut=1)
    cifar10.register(monkeypatch)
    with one_clear_line("data_batch_1.bin .* has 15364 bytes; wanted a multiple of 3073"):
        load("cifar10", data_dir=tmp_path / "d", manual_dir=cifar10.manual_dir)


def test_archive_of_another_kind(mnist, tmp_path, monkeypatch, one_clear_line):
    for path in mnist.archives:
        path.write_bytes(b"no gzip at all")
    mnist.register(monkeypatch)
    with one_clear_line("train-images-idx3-ubyte.gz is no gzipped IDX file"):
        load("mnist", data_dir=tmp_path / "d", manual_dir=mnist.manual_dir)


@pytest.fixture
def prepared(cifar10, tmp_path):
    """The tensorflow-datasets folder of a prepared CIFAR-10 without the decoded copy."""
    load("cifar10", data_dir=tmp_path / "d", manual_dir=cifar10.manual_dir)
    shutil.rmtree(tmp_path / "d" / "decoded")
    (folder,) = (tmp_path / "d" / "cifar10").iterdir()
    return folder


def _shard(folder):
    (path,) = folder.glob("cifar10-train.array_record-*")
    return path


def test_a_prepared_folder_needs_no_archive(cifar10, prepared, tmp_path):
    data = load("cifar10", data_dir=tmp_path / "d", manual_dir=tmp_path / "none")
    cifar10.check(data)


def test_half_written_folder(prepared, tmp_path, one_clear_line):
    (prepared / "dataset_info.json").unlink()
    with one_clear_line(f"{prepared} is half-written.*delete {prepared}"):
        load("cifar10", data_dir=tmp_path / "d")


def test_empty_folder(prepared, tmp_path, one_clear_line):
    shutil.rmtree(prepared)
    prepared.mkdir()
    with one_clear_line(f"{prepared} is half-written.*delete {prepared}"):
        load("cifar10", data_dir=tmp_path / "d")


def test_missing_shard(prepared, tmp_path, one_clear_line):
    _shard(prepared).unlink()
    with one_clear_line("half-written: cifar10-train.array_record-00000-of-00001 is missing"):
        load("cifar10", data_dir=tmp_path / "d")


def test_cut_shard(prepared, tmp_path, one_clear_line):
    shard = _shard(prepared)
    shard.write_bytes(shard.read_bytes()[:-70_000])
    with one_clear_line("the train records in .* can't be read .*delete that folder"):
        load("cifar10", data_dir=tmp_path / "d")


def test_folder_with_fewer_images(prepared, tmp_path, one_clear_line):
    info = prepared / "dataset_info.json"
    info.write_text(info.read_text().replace('"25"', '"24"'))
    with one_clear_line("holds {'train': 24, 'test': 7} images; wanted {'train': 25, 'test': 7}"):
        load("cifar10", data_dir=tmp_path / "d")


def test_tfrecord_folder(prepared, tmp_path, one_clear_line):
    info = prepared / "dataset_info.json"
    content = json.loads(info.read_text()) | {"fileFormat": "tfrecord"}
    info.write_text(json.dumps(content))
    shard = _shard(prepared)
    shard.rename(shard.with_name(shard.name.replace("array_record", "tfrecord")))
    with one_clear_line("holds tfrecord files; wanted array_record; delete .*another data_dir"):
        load("cifar10", data_dir=tmp_path / "d")


def test_tfrecord_files_without_their_description(cifar10, tmp_path, one_clear_line):
    folder = tmp_path / "d" / "cifar10" / "3.0.2"
    folder.mkdir(parents=True)
    (folder / "cifar10-train.tfrecord-00000-of-00001").write_bytes(b"")
    with one_clear_line("holds tfrecord files; wanted array_record"):
        load("cifar10", data_dir=tmp_path / "d", manual_dir=cifar10.manual_dir)


def test_an_interrupted_preparation_is_done_anew(cifar10, tmp_path, caplog):
    leftover = tmp_path / "d" / "cifar10" / "incomplete.ABC123_3.0.2"
    leftover.mkdir(parents=True)
    (leftover / "cifar10-train.array_record-00000-of-00001").write_bytes(b"half")
    data = load("cifar10", data_dir=tmp_path / "d", manual_dir=cifar10.manual_dir)
    cifar10.check(data)
    assert f"{leftover} is an unfinished preparation and not used" in caplog.text


def test_the_table_agrees_with_tensorflow_datasets():
    from tensorflow_datasets.core.download import checksums

    known = checksums.get_all_url_infos()
    for spec in published.PUBLISHED.values():
        for archive in spec.archives:
            info = known[archive.url]
            assert (info.size, info.checksum) == (archive.size, archive.sha256)
            assert info.filename == archive.filename
