"""MkDocs hook that writes the API reference: a page for each topic, with the public names under it."""

from dataclasses import dataclass
from typing import Any

from mkdocs.structure.files import File, Files


@dataclass(frozen=True)
class Topic:
    """A page of the reference: file name, title, introduction and public names in order."""

    file: str
    title: str
    introduction: str
    names: tuple[str, ...]


def _names(package: str, names: str) -> tuple[str, ...]:
    return tuple(f"{package}.{name}" for name in names.split())


TOPICS = (
    Topic(
        "prepare", "Prepare a dataset",
        "Download source files, plan, prepare, verify and describe a dataset.",
        _names("avdata", "mock download DownloadReport plan PreparationPlan prepare PreparedSet merge verify"
               " VerificationReport report export ExportReport match SplitMatch Config tqdm_progress"),
    ),
    Topic(
        "stream", "Stream a dataset", "Open a prepared dataset, local or remote, and iterate it.",
        _names("avdata", "open open_dataset AVDataset AVSample AVBatch AVLoader AVMapDataset mix MixedDataset"
               " collate webdataset AVDataModule"),
    ),
    Topic(
        "publish", "Publish and pull", "Upload a prepared dataset to the Hugging Face Hub, and download one.",
        _names("avdata", "publish PublishResult pull"),
    ),
    Topic(
        "recipes", "Recipes and manifests", "Describe a dataset: its clips, labels, splits and source files.",
        _names("avdata", "Recipe Clip load_recipe recipe_names Manifest load_manifest"),
    ),
    Topic(
        "errors", "Errors and codes", "Exceptions, quarantine reasons and sample flags.",
        _names("avdata", "AvdataError UsageError SourceError UnavailableError QuarantineReason SampleFlag"),
    ),
    Topic(
        "snnergy", "SNNergy", "Build, train, measure and export the network.",
        _names("snnergy", "build SNNergy ModelConfig PRESETS FUSIONS recalibrate train evaluate TrainConfig"
               " compare report predict measure_energy export_onnx record_spikes"),
    ),
)  # fmt: skip


def page(topic: Topic) -> str:
    """Return the Markdown of a page."""
    entries = "\n\n".join(f"::: {name}" for name in topic.names)
    return f"# {topic.title}\n\n{topic.introduction}\n\n{entries}\n"


def on_config(config: Any) -> None:
    """Append the pages to the section `API` of `mkdocs.yml`."""
    reference = next(entry["Reference"] for entry in config["nav"] if "Reference" in entry)
    section = next(entry["API"] for entry in reference if isinstance(entry, dict) and "API" in entry)
    section += [f"api/{topic.file}.md" for topic in TOPICS]


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages."""
    for topic in TOPICS:
        files.append(File.generated(config, f"api/{topic.file}.md", content=page(topic)))
    return files
