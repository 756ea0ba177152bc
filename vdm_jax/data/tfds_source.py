"""CIFAR-10 and MNIST through tensorflow-datasets, without TensorFlow.

The official builders need TensorFlow only to unpack archives and to encode PNGs. A subclass
does those two with the standard library and Pillow; keys, fields and pixels are the official
ones, and with them the order of the records. The result is decoded once into `vdm_jax.data.cache`.
"""

import contextlib
import hashlib
import io
import json
import logging
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from vdm_jax.data import cache, picture
from vdm_jax.data.errors import DataError
from vdm_jax.data.fetch import import_tfds, require_archives, wrong_download
from vdm_jax.data.images import ImageData
from vdm_jax.data.published import PUBLISHED, Published
from vdm_jax.errors import reason

LEVELS = 256
_FORMAT = "array_record"
_log = logging.getLogger(__name__)


def load_published(name: str, data_dir: Path, manual_dir: Path | None) -> ImageData:
    """Returns a data set of the table `PUBLISHED`, uint8 with 256 levels, memory-mapped.

    The first of these that exists is used: the decoded copy in `data_dir/decoded`; the
    tensorflow-datasets folder `data_dir/NAME/VERSION` (array_record only); the archives in
    `manual_dir`; a download. Both parts are in the order of the tensorflow-datasets records.

    Args:
      name: a key of `PUBLISHED`.
      data_dir: where everything is kept.
      manual_dir: a folder with the original archives; `data_dir/manual` where it isn't given.

    Raises:
      DataError: it can't be had, or what is in `data_dir` or `manual_dir` is unfit.
    """
    spec = PUBLISHED[name]
    content = "".join(archive.sha256 for archive in spec.archives)
    key = f"{name}-{hashlib.sha256(content.encode()).hexdigest()[:16]}"
    folder = cache.decoded(data_dir, key)
    if not folder.exists():
        builder = _prepared_builder(spec, data_dir, manual_dir or data_dir / "manual")
        train, train_label = _decode(builder, spec, "train")
        test, test_label = _decode(builder, spec, "test")
        labels = {"train": train_label, "test": test_label}
        names = builder.info.features["label"].names
        cache.write(folder, train, test, LEVELS, labels=labels, label_names=names)
    return cache.read(folder, name)


def _prepared_builder(spec: Published, data_dir: Path, manual_dir: Path) -> Any:
    tfds = import_tfds(spec.name)
    builder_class = _builder_class(tfds, spec)
    folder = data_dir / spec.name / str(builder_class.VERSION)
    if not folder.exists():
        _warn_of_leftovers(folder)
        instead = "use the embedded data set 'digits'"
        require_archives(spec.name, spec.archives, data_dir, manual_dir, instead)
        _prepare(tfds, builder_class, data_dir, manual_dir)
    check_prepared(folder, spec)
    return builder_class(data_dir=str(data_dir), file_format=_FORMAT)


def _builder_class(tfds: Any, spec: Published) -> Any:
    """Returns the official builder of `spec` with other ways to unpack and to encode."""
    from tensorflow_datasets.core.download.checksums import UrlInfo

    official: Any = tfds.builder_cls(spec.name)

    class WithoutTensorFlow(official, skip_registration=True):  # type: ignore[call-arg]
        name = spec.name
        url_infos: ClassVar = {
            archive.url: UrlInfo(archive.size, archive.sha256, archive.filename)
            for archive in spec.archives
        }

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            urls = {archive.filename: archive.url for archive in spec.archives}
            paths = {key: Path(path) for key, path in dl_manager.download(urls).items()}
            if spec.label_names is not None:
                self.info.features["label"].names = spec.label_names(paths)
            return {split: spec.records(split, paths) for split in ("train", "test")}

    return WithoutTensorFlow


def _warn_of_leftovers(folder: Path) -> None:
    for leftover in sorted(folder.parent.glob(f"incomplete.*_{folder.name}")):
        _log.warning(
            "%s is an unfinished preparation and not used; delete it, unless another process is "
            "at work on it",
            leftover,
        )


def _prepare(tfds: Any, builder_class: Any, data_dir: Path, manual_dir: Path) -> None:
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError
    from tensorflow_datasets.core.download.util import DownloadError

    builder = builder_class(data_dir=str(data_dir), file_format=_FORMAT)
    print(f"vdm_jax: preparing {builder.name} in {data_dir} (once)", file=sys.stderr)
    tfds.disable_progress_bar()
    config = tfds.download.DownloadConfig(manual_dir=str(manual_dir), try_download_gcs=False)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints where it writes
            builder.download_and_prepare(download_config=config)
    except NonMatchingChecksumError as error:
        raise wrong_download(builder.name, error, manual_dir) from error
    except (OSError, DownloadError) as error:
        if Path(builder.data_dir).exists():  # another process was first: use its copy
            return
        raise DataError(
            f"{builder.name} could not be prepared in {data_dir}: {reason(error)}; see to the "
            f"network and the disk, or put the original archive into manual_dir={manual_dir}"
        ) from error


def check_prepared(folder: Path, spec: Published) -> None:
    """Raises DataError unless `folder` is a whole tensorflow-datasets folder in array_record."""
    mend = f"delete {folder} or choose another data_dir"
    try:
        info = json.loads((folder / "dataset_info.json").read_bytes())
        splits = {part["name"]: [int(n) for n in part["shardLengths"]] for part in info["splits"]}
        kind = info["fileFormat"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        if kinds := _foreign_files(folder):
            raise _other_format(folder, kinds, mend) from error
        raise DataError(
            f"{folder} is half-written or damaged (dataset_info.json: {reason(error)}); {mend}"
        ) from error
    if kind != _FORMAT:
        raise _other_format(folder, kind, mend)
    counts = {split: sum(lengths) for split, lengths in splits.items()}
    if counts != dict(spec.counts):
        raise DataError(f"{folder} holds {counts} images; wanted {dict(spec.counts)}; {mend}")
    for split, lengths in splits.items():
        for i in range(len(lengths)):
            shard = folder / f"{spec.name}-{split}.{_FORMAT}-{i:05d}-of-{len(lengths):05d}"
            if not shard.is_file():
                raise DataError(f"{folder} is half-written: {shard.name} is missing; {mend}")


def _other_format(folder: Path, kind: str, mend: str) -> DataError:
    return DataError(f"{folder} holds {kind} files; wanted {_FORMAT}; {mend}")


def _foreign_files(folder: Path) -> str:
    """The formats of the record files in `folder` other than array_record, e.g. "tfrecord"."""
    known = ("tfrecord", "riegeli", "parquet", "bagz")
    names = [path.name for path in folder.glob("*")] if folder.is_dir() else []
    return ", ".join(kind for kind in known if any(f".{kind}" in name for name in names))


def _decode(builder: Any, spec: Published, split: str) -> tuple[np.ndarray, np.ndarray]:
    import tensorflow_datasets as tfds

    out = np.empty((spec.counts[split], *spec.event_shape), np.uint8)
    labels = np.empty(len(out), np.int32)
    try:
        skip = {"image": tfds.decode.SkipDecoding()}
        records = builder.as_data_source(split, decoders=skip)
        for i in range(len(out)):
            record = records[i]
            pixels = picture.pixels(picture.decode(record["image"], spec.event_shape[-1]))
            out[i], labels[i] = pixels.reshape(spec.event_shape), record["label"]
    except (OSError, RuntimeError, ValueError, IndexError) as error:
        raise DataError(
            f"the {split} records in {builder.data_path} can't be read ({reason(error)}); delete "
            "that folder and run again to rebuild it"
        ) from error
    return out, labels
