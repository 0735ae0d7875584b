"""Generated media are not published under the name of a dataset unnoticed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from huggingface_hub import DatasetCard
from support.hub_server import HubServer
from typer.testing import CliRunner

import avdata
from avdata.cli.main import app
from avdata.errors import AvdataError

REPO = "me/cremad-av"


def test_publish_refuses_a_mock(hub: HubServer, cremad_set: Path) -> None:
    with pytest.raises(AvdataError, match="Cannot publish CREMA-D: its media are generated") as raised:
        avdata.publish(cremad_set, REPO, i_have_permission=True)
    assert "--allow-mock" in str(raised.value.hint)
    assert hub.requests == []


def test_published_mock_states_it_in_title_tags_and_license(
    hub: HubServer, cremad_set: Path, tmp_path: Path
) -> None:
    # Publishing writes the card of the repository into the folder.
    root = shutil.copytree(cremad_set, tmp_path / "set")
    done = CliRunner().invoke(app, ["publish", str(root), "--repo", REPO, "--allow-mock", "--quiet"])
    assert done.exit_code == 0, done.output
    text = hub.content(REPO)["README.md"].decode()
    data = vars(DatasetCard(text).data)
    assert data["pretty_name"] == "CREMA-D (mock, generated media)"
    assert "mock" in data["tags"]
    assert (data["license"], data["license_name"]) == ("other", "generated-mock-media")
    assert "# CREMA-D (mock, generated media), prepared with avdata" in text


def test_card_of_real_media_states_the_license_of_the_dataset(hub: HubServer, own_set: Path) -> None:
    avdata.publish(own_set, REPO)
    data = vars(DatasetCard(hub.content(REPO)["README.md"].decode()).data)
    assert (data["pretty_name"], data["license"]) == ("CREMA-D", "odbl")
    assert "mock" not in data["tags"]
