"""The files of a bundle, from its folder or its zip, with limits: nothing is unpacked to disk, nothing in them executes."""

from __future__ import annotations

import lzma
import zipfile
import zlib
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors

from pipeline.errors import Refused

WEIGHTS, SELFTEST = "weights.safetensors", "selftest.safetensors"
LARGEST = {"model.json": 2**24, SELFTEST: 2**30}  # bytes; of weights and all else:
LARGEST_WEIGHTS = 2**34
UNZIPPING = (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError, EOFError, ValueError, zlib.error, lzma.LZMAError)


def read_tensors(bundle: Path, name: str) -> dict[str, torch.Tensor]:
    """The tensors of one file of a bundle. Raises Refused where it is no safetensors file, or too large."""
    try:
        return load_tensors(read_file(bundle, name))
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise Refused(f"{bundle}: {name} is not in the safetensors format ({str(error)[:160]})") from None


def file_size(bundle: Path, name: str) -> int:
    """The bytes of one file of a bundle. Raises Refused where it is not there."""
    try:
        if bundle.is_dir():
            if not (bundle / name).is_file():
                raise FileNotFoundError
            return (bundle / name).stat().st_size
        with zipfile.ZipFile(bundle) as archive:
            return archive.getinfo(name).file_size
    except FileNotFoundError:
        missing = f"no {name} in it: is it a bundle?" if bundle.exists() else "no such bundle"
        raise Refused(f"{bundle}: {missing}") from None
    except KeyError:
        raise Refused(f"{bundle}: no {name} at the top of the zip: is it a bundle?") from None
    except UNZIPPING as error:
        raise Refused(f"{bundle}: is neither a bundle folder nor a zip of one ({error})") from None


def read_file(bundle: Path, name: str) -> bytes:
    """One file of a bundle, from its folder or its zip: nothing is unpacked to disk. Raises Refused where it is too large."""
    size, largest = file_size(bundle, name), LARGEST.get(name, LARGEST_WEIGHTS)
    if size > largest:
        raise Refused(f"{bundle}: {name} has {size:,} bytes, at most {largest:,} are read")
    try:
        if bundle.is_dir():
            return (bundle / name).read_bytes()
        with zipfile.ZipFile(bundle) as archive:
            return archive.read(name)
    except UNZIPPING as error:
        raise Refused(f"{bundle}: {name} cannot be read ({error}): copy the bundle again") from None
