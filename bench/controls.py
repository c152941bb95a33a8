"""How long retrieval takes, and what it finds when sounds are compared more coarsely or more finely; prints a table.

  python bench/controls.py [--data data/synthurmp.npz] [--sides 8 16 32 64] [--threads 1] [--rounds 7]

ms: all held-out sounds asked at once of all training pairs, pictures included; CPU time, so that other programs don't count; the median of some rounds, after
one to warm up. The other columns were used to choose the default, so they don't touch the held-out pairs: each fifth of the training recordings asks the other four.
instrument: how often the nearest of all sounds is of the same instrument (windows in which somebody plays). pitch, loudness: how well the hand of the
nearest sound of the same instrument stands for the hand asked about (R² of the cue within instruments); L1: the distance of the two pictures."""
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from cargan.controls import NearestPair, RetrievalConfig, remember
from cargan.core import CarganError
from cargan.data import PairDataset, open_data, split_recordings
from cargan.listening import r_squared
from common import run


@dataclass(frozen=True)
class Bench:
    data: Path = Path("data/synthurmp.npz")  # a bundle that knows its factors
    sides: tuple[int, ...] = (8, 16, 32, 64)  # a sound is compared as side x side numbers
    size: int = 64  # of the pictures, pixels
    threads: int = 1
    rounds: int = 7


def milliseconds(model: NearestPair, batch: dict, rounds: int) -> float:
    "CPU time of `draw`: the median of some calls, after one to warm up."
    took = []
    for _ in range(rounds + 1):
        start = time.process_time(); model.draw(batch["mel"], batch["label"]); took.append(time.process_time() - start)
    return 1000 * float(np.median(took[1:]))


def found(dataset: PairDataset, asking: np.ndarray, asked: np.ndarray, side: int) -> dict:
    "What the sounds of some pairs find among others."
    bundle, memory, batch = dataset.bundle, remember(dataset, asked, side), dataset.__getitems__(asking)
    rows = {among: NearestPair(RetrievalConfig(dataset.size, among, side), **memory).search(batch["mel"], batch["label"]).numpy() for among in ("label", "all")}
    label, near = np.asarray(bundle.label)[asking], asked[rows["label"]]
    cue = lambda name: r_squared(np.asarray(bundle.factors[name])[asking], np.asarray(bundle.factors[name])[near], label)
    l1 = np.abs(bundle.image[asking].astype(np.float32) - bundle.image[near]).mean() / 127.5
    return dict(instrument=(np.asarray(bundle.label)[asked[rows["all"]]] == label).mean(), pitch=cue("pitch_cue"), loudness=cue("loudness_cue"), L1=l1)


def main(cfg: Bench):
    torch.set_num_threads(cfg.threads)
    bundle = open_data(cfg.data, cfg.size)
    if not {"rest", "pitch_cue", "loudness_cue"} <= bundle.factors.keys(): raise CarganError(f"{cfg.data} doesn't know its factors; give data of cargan synth")
    dataset, (train, held) = PairDataset(bundle, cfg.size), split_recordings(bundle)
    recording, rest = np.asarray(bundle.recording)[train], np.asarray(bundle.factors["rest"])[train].astype(bool)
    names = np.random.default_rng(0).permutation(np.unique(recording))
    folds = [np.isin(recording, names[k::5]) for k in range(5)]  # windows that ask
    rows, batch = {}, dataset.__getitems__(held)
    for side in cfg.sides:
        memory = remember(dataset, train, side)
        ms = {f"ms, {among}": milliseconds(NearestPair(RetrievalConfig(cfg.size, among, side), **memory), batch, cfg.rounds) for among in ("label", "all")}
        rows[side] = ms | pd.DataFrame([found(dataset, train[asks & ~rest], train[~asks], side) for asks in folds]).mean().to_dict()
    print(f"{len(held)} sounds against {len(train)} pairs, {cfg.size} px, {cfg.threads} thread(s); the other columns: mean of five folds of the training recordings")
    print(pd.DataFrame(rows).T.rename_axis("side").round(3).to_string())


if __name__ == "__main__": run(main, Bench, __doc__)
