"""MLCommons Croissant description (croissant.json) of a prepared dataset.

It lists every shard with its checksum. Its records are the rows of index.parquet: shard, byte range, label
and times of each sample.
Specification: https://docs.mlcommons.org/croissant/docs/croissant-spec-1.1.html
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from avdata.shards.provenance import describe_verification
from avdata.visualization.html import web_url

CONFORMS_TO = "http://mlcommons.org/croissant/1.0"

_CONTEXT = {
    "@language": "en", "@vocab": "https://schema.org/", "citeAs": "cr:citeAs", "column": "cr:column",
    "conformsTo": "dct:conformsTo", "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"}, "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "equivalentProperty": "cr:equivalentProperty",
    "dct": "http://purl.org/dc/terms/", "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract", "field": "cr:field", "fileObject": "cr:fileObject", "fileProperty":
    "cr:fileProperty", "fileSet": "cr:fileSet", "format": "cr:format", "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset", "jsonPath": "cr:jsonPath", "key": "cr:key", "md5": "cr:md5",
    "parentField": "cr:parentField", "path": "cr:path", "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet", "references": "cr:references", "regex": "cr:regex", "repeated":
    "cr:repeated", "replace": "cr:replace", "samplingRate": "cr:samplingRate", "sc": "https://schema.org/",
    "separator": "cr:separator", "source": "cr:source", "subField": "cr:subField", "transform":
    "cr:transform",
}  # fmt: skip

_COLUMNS = {
    "key": ("sc:Text", "Sample key: prefix of the sample's members in its shard."),
    "split": ("sc:Text", "train, val or test."),
    "shard": ("sc:Text", "Path of the shard relative to the dataset's root."),
    "offset": ("sc:Integer", "Byte offset of the sample in its shard."),
    "nbytes": ("sc:Integer", "Size of the sample in bytes, with tar headers and padding."),
    "label": ("sc:Integer", "Label index."),
    "label_name": ("sc:Text", "Label name."),
    "group": ("sc:Text", "Unit that a split should not cross: speaker, recording or video."),
    "window_start": ("sc:Float", "Start of the window, in seconds on the clip's time axis."),
    "window_end": ("sc:Float", "End of the window, in seconds on the clip's time axis."),
    "av_offset": ("sc:Float", "Audio time minus video time in seconds, positive if the audio is late."),
    "av_peak": ("sc:Float", "Peak of the cross-correlation at that offset."),
    "duration_audio": ("sc:Float", "Duration of the audio in seconds."),
    "duration_video": ("sc:Float", "Duration of the video in seconds."),
    "pad_fraction": ("sc:Float", "Fraction of the window without audio or video."),
    "sha256": ("sc:Text", "SHA-256 of the sample's bytes in its shard."),
}


def croissant(info: Mapping[str, Any], index_sha256: str) -> bytes:
    """Return the Croissant JSON-LD of a dataset. Equal datasets give equal bytes.

    Args:
        info: content of dataset.json.
        index_sha256: SHA-256 of index.parquet.
    """
    license = info["license"] or {}
    content = "aligned audio and video frames" if info["shape"]["frames"] else "audio"
    document: dict[str, Any] = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": CONFORMS_TO,
        "name": f"{info['name']}-avdata",
        "description": f"{info['title']}: {content} as WebDataset shards."
        f" {describe_verification(info['source'])}",
        "version": f"{info['format']}.{info['recipe']['version']}.0",
        "license": web_url(license.get("link")) or license.get("name") or "unknown",
        "citeAs": info["citation"],
        "url": web_url(info["source"].get("homepage")),
        "distribution": [_index(index_sha256), *_shards(info)],
        "recordSet": [_samples(), _labels(info)],
    }
    defined = {name: value for name, value in document.items() if value is not None}
    return (json.dumps(defined, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _index(sha256: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject", "@id": "index.parquet", "name": "index.parquet",
        "description": "One row per sample.", "contentUrl": "index.parquet",
        "encodingFormat": "application/x-parquet", "sha256": sha256,
    }  # fmt: skip


def _shards(info: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "@type": "cr:FileObject", "@id": shard["path"], "name": shard["path"],
            "description": f"{shard['samples']} samples of split {split}.",
            "contentUrl": shard["path"], "contentSize": f"{shard['bytes']} B",
            "encodingFormat": "application/x-tar", "sha256": shard["sha256"],
        }
        for split, entry in info["splits"].items()
        for shard in entry["shards"]
    ]  # fmt: skip


def _samples() -> dict[str, Any]:
    fields = [
        {
            "@type": "cr:Field", "@id": f"samples/{name}", "name": name, "description": description,
            "dataType": data_type,
            "source": {"fileObject": {"@id": "index.parquet"}, "extract": {"column": name}},
        }
        for name, (data_type, description) in _COLUMNS.items()
    ]  # fmt: skip
    return {
        "@type": "cr:RecordSet", "@id": "samples", "name": "samples", "key": {"@id": "samples/key"},
        "description": "One record per sample.", "field": fields,
    }  # fmt: skip


def _labels(info: Mapping[str, Any]) -> dict[str, Any]:
    fields = [
        {"@type": "cr:Field", "@id": "labels/index", "name": "index", "dataType": "sc:Integer"},
        {"@type": "cr:Field", "@id": "labels/name", "name": "name", "dataType": "sc:Text"},
    ]
    rows = [
        {"labels/index": number, "labels/name": name}
        for number, name in enumerate(
            [*info["labels"], *([info["background"]] if info["background"] else [])]
        )
    ]
    return {
        "@type": "cr:RecordSet", "@id": "labels", "name": "labels", "key": {"@id": "labels/index"},
        "description": "Labels in canonical order.", "field": fields, "data": rows,
    }  # fmt: skip
