"""The schemes of a manifest's URLs: for each, where on the web the bytes are at this moment.

    https://HOST/PATH             as it stands; {path} is the file's path in the source's table, quoted
    lfs+https://HOST/REPO.git     a git-LFS object, asked for by checksum and size, without login
    gdrive:ID                     a file on Google Drive, through its confirmation page
    kaggle:OWNER/DATASET          a dataset's archive on Kaggle; /versions/N pins one
    hf:datasets/OWNER/NAME[@REVISION]/PATH   a file on the Hugging Face Hub

After a colon, `//` may stand as well. `http` in place of `https` is for servers of one's own.
"""

from __future__ import annotations

import base64
import os
import re
import threading
from collections.abc import Mapping, Sequence
from typing import ClassVar
from urllib.parse import quote

from avdata.sources.git_lfs import LfsClient, is_pointer
from avdata.sources.http import HttpClient, TransferError, host_of
from avdata.sources.types import FileRequest, ResolvedUrl

DRIVE_URL = "https://drive.google.com/uc?export=download&id={id}"

KAGGLE_URL = "https://www.kaggle.com/api/v1/datasets/download/{handle}"

_PAGE_BYTES = 1 << 20

# Drive serves its plain pages, which say what is wrong, only to what looks like a browser.
_BROWSER = {"User-Agent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 Chrome/130 Safari/537.36"}

_URL = re.compile(r"(?P<scheme>[a-z+]+):(?://)?(?P<rest>.+)")


def is_source_url(url: str) -> bool:
    """Whether a URL has a scheme that can be fetched.

    >>> is_source_url("hf:datasets/someone/something/videos.zip"), is_source_url("ftp://example.org/a")
    (True, False)
    """
    return _scheme_of(url) is not None


def _scheme_of(url: str) -> type[UrlScheme] | None:
    match = _URL.fullmatch(url)
    return SCHEMES.get(match["scheme"]) if match else None


def is_direct(url: str) -> bool:
    """Whether the bytes are at the URL itself."""
    scheme = _scheme_of(url)
    return scheme is not None and scheme.is_direct


def serves_each_file(url: str) -> bool:
    """Whether one URL serves every file of a table: by `{path}`, or because its scheme goes by checksum."""
    scheme = _scheme_of(url)
    return "{path}" in url or (scheme is not None and scheme.is_by_checksum)


def server_name(url: str) -> str:
    """The host that a URL names; the URL itself where its scheme stands for a service.

    >>> server_name("https://me:secret@example.org/a.zip"), server_name("gdrive:1abc")
    ('example.org', 'gdrive:1abc')
    """
    scheme = _scheme_of(url)
    return host_of(url) if scheme is not None and scheme.names_host else url


def expand_url(url: str, path: str) -> str:
    """A source's URL for one of its files.

    >>> expand_url("https://example.org/{path}", "a b/1.wav")
    'https://example.org/a%20b/1.wav'
    """
    return url.replace("{path}", quote(path))


def detect_wrong_content(head: bytes, path: str) -> TransferError | None:
    """What a file certainly is instead of what its path says, by its first bytes; None when it may be it."""
    start = head[:512].lstrip().lower()
    if is_pointer(head):
        return TransferError("git-LFS pointer text instead of the file")
    if start.startswith((b"<!doctype html", b"<html", b"<head")) and not path.endswith((".html", ".htm")):
        return TransferError("a web page instead of the file")
    magic = {".zip": b"PK", ".gz": b"\x1f\x8b"}.get(path[path.rfind(".") :])
    if magic and not head.startswith(magic[: len(head)]):
        return TransferError(f"something else instead of a {path[path.rfind('.') :]} file")
    return None


class UrlResolver:
    """Finds where files are; shared by the threads of one run."""

    def __init__(self, net: HttpClient, files: Sequence[FileRequest]) -> None:
        self._schemes = {name: scheme(net, files) for name, scheme in SCHEMES.items()}

    def resolve(self, url: str, request: FileRequest) -> ResolvedUrl:
        """Where the bytes of `request` are, by one of its URLs.

        Raises:
            AttemptError: the scheme's server does not say.
        """
        match = _URL.fullmatch(url)
        if match is None or match["scheme"] not in self._schemes:
            msg = f"no such scheme: {url}"
            raise TransferError(msg, hint=f"a manifest's URLs begin with one of {', '.join(SCHEMES)}")
        return self._schemes[match["scheme"]].resolve(url, match["rest"], request)


class UrlScheme:
    """How the URLs of one scheme lead to a file's bytes; one object a run, shared by its threads.

    Attributes:
        is_direct: the bytes are at the URL itself, and no server need be asked where they are.
        is_by_checksum: one URL serves every file of a table, without `{path}`.
        names_host: the URL names the server.
    """

    is_direct: ClassVar[bool] = False
    is_by_checksum: ClassVar[bool] = False
    names_host: ClassVar[bool] = False

    def __init__(self, net: HttpClient, files: Sequence[FileRequest]) -> None:
        self._net = net
        self._files = files

    def resolve(self, url: str, rest: str, request: FileRequest) -> ResolvedUrl:
        """Where the bytes of `request` are; `rest` is the URL after its scheme."""
        raise NotImplementedError


class _Https(UrlScheme):
    is_direct = True
    names_host = True

    def resolve(self, url: str, rest: str, request: FileRequest) -> ResolvedUrl:
        return ResolvedUrl(url)


