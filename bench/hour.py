"""How much memory an hour of sound needs: `cargan generate` with an untrained network, on a minute and on an hour.

  python bench/hour.py --seconds 60 3600 --fps 10

Each length is drawn in a process of its own; what is printed is the most memory that it held at any time."""
import json, resource, subprocess, sys, tempfile, time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile as sf

import common


@dataclass(frozen=True)
class HourConfig:
    seconds: tuple[int, ...] = (60, 3600)  # lengths of sound
    fps: float = 10  # pictures a second
    kind: str = "flac"  # of the sound file: wav, flac, ogg or mp3
    gif: bool = True  # a GIF, too
    frames: bool = True  # all pictures as PNG, too
    alone: bool = False  # one length, in this process


def write_sound(path: Path, seconds: int):
    "A stereo tone that changes every second, and is silent every fifth, written second by second."
    t = np.arange(44100) / 44100
    with sf.SoundFile(path, "w", 44100, 2) as f:
        for k in range(seconds):
            tone = 0.2 * np.sin(2 * np.pi * 220 * 2 ** (k % 24 / 12) * t) * (k % 5 > 0)
            f.write(np.stack([tone, 0.8 * tone], 1))


def eye(folder: Path):
    "CAR-GAN at 64 pixels with an ear of the usual size, both untrained."
    from dataclasses import replace
    from cargan.cost import random_players
    from cargan.drawing import SoundToImage
    from cargan.hearing import AudioClassifier, AudioClassifierConfig
    from cargan.methods import find_method
    preset = find_method("cargan").presets["lab"]
    cfg = replace(preset, data=folder, out=folder/"run", device="cpu", model=replace(preset.model, base=8, d_base=8))
    return SoundToImage(random_players(cfg).model, AudioClassifier(AudioClassifierConfig()))


def measure(cfg: HourConfig, seconds: int) -> dict:
    "Draw so many seconds in this process."
    import torch
    from cargan.generate import GenerateConfig, generate_files
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as tmp:
        sound = Path(tmp)/f"sound.{cfg.kind}"
        write_sound(sound, seconds)
        see, start = eye(Path(tmp)), time.perf_counter()
        job = GenerateConfig((sound,), run=Path("none"), out=Path(tmp)/"out", video=True, gif=cfg.gif, frames=cfg.frames, fps=cfg.fps)
        pictures = len(generate_files(see, job)[0]["windows"])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2 ** 30 if sys.platform == "darwin" else 2 ** 20)
    return dict(seconds=seconds, pictures=pictures, peak_gb=round(peak, 3), took_s=round(time.perf_counter() - start, 1))


def main(cfg: HourConfig):
    "A line for each length."
    for seconds in cfg.seconds:
        if cfg.alone: print(json.dumps(measure(cfg, seconds)), flush=True); continue
        words = ["--alone", "--seconds", str(seconds), "--fps", str(cfg.fps), "--kind", cfg.kind, f"--{'' if cfg.gif else 'no-'}gif", f"--{'' if cfg.frames else 'no-'}frames"]
        subprocess.run([sys.executable, __file__, *words], check=True)


if __name__ == "__main__": common.run(main, HourConfig, __doc__)
