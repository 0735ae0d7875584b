"""Downloads from giftless, a git-LFS server, of a repository that the git-lfs program made."""

from __future__ import annotations

import subprocess

import pytest
from support.servers import giftless, nginx, program
from support.tiny_dataset import make_files, make_manifest, make_recipe, read_tree

from avdata.manifest import Source
from avdata.sources.download import download
from avdata.sources.git_lfs import list_lfs_files


class Repository:
    """A git repository, whose media git-lfs stored on a server; `checkout` has only their pointers."""

    def __init__(self, folder, url):
        self.files = make_files(12)
        self.folder = folder
        self.checkout = folder / "checkout"
        program("git-lfs")
        work = folder / "work"
        for path, content in self.files.items():
            (work / path).parent.mkdir(parents=True, exist_ok=True)
            (work / path).write_bytes(content)
        (work / "labels.csv").write_bytes(b"a,b\n")
        self.git("init", "-q", "--bare", str(folder / "remote.git"))
        self.git("init", "-q", str(work))
        self.git("lfs", "install", "--local", at=work)
        self.git("lfs", "track", "*.wav", "*.flv", at=work)
        self.git("config", "-f", ".lfsconfig", "lfs.url", f"{url}/owner/repo.git/info/lfs", at=work)
        self.git("config", "lfs.locksverify", "false", at=work)
        self.git("add", ".", at=work)
        self.git("commit", "-qm", "all", at=work)
        self.git("push", "-q", str(folder / "remote.git"), "HEAD", at=work)
        self.git("clone", "-q", str(folder / "remote.git"), str(self.checkout))

    @staticmethod
    def git(*arguments, at="."):
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", "-C", str(at), *identity, *arguments], check=True, capture_output=True)

    def download(self, *urls):
        manifest = make_manifest([Source(name="media", urls=urls, table="t")])
        entries = tuple(list_lfs_files(self.checkout, ["wav", "flv"]))
        manifest = manifest.model_copy(update={"tables": {"t": entries}, "files": entries})
        root = self.folder / "download"
        return download(make_recipe(), manifest=manifest, output=root), read_tree(root)


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lfs")
    with pytest.MonkeyPatch.context() as patch, giftless(folder / "objects") as url:
        # As for a user without the filters of git-lfs: a clone has pointers.
        patch.setenv("GIT_LFS_SKIP_SMUDGE", "1")
        made = Repository(folder, url)
        made.url = url
        yield made


@pytest.fixture(autouse=True)
def empty(repository, tmp_path):
    repository.folder = tmp_path


def test_download_takes_the_files_that_git_lfs_pushed(repository):
    report, files = repository.download(f"lfs+{repository.url}/owner/repo.git")
    assert files == repository.files
    assert report.failed_attempts == 0


def test_download_follows_the_redirect_of_a_renamed_lfs_repository(repository, tmp_path):
    moved = f"location / {{ return 308 {repository.url}$request_uri; }}"
    with nginx(tmp_path / "nginx", tmp_path, server=moved) as front:
        _, files = repository.download(f"lfs+{front.url}/owner/repo.git")
        assert set(front.statuses()) == {308}
    assert files == repository.files


def test_download_takes_files_that_a_mirror_has_as_blobs(repository, tmp_path):
    """As a mirror on GitLab, whose LFS server has none of the objects."""
    for path, content in repository.files.items():
        file = tmp_path / "site/owner/mirror/-/raw/main" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    with nginx(tmp_path / "nginx", tmp_path / "site") as raw:
        _, files = repository.download(
            f"lfs+{repository.url}/owner/mirror.git", raw.url + "/owner/mirror/-/raw/main/{path}"
        )
    assert files == repository.files


def test_download_refuses_the_pointers_of_a_mirror(repository, tmp_path):
    """A raw URL that serves pointers leads to the next source."""
    with nginx(tmp_path / "nginx", repository.checkout) as raw:
        report, files = repository.download(raw.url + "/{path}", f"lfs+{repository.url}/owner/repo.git")
    assert files == repository.files
    assert "pointer" in report.log.read_text()
