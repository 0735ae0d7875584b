"""Correctness, speed and cost of training on a GPU, in one command.

    python benchmarks/gpu.py --json results.json        # all parts, under six minutes on one H100
    python benchmarks/gpu.py --parts kernels speed
    python benchmarks/gpu.py --device cpu --tiny        # the same code with tiny sizes, as the tests run it

Correctness: `kernels` compares the compiled neuron with a loop in Python, for each precision, number of time
steps, kind and surrogate; `large` does so beyond 2^31 elements; `training` solves the audio-visual XOR in
reduced precision; `resume` interrupts a training; `compiled` compares torch.compile with eager mode;
`processes` trains under torchrun with synchronized batch norms; `images` decodes JPEG on the device.
Speed: `speed` compares the neuron with SpikingJelly and with memory bandwidth, `steps` a training step with
that of SpikingJelly's neurons, `loading` measures how long training waits for the loader, `memory` the peak
by batch size. Cost: `cost` estimates the hours of the paper's tables from the measured rate. A part that
fails is reported as a missed claim, and the others run.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from claims import Claim, at_least, at_most, main, make_parser
from gpu_kernels import PRECISIONS, kernels, large
from model import JellyNeuron, exchanged
from torch import Tensor, nn
from torch.nn import functional

import avdata
import snnergy
from avdata import AVDataset
from snnergy.data import open_split, to_device
from snnergy.layers.neurons import SpikingNeuron
from snnergy.training.config import resolve_config
from snnergy.training.trainer import train

CREMAD_TRAIN_CLIPS = 5209  # 70 % of 7,442
TABLE_RUNS = 6 * 3  # rows and seeds of a table of `snnergy reproduce`

Options = argparse.Namespace


def synchronize(device: str) -> None:
    """Wait for the kernels of a GPU."""
    if device == "cuda":
        torch.cuda.synchronize()


def rounds_of(call: Callable[[], object], device: str, rounds: int) -> float:
    """Return the median seconds of a call, after two that do not count."""
    taken = []
    for number in range(rounds + 2):
        synchronize(device)
        began = time.perf_counter()
        call()
        synchronize(device)
        if number >= 2:
            taken.append(time.perf_counter() - began)
    return statistics.median(taken)


@contextmanager
def synthetic(options: Options, **config: Any) -> Iterator[tuple[Path, Path]]:
    """Prepare the audio-visual XOR; yield its folder and one for runs."""
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder) / "synthetic"
        limit = {"select": {"limit": 44}} if options.tiny else {}
        workers = min(8, os.cpu_count() or 1)
        avdata.prepare("synthetic", output=where, config={**limit, **config}, workers=workers)
        yield where, Path(folder)


def training(options: Options) -> list[Claim]:
    """Train XOR in each precision of the device."""
    precisions = ["32", "bf16"] if options.device == "cpu" else ["32", "bf16", "fp16"]
    steps, claims = (3, list[Claim]()) if options.tiny else (250, list[Claim]())
    with synthetic(options) as (where, folder):
        for precision in precisions:
            settings = {"model": "nano", "steps": steps, "precision": precision}
            result = train(
                where, folder / precision, resolve_config("quick", settings), device=options.device
            )
            title = f"training of XOR, nano, {steps} steps, precision={precision}: accuracy on test"
            target = None if options.tiny else 0.95
            claims.append(Claim(title, result["test"]["accuracy"], target, unit=""))
    return claims


def resume(options: Options) -> list[Claim]:
    """Interrupt a training, resume it, and compare the weights with those of an undisturbed one."""
    steps = 4 if options.tiny else 40
    config = resolve_config("quick", {"model": "nano", "steps": steps, "save_every": 2, "precision": "32"})

    def interrupt(stage: str, done: int, total: int | None) -> None:
        if stage == "train" and done >= steps // 2:
            raise KeyboardInterrupt

    with synthetic(options) as (where, folder):
        train(where, folder / "undisturbed", config, device=options.device)
        try:
            train(where, folder / "resumed", config, device=options.device, progress=interrupt)
        except (KeyboardInterrupt, SystemExit):
            train(where, folder / "resumed", config, device=options.device, resume=True)
        weights = [
            torch.load(folder / run / "last.ckpt", weights_only=True, map_location="cpu")["network"]
            for run in ("undisturbed", "resumed")
        ]
    gap = max(float((weights[0][key].float() - weights[1][key].float()).abs().max()) for key in weights[0])
    # Sums of some CUDA kernels have no fixed order.
    bound = 0.0 if options.device == "cpu" else 1e-3
    return [
        at_most(f"resume after {steps // 2} of {steps} steps: largest difference of weights", gap, bound, "")
    ]


def inputs(options: Options, batch: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return audio, video and labels on the device."""
    audio = torch.randn(4, batch, 1, size, size, device=options.device)
    video = torch.randn(4, batch, 3, size, size, device=options.device)
    return audio, video, torch.randint(0, 6, (batch,), device=options.device)


