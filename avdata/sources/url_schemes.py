"""URL schemes of manifests: how each URL leads to the current location of the bytes.

    https://HOST/PATH             a file; {path} is replaced by the quoted path from the source's table
    lfs+https://HOST/REPO[.git]   a git-LFS object, requested by checksum and size
    gdrive:ID                     a file on Google Drive, behind its confirmation page
    kaggle:OWNER/DATASET          a dataset's archive on Kaggle; /versions/N selects a version
    hf:datasets/OWNER/NAME[@REVISION]/PATH   a file on the Hugging Face Hub
    zenodo:RECORD/FILE            a file of a Zenodo record, whose API states size and MD5; see `zenodo`

`//` after the colon is optional for the last four. `http` in place of `https` is for local servers.
Logins for https and lfs+https are read from `~/.netrc`.
To add a scheme, write a subclass of `UrlScheme` and add it to `SCHEMES`.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar
from urllib.parse import quote

from avdata.errors import UsageError
from avdata.sources.git_lfs import is_pointer
from avdata.sources.lfs_client import LfsClient
from avdata.sources.types import FileRequest, ResolvedUrl, TransferError, host_of
from avdata.sources.zenodo import file_url
from avdata.storage.network import basic_login
from avdata.storage.urls import check_url

if TYPE_CHECKING:
    from avdata.sources.limited_client import LimitedClient

DRIVE_URL = "https://drive.google.com/uc?export=download&id={id}"

KAGGLE_URL = "https://www.kaggle.com/api/v1/datasets/download/{handle}"

_PAGE_BYTES = 1 << 16  # Drive's page has 3 kB, and each line is parsed by itself

# Drive serves its static error pages only to browsers.
_BROWSER = {"User-Agent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 Chrome/130 Safari/537.36"}

_URL = re.compile(r"(?P<scheme>[a-z+]+):(?://)?(?P<rest>.+)")


def is_source_url(url: str) -> bool:
    """Return whether a URL has a supported scheme.

    >>> is_source_url("hf:datasets/someone/something/videos.zip"), is_source_url("ftp://example.org/a")
    (True, False)
    """
    return _scheme_of(url) is not None


def _scheme_of(url: str) -> type[UrlScheme] | None:
    match = _URL.fullmatch(url)
    return SCHEMES.get(match["scheme"]) if match else None


def check_source_url(url: str, where: str) -> None:
    """Check that a URL of a manifest has the form that its scheme requires, and a possible host.

    A URL of an unsupported scheme is left to `UrlResolver`: another mirror may serve the file.

    Raises:
        UsageError: no request to the URL is possible; `where` is the URL's place, for the message.
    """
    scheme, match = _scheme_of(url), _URL.fullmatch(url)
    if scheme is None or match is None:
        return
    if scheme.names_host:
        check_url(url, where)
    elif not re.fullmatch(scheme.pattern, match["rest"]):
        msg = f"Invalid URL in {where}: {url}."
        raise UsageError(msg, hint=f"The form is {scheme.form}.")


def is_direct(url: str) -> bool:
    """Return whether the bytes are at the URL itself."""
    scheme = _scheme_of(url)
    return scheme is not None and scheme.is_direct


def serves_each_file(url: str) -> bool:
    """Return whether one URL serves all files of a table, by `{path}` or by checksum."""
    scheme = _scheme_of(url)
    return "{path}" in url or (scheme is not None and scheme.is_by_checksum)


def is_by_checksum(url: str) -> bool:
    """Return whether the URL names a store of objects, which are requested by checksum."""
    scheme = _scheme_of(url)
    return scheme is not None and scheme.is_by_checksum


def server_name(url: str) -> str:
    """Return the host of a URL; if its scheme names a service, the URL without the path of the file.

    >>> server_name("https://me:secret@example.org/a.zip"), server_name("zenodo:1188976/a.zip")
    ('example.org', 'zenodo:1188976')
    """
    match = _URL.fullmatch(url)
    scheme = SCHEMES.get(match["scheme"]) if match else None
    if match is None or scheme is None:
        return url
    if scheme.names_host:
        return host_of(url)
    return ":".join((match["scheme"], "/".join(match["rest"].split("/")[: scheme.collection_parts])))


def expand_url(url: str, path: str) -> str:
    """Return a source's URL for one of its files.

    >>> expand_url("https://example.org/{path}", "a b/1.wav")
    'https://example.org/a%20b/1.wav'
    >>> expand_url("lfs+https://example.org/owner/repo/{path}", "a b/1.wav")
    'lfs+https://example.org/owner/repo'
    """
    if (scheme := _scheme_of(url)) is not None and scheme.is_by_checksum:
        return url.removesuffix("{path}").rstrip("/")
    return url.replace("{path}", quote(path))


def detect_wrong_content(head: bytes, path: str) -> TransferError | None:
    """Return an error if the first bytes cannot belong to a file of this name, else None."""
    start = head[:512].lstrip().lower()
    if is_pointer(head):
        return TransferError("a git-LFS pointer instead of the file")
    if start.startswith((b"<!doctype html", b"<html", b"<head")) and not path.endswith((".html", ".htm")):
        return TransferError("a web page instead of the file")
    magic = {".zip": b"PK", ".gz": b"\x1f\x8b"}.get(path[path.rfind(".") :])
    if magic and not head.startswith(magic[: len(head)]):
        return TransferError(f"content that is not a {path[path.rfind('.') :]} file")
    return None


class UrlResolver:
    """Resolver of source URLs, shared by the threads of a download."""

    def __init__(self, net: LimitedClient, files: Sequence[FileRequest]) -> None:
        self._schemes = {name: scheme(net, files) for name, scheme in SCHEMES.items()}

    def resolve(self, url: str, request: FileRequest) -> ResolvedUrl:
        """Return the current location of a file at one of its URLs.

        Raises:
            TransferError: the scheme is unknown, or its server does not resolve the URL.
        """
        match = _URL.fullmatch(url)
        if match is None or match["scheme"] not in self._schemes:
            msg = f"unsupported URL scheme in {url}"
            raise TransferError(msg, hint=f"Supported schemes: {', '.join(SCHEMES)}.")
        return self._schemes[match["scheme"]].resolve(url, match["rest"], request)


class UrlScheme:
    """Base class of URL schemes; one instance per download, shared by its threads.

    Attributes:
        is_direct: the bytes are at the URL itself, so that resolving it needs no request.
        is_by_checksum: one URL without `{path}` serves all files of a table.
        names_host: the URL contains the host name.
        collection_parts: number of parts between slashes that name a collection of files; None for all.
        pattern: regular expression of the URL after its scheme, if it names no host.
        form: the same for people.
    """

    is_direct: ClassVar[bool] = False
    is_by_checksum: ClassVar[bool] = False
    names_host: ClassVar[bool] = False
    collection_parts: ClassVar[int | None] = None
    pattern: ClassVar[str] = ".+"
    form: ClassVar[str] = ""

    def __init__(self, net: LimitedClient, files: Sequence[FileRequest]) -> None:
        self._net = net
        self._files = files

    def resolve(self, url: str, rest: str, request: FileRequest) -> ResolvedUrl:
        """Return the current location of a file; `rest` is the URL after its scheme."""
        raise NotImplementedError


class _Https(UrlScheme):
    is_direct = True
    names_host = True

    def resolve(self, url: str, rest: str, request: FileRequest) -> ResolvedUrl:
        return ResolvedUrl(url)


class _GitLfs(UrlScheme):
    is_by_checksum = True
    names_host = True

    def __init__(self, net: LimitedClient, files: Sequence[FileRequest]) -> None:
        super().__init__(net, files)
        self._clients: dict[str, LfsClient] = {}
        self._lock = threading.Lock()

    def resolve(self, url: str, rest: str, request: FileRequest) -> ResolvedUrl:
        repository = _lfs_repository(url)
        with self._lock:
            if repository not in self._clients:
                # One store for all sources of a repository, so that one batch serves them.
                listed = [file for file in self._files if repository in map(_lfs_repository, file.urls)]
                self._clients[repository] = LfsClient(self._net, repository, listed)
            client = self._clients[repository]
        return client.resolve(request)


def _lfs_repository(url: str) -> str:
    """Return the URL of the repository of an LFS URL.

    Objects are requested by checksum, so a path or commit after `.git` is dropped. `.git` is appended where
    it is missing, as git-lfs does.

    >>> _lfs_repository("lfs+https://example.org/owner/repo.git/a.zip")
    'https://example.org/owner/repo.git'
    >>> _lfs_repository("lfs+https://example.org/owner/repo")
    'https://example.org/owner/repo.git'
    """
    base, git, _ = f"{url.removeprefix('lfs+')}/".partition(".git/")
    return f"{base if git else base.rstrip('/')}.git"


class _GoogleDrive(UrlScheme):
    def resolve(self, url: str, rest: str, request: FileRequest) -> ResolvedUrl:
        target = DRIVE_URL.format(id=quote(rest, safe=""))
        with self._net.open(target, _BROWSER) as response:
            if "text/html" not in response.headers.get("Content-Type", ""):
                return ResolvedUrl(target, _BROWSER)
            page = response.read(_PAGE_BYTES).decode(errors="replace")
        return ResolvedUrl(_confirmation_link(page), _BROWSER)


def _confirmation_link(page: str) -> str:
    """Return the download link of Drive's page "too large to scan for viruses"."""
    from gdown.download import get_url_from_gdrive_confirmation  # noqa: PLC0415
    from gdown.exceptions import FileURLRetrievalError  # noqa: PLC0415

    lowered = page.lower()
    if "quota" in lowered or "too many users" in lowered:
        msg = "download quota of this Google Drive file exceeded"
        hint = (
            "Retry in 24 hours, or download the archive in a browser"
            " and use `avdata prepare --source ARCHIVE`."
        )
        raise TransferError(msg, hint=hint)
    try:
        return str(get_url_from_gdrive_confirmation(page))
    except (FileURLRetrievalError, LookupError, AssertionError, ValueError, RecursionError) as error:
        msg = "page without a download link from Google Drive"
        hint = (
            "The file may be private or deleted. Download the archive in a browser"
            " and use `avdata prepare --source ARCHIVE`."
        )
        raise TransferError(msg, hint=hint) from error


