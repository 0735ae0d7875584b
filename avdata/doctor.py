"""What this machine has for the work, and what to do about what is missing.

Libraries are proven in processes of their own: a broken one may not only raise but take its process with it.
Those that stand on torch share one process, since loading torch is most of the work; the one at which a
process ends is the broken one, and the others are proven in a new one.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from avdata.media.decoders import DECODERS
from avdata.storage.backends import BACKENDS
from avdata.storage.paths import cache_dir

PROBE_TIMEOUT_S = 120

LOW_DISK_BYTES = 10_000_000_000


@dataclass(frozen=True)
class Check:
    """One thing looked at.

    Attributes:
        name: what.
        ok: whether it is as it should be; None where it is merely told.
        needed: whether work is impossible without.
        found: what is there.
        advice: what to do, where something is missing.
    """

    name: str
    ok: bool | None
    needed: bool
    found: str
    advice: str | None = None


@dataclass(frozen=True)
class _Library:
    """A library: its distribution, a line of Python that proves it, and what to do where that fails."""

    name: str
    probe: str
    needed: bool
    use: str
    advice: str


_TORCH = (
    "torch, torchvision and torchaudio must be builds of one family: "
    'pip install "torch>=2.11,<2.15" "torchvision>=0.26,<0.29.2" "torchaudio>=2.11,<2.12"'
)

_GPU = _Library(
    "GPU",
    "import torch; cuda = torch.cuda.is_available();"
    "said = (torch.cuda.get_device_name(0) if cuda else"
    " 'Apple GPU' if torch.backends.mps.is_available() else '')",
    False, "", "",
)  # fmt: skip

_TORCH_FAMILY = (
    _Library("torch", "import torch; torch.zeros(1).sum()", True, "tensors and log-mels", _TORCH),
    _Library(
        "torchvision",
        "import torch; from torchvision.io import decode_jpeg; from PIL import Image; import io;"
        "b = io.BytesIO(); Image.new('RGB', (8, 8)).save(b, 'JPEG');"
        "decode_jpeg(torch.frombuffer(bytearray(b.getvalue()), dtype=torch.uint8))",
        True, "frames of JPEG strips", _TORCH,
    ),
    _Library("torchaudio", "import torchaudio.transforms", False, "augmentation in training", _TORCH),
    _Library("lightning", "from lightning.fabric import Fabric", False, "training", "pip install lightning"),
    _GPU,
)  # fmt: skip

_OTHERS = (
    *(
        _Library(decoder.package, decoder.probe, decoder.required, decoder.use, decoder.advice)
        for decoder in DECODERS.values()
    ),
    _Library("soxr", "import soxr", True, "resampling", "pip install soxr"),
    _Library("soundfile", "import soundfile", True, "keeps sound as FLAC", "pip install soundfile"),
    _Library("pyarrow", "import pyarrow.parquet", True, "the index", "pip install pyarrow"),
    _Library("numba", "import numba", False, "fast neurons on CPUs", "pip install numba"),
    *(
        _Library(
            backend.package, f"import {backend.package}", False, f"{backend.schemes[0]}:// datasets",
            backend.install_command or "",
        )
        for backend in BACKENDS
        if backend.package
    ),
    _Library("ray", "import ray", False, "preparing on many machines", "pip install 'avdata[ray]'"),
    _Library(
        "opencv-python-headless", "import cv2; cv2.CascadeClassifier", False, "video.resize_mode=face",
        "pip install 'avdata[face]'",
    ),
)  # fmt: skip

_LIBRARY_GROUPS = (_TORCH_FAMILY, _OTHERS)
"""What is proven in one process, in turn; the chains run side by side."""

_PROBE_SCRIPT = """
import json, os, sys
out = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what a library prints is no answer
for proof in json.load(sys.stdin):
    told, trouble = {}, None
    try:
        exec(proof, told)
    except BaseException as error:
        trouble = f"{type(error).__name__}: {error}".strip().splitlines()[-1]
    print(json.dumps([trouble, told.get("said", "")]), file=out, flush=True)