def step_of(network: nn.Module, data: tuple[Tensor, Tensor, Tensor], device: str) -> Callable[[], None]:
    """Return a training step in bf16 mixed precision."""
    audio, video, label = data
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16):
            loss = functional.cross_entropy(network(audio, video), label)
        loss.backward()
        optimizer.step()

    return step


def make_network(options: Options, preset: str) -> nn.Module:
    """Return a network with six classes on the device, from a fixed seed."""
    torch.manual_seed(0)
    return snnergy.build("nano" if options.tiny else preset, num_classes=6).to(options.device)


def size_of(options: Options) -> int:
    """Return the height and width of the inputs."""
    return 32 if options.tiny else 128


def compiled(options: Options) -> list[Claim]:
    """Compare torch.compile with eager mode: logits, and time of a training step."""
    network, data = (
        make_network(options, "small"),
        inputs(options, 2 if options.tiny else 32, size_of(options)),
    )
    network.eval()
    faster = torch.compile(network)
    with torch.no_grad():
        eager, optimized = network(*data[:2]), faster(*data[:2])
    gap = float((eager - optimized).abs().max() / eager.abs().max().clamp_min(1e-12))
    network.train()
    rounds = 1 if options.tiny else 10
    times = [
        rounds_of(step_of(each, data, options.device), options.device, rounds) for each in (network, faster)
    ]
    return [
        at_most("torch.compile, fp32: largest difference of logits ÷ largest logit", gap, 1e-3, ""),
        Claim("torch.compile: training step, eager ÷ compiled, small, bf16", times[0] / times[1]),
    ]


