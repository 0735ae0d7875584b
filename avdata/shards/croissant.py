"""Croissant, MLCommons' description of a dataset for machines: croissant.json of a prepared set.

Every shard is listed with its checksum; the records are the rows of index.parquet, so that a reader of
Croissant finds each sample's shard, byte range, label and times without unpacking anything.
Specification: https://docs.mlcommons.org/croissant/docs/croissant-spec-1.1.html
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

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
    "key": ("sc:Text", "names the sample's members in its shard"),
    "split": ("sc:Text", "train, val or test"),
    "shard": ("sc:Text", "path of the shard below the set's root"),
    "offset": ("sc:Integer", "byte of the shard at which the sample begins"),
    "nbytes": ("sc:Integer", "bytes of the sample with its tar headers and padding"),
    "label": ("sc:Integer", "index of the label"),
    "label_name": ("sc:Text", "the label"),
    "group": ("sc:Text", "what a split must not cross: speaker, recording, video"),
    "window_start": ("sc:Float", "seconds on the clip's own axis"),
    "window_end": ("sc:Float", "seconds on the clip's own axis"),
    "av_offset": ("sc:Float", "sound minus picture in seconds, positive when the sound is late"),
    "av_peak": ("sc:Float", "correlation at that offset"),
    "duration_audio": ("sc:Float", "seconds"),
    "duration_video": ("sc:Float", "seconds"),
    "pad_fraction": ("sc:Float", "share of the window in which there is no sound or picture"),
    "sha256": ("sc:Text", "of the sample's bytes in its shard"),
}


def croissant(info: Mapping[str, Any], index_sha256: str) -> bytes:
    """The JSON-LD of a set; equal sets give equal bytes.

    Args:
        info: what dataset.json holds.
        index_sha256: checksum of index.parquet.
    """
    license = info["license"] or {}
    said: dict[str, Any] = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": CONFORMS_TO,
        "name": f"{info['name']}-avdata",
        "description": f"{info['title']}: aligned sound and pictures as WebDataset shards.",
        "version": f"{info['format']}.{info['recipe']['version']}.0",
        "license": license.get("link") or license.get("name") or "unknown",
        "citeAs": info["citation"],
        "url": info["source"].get("homepage"),
        "distribution": [_index(index_sha256), *_shards(info)],
        "recordSet": [_samples(), _labels(info)],
    }
    kept = {name: value for name, value in said.items() if value is not None}
    return (json.dumps(kept, indent=1, ensure_ascii=False) + "\n").encode()


def _index(sha256: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject", "@id": "index.parquet", "name": "index.parquet",
        "description": "One row a sample.", "contentUrl": "index.parquet",
        "encodingFormat": "application/x-parquet", "sha256": sha256,
    }  # fmt: skip


def _shards(info: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "@type": "cr:FileObject", "@id": shard["path"], "name": shard["path"],
            "description": f"{shard['samples']} samples of the split {split}.",
            "contentUrl": shard["path"], "contentSize": f"{shard['bytes']} B",
            "encodingFormat": "application/x-tar", "sha256": shard["sha256"],
        }
        for split, held in info["splits"].items()
        for shard in held["shards"]
    ]  # fmt: skip


def _samples() -> dict[str, Any]:
    fields = [
        {
            "@type": "cr:Field", "@id": f"samples/{name}", "name": name, "description": text,
            "dataType": kind,
            "source": {"fileObject": {"@id": "index.parquet"}, "extract": {"column": name}},
        }
        for name, (kind, text) in _COLUMNS.items()
    ]  # fmt: skip
    return {
        "@type": "cr:RecordSet", "@id": "samples", "name": "samples", "key": {"@id": "samples/key"},
        "description": "One record a sample.", "field": fields,
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
        "description": "The labels in canonical order.", "field": fields, "data": rows,
    }  # fmt: skip