"""
"""Runs lines of this file, read from stdin; answers each with what went wrong and what it found."""

_CODECS = ("h264", "hevc", "vp6f", "vp9", "av1", "flv", "mpeg4", "aac", "mp3", "opus", "vorbis", "pcm_s16le")
"""What public datasets come in."""

_TOKENS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "Hugging Face": (("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"), ("~/.cache/huggingface/token",)),
    "Kaggle": (("KAGGLE_API_TOKEN", "KAGGLE_KEY"), ("~/.kaggle/kaggle.json", "~/.kaggle/access_token")),
}
"""Where tokens may be: variables and files. Only whether they exist is looked at."""

_TOKEN_ADVICE = {
    "Hugging Face": "needed to publish, and for gated sets: hf auth login",
    "Kaggle": "needed where Kaggle asks for consent (urbansound8k-av): save ~/.kaggle/kaggle.json",
}


def check_environment() -> list[Check]:
    """Look at this machine: libraries, decoders, ffmpeg, GPU, disk, cache and tokens."""
    found = [
        Check("avdata", True, True, _version("avdata") or "not installed as a package"),
        Check("python", sys.version_info >= (3, 11), True, f"{platform.python_version()}, {sys.executable}"),
        Check("machine", None, False, f"{platform.platform()}, {os.cpu_count()} processors"),
    ]
    known = [library for chain in _LIBRARY_GROUPS for library in chain]
    with ThreadPoolExecutor() as pool:
        asked = [[one for one in chain if one is _GPU or _version(one.name)] for chain in _LIBRARY_GROUPS]
        answers = {name: answer for held in pool.map(_probe, asked) for name, answer in held.items()}
    found += [_library(one, answers) for one in known if one is not _GPU]
    return [*found, _decoders(), _ffmpeg(), _gpu(answers), *_disk_space(), *_tokens()]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _library(library: _Library, answers: Mapping[str, tuple[str | None, str]]) -> Check:
    installed = _version(library.name)
    if installed is None:
        state = f"not installed ({library.use})"
        return Check(library.name, False if library.needed else None, library.needed, state, library.advice)
    trouble, _ = answers[library.name]
    if trouble is None:
        return Check(library.name, True, library.needed, f"{installed}: {library.use}")
    said = f"{installed} does not work: {trouble}"
    return Check(library.name, False, library.needed, said, library.advice)


def _probe(libraries: Sequence[_Library]) -> dict[str, tuple[str | None, str]]:
    """By name, what went wrong with each library, None where nothing did, and what its proof found.

    A process that ends or hangs ends at the library whose answer is missing; the others get a new process.
    """
    answers: dict[str, tuple[str | None, str]] = {}
    left = list(libraries)
    while left:
        said, end = _answers([one.probe for one in left])
        given = [json.loads(line) for line in said.splitlines()]
        answers |= {one.name: (trouble, text) for one, (trouble, text) in zip(left, given, strict=False)}
        left = left[len(given) :]
        if left:
            answers[left.pop(0).name] = (end, "")
    return answers


def _answers(proofs: Sequence[str]) -> tuple[str, str]:
    """What one process answers to proofs, a line each, and how it ended."""
    try:
        done = subprocess.run(  # noqa: S603  # our own interpreter, and lines of this file
            [sys.executable, "-c", _PROBE_SCRIPT],
            input=json.dumps(proofs), capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as late:
        said = late.stdout or b""
        return said.decode() if isinstance(said, bytes) else said, f"not loaded within {PROBE_TIMEOUT_S} s"
    return done.stdout, f"it ended the process with code {done.returncode}"


def _decoders() -> Check:
    try:
        import av  # noqa: PLC0415
    except ImportError:
        return Check("decoders", False, True, "none: PyAV does not load", "pip install --upgrade av")
    missing = [name for name in _CODECS if not _can_decode(name)]
    opens = ", ".join(name for name in _CODECS if name not in missing)
    advice = f"clips in {', '.join(missing)} cannot be used: pip install --upgrade av" if missing else None
    library = ".".join(map(str, av.library_versions.get("libavcodec", ())))
    return Check("decoders", not missing, False, f"libavcodec {library} opens {opens}", advice)


def _can_decode(name: str) -> bool:
    import av  # noqa: PLC0415

    try:
        av.codec.Codec(name, "r")
    except ValueError:
        return False
    return True


def _ffmpeg() -> Check:
    path = shutil.which("ffmpeg")
    return Check("ffmpeg", None, False, f"{path or 'no program'}; not needed, PyAV brings its libraries")


def _gpu(answers: Mapping[str, tuple[str | None, str]]) -> Check:
    _, name = answers.get(_GPU.name, (None, ""))
    return Check("GPU", None, False, name or "none that torch sees; only training would use it")


def _disk_space() -> list[Check]:
    cache = cache_dir()
    there = next(path for path in (cache, *cache.parents) if path.exists())
    found = []
    for name, place in (("disk here", Path.cwd()), ("cache", there)):
        free = shutil.disk_usage(place).free
        where = cache if name == "cache" else place
        advice = "CREMA-D wants 3 GB, UrbanSound8K 12 GB" + (
            "; AVDATA_CACHE moves the cache" if name == "cache" else ""
        )
        low = free < LOW_DISK_BYTES
        said = f"{where}, {free / 1e9:.1f} GB free"
        found.append(Check(name, not low, False, said, advice if low else None))
    if not os.access(there, os.W_OK):
        advice = "set AVDATA_CACHE to a folder you may write to"
        found.append(Check("cache", False, True, f"{cache} cannot be written", advice))
    return found


def _tokens() -> list[Check]:
    found = []
    for service, (variables, files) in _TOKENS.items():
        named = [name for name in variables if os.environ.get(name)]
        kept = [file for file in files if Path(file).expanduser().is_file()]
        where = ", ".join([*named, *kept])
        advice = None if where else _TOKEN_ADVICE[service]
        found.append(Check(f"{service} token", None, False, f"in {where}" if where else "none", advice))
    return found
