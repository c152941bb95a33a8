"""How fast a batch of sounds becomes log-mel spectrograms, beside librosa in a loop and bare `torch.stft`; prints a table and writes bench/sound.json.

  python bench/sound.py [--chunks 1000] [--repeats 7] [--out bench/sound.json]

Chunks of half a second (`LMSConfig`), noise at many levels. Four ways take turns, `repeats` times, all with the threads that the process has:
ours (`log_mel`, one call), `librosa.feature.melspectrogram` in a loop, `librosa.stft` in a loop with a filter bank that is made once, and `torch.stft`
alone, one call. Both loops end in decibels, as ours does. Before any time is taken, the three spectrograms must agree to 0.05 dB above -80 dB, and `torch.stft` must give the loop's magnitudes.
A ratio is taken within each turn; the table shows medians, and the smallest and largest ratio."""
import time
from dataclasses import dataclass
from pathlib import Path

import librosa
import numpy as np
import torch

from cargan.core import CarganError, write_json
from cargan.lms import LMSConfig, log_mel
from common import run

CFG = LMSConfig()
FRAMES = dict(n_fft=CFG.n_fft, hop_length=CFG.hop)
MELS = dict(sr=CFG.sample_rate, n_mels=CFG.n_mels, fmin=CFG.f_min, fmax=CFG.f_max, htk=CFG.htk, norm=None)
GOALS = {"librosa.feature.melspectrogram, loop": 20, "librosa.stft and cached bank, loop": 3, "torch.stft alone": 1 / 1.5}  # name: how many times our time it should take, at least


@dataclass(frozen=True)
class Sound:
    chunks: int = 1000  # half-second sounds in one batch
    repeats: int = 7  # turns
    out: Path = Path("bench/sound.json")


def decibels(power: np.ndarray) -> np.ndarray: return 10 * np.log10(np.maximum(power, CFG.amin))


def ways(waves: np.ndarray) -> dict:  # name -> function without arguments
    "Ours first, then those of `GOALS`."
    batch, window, bank = torch.from_numpy(waves), torch.hann_window(CFG.n_fft), librosa.filters.mel(n_fft=CFG.n_fft, **MELS)
    by_mel = lambda: np.stack([decibels(librosa.feature.melspectrogram(y=w, pad_mode="reflect", **FRAMES, **MELS)) for w in waves])
    by_stft = lambda: np.stack([decibels(bank @ np.abs(librosa.stft(w, pad_mode="reflect", **FRAMES)) ** 2) for w in waves])
    return {"log_mel": lambda: log_mel(batch)} | dict(zip(GOALS, (by_mel, by_stft, lambda: torch.stft(batch, CFG.n_fft, CFG.hop, window=window, return_complex=True))))


def check(waves: np.ndarray) -> float:  # largest difference above -80 dB, dB
    "Raises `CarganError` unless all ways tell the same."
    ours, by_mel, by_stft, complex_stft = (f() for f in ways(waves).values())
    gap = max(abs(ours.numpy() - other)[other > -80].max() for other in (by_mel, by_stft))
    bare = np.stack([np.abs(librosa.stft(w, pad_mode="reflect", **FRAMES)) for w in waves])
    if gap > 0.05 or not np.allclose(complex_stft.abs(), bare, atol=1e-5 * bare.max()): raise CarganError(f"the ways differ (log-mel by {gap:.3f} dB): their times cannot be compared")
    return float(gap)


def measure(cfg: Sound) -> list:  # of dictionaries, one for each way
    waves = np.random.default_rng(0).normal(size=(cfg.chunks, CFG.samples)) * np.logspace(-3, -0.5, cfg.chunks)[:, None]
    waves = waves.astype(np.float32)
    gap, functions, times = check(waves[::max(1, cfg.chunks // 50)]), ways(waves), []
    for f in functions.values(): f()  # once, unmeasured
    for _ in range(cfg.repeats):
        turn = []
        for f in functions.values(): start = time.perf_counter(); f(); turn.append(time.perf_counter() - start)
        times.append(turn)
    times = np.array(times)
    ratios = times / times[:, :1]
    return [dict(what=name, chunks=cfg.chunks, repeats=cfg.repeats, seconds=float(np.median(times[:, i])), times_ours=float(np.median(ratios[:, i])), least=float(ratios[:, i].min()),
                 most=float(ratios[:, i].max()), goal=GOALS.get(name), largest_gap_db=gap, threads=torch.get_num_threads(), torch=torch.__version__, librosa=librosa.__version__)
            for i, name in enumerate(functions)]


def main(cfg: Sound):
    if cfg.chunks < 1 or cfg.repeats < 1: raise CarganError(f"chunks and repeats must be at least 1; got {cfg.chunks} and {cfg.repeats}")
    rows = measure(cfg)
    print(f"{cfg.chunks} chunks of {CFG.seconds} s, {cfg.repeats} turns, {rows[0]['threads']} threads, torch {torch.__version__}; log-mels agree to {rows[0]['largest_gap_db']:.4f} dB")
    print(f"{'way':38}{'seconds':>9}  times ours (least to most)  goal")
    for r in rows:
        goal = "" if r["goal"] is None else f"at least {r['goal']:.3g}: {'reached' if r['times_ours'] >= r['goal'] else 'missed'}"
        print(f"{r['what']:38}{r['seconds']:9.3f}  {r['times_ours']:10.2f} ({r['least']:.2f} to {r['most']:.2f})  {goal}")
    write_json(cfg.out, rows)


if __name__ == "__main__": run(main, Sound, __doc__)
