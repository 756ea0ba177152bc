"""CIFAR-10 and MNIST, from archives in the original layout to memory-mapped pixels."""

import functools
import hashlib
import http.server
import json
import shutil
import socket
import sys
import threading
import time

import numpy as np
import pytest

from vdm_jax.data import fetch, load, published


def _sorted(images: np.ndarray) -> np.ndarray:
    """Images in an order of their own, to compare sets of images."""
    return images[np.lexsort(images.reshape(len(images), -1)[:, :8].T)]


def _same_images(got: np.ndarray, wanted: np.ndarray) -> None:
    np.testing.assert_array_equal(_sorted(np.asarray(got)), _sorted(wanted))


def test_cifar10_from_its_archive(cifar10, tmp_path, capfd):
    data = load("cifar10", data_dir=tmp_path / "d", manual_dir=cifar10.manual_dir)
    _same_images(data.train, cifar10.images["train"])
    _same_images(data.test, cifar10.images["test"])
    assert isinstance(data.train, np.memmap)
    assert (data.name, data.levels, data.event_shape) == ("cifar10", 256, (32, 32, 3))
    assert data.source is None
    assert "tensorflow" not in sys.modules
    assert not list(tmp_path.rglob("*escaped*"))  # nor anywhere: no member is ever unpacked
    out, err = capfd.readouterr()
    assert out == ""
    assert err.splitlines() == [f"vdm_jax: preparing cifar10 in {tmp_path / 'd'} (once)"]


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


def test_the_decoded_copy_suffices(cifar10, tmp_path):
    first = load("cifar10", data_dir=tmp_path / "d", manual_dir=cifar10.manual_dir)
    shutil.rmtree(tmp_path / "d" / "cifar10")
    shutil.rmtree(cifar10.manual_dir)
    again = load("cifar10", data_dir=tmp_path / "d")
    np.testing.assert_array_equal(again.train, first.train)
    assert again.fingerprint == first.fingerprint


def test_manual_dir_defaults_to_data_dir_manual(cifar10, tmp_path):
    data = load("cifar10", data_dir=tmp_path)
    _same_images(data.train, cifar10.images["train"])


def test_mnist_from_its_archives(mnist, tmp_path):
    data = load("mnist", data_dir=tmp_path / "d", manual_dir=mnist.manual_dir)
    _same_images(data.train, mnist.images["train"])
    _same_images(data.test, mnist.images["test"])
    assert (data.name, data.levels, data.event_shape) == ("mnist", 256, (28, 28, 1))


@pytest.fixture
def server(cifar10):
    """Serves the archives on this machine; gives the address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Quiet, directory=str(cifar10.manual_dir))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}/"
        running.shutdown()


def test_download(cifar10, server, tmp_path, monkeypatch):
    cifar10.register(monkeypatch, server)
    data = load("cifar10", data_dir=tmp_path / "d", manual_dir=tmp_path / "none")
    _same_images(data.train, cifar10.images["train"])
    # What was downloaded is kept: the network isn't asked again.
    shutil.rmtree(tmp_path / "d" / "cifar10")
    shutil.rmtree(tmp_path / "d" / "decoded")
    monkeypatch.setattr(fetch, "unreachable", lambda *_: pytest.fail("asked the network"))
    again = load("cifar10", data_dir=tmp_path / "d", manual_dir=tmp_path / "none")
    assert again.fingerprint == data.fingerprint


def test_download_with_a_wrong_checksum(cifar10, server, tmp_path, monkeypatch, one_clear_line):
    cifar10.register(monkeypatch, server)
    archive = cifar10.archives[0]
    archive.write_bytes(archive.read_bytes() + b"x")
    with one_clear_line("cifar10 has a wrong checksum.*manual_dir="):
        load("cifar10", data_dir=tmp_path / "d", manual_dir=tmp_path / "none")


def test_archive_gone_from_the_server(cifar10, server, tmp_path, monkeypatch, one_clear_line):
    cifar10.register(monkeypatch, server + "gone/")
    with one_clear_line("the server answers HTTP 404"):
        load("cifar10", data_dir=tmp_path / "d", manual_dir=tmp_path / "none")


def test_no_network(cifar10, tmp_path, one_clear_line):
    sha256 = hashlib.sha256(cifar10.archives[0].read_bytes()).hexdigest()
    with one_clear_line(
        "http://127.0.0.1:9/cifar-10-binary.tar.gz can't be downloaded .*no network.*put "
        f"cifar-10-binary.tar.gz .sha256 {sha256}.*manual_dir={tmp_path / 'none'}.*'digits'"
    ):
        load("cifar10", data_dir=tmp_path / "d", manual_dir=tmp_path / "none")
    assert not (tmp_path / "d").exists()  # nothing half-done is left


def test_no_network_names_every_archive_that_is_missing(mnist, tmp_path, one_clear_line):
    kept, *missing = mnist.archives
    with one_clear_line(".*".join(path.name for path in sorted(missing))) as _:
        for path in missing:
            path.unlink()
        load("mnist", data_dir=tmp_path / "d", manual_dir=mnist.manual_dir)
    assert kept.exists()


def test_a_network_that_swallows_everything(cifar10, tmp_path, monkeypatch, one_clear_line):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, never answers
        cifar10.register(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}/")
        with one_clear_line("no answer within 5 s"):
            load("cifar10", data_dir=tmp_path / "d", manual_dir=tmp_path / "none")


def test_a_host_name_that_is_never_found(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: time.sleep(3))
    begun = time.monotonic()
    assert "no answer within 0.2 s" in fetch.unreachable("http://nowhere.invalid/file", 0.2)
    assert time.monotonic() - begun < 2


@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_wrong_checksum_in_manual_dir(cifar10, tmp_path, one_clear_line, damage):
    archive = cifar10.archives[0]
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 1
    archive.write_bytes(content if damage == "flip" else content[:-1000])
    found = hashlib.sha256(content).hexdigest() if damage == "flip" else f"{len(content) - 1000} by"
    with one_clear_line(f"{archive} has a wrong checksum: it has .*{found}.*wanted.*http://"):
        load("cifar10", data_dir=tmp_path / "d", manual_dir=cifar10.manual_dir)


def test_archive_without_a_member(
    cifar10, cifar10_writer, tmp_path, monkeypatch, one_clear_line
):
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
    _same_images(data.train, cifar10.images["train"])


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


def test_interrupted_preparation_is_ignored_and_done_anew(cifar10, tmp_path, caplog):
    leftover = tmp_path / "d" / "cifar10" / "incomplete.ABC123_3.0.2"
    leftover.mkdir(parents=True)
    (leftover / "cifar10-train.array_record-00000-of-00001").write_bytes(b"half")
    data = load("cifar10", data_dir=tmp_path / "d", manual_dir=cifar10.manual_dir)
    _same_images(data.train, cifar10.images["train"])
    assert f"{leftover} is left from an interrupted preparation" in caplog.text


def test_the_table_names_the_original_archives():
    sizes = {
        archive.filename: archive.size
        for spec in published.PUBLISHED.values()
        for archive in spec.archives
    }
    from tensorflow_datasets.core.download import checksums

    known = {info.filename: info.size for info in checksums.get_all_url_infos().values()}
    assert sizes
    for spec in published.PUBLISHED.values():
        for archive in spec.archives:
            info = checksums.get_all_url_infos()[archive.url]
            assert (info.size, info.checksum) == (archive.size, archive.sha256)
            assert known[archive.filename]