def processes(options: Options) -> list[Claim]:
    """Train with torchrun in one process, with synchronized batch norms on a GPU."""
    with synthetic(options) as (where, folder):
        settings = ["--set", "sync_batchnorm=true"] if options.device == "cuda" else []
        command = [
            sys.executable, "-P", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=1",
            "-m", "snnergy", "train", str(where), "--output", str(folder / "run"), "--model", "nano",
            "--train-preset", "quick", "--steps", "4", "--device", options.device, *settings,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        if done.returncode:
            print(done.stderr[-3000:])
    return [at_most("torchrun with one process, synchronized batch norms: exit code", done.returncode, 0, "")]


def images(options: Options) -> list[Claim]:
    """Decode JPEG on the device, where torchvision offers it, and compare it with the CPU."""
    from torchvision.io import decode_jpeg, encode_jpeg

    size = 64 if options.tiny else 224
    picture = torch.randint(0, 255, (3, size // 8, size // 8), dtype=torch.uint8).float()[None]
    smooth = functional.interpolate(picture, scale_factor=8, mode="bilinear")[0].to(torch.uint8)
    data = [encode_jpeg(smooth, 95)] * (4 if options.tiny else 256)
    on_cpu = [decode_jpeg(item) for item in data[:1]]
    try:
        decode: Callable[[], Any] = partial(decode_jpeg, data, device=options.device)
        on_device = decode()
    except RuntimeError as error:
        print(f"JPEG on {options.device}: {error}")
        return [Claim("JPEG on the device (not offered by this torchvision)", math.nan)]
    gap = float((on_device[0].cpu().float() - on_cpu[0].float()).abs().mean())
    seconds = rounds_of(decode, options.device, 3)
    return [
        at_most("JPEG on the device: mean difference from the CPU, of 255", gap, 2.0, ""),
        Claim(f"JPEG on the device, {size}×{size}", len(data) / seconds, unit="images/s"),
    ]


def speed(options: Options) -> list[Claim]:
    """Compare the neuron with SpikingJelly and with copies of memory."""
    shape = (4, 2, 8, 16, 16) if options.tiny else (4, 64, 96, 64, 64)
    claims, rounds = list[Claim](), 2 if options.tiny else 20
    for name, dtype in PRECISIONS.items():
        if options.device == "cpu" and name == "fp16":
            continue
        current = torch.randn(shape, device=options.device, dtype=dtype).mul_(2).requires_grad_()
        grad, target = torch.randn_like(current), torch.empty_like(current)

        def copies(current: Tensor = current, grad: Tensor = grad, target: Tensor = target) -> None:
            target.copy_(current.detach())
            target.copy_(grad)

        def fire(layer: nn.Module, current: Tensor = current, grad: Tensor = grad) -> None:
            torch.autograd.grad(layer(current), current, grad)

        floor = rounds_of(copies, options.device, rounds)
        ours, jelly = (
            rounds_of(partial(fire, layer.to(options.device)), options.device, rounds)
            for layer in (SpikingNeuron(), JellyNeuron())
        )
        bytes_moved = 4 * current.numel() * current.element_size()
        print(f"two copies of {shape}, {name}: {bytes_moved / floor / 1e9:.0f} GB/s")
        title = f"neuron {list(shape)}, {name}, forward and backward"
        is_claimed = name == "fp32" and not options.tiny
        claims += [
            Claim(f"{title}: SpikingJelly ÷ SNNergy", jelly / ours, 5.0 if is_claimed else None),
            Claim(f"{title}: SNNergy ÷ two copies", ours / floor, 3.0 if is_claimed else None, at_most=True),
        ]
    return claims


def steps(options: Options) -> list[Claim]:
    """Compare a training step with that of the same network with SpikingJelly's neurons."""
    claims = []
    for preset, batch in (("small", 64), ("paper_like", 32)):
        data = inputs(options, 2 if options.tiny else batch, size_of(options))
        rounds = 1 if options.tiny else 5
        network = make_network(options, preset)
        ours = rounds_of(step_of(network, data, options.device), options.device, rounds)
        network = exchanged(network, JellyNeuron).to(options.device)
        jelly = rounds_of(step_of(network, data, options.device), options.device, rounds)
        title = f"training step of {preset}, {size_of(options)}×{size_of(options)}, batch {batch}, bf16"
        target = 1.25 if preset == "small" and not options.tiny else None
        claims += [
            Claim(f"{title}: SpikingJelly ÷ SNNergy", jelly / ours, target),
            Claim(title, len(data[2]) / ours, unit="samples/s"),
        ]
    return claims


def train_epoch(
    data: AVDataset, network: nn.Module, optimizer: torch.optim.Optimizer, device: str, batch: int
) -> tuple[float, float, int]:
    """Train one epoch; return the seconds of waiting for batches, all seconds, and the samples."""
    waited, samples, began = 0.0, 0, time.perf_counter()
    batches = iter(data.loader(batch, num_workers=2, pin_memory=device == "cuda"))
    while True:
        start = time.perf_counter()
        loaded = next(batches, None)
        waited += time.perf_counter() - start
        if loaded is None:
            return waited, time.perf_counter() - began, samples
        given = to_device(loaded, device=device)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16):
            loss = functional.cross_entropy(network(given.audio, given.video), given.label)
        loss.backward()
        optimizer.step()
        synchronize(device)
        samples += len(given.label)


def loading(options: Options) -> list[Claim]:
    """Measure the share of time in which training waits for batches from shards."""
    size = size_of(options)
    settings = {"video": {"size": size, "num_frames": 4}, "audio": {"n_mels": size}}
    with synthetic(options, **settings) as (where, _):
        data = open_split(where, "train", shuffle=True)
        channels = data.info["shape"]["frames"][-1]
        network = snnergy.build("nano" if options.tiny else "small", num_classes=2, video_channels=channels)
        network = network.to(options.device)
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
        batch = 4 if options.tiny else 32
        # The first epoch warms up.
        epochs = [
            train_epoch(data, network, optimizer, options.device, batch)
            for _ in range(2 if options.tiny else 4)
        ]
    waited, seconds, samples = (sum(column) for column in zip(*epochs[1:], strict=True))
    title = f"training from shards, small, {size}×{size}, bf16, 2 loader threads"
    target = None if options.tiny or options.device == "cpu" else 0.05
    return [
        Claim(f"{title}: share of time waiting for batches", waited / seconds, target, at_most=True, unit=""),
        Claim(title, samples / seconds, unit="samples/s"),
    ]


def memory(options: Options) -> list[Claim]:
    """Measure the peak memory of a training step by batch size."""
    if options.device != "cuda":
        return [Claim("peak memory (measured on GPUs only)", math.nan)]
    peaks = {}
    for batch in (8, 16, 32, 64):
        network = make_network(options, "small")
        torch.cuda.reset_peak_memory_stats()
        step_of(network, inputs(options, batch, size_of(options)), options.device)()
        peaks[batch] = torch.cuda.max_memory_allocated() / 1e6
        print(f"peak memory, small, batch {batch}: {peaks[batch]:.0f} MB")
    return [Claim("peak memory per sample, small, bf16", (peaks[64] - peaks[8]) / 56, unit="MB")]


def cost(options: Options) -> list[Claim]:
    """Estimate an epoch of CREMA-D and the tables of `snnergy reproduce`, 200 epochs per run."""
    batch = 2 if options.tiny else 64
    network, data = make_network(options, "small"), inputs(options, batch, size_of(options))
    rounds = 1 if options.tiny else 10
    rate = batch / rounds_of(step_of(network, data, options.device), options.device, rounds)
    epoch = CREMAD_TRAIN_CLIPS / rate
    title = f"small, {size_of(options)}×{size_of(options)}, T = 4, bf16"
    return [
        Claim(f"epoch of {CREMAD_TRAIN_CLIPS:,} clips, {title}", epoch, unit="s"),
        Claim(
            f"table of {TABLE_RUNS} runs of 200 epochs, {title}", TABLE_RUNS * 200 * epoch / 3600, unit="h"
        ),
    ]


PARTS: dict[str, Callable[[Options], list[Claim]]] = {
    "kernels": kernels, "large": large, "training": training, "resume": resume, "compiled": compiled,
    "processes": processes, "images": images, "speed": speed, "steps": steps, "loading": loading,
    "memory": memory, "cost": cost,
}  # fmt: skip


def measure(options: Options) -> list[Claim]:
    if options.device == "cuda":
        print(
            f"{torch.cuda.get_device_name()}, {torch.cuda.get_device_properties(0).total_memory / 1e9:.0f} GB"
        )
    claims = []
    for name in options.parts:
        began = time.perf_counter()
        try:
            claims += PARTS[name](options)
        except Exception:  # the other parts run
            traceback.print_exc()
            claims.append(at_least(f"{name} runs", 0, 1, ""))
        print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)
    return claims


if __name__ == "__main__":
    parser = make_parser(__doc__)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, for a check of this script")
    options = parser.parse_args()
    options.tiny = options.tiny or options.quick
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("this machine has no GPU that torch can use; --device cpu --tiny checks the script")
    main(options, measure)
