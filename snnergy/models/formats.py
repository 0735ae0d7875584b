"""File formats of exported networks. It imports no torch, so that the command line can list them."""

from __future__ import annotations

from collections.abc import Mapping

FORMATS: Mapping[str, str] = {"onnx": ".onnx", "torch": ".pt2", "nir": ".nir"}
"""Suffix of the file by format."""
