"""Trained networks by name: a run, a checkpoint, a folder of `save_pretrained`, or a repository on the Hub.

They predict, are exported, and start the training of another network (fine-tuning).
"""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path

import torch

from avdata.errors import AvdataError, UsageError
from snnergy.models.network import SNNergy
from snnergy.models.stored import WEIGHTS_FILE
from snnergy.training.checkpoint import RUN_FILE, load_network

FREE_OPTIONS = frozenset(
    {"num_classes", "alpha_init", "learn_alpha", "surrogate", "surrogate_slope", "dropout", "drop_path",
     "aux_heads", "steps", "checkpoint"}
)  # fmt: skip
"""Model options that do not change the meaning of weights."""


def load_trained(source: str | Path) -> SNNergy:
    """Return a trained network in evaluation mode, on the CPU.

    Args:
        source: folder of a run, a checkpoint in it, a folder of `save_pretrained`, or `user/repo` on the
            Hugging Face Hub.

    Raises:
        AvdataError: none of these, or it cannot be read.
    """
    path = Path(source)
    if path.is_dir() and (path / RUN_FILE).is_file():
        best = path / "best.ckpt"
        path = best if best.is_file() else path / "last.ckpt"
    if path.suffix == ".ckpt" or path.is_file():
        return load_network(path)[0]
    if not path.is_dir() and str(source).count("/") != 1:
        msg = f"No trained network at {source}."
        raise AvdataError(msg, hint="Use the folder of a run, a checkpoint in it, or user/repo on the Hub")
    folder = path if path.is_dir() else download_network(str(source))
    # huggingface_hub prints a line about local folders, which would be in the output of --json.
    with redirect_stdout(io.StringIO()):
        return SNNergy.from_pretrained(str(folder)).eval()


def download_network(repo: str) -> Path:
    """Download a network of `push_to_hub`; return its folder in the cache of the Hub's client.

    Args:
        repo: `user/repo`.

    Raises:
        AvdataError: the repository does not exist, is not readable or has no network, or the Hub does not
            respond.
    """
    from huggingface_hub import errors, hf_hub_download  # noqa: PLC0415

    # The texts of the client's errors are not repeated: they may contain a token.
    try:
        config = Path(hf_hub_download(repo, "config.json"))
        # The folder is named after the commit: both files are of the same one.
        hf_hub_download(repo, WEIGHTS_FILE, revision=config.parent.name)
    except (errors.RepositoryNotFoundError, errors.HFValidationError):
        msg = (
            f"No trained network {repo}: no such folder, and no such repository on the Hub that you can read."
        )
        raise AvdataError(msg, hint="Check the name, and `hf auth whoami` for a private one") from None
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError) as error:
        if isinstance(error, errors.RemoteEntryNotFoundError):
            msg = f"Repository {repo} on the Hub has no network: config.json or {WEIGHTS_FILE} is missing."
            raise AvdataError(msg, hint="Use one that model.push_to_hub wrote") from None
        # Without a copy in the cache, the client wraps other answers of the Hub.
        cause = error if isinstance(error, errors.HfHubHTTPError) else error.__cause__
        response = getattr(cause, "response", None)
        answer = "does not respond" if response is None else f"answers {response.status_code}"
        msg = f"No trained network {repo}: no such folder, and the Hub {answer}."
        raise AvdataError(msg, hint="Check the path, the network, HF_ENDPOINT and `hf auth whoami`") from None
    return config.parent


@torch.no_grad()
def initialize(network: SNNergy, source: str | Path, labels: tuple[str, ...]) -> list[str]:
    """Copy the weights of a trained network into a new one.

    The head's rows are copied for labels that both networks have; the others keep their new weights.

    Args:
        network: new network.
        source: as for `load_trained`.
        labels: names of the new network's classes.

    Returns:
        The labels whose rows were copied.

    Raises:
        UsageError: the networks have different layers.
    """
    trained = load_trained(source)
    old, new = asdict(trained.config), asdict(network.config)
    different = [name for name in new if new[name] != old[name] and name not in FREE_OPTIONS]
    if different:
        shown = ", ".join(f"{name} is {old[name]}, requested {new[name]}" for name in different)
        msg = f"Network {source} has other layers: {shown}."
        raise UsageError(msg, hint="Use its --model and --fusion, and --set model_options.NAME=VALUE")
    weights = {
        name: value for name, value in trained.state_dict().items() if not name.startswith("aux_heads.")
    }
    head = {name: weights.pop(name) for name in ("head.weight", "head.bias")}
    network.load_state_dict({**network.state_dict(), **weights})
    known = () if trained.dataset is None else trained.dataset.labels
    shared = [label for label in labels if label in known]
    rows, sources = ([names.index(label) for label in shared] for names in (labels, known))
    for name, stored in head.items():
        row = network.get_parameter(name)
        row[rows] = stored[sources].to(row)
    return shared
