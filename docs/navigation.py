"""MkDocs hook that lists the pages of `docs/datasets/` in the navigation."""

from pathlib import Path
from typing import Any


def on_config(config: Any) -> None:
    """Append a page for every file of `docs/datasets/` to the section `Datasets` of `mkdocs.yml`."""
    section = next(entry["Datasets"] for entry in config["nav"] if "Datasets" in entry)
    docs = Path(config["docs_dir"])
    section += [page.relative_to(docs).as_posix() for page in sorted(docs.glob("datasets/*.md"))]
