"""Named presets: the settings of published work as overrides of the defaults."""

from __future__ import annotations

from collections.abc import Mapping

from avdata.config.overrides import Overrides

_LOG_STFT: Overrides = {
    "sample_rate": 22_050, "feature": "log-stft", "n_fft": 512, "hop_length": 353, "power": 1.0, "log": "ln",
    "amin": 1e-7, "clamp": True, "layout": "repeat",
}  # fmt: skip

PRESETS: Mapping[str, Overrides] = {
    # Four consecutive steps of 0.64 s, 128 mel columns each.
    "snnergy": {},
    # Front end of the public code of SNNergy's author: 40,800 samples, dB below the clip's maximum, min-max.
    "snnergy-repeat": {
        "audio": {
            "n_fft": 2048, "hop_length": 320, "ref": "max", "top_db": 80.0, "normalize": "minmax",
            "layout": "repeat",
        },
        "align": {"window": "start", "seconds": 2.55},
    },
    # OGM-GE (CVPR 2022), CramedDataset.py: tile to 3 s, log|STFT| 257×188; every 29th frame at 224×224.
    "ogmge": {
        "audio": _LOG_STFT,
        "video": {
            "num_frames": 3, "size": 224, "resize_mode": "stretch",
            "frame_sampling": "every", "frame_interval": 29,
        },
        "align": {"window": "start", "seconds": 3.0, "pad": "repeat", "offset_correction": "none"},
    },
    # S-CMRL (arXiv 2502.12488): log|STFT| of the complete clip resized to 128×128; one frame, T=4 times.
    "scmrl": {
        "audio": {**_LOG_STFT, "resize": [128, 128]},
        "video": {
            "num_frames": 4, "size": 128, "short_side": 256,
            "frame_sampling": "random-of-every", "frame_interval": 29,
        },
        "align": {"window": "whole", "seconds": None, "offset_correction": "none"},
    },
    # For the export layouts ogm-ge and s-cmrl: 1 frame a second, and the waveform. 6 s are longer than every
    # clip of CREMA-D.
    "ogmge-1fps": {
        "audio": {"flac": True, "hop_length": 160},
        "video": {"num_frames": 6, "size": 256, "resize_mode": "stretch"},
        "align": {"window": "start", "seconds": 6.0},
    },
    # For the export layouts balancemm and kinetics-sounds: 2 frames a second, and Kaldi's filterbank.
    "balancemm": {
        "audio": {
            "flac": True, "feature": "kaldi-fbank", "n_fft": 400, "hop_length": 160, "fmin": 20.0,
            "normalize": "ast",
        },
        "video": {"num_frames": 12, "size": 256, "resize_mode": "stretch"},
        "align": {"window": "start", "seconds": 6.0},
    },
}  # fmt: skip
