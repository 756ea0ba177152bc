"""Downloads, and what is said where there is none: always one line, within ten seconds."""

import functools
import hashlib
import http.server
import shutil
import socket
import threading
import time

import pytest

from vdm_jax.data import fetch, load, published


@pytest.fixture
def server(cifar10):
    """Serves the archives on this machine; gives the address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Quiet, directory=str(cifar10.manual_dir))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}/"
        running.shutdown()


def test_download(cifar10, server, tmp_path, monkeypatch):
    cifar10.register(monkeypatch, server)
    data = load("cifar10", data_dir=tmp_path / "d", manual_dir=tmp_path / "none")
    cifar10.check(data)
    # What was downloaded is kept: the network isn't asked again.
    shutil.rmtree(tmp_path / "d" / "cifar10")
    shutil.rmtree(tmp_path / "d" / "decoded")
    monkeypatch.setattr(fetch, "unreachable", lambda *_: pytest.fail("asked the network"))
    again = load("cifar10", data_dir=tmp_path / "d", manual_dir=tmp_path / "none")
    assert again.fingerprint == data.fingerprint


def test_a_download_gone_bad(cifar10, server, tmp_path, monkeypatch, one_clear_line):
    cifar10.register(monkeypatch, server)
    load("cifar10", data_dir=tmp_path / "d", manual_dir=tmp_path / "none")
    (archive,) = (tmp_path / "d" / "downloads").rglob("*.tar.gz")
    archive.write_bytes(archive.read_bytes()[:-1])
    shutil.rmtree(tmp_path / "d" / "cifar10")
    shutil.rmtree(tmp_path / "d" / "decoded")
    with one_clear_line(f"{archive} has a wrong checksum: .* or delete it"):
        load("cifar10", data_dir=tmp_path / "d", manual_dir=tmp_path / "none")


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
        f"cifar-10-binary.tar.gz .[0-9,]+ bytes, sha256 {sha256}.*"
        f"manual_dir={tmp_path / 'none'}.*'digits'"
    ):
        load("cifar10", data_dir=tmp_path / "d", manual_dir=tmp_path / "none")
    assert not (tmp_path / "d").exists()  # nothing half-done is left


def test_no_network_names_every_archive_that_is_missing(mnist, tmp_path, one_clear_line):
    _, *missing = mnist.archives
    for path in missing:
        path.unlink()
    names = {path.name: path for path in missing}
    order = [a.filename for a in published.PUBLISHED["mnist"].archives if a.filename in names]
    with one_clear_line(" .[0-9,]+ bytes, sha256 .*".join(order)):
        load("mnist", data_dir=tmp_path / "d", manual_dir=mnist.manual_dir)


def test_a_network_that_swallows_everything(cifar10, tmp_path, monkeypatch, one_clear_line):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, never answers
        cifar10.register(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}/")
        with one_clear_line("no answer within 5 s"):
            load("cifar10", data_dir=tmp_path / "d", manual_dir=tmp_path / "none")


def test_a_host_name_that_is_never_found(monkeypatch):
    def look_up(*args, **kwargs):
        time.sleep(9)  # in a thread that nobody waits for
        raise socket.gaierror("no such host")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    begun = time.monotonic()
    assert "no answer within 0.2 s" in fetch.unreachable("http://nowhere.invalid/file", 0.2)
    assert time.monotonic() - begun < 8


def test_an_interrupted_preparation_and_no_network(cifar10, tmp_path, one_clear_line, caplog):
    leftover = tmp_path / "d" / "cifar10" / "incomplete.ABC123_3.0.2"
    leftover.mkdir(parents=True)
    with one_clear_line("cifar10 is not on this machine .*manual_dir="):
        load("cifar10", data_dir=tmp_path / "d", manual_dir=tmp_path / "none")
    assert f"{leftover} is an unfinished preparation" in caplog.text