class _Kaggle(UrlScheme):
    pattern = r"[^/]+/[^/]+(/versions/\d+)?"
    form = "kaggle:OWNER/DATASET or kaggle:OWNER/DATASET/versions/NUMBER"

    def resolve(self, url: str, rest: str, request: FileRequest) -> ResolvedUrl:
        handle, _, number = rest.partition("/versions/")
        query = f"?datasetVersionNumber={number}" if number else ""
        headers = _kaggle_headers()
        target = KAGGLE_URL.format(handle=handle) + query
        try:
            # One byte is enough to check the credentials.
            with self._net.open(target, {**headers, "Range": "bytes=0-0"}):
                return ResolvedUrl(target, headers)
        except TransferError as error:
            if error.status not in (401, 403, 404):
                raise
            credentials = "the Kaggle credentials of this machine" if headers else "no Kaggle credentials"
            msg = f"HTTP {error.status} from Kaggle for dataset {handle}, requested with {credentials}"
            hint = (
                "Set KAGGLE_API_TOKEN, or KAGGLE_USERNAME and KAGGLE_KEY, or save ~/.kaggle/kaggle.json"
                f" (https://www.kaggle.com/settings, API). Accept the terms at"
                f" https://www.kaggle.com/datasets/{handle}."
            )
            raise TransferError(msg, status=error.status, hint=hint) from error


