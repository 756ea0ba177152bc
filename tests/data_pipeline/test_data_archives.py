"""Downloads, and what is said where there is none: always one line, within ten seconds."""

import shutil

import pytest
import requests

from vdm_jax.data import archives, load
from vdm_jax.data.cifar10_mnist import PUBLISHED


@pytest.fixture
def open_cifar10(tmp_path):
    return lambda: load("cifar10", data_dir=tmp_path / "d", manual_dir=tmp_path / "none")


def test_a_download_is_kept_and_checked_again(
    cifar10, serve, tmp_path, monkeypatch, open_cifar10, one_clear_line
):
    cifar10.register(monkeypatch, serve(cifar10.manual_dir))
    left = tmp_path / "d" / "downloads" / ".partial-7-0123abcd"  # by a process that was killed
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    cifar10.check(open_cifar10())
    assert not left.exists()
    shutil.rmtree(tmp_path / "d" / "decoded")
    monkeypatch.setattr(requests, "get", lambda *_, **__: pytest.fail("asked the network"))
    cifar10.check(open_cifar10())
    (archive,) = (tmp_path / "d" / "downloads").rglob("*.tar.gz")
    archive.write_bytes(archive.read_bytes()[:-1])
    shutil.rmtree(tmp_path / "d" / "decoded")
    with one_clear_line(f"{archive} has a wrong checksum: .* or delete it"):
        open_cifar10()


def test_downloads_that_are_not_the_archive(
    cifar10, serve, monkeypatch, open_cifar10, one_clear_line
):
    site = serve(cifar10.manual_dir)
    cifar10.register(monkeypatch, site + "gone/")
    with one_clear_line("the server answers HTTP 404"):
        open_cifar10()
    cifar10.register(monkeypatch, site)
    archive = cifar10.archives[0]
    archive.write_bytes(archive.read_bytes() + b"x")
    with one_clear_line(f"{archive.name} has a wrong checksum: .* get it anew from {site}"):
        open_cifar10()


def test_no_network_names_every_archive_that_is_missing(mnist, tmp_path, one_clear_line):
    _, *missing = mnist.archives
    names = {path.name for path in missing}
    every = archives.known("mnist", PUBLISHED["mnist"].files, True)
    order = [archive for archive in every if archive.filename in names]
    for path in missing:
        path.unlink()
    wanted = ", ".join(f"{a.filename} .{a.size:,} bytes, sha256 {a.sha256}." for a in order)
    with one_clear_line(
        f"http://127.0.0.1:9/{order[0].filename} can't be downloaded .*no network.*; put {wanted} "
        f"into manual_dir={mnist.manual_dir}.*'digits'"
    ):
        load("mnist", data_dir=tmp_path / "d", manual_dir=mnist.manual_dir)
    assert not (tmp_path / "d").exists()  # nothing half-done is left
