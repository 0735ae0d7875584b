from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from support.command_server import CommandServer

PAGE = Path(__file__).parents[2] / "docs" / "cremad.md"
# The last one of an option counts: the commands are those of the page, on a smaller scale.
SMALLER = {
    ("avdata", "prepare"): "--set video.size=16 --set audio.n_mels=16 --set audio.hop_length=640 --workers 0",
    ("snnergy", "train"): "--model nano --set batch_size=8 --steps 1",
    ("snnergy", "compare"): "--model nano --set batch_size=8 --steps 1 --seeds 1",
}


@pytest.mark.pages
def test_cremad_page_commands_run_in_order_on_the_mock(tmp_path: Path, command_server: CommandServer) -> None:
    lines = [
        line
        for block in re.findall(r"```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
        for line in block.splitlines()
    ]
    assert len(lines) == 7
    for line in lines:
        words = shlex.split(line)
        words += shlex.split(SMALLER.get((words[0], words[1]), ""))
        command_server.run(words, tmp_path)
    result = json.loads((tmp_path / "runs" / "cremad-ogmge" / "result.json").read_text())
    assert result["config"]["train_preset"] == "snnergy"
    assert len(result["labels"]) == 6
    assert (tmp_path / "runs" / "table" / "table.md").is_file()