def _kaggle_headers() -> dict[str, str]:
    from kagglehub.config import get_kaggle_credentials  # noqa: PLC0415

    try:
        credentials = get_kaggle_credentials()
    except (ValueError, TypeError, OSError) as error:
        msg = f"cannot read the Kaggle credentials: {error}"
        hint = "Create a new token at https://www.kaggle.com/settings, API, or remove kaggle.json."
        raise TransferError(msg, hint=hint) from error
    if credentials is None:
        return {}
    if credentials.api_key:
        return {"Authorization": f"Bearer {credentials.api_key}"}
    return {"Authorization": basic_login(credentials.username, credentials.key)}


class _HuggingFace(UrlScheme):
    collection_parts = 3
    pattern = "(datasets|models|spaces)/[^/]+/[^/]+/.+"
    form = "hf:datasets/OWNER/NAME/PATH or hf:datasets/OWNER/NAME@REVISION/PATH"

    def resolve(self, url: str, rest: str, request: FileRequest) -> ResolvedUrl:
        from huggingface_hub import constants, hf_hub_url  # noqa: PLC0415
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # noqa: PLC0415

        if constants.HF_HUB_OFFLINE:
            msg = "HF_HUB_OFFLINE is set"
            raise TransferError(msg, hint="Unset HF_HUB_OFFLINE to download from the Hugging Face Hub.")
        kind, owner, name, path = rest.split("/", 3)
        name, _, revision = name.partition("@")
        endpoint = os.environ.get("HF_ENDPOINT")
        target = hf_hub_url(
            f"{owner}/{name}", path, repo_type=kind.rstrip("s"), revision=revision or None, endpoint=endpoint
        )
        token = build_hf_headers()
        try:
            location, facts = self._net.head(target, {**token, "Accept-Encoding": "identity"})
        except TransferError as error:
            if error.status not in (401, 403, 404):
                raise
            msg = f"error of the Hugging Face Hub for {owner}/{name}: {error}"
            hint = "For a gated or private dataset, accept its terms on its page and run `hf auth login`."
            raise TransferError(msg, status=error.status, hint=hint) from error
        # Send the token only to the Hub: the location may be a signed link to its storage.
        headers = token if host_of(location) == host_of(target) else {}
        etag = (facts.get("X-Linked-Etag") or facts.get("ETag") or "").strip('"')
        checksum = f"sha256:{etag}" if re.fullmatch(r"[0-9a-f]{64}", etag) else None
        size = facts.get("X-Linked-Size") or (
            "" if facts.get("Location") else facts.get("Content-Length", "")
        )
        return ResolvedUrl(
            location, headers, checksum, int(size) if re.fullmatch("[0-9]{1,18}", size) else None
        )


class _Zenodo(UrlScheme):
    collection_parts = 1
    pattern = r"\d+/[^/]+"
    form = "zenodo:RECORD/FILE"

    def resolve(self, url: str, rest: str, request: FileRequest) -> ResolvedUrl:
        return ResolvedUrl(file_url(rest))


SCHEMES: Mapping[str, type[UrlScheme]] = {
    "https": _Https,
    "http": _Https,
    "lfs+https": _GitLfs,
    "lfs+http": _GitLfs,
    "gdrive": _GoogleDrive,
    "kaggle": _Kaggle,
    "hf": _HuggingFace,
    "zenodo": _Zenodo,
}
