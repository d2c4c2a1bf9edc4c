"""The demo's data: two sets that come with scikit-learn, and any set in MNIST's IDX format."""

import gzip
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class DataError(ValueError):
    """A data file that is missing or is not what its name says. The message is one line for the user."""


class Split(NamedTuple):
    x: NDArray[np.floating]  # float32, (rows, features)
    y: NDArray[np.number]  # (rows,), float32 targets or int32 classes


@dataclass(frozen=True, eq=False)
class Dataset:
    name: str
    train: Split
    test: Split
    classes: int | None = None  # None: a regression


def diabetes(seed: int) -> Dataset:
    """442 patients, 10 measurements, the disease's progression; standardised by the training rows alone."""
    from sklearn.datasets import load_diabetes

    x, y = load_diabetes(return_X_y=True, scaled=False)
    train, test = _split_rows(len(x), seed)

    def standardise(values: NDArray) -> NDArray:
        return ((values - values[train].mean(0)) / values[train].std(0)).astype(np.float32)

    x, y = standardise(np.asarray(x)), standardise(np.asarray(y))
    return Dataset("diabetes", Split(x[train], y[train]), Split(x[test], y[test]))


def digits(seed: int) -> Dataset:
    """1797 handwritten digits of 8 x 8 pixels, scaled to [0, 1]."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x, y = np.asarray(x, np.float32) / 16, np.asarray(y, np.int32)
    train, test = _split_rows(len(x), seed)
    return Dataset("digits", Split(x[train], y[train]), Split(x[test], y[test]), classes=10)


def idx_directory(directory: Path) -> Dataset:
    """MNIST's four files (gzipped or not) in `directory`, pixels scaled to [0, 1]; the set is named after it."""
    if not directory.is_dir():
        raise DataError(f"{directory}: no such directory")
    train, test = _idx_split(directory, "train"), _idx_split(directory, "t10k")
    if train.x.shape[1] != test.x.shape[1]:
        raise DataError(f"{directory}: training images have {train.x.shape[1]} pixels, test images {test.x.shape[1]}")
    return Dataset(directory.resolve().name, train, test, classes=int(max(train.y.max(), test.y.max())) + 1)


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """The array of unsigned bytes in an IDX file: two zeros, the type (8), the rank, big-endian sizes, the values."""
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from None
    if not content:
        raise DataError(f"{path}: the file is empty")
    magic = bytes([0, 0, 8, dimensions])
    if content[:4] != magic:
        raise DataError(
            f"{path}: not an IDX file of {dimensions}-d bytes: starts {content[:4].hex()}, not {magic.hex()}"
        )
    start = 4 + 4 * dimensions
    if len(content) < start:
        raise DataError(f"{path}: truncated: {len(content)} bytes do not hold the {start} of its header")
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    if len(content) - start != math.prod(shape):
        sizes = " x ".join(map(str, shape))
        raise DataError(f"{path}: truncated or corrupt: {sizes} bytes announced, {len(content) - start} found")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _idx_split(directory: Path, prefix: str) -> Split:
    images = read_idx(_find(directory, f"{prefix}-images-idx3-ubyte"), 3)
    labels = read_idx(_find(directory, f"{prefix}-labels-idx1-ubyte"), 1)
    if len(images) != len(labels) or not images.size:
        raise DataError(f"{directory}: {prefix}: {len(images)} images and {len(labels)} labels")
    return Split(images.reshape(len(images), -1).astype(np.float32) / 255, labels.astype(np.int32))


def _find(directory: Path, name: str) -> Path:
    for path in (directory / name, directory / f"{name}.gz"):
        if path.is_file():
            return path
    raise DataError(f"{directory}: neither {name} nor {name}.gz is there")


def _split_rows(rows: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row numbers of a random fifth for testing, and of the rest for training."""
    order = np.random.default_rng(seed).permutation(rows)
    return order[rows // 5 :], order[: rows // 5]
