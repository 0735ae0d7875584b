"""Preparation beside its lower bound and beside other ways of doing it.

    python benchmarks/prepare.py                       # about four minutes
    python benchmarks/prepare.py --rounds 1 --cremad 20 --ave 4

Clips like CREMA-D's (480×360, 29.97 frames/s, 2.5 s, flv1 + mp3, and a WAV of 16 kHz) and like AVE's
(10 s, 640×360, h264 + aac) are generated with grain, so that there is detail to decode. The contenders take
turns, each in a new process with one thread per library; figures are medians of the rounds.

floor     the frames needed, decoded in one pass by PyAV as RGB, h264's unneeded ones skipped; the audio (both
          tracks of a pair, because the offset between them is measured from nothing less) and one mel, by our
          own code, which is the fastest of those tried. Nothing is resized, compared, compressed or written.
          Two at once show how much speed the machine has for two workers.
prepare   `avdata.prepare`, from the survey to the finished dataset, with 1 and 2 workers; files are hashed.
          Below the table: what it does beyond the floor, each part timed in the same run.
today     a common script: ffmpeg to WAV, ffmpeg to JPEGs, librosa, `wds.ShardWriter`.
v2d       the method of video2dataset: two ffmpeg processes and temporary files per clip, which is re-encoded.

CPU time per clip is that of a run over all clips less that of a run over the first quarter, divided by the
difference: imports do not count. Shards are of the same size in both.
"""

from __future__ import annotations

import argparse
import io
import os
import pickle
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from claims import Claim, at_least, at_most, main, make_parser, set_quick
from prepare_clips import make_clips

KINDS = ("cremad", "ave")
SHARDS = {".flv": 10, ".mp4": 2}
"""Samples a shard: few, so that there are enough for two workers; real ones have hundreds."""
CHILD_MEMORY = "child-memory"
"""File in which a contender's process leaves the peak memory of its largest child, MB."""
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def videos(folder: Path, count: int) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in {".flv", ".mp4"})[:count]


def wanted(path: Path) -> tuple[list[float], int, int]:
    """The moments of a clip's frames, s; samples of its window; the mel's hop."""
    if path.suffix == ".flv":
        return [0.32 + 0.64 * step for step in range(4)], 40_960, 80
    return [0.5 + step for step in range(10)], 160_000, 125


def floor(folder: Path, out: Path, count: int) -> None:
    """The least that must be done."""
    import av
    import soundfile
    import soxr

    from avdata.config.schema import AudioConfig, QualityConfig
    from avdata.features.audio.spectrogram import mel_spectrogram
    from avdata.media.audio import AudioTrackDecoder

    del out
    for path in videos(folder, count):
        moments, samples, hop = wanted(path)
        with av.open(str(path)) as container:
            video, audio = container.streams.video[0], container.streams.audio[0]
            video.thread_count = 1
            held = []
            track = AudioTrackDecoder(path, audio, QualityConfig())
            for packet in container.demux(video, audio):
                if packet.stream is video:
                    held.append(packet)
                else:
                    track.add(packet)
            _needed_frames(held, video, moments)
            mono, rate = track.finish().samples, audio.rate
        if path.suffix == ".flv":
            mono, rate = soundfile.read(path.with_suffix(".wav"), dtype="float32")
        wave = soxr.resample(mono, rate, 16_000)[:samples]
        power = mel_spectrogram(np.pad(wave, (0, samples - len(wave))), AudioConfig(hop_length=hop))
        np.log10(np.maximum(power, 1e-10))


