"""Small archives in place of the published ones."""

import io
import tarfile

from vdm_jax.data import archives, file_states
from vdm_jax.data.archives import Archive


def register(monkeypatch, paths, site: str) -> None:
    """Has the sizes and checksums of these files taken for those of the archives of their names."""
    told = {path.name: (path.stat().st_size, file_states.sha256(path)) for path in paths}

    def known(dataset, files, offered):
        return [Archive(site + file, *told[file], offered) for file in files]

    monkeypatch.setattr(archives, "known", known)


def add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