class _GitLfs(UrlScheme):
    is_by_checksum = True
    names_host = True

    def __init__(self, net: HttpClient, files: Sequence[FileRequest]) -> None:
        super().__init__(net, files)
        self._clients: dict[str, LfsClient] = {}
        self._lock = threading.Lock()

    def resolve(self, url: str, rest: str, request: FileRequest) -> ResolvedUrl:
        with self._lock:
            if url not in self._clients:
                mine = [file for file in self._files if url in file.urls]
                self._clients[url] = LfsClient(self._net, url.removeprefix("lfs+"), mine)
            client = self._clients[url]
        return client.resolve(request)


class _GoogleDrive(UrlScheme):
    def resolve(self, url: str, rest: str, request: FileRequest) -> ResolvedUrl:
        first = DRIVE_URL.format(id=quote(rest, safe=""))
        with self._net.open(first, _BROWSER) as response:
            if "text/html" not in response.headers.get("Content-Type", ""):
                return ResolvedUrl(first, _BROWSER)
            page = response.read(_PAGE_BYTES).decode(errors="replace")
        return ResolvedUrl(_confirmed(page), _BROWSER)


def _confirmed(page: str) -> str:
    """The link behind Drive's page that a large file was not scanned for viruses."""
    from gdown.download import get_url_from_gdrive_confirmation  # noqa: PLC0415
    from gdown.exceptions import FileURLRetrievalError  # noqa: PLC0415

    lowered = page.lower()
    if "quota" in lowered or "too many users" in lowered:
        msg = "Google Drive's quota for this file is used up"
        hint = "come back in 24 hours, or fetch it in a browser and give the archive with --source"
        raise TransferError(msg, hint=hint)
    try:
        return str(get_url_from_gdrive_confirmation(page))
    except FileURLRetrievalError as error:
        msg = "Google Drive answers with a page that offers no download"
        hint = "the file may be private or gone; fetch it in a browser and give the archive with --source"
        raise TransferError(msg, hint=hint) from error


class _Kaggle(UrlScheme):
    def resolve(self, url: str, rest: str, request: FileRequest) -> ResolvedUrl:
        handle, _, number = rest.partition("/versions/")
        query = f"?datasetVersionNumber={number}" if number else ""
        headers = _kaggle_login()
        target = KAGGLE_URL.format(handle=handle) + query
        try:
            # Asked for the first byte only: what matters is whether Kaggle lets us in.
            with self._net.open(target, {**headers, "Range": "bytes=0-0"}):
                return ResolvedUrl(target, headers)
        except TransferError as error:
            if error.status not in (401, 403, 404):
                raise
            known = (
                "with the credentials found here" if headers else "without credentials, and none were found"
            )
            msg = f"Kaggle does not give {handle} {known} (HTTP {error.status})"
            hint = (
                "set KAGGLE_API_TOKEN, or KAGGLE_USERNAME and KAGGLE_KEY, or keep ~/.kaggle/kaggle.json"
                f" (https://www.kaggle.com/settings, API), and accept the terms at"
                f" https://www.kaggle.com/datasets/{handle}"
            )
            raise TransferError(msg, status=error.status, hint=hint) from error


def _kaggle_login() -> dict[str, str]:
    from kagglehub.config import get_kaggle_credentials  # noqa: PLC0415

    found = get_kaggle_credentials()
    if found is None:
        return {}
    if found.api_key:
        return {"Authorization": f"Bearer {found.api_key}"}
    pair = base64.b64encode(f"{found.username}:{found.key}".encode()).decode()
    return {"Authorization": f"Basic {pair}"}


class _HuggingFace(UrlScheme):
    def resolve(self, url: str, rest: str, request: FileRequest) -> ResolvedUrl:
        from huggingface_hub import get_hf_file_metadata, hf_hub_url  # noqa: PLC0415
        from huggingface_hub.errors import HfHubHTTPError  # noqa: PLC0415
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # noqa: PLC0415

        kind, owner, name, path = rest.split("/", 3)
        name, _, revision = name.partition("@")
        endpoint = os.environ.get("HF_ENDPOINT")
        target = hf_hub_url(
            f"{owner}/{name}", path, repo_type=kind.rstrip("s"), revision=revision or None, endpoint=endpoint
        )
        try:
            found = get_hf_file_metadata(target, endpoint=endpoint)
        except HfHubHTTPError as error:
            status = error.response.status_code if error.response is not None else None
            msg = f"the Hub does not give {owner}/{name}: {str(error).splitlines()[0]}"
            hint = "for a gated or private set, accept its terms on its page and run `hf auth login`"
            raise TransferError(msg, status=status, retryable=(status or 500) >= 500, hint=hint) from error
        except Exception as error:
            # Which HTTP library the Hub's own client uses, and so what it raises, changes with its version.
            msg = f"the Hub cannot be reached: {error}"
            raise TransferError(msg, retryable=True) from error
        # The token goes to the Hub alone: `location` is a signed link to its storage.
        headers = build_hf_headers() if found.location.startswith(target.partition("/resolve/")[0]) else {}
        sha256 = found.etag if found.etag and re.fullmatch(r"[0-9a-f]{64}", found.etag) else None
        return ResolvedUrl(found.location, headers, f"sha256:{sha256}" if sha256 else None, found.size)


SCHEMES: Mapping[str, type[UrlScheme]] = {
    "https": _Https,
    "http": _Https,
    "lfs+https": _GitLfs,
    "lfs+http": _GitLfs,
    "gdrive": _GoogleDrive,
    "kaggle": _Kaggle,
    "hf": _HuggingFace,
}
