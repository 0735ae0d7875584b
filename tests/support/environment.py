"""What of this machine must not reach a test: whose account it runs under, and how its terminal is set.

Imported first of all, before a library reads its variables; the processes that tests start inherit the rest.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

# Settings and credentials of programs that the tests use themselves, against servers of their own; a proxy
# would be asked for those too; a launcher's variables make a test one process of many.
FAMILIES = (
    "AVDATA_", "AWS_", "BOTO_", "FSSPEC_", "GIT_", "HF_", "HUGGING", "KAGGLE_", "MOTO_", "PIP_", "RAY_",
    "SLURM_", "TORCHELASTIC_", "TYPER_", "_TYPER_",
)  # fmt: skip
SINGLE = set(
    "ALL_PROXY COLUMNS CURL_CA_BUNDLE FORCE_COLOR FTP_PROXY GITHUB_ACTIONS GROUP_RANK GROUP_WORLD_SIZE"
    " HTTPS_PROXY HTTP_PROXY LINES LOCAL_RANK LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT NODE_RANK"
    " NO_COLOR NO_PROXY PYTHONOPTIMIZE PYTHONWARNINGS PY_COLORS RANK REQUESTS_CA_BUNDLE ROLE_RANK"
    " SSL_CERT_DIR SSL_CERT_FILE TERM TERMINAL_WIDTH TTY_COMPATIBLE TTY_INTERACTIVE WORLD_SIZE".split()
)
EMPTY = (
    "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "FSSPEC_CONFIG_DIR", "GIT_CONFIG_GLOBAL", "NETRC",
    "PIP_CONFIG_FILE",
)  # fmt: skip
"""Where the same settings may stand in files of the user's."""


def forget() -> None:
    """Take all that out of the environment."""
    kept = os.environ.get("HF_HOME")
    for name in list(os.environ):
        if name.startswith(FAMILIES) or name.upper() in SINGLE:
            del os.environ[name]
    os.environ.update(
        dict.fromkeys(EMPTY, os.devnull), GIT_CONFIG_NOSYSTEM="1", AWS_EC2_METADATA_DISABLED="true"
    )
    # The Hub's clients keep what they know of a user in a folder, and must be able to write there.
    if "PYTEST_XDIST_WORKER" in os.environ and kept:
        os.environ["HF_HOME"] = kept
    else:
        os.environ["HF_HOME"] = home = tempfile.mkdtemp(prefix="avdata-hub-")
        atexit.register(shutil.rmtree, home, ignore_errors=True)
        if not os.access(os.path.expanduser("~"), os.W_OK):
            # numba must keep librosa's functions somewhere, or refuses them.
            os.environ.setdefault("NUMBA_CACHE_DIR", os.path.join(home, "numba"))


def put_ffmpeg_on_path() -> None:
    """Put imageio-ffmpeg's program on PATH as `ffmpeg`, also for the processes that tests start."""
    import imageio_ffmpeg

    folder = tempfile.mkdtemp(prefix="avdata-ffmpeg-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.symlink(imageio_ffmpeg.get_ffmpeg_exe(), os.path.join(folder, "ffmpeg"))
    os.environ["PATH"] = folder + os.pathsep + os.environ["PATH"]
