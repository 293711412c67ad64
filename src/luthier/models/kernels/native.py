"""The C kernels, compiled for this machine at first use and kept in the cache.

Compiling takes a few seconds, once for a machine and a version. Nothing depends on it: where there is no compiler, or
what it made cannot be loaded, `library` is None and `trouble` says why; training is slower then.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from luthier.models.catalog import cache_folder
from luthier.models.processor import features

FOLDER = Path(__file__).parent
SOURCES = ("elementwise.c", "attention.c", "dequantize.c", "low_rank.c")
HEADERS = ("common.h", "product.h", "both_types.h")
FLAGS = ("-O3", "-march=native", "-fopenmp", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-std=gnu11")
SUFFIXES = {torch.bfloat16: "_bf16", torch.float32: "_f32"}


class Unavailable(Exception):
    """There are no compiled kernels; the message says why."""


@cache
def _found() -> tuple[ctypes.CDLL | None, str]:
    if os.environ.get("LUTHIER_NATIVE") == "0":
        return None, "switched off by LUTHIER_NATIVE=0"
    try:
        return _load(_compiled()), ""
    except Unavailable as error:
        return None, str(error)


_refused: list[str] = []


def library() -> ctypes.CDLL | None:
    """The compiled kernels; None: there are none."""
    return None if _refused else _found()[0]


def trouble() -> str:
    """Why there are no compiled kernels; empty if there are."""
    return _refused[0] if _refused else _found()[1]


def refuse(reason: str) -> None:
    """From now on this process has no kernels."""
    _refused.append(reason)


def identity() -> str:
    """Which arithmetic layers are computed with: `native` or `plain`. A resumed run must have the same."""
    return "plain" if library() is None else "native"


def _compiled() -> Path:
    """The library for this machine and these sources; compiled if it is not in the cache.

    Raises:
        Unavailable: no compiler, or it failed.
    """
    given = os.environ.get("CC")
    compiler = next((c for c in ([given] if given else ["cc", "gcc", "clang"]) if shutil.which(c)), None)
    if compiler is None:
        raise Unavailable(f"no C compiler ({given or 'cc, gcc or clang'}) was found")
    place = cache_folder() / "kernels" / f"{_key(compiler)}.so"
    if place.is_file():
        return place
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent) as folder:
            objects = [str(Path(folder) / f"{source}.o") for source in SOURCES]
            for source, made in zip(SOURCES, objects, strict=True):
                _run([compiler, *FLAGS, "-c", str(FOLDER / source), "-o", made])
            # without -fopenmp: torch brings the OpenMP library, and two of them would fight over the cores
            _run([compiler, "-shared", *objects, "-o", f"{folder}/kernels.so", "-lm"])
            os.replace(f"{folder}/kernels.so", place)
    except OSError as error:
        raise Unavailable(f"the kernels could not be kept in {place.parent}: {error}") from None
    return place


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unavailable(f"{command[0]} failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")


def _key(compiler: str) -> str:
    """Names everything that the machine code depends on."""
    digest = hashlib.sha256(repr(FLAGS).encode())
    for name in (*SOURCES, *HEADERS):
        digest.update((FOLDER / name).read_bytes())
    done = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False)
    digest.update(done.stdout.encode() + platform.machine().encode())
    digest.update(" ".join(sorted(features())).encode())  # a cache may be shared by machines with other processors
    return digest.hexdigest()[:24]


def _load(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path), mode=os.RTLD_NOW)
    except OSError as error:
        raise Unavailable(f"{path} could not be loaded: {error}") from None


Argument: TypeAlias = "Tensor | int | float | ctypes._CArgObject | None"


def call(name: str, dtype: torch.dtype, *arguments: Argument) -> None:
    """Call a kernel: tensors go as pointers, None as a null pointer, numbers as long or float, and
    `ctypes.byref` of a structure as it is.

    Tensors must be contiguous and on the CPU; the caller sees to it.

    Raises:
        Unavailable: there are no kernels.
    """
    kernels = library()
    if kernels is None:
        raise Unavailable(trouble())
    kernels[name + SUFFIXES[dtype]](*map(_argument, arguments))


def _argument(value: Argument) -> object:
    if isinstance(value, Tensor):
        return ctypes.c_void_p(value.data_ptr())
    if isinstance(value, int):
        return ctypes.c_long(value)
    if isinstance(value, float):
        return ctypes.c_float(value)
    return value


def serves(x: Tensor) -> bool:
    """Whether the kernels compute with tensors like `x`."""
    return x.device.type == "cpu" and x.dtype in SUFFIXES and library() is not None