def floor2(folder: Path, out: Path, count: int) -> None:
    """The same work, half of it in each of two processes at once."""
    command = [sys.executable, __file__, "--run", "floor", str(folder), str(out), str(count // 2)]
    halves = [subprocess.Popen(command) for _ in range(2)]
    if any(half.wait() for half in halves):
        sys.exit("a half of the floor failed")


def _needed_frames(packets: list, video: object, moments: list[float]) -> None:
    times = sorted(float(packet.pts * packet.time_base) for packet in packets if packet.pts is not None)
    shown = {max(time for time in times if time <= moment) for moment in moments}
    found = 0
    for packet in packets:
        when = None if packet.pts is None else float(packet.pts * packet.time_base)
        video.codec_context.skip_frame = "DEFAULT" if when in shown or when is None else "NONREF"  # type: ignore[attr-defined]
        for frame in packet.decode():
            if float(frame.pts * frame.time_base) in shown:
                frame.to_ndarray(format="rgb24", threads=1)
                found += 1
        if found == len(shown):
            return


def prepare(folder: Path, out: Path, count: int, workers: int = 1) -> None:
    """The product."""
    import avdata
    from avdata.recipe import Clip, Recipe

    def clips(root: Path, split_by: str) -> list[Clip]:
        del split_by
        return [
            Clip(
                key=path.stem, label="a", group=path.stem, split="train", video=path,
                audio=path.with_suffix(".wav") if path.suffix == ".flv" else None,
            )
            for path in videos(root, count)
        ]  # fmt: skip

    recipe = Recipe("bench", 1, "Bench", ("a",), {"all": "one"}, "all", clips, lambda *a: None)
    config: dict[str, dict[str, object]] = {
        "shards": {"samples_per_shard": SHARDS[videos(folder, 1)[0].suffix]}
    }
    if videos(folder, 1)[0].suffix == ".mp4":
        config |= {"audio": {"hop_length": 125}, "video": {"num_frames": 10}, "align": {"seconds": 10.0}}
    avdata.prepare(recipe, source=folder, output=out, config=config, workers=workers, checksums=False)


def prepare2(folder: Path, out: Path, count: int) -> None:
    """The product with two workers."""
    prepare(folder, out, count, workers=2)


def parts(folder: Path, out: Path, count: int) -> None:
    """What the product does beyond the floor: CPU time a clip of each part, in this process."""
    from avdata.features import extract as features
    from avdata.pipeline import planning as shardplan
    from avdata.pipeline import shard_job as job
    from avdata.pipeline.finalize import finalize_dataset
    from avdata.pipeline.journal import Journal
    from avdata.shards.writer import ShardWriter

    prepare(folder, out / "first", min(count, 3), workers=0)
    spent: dict[str, float] = {}

    def timed(owner: object, name: str, part: str) -> None:
        real = getattr(owner, name)

        def wrapper(*args: object, **options: object) -> object:
            began = time.process_time()
            try:
                return real(*args, **options)
            finally:
                spent[part] = spent.get(part, 0.0) + time.process_time() - began

        setattr(owner, name, wrapper)

    timed(shardplan, "_assign", "proving files")
    timed(features, "_align_audio", "measuring the offset")
    for gate in ("check_file_sizes", "check_audio", "check_durations", "check_frames"):
        timed(features, gate, "gates")
    timed(job, "encode_members", "JPEG, npy, JSON")
    timed(ShardWriter, "add", "tar, checksums")
    timed(job, "hash_file", "tar, checksums")
    timed(job.MelSums, "add_mel", "statistics")
    timed(Journal, "commit", "journal, index")
    timed(sys.modules["avdata.pipeline.prepare"], finalize_dataset.__name__, "journal, index")
    os.environ["AVDATA_CACHE"] = str(out / "cache")
    prepare(folder, out / "second", count, workers=0)
    told = ", ".join(f"{part} {seconds / count * 1e3:.2f}" for part, seconds in spent.items())
    print(f"beyond the floor, CPU ms a clip: {told}; in all {sum(spent.values()) / count * 1e3:.2f}")


def today(folder: Path, out: Path, count: int) -> None:
    """A script as it is written today."""
    import imageio_ffmpeg
    import librosa
    import webdataset as wds
    from PIL import Image

    ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
    out.mkdir()
    with wds.ShardWriter(str(out / "%05d.tar"), maxcount=100, verbose=0) as sink, _scratch() as scratch:
        for path in videos(folder, count):
            moments, samples, hop = wanted(path)
            wav, jpgs = scratch / f"{path.stem}.wav", scratch / path.stem
            jpgs.mkdir()
            _ffmpeg([ffmpeg, "-y", "-i", str(path), "-vn", "-ac", "1", "-ar", "16000", str(wav)])
            _ffmpeg([ffmpeg, "-y", "-i", str(path), "-q:v", "2", str(jpgs / "%05d.jpg")])
            y, _ = librosa.load(wav, sr=16_000)
            y = librosa.util.fix_length(y, size=samples)
            mel = librosa.power_to_db(
                librosa.feature.melspectrogram(y=y, sr=16_000, n_fft=1024, hop_length=hop, n_mels=128)
            )
            frames = sorted(jpgs.iterdir())
            sample = {"__key__": path.stem, "mel.npy": mel.astype(np.float16), "cls": 0}
            for step in range(len(moments)):
                at = min(round(step * len(frames) / len(moments)), len(frames) - 1)
                image = Image.open(frames[at]).resize((128, 128))
                buffer = io.BytesIO()
                image.save(buffer, "JPEG", quality=95)
                sample[f"{step}.jpg"] = buffer.getvalue()
            sink.write(sample)
            shutil.rmtree(jpgs)
            wav.unlink()


def v2d(folder: Path, out: Path, count: int) -> None:
    """The way of video2dataset: the resolution and audio subsamplers, then a tar."""
    import imageio_ffmpeg
    import webdataset as wds

    ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
    out.mkdir()
    with wds.ShardWriter(str(out / "%05d.tar"), maxcount=100, verbose=0) as sink, _scratch() as scratch:
        for path in videos(folder, count):
            source, video, sound = scratch / ("in" + path.suffix), scratch / "out.mp4", scratch / "out.m4a"
            source.write_bytes(path.read_bytes())
            scale = "scale=-2:128:force_original_aspect_ratio=decrease,crop=128:128"
            _ffmpeg([ffmpeg, "-y", "-i", str(source), "-vf", scale, "-an", str(video)])
            _ffmpeg([ffmpeg, "-y", "-i", str(source), "-vn", "-ar", "16000", "-c:a", "aac", str(sound)])
            sample = {"__key__": path.stem, "mp4": video.read_bytes(), "m4a": sound.read_bytes()}
            sink.write(sample)


def _scratch() -> tempfile.TemporaryDirectory:
    class Folder(tempfile.TemporaryDirectory):
        def __enter__(self) -> Path:
            return Path(super().__enter__())

    return Folder()


def _ffmpeg(command: list[str]) -> None:
    subprocess.run(
        [command[0], "-loglevel", "error", "-threads", "1", *command[1:-1], "-threads", "1", command[-1]],
        check=True, timeout=300,
    )  # fmt: skip


# Targets of the two kinds of clips.
MAX_CPU = {"cremad": 1.45, "ave": 1.1}
MIN_GAIN = {"cremad": 7.0, "ave": 4.0}

CONTENDERS: dict[str, Callable[[Path, Path, int], None]] = {
    "floor": floor, "floor2": floor2, "prepare": prepare, "prepare2": prepare2, "parts": parts,
    "today": today, "v2d": v2d,
}  # fmt: skip


def measure_process(name: str, folder: Path, count: int) -> tuple[float, float, float, float]:
    """Return wall and CPU seconds of a contender with its children, and peak MB of it and of a child."""
    with _scratch() as scratch:
        command = [sys.executable, __file__, "--run", name, str(folder), str(scratch / "out"), str(count)]
        began = time.perf_counter()
        # A cache of its own: files proven in an earlier round would not be hashed again.
        env = {**os.environ, **ONE_THREAD, "AVDATA_CACHE": str(scratch / "cache")}
        process = subprocess.Popen(command, env=env)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            sys.exit(f"{name} failed with {process.returncode}")
        child = float((scratch / CHILD_MEMORY).read_text())
        return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, child


def start_up(folder: Path) -> float:
    """Seconds from the start of a worker's process to the end of its first clip."""
    from avdata.config.schema import AudioConfig
    from avdata.features.audio import feature_filterbank

    code = (
        "import pickle, sys; from pathlib import Path\n"
        "import avdata.pipeline.engines.local, avdata.pipeline.shard_job\n"
        "from avdata.config.schema import Config; from avdata.features.extract import extract_features\n"
        "from avdata.recipe import Clip\n"
        "clip, filterbank = Clip('k', 'a', 'g', 'train', Path(sys.argv[1])), pickle.load(sys.stdin.buffer)\n"
        "extract_features(clip, Config(), filterbank)"
    )
    # The parent process computes the filterbank and sends it with the job.
    sent, first = pickle.dumps(feature_filterbank(AudioConfig())), videos(folder, 1)[0]
    command = [sys.executable, "-c", code, str(first)]
    began = time.perf_counter()
    subprocess.run(command, check=True, env={**os.environ, **ONE_THREAD}, input=sent)
    return time.perf_counter() - began


def compare(kind: str, folder: Path, count: int, rounds: int, names: list[str]) -> list[Claim]:
    """Let the contenders take turns; print the table and return the claims."""
    few = max(count // 4, 1)
    cpu: dict[str, list[float]] = {name: [] for name in names}
    wall: dict[str, list[float]] = {name: [] for name in names}
    steady: dict[str, list[float]] = {name: [] for name in names}
    own: dict[str, float] = dict.fromkeys(names, 0.0)
    child: dict[str, float] = dict.fromkeys(names, 0.0)
    for _ in range(rounds):
        for name in names:
            short, long = (measure_process(name, folder, clips) for clips in (few, count))
            wall[name].append(long[0])
            steady[name].append((long[0] - short[0]) / (count - few))
            cpu[name].append((long[1] - short[1]) / (count - few))
            own[name], child[name] = max(own[name], long[2]), max(child[name], long[3])
    middle = {name: statistics.median(values) for name, values in cpu.items()}
    pace = {name: statistics.median(values) for name, values in steady.items()}
    whole = {name: statistics.median(values) for name, values in wall.items()}
    print(f"\n{kind}: {count} clips, {rounds} rounds")
    heads = (("CPU ms/clip", 22), ("÷ floor", 9), ("wall ms/clip", 14), ("run s", 8), ("peak MB", 9))
    print("".join(f"{title:>{width}}" for title, width in (*heads, ("child MB", 10))))
    for name in names:
        ratio = middle[name] / middle["floor"]
        print(
            f"{name:10}{middle[name] * 1e3:12.1f}{ratio:9.2f}{pace[name] * 1e3:14.1f}{whole[name]:8.2f}"
            f"{own[name]:9.0f}{child[name]:10.0f}"
        )
    size, claims = f"{kind}, {count} clips", list[Claim]()
    ratio = middle["prepare"] / middle["floor"]
    claims.append(at_most(f"prepare: CPU time per clip ÷ lower bound, {size}", ratio, MAX_CPU[kind]))
    if "prepare2" in names:
        gain, floors = pace["prepare"] / pace["prepare2"], pace["floor"] / pace["floor2"]
        print(f"2 workers: {gain:.2f} × one by wall time per clip; two lower bounds: {floors:.2f} × one")
        name = f"prepare: gain of two workers ÷ that of two lower bounds, {size}"
        claims.append(at_least(name, gain / floors, 0.9))
    for name in ("today", "v2d"):
        if name in names:
            ratios = [figures[name] / figures["prepare"] for figures in (pace, middle, whole)]
            print(
                f"{name} ÷ prepare: {ratios[0]:.1f} per clip, {ratios[1]:.1f} by CPU, {ratios[2]:.1f} by run"
            )
    if "today" in names:
        name = f"prepare: run of ffmpeg + librosa + webdataset ÷ run, {size}"
        claims.append(at_least(name, whole["today"] / whole["prepare"], MIN_GAIN[kind]))
    claims.append(at_most(f"prepare: peak memory of a worker, {size}", child["prepare"], 200, "MB"))
    claims.append(Claim(f"prepare: peak memory of the main process, {size}", own["prepare"], unit="MB"))
    measure_process("parts", folder, count)
    print(f"start-up to the end of the first clip: {min(start_up(folder) for _ in range(2)):.2f} s")
    return claims


def measure(options: argparse.Namespace) -> list[Claim]:
    claims = []
    with _scratch() as scratch:
        for kind in KINDS:
            count = getattr(options, kind)
            if count:
                # A new process: those measured inherit the peak memory of this one.
                command = [sys.executable, __file__, "--run", "make", str(scratch / kind), kind, str(count)]
                subprocess.run(command, check=True)
                names = ["floor", "prepare", *options.beside]
                if "prepare2" in names:
                    names.insert(1, "floor2")
                claims += compare(kind, scratch / kind, count, options.rounds, names)
    return claims


def run_contender(name: str, folder: str, out: str, count: str) -> None:
    """Run one contender in this process."""
    if name == "make":
        make_clips(Path(folder), out, int(count))
    else:
        CONTENDERS[name](Path(folder), Path(out), int(count))
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        (Path(out).parent / CHILD_MEMORY).write_text(str(peak))


if __name__ == "__main__":
    parser = make_parser(__doc__)
    parser.add_argument("--cremad", type=int, default=80, help="clips like CREMA-D's")
    parser.add_argument("--ave", type=int, default=16, help="clips like AVE's")
    parser.add_argument("--rounds", type=int, default=3)
    others = ["prepare2", "today", "v2d"]
    parser.add_argument(
        "--beside", nargs="*", choices=others, default=others, help="contenders besides floor and prepare"
    )
    parser.add_argument("--run", nargs=4, help=argparse.SUPPRESS)
    options = set_quick(parser, cremad=160, ave=0, rounds=2, beside=[])
    if options.run:
        run_contender(*options.run)
    else:
        main(options, measure)
