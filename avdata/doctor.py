"""Checks of the environment: libraries, decoders, GPU, disk space and tokens, with advice.

Libraries are imported in subprocesses, since a broken one may crash its process. Libraries that import torch
share a subprocess, since importing torch takes most of the time. If a subprocess ends early, the library that
it was importing is reported as broken, and a new subprocess checks the remaining ones.
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

from avdata.errors import UsageError
from avdata.media.decoders import DECODERS
from avdata.media.ffmpeg_program import INSTALL_ADVICE, ffmpeg_version, find_ffmpeg
from avdata.storage.backends import BACKENDS
from avdata.storage.paths import cache_dir
from avdata.subprocesses import python_command, python_environment

PROBE_TIMEOUT_S = 120

LOW_DISK_BYTES = 10_000_000_000


@dataclass(frozen=True)
class Check:
    """Result of one check.

    Attributes:
        name: what was checked.
        ok: whether it is in order; None if the result is informational.
        needed: whether avdata cannot work without it.
        found: what is installed or available.
        advice: what to do if something is missing.
    """

    name: str
    ok: bool | None
    needed: bool
    found: str
    advice: str | None = None


@dataclass(frozen=True)
class _Library:
    """Library to check: distribution, Python line that tests it, use, and advice."""

    name: str
    probe: str
    needed: bool
    use: str
    advice: str


_Result = tuple[str | None, str]
"""Failure of a probe, None if there was none, and its result."""

_TORCH = (
    "torch, torchvision and torchaudio must be builds of the same release: "
    'pip install "torch>=2.11,<2.15" "torchvision>=0.26,<0.29.2" "torchaudio>=2.11,<2.12"'
)

_GPU = _Library(
    "GPU",
    "import torch; cuda = torch.cuda.is_available();"
    "result = (torch.cuda.get_device_name(0) if cuda else"
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
        True, "JPEG decoding", _TORCH,
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
    _Library(
        "librosa", "import librosa; librosa.filters.mel(sr=16000, n_fft=512)", True, "mel filterbanks",
        "pip install librosa; if numba cannot cache, set NUMBA_CACHE_DIR to a writable folder",
    ),
    _Library("soxr", "import soxr", True, "resampling", "pip install soxr"),
    _Library("soundfile", "import soundfile", True, "FLAC files", "pip install soundfile"),
    _Library("pyarrow", "import pyarrow.parquet", True, "index files", "pip install pyarrow"),
    _Library("numba", "import numba", False, "neurons on CPUs", "pip install numba"),
    *(
        _Library(
            backend.package, f"import {backend.package}", False, f"{backend.schemes[0]}:// datasets",
            backend.install_command or "",
        )
        for backend in BACKENDS
        if backend.package
    ),
    _Library("ray", "import ray", False, "preparation on a cluster", "pip install 'avdata[ray]'"),
    _Library(
        "opencv-python-headless", "import cv2; cv2.CascadeClassifier", False, "video.resize_mode=face",
        "pip install 'avdata[face]'",
    ),
)  # fmt: skip

_LIBRARY_GROUPS = (_TORCH_FAMILY, _OTHERS)
"""Each group is checked in sequence in one process; the groups run in parallel."""

_PROBE_SCRIPT = """
import json, os, sys
out = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # keep output of libraries out of the results
for probe in json.load(sys.stdin):
    namespace, failure = {}, None
    try:
        exec(probe, namespace)
    except BaseException as error:
        failure = f"{type(error).__name__}: {error}".strip().splitlines()[-1]
    print(json.dumps([failure, namespace.get("result", "")]), file=out, flush=True)
