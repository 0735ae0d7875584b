"""Names of the choices that layers and model settings share."""

from __future__ import annotations

from typing import Literal

AttentionKind = Literal["token", "channel", "ssa"]

SumNorm = Literal["bn", "none"]

Residual = Literal["membrane", "sew"]

Readout = Literal["membrane", "rate"]

Combine = Literal["concat", "or", "sum"]

Modality = Literal["target", "source"]

AlphaShape = Literal["scalar", "channel"]

NeuronKind = Literal["lif", "if", "plif"]

Surrogate = Literal["sigmoid", "atan"]

Reset = Literal["hard", "soft"]
