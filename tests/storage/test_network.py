"""Network settings of the environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from avdata.errors import redact_url
from avdata.storage.network import CERTIFICATE_VARIABLES, proxies_for


@pytest.mark.parametrize(
    ("excluded", "url", "is_excluded"),
    [
        ("*", "https://example.org/a", True),
        ("example.org", "https://example.org/a", True),
        ("example.org", "https://data.example.org/a", True),
        (".example.org", "https://data.example.org/a", True),
        ("*.example.org", "https://data.example.org/a", True),
        ("example.org", "https://anexample.org/a", False),
        ("EXAMPLE.org", "https://example.ORG/a", True),
        ("example.org:8443", "https://example.org:8443/a", True),
        ("example.org:8443", "https://example.org/a", False),
        ("example.org:443", "https://example.org/a", True),
        ("localhost, 10.0.0.0/8", "http://10.20.30.40/a", True),
        ("10.0.0.0/8", "http://11.0.0.1/a", False),
        ("10.0.0.1", "http://10.0.0.1:8080/a", True),
        ("10.0.0.1:8080", "http://10.0.0.1:8080/a", True),
        ("10.0.0.1:8080", "http://10.0.0.1/a", False),
        ("10.0.0.0/8:8080", "http://10.0.0.1:8080/a", True),
        ("::1", "http://[::1]:80/a", True),
        ("[::1]:80", "http://[::1]/a", True),
        ("fd00::/8", "http://[fd12::1]/a", True),
        ("fd00::/8", "http://[fe80::1]/a", False),
        ("", "http://example.org/a", False),
    ],
)
def test_proxies_for_follows_no_proxy(
    monkeypatch: pytest.MonkeyPatch, excluded: str, url: str, is_excluded: bool
) -> None:
    monkeypatch.setenv("ALL_PROXY", "http://proxy:3128")
    monkeypatch.setenv("NO_PROXY", excluded)
    assert (proxies_for(url) == {}) == is_excluded


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("ftp://me:hunter2@example.org/a: refused", "ftp://example.org/a: refused"),
        ("lfs+https://me:hunter@2@example.org/a.git", "lfs+https://example.org/a.git"),
        ("socks5h://me:hunter2@proxy:1080", "socks5h://proxy:1080"),
        ("https://example.org/a@b/c", "https://example.org/a@b/c"),
    ],
)
def test_redact_url_removes_logins_of_every_scheme(text: str, redacted: str) -> None:
    assert redact_url(text) == redacted


def test_certificate_variables_are_those_of_the_page() -> None:
    page = (Path(__file__).parents[2] / "docs" / "network.md").read_text()
    assert all(f"`{variable}`" in page for variable in CERTIFICATE_VARIABLES)