"""
"""Executes the probes given on stdin; prints the failure and the result of each."""

_CODECS = ("h264", "hevc", "vp6f", "vp9", "av1", "flv", "mpeg4", "aac", "mp3", "opus", "vorbis", "pcm_s16le")
"""Codecs of public datasets."""

_TOKENS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "Hugging Face": (("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"), ("~/.cache/huggingface/token",)),
    "Kaggle": (("KAGGLE_API_TOKEN", "KAGGLE_KEY"), ("~/.kaggle/kaggle.json", "~/.kaggle/access_token")),
}
"""Environment variables and files of tokens. Only their existence is checked."""

_TOKEN_ADVICE = {
    "Hugging Face": "needed to publish and for gated datasets: hf auth login",
    "Kaggle": "needed for datasets that require consent (urbansound8k-av): save ~/.kaggle/kaggle.json",
}


def check_environment() -> list[Check]:
    """Return checks of libraries, decoders, ffmpeg, GPU, disk, cache and tokens."""
    checks = [
        Check("avdata", True, True, _version("avdata") or "not installed as a package"),
        Check("python", sys.version_info >= (3, 11), True, f"{platform.python_version()}, {sys.executable}"),
        Check("machine", None, False, f"{platform.platform()}, {os.cpu_count()} processors"),
    ]
    installed = [
        [library for library in group if library is _GPU or _version(library.name)]
        for group in _LIBRARY_GROUPS
    ]
    with ThreadPoolExecutor() as pool:
        results = {name: result for group in pool.map(_probe, installed) for name, result in group.items()}
    libraries = [library for group in _LIBRARY_GROUPS for library in group if library is not _GPU]
    checks += [_library(library, results) for library in libraries]
    return [*checks, _decoders(), _ffmpeg(), _gpu(results), *_disk_space(), *_tokens()]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _library(library: _Library, results: Mapping[str, _Result]) -> Check:
    installed = _version(library.name)
    if installed is None:
        state = f"not installed ({library.use})"
        return Check(library.name, False if library.needed else None, library.needed, state, library.advice)
    failure, _ = results[library.name]
    if failure is None:
        return Check(library.name, True, library.needed, f"{installed}: {library.use}")
    state = f"{installed} does not work: {failure}"
    return Check(library.name, False, library.needed, state, library.advice)


def _probe(libraries: Sequence[_Library]) -> dict[str, _Result]:
    """Return the result of each library by its name.

    A process that ends early or hangs is blamed on the first library without a result. The libraries after it
    get a new process.
    """
    results: dict[str, _Result] = {}
    left = list(libraries)
    while left:
        output, ending = _run_probes([library.probe for library in left])
        lines = [json.loads(line) for line in output.splitlines()]
        results |= {
            library.name: (failure, text) for library, (failure, text) in zip(left, lines, strict=False)
        }
        left = left[len(lines) :]
        if left:
            results[left.pop(0).name] = (ending, "")
    return results


def _run_probes(probes: Sequence[str]) -> tuple[str, str]:
    """Return the output of one process, one line per probe, and how the process ended."""
    try:
        done = subprocess.run(  # noqa: S603  # this interpreter, and lines of this file
            python_command("-c", _PROBE_SCRIPT), env=python_environment(),
            input=json.dumps(probes), capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as late:
        output = late.stdout or b""
        text = output.decode() if isinstance(output, bytes) else output
        return text, f"not loaded within {PROBE_TIMEOUT_S} s"
    return done.stdout, f"the process ended with code {done.returncode}"


def _decoders() -> Check:
    try:
        import av  # noqa: PLC0415
    except ImportError:
        return Check("decoders", False, True, "none: PyAV cannot be imported", "pip install --upgrade av")
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
    path = find_ffmpeg()
    use = "optional: video.decoder=ffmpeg; PyAV includes the libraries"
    if path is None:
        return Check("ffmpeg", None, False, f"not installed ({use})", INSTALL_ADVICE)
    number = ffmpeg_version(path)
    if number is None:
        return Check("ffmpeg", False, False, f"{path} does not start ({use})", INSTALL_ADVICE)
    return Check("ffmpeg", True, False, f"{number}, {path} ({use})")


def _gpu(results: Mapping[str, _Result]) -> Check:
    _, name = results.get(_GPU.name, (None, ""))
    return Check("GPU", None, False, name or "none available to torch; only training uses it")


def _disk_space() -> list[Check]:
    try:
        cache = cache_dir()
    except UsageError as error:
        return [Check("cache", False, True, error.message, error.hint)]
    existing = next(path for path in (cache, *cache.parents) if path.exists())
    checks = []
    for name, folder, disk in (("disk here", Path.cwd(), Path.cwd()), ("cache", cache, existing)):
        free = shutil.disk_usage(disk).free
        advice = "CREMA-D needs 3 GB, UrbanSound8K 12 GB" + (
            "; AVDATA_CACHE moves the cache" if name == "cache" else ""
        )
        low = free < LOW_DISK_BYTES
        checks.append(
            Check(name, not low, False, f"{folder}, {free / 1e9:.1f} GB free", advice if low else None)
        )
    if not os.access(existing, os.W_OK):
        advice = "set AVDATA_CACHE to a writable folder"
        checks.append(Check("cache", False, True, f"{cache} cannot be written", advice))
    return checks


def _tokens() -> list[Check]:
    checks = []
    for service, (variables, files) in _TOKENS.items():
        set_variables = [name for name in variables if os.environ.get(name)]
        # os.path leaves `~` as it is for a user without a home folder; pathlib raises.
        existing_files = [file for file in files if os.path.isfile(os.path.expanduser(file))]
        where = ", ".join([*set_variables, *existing_files])
        advice = None if where else _TOKEN_ADVICE[service]
        checks.append(Check(f"{service} token", None, False, f"in {where}" if where else "none", advice))
    return checks
