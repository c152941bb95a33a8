"""How much of a short run is chance: the same training again and again, its first weights nudged by some millionths.

  python bench/draws.py OUT --run runs/quickstart --data data/synthurmp.npz [--nudges 0 1 2 3] [--max-steps 720]

Every draw has the run's configuration, seed, classifiers and judges. It begins from a checkpoint of step 0 in which the weights of G1's first convolution are
multiplied by 1 + k/10^6: some ten roundings, in one layer and once, in place of what another version of the code or another number of threads does to every sum. OUT/draw_0, OUT/draw_1, … are runs;
started again, it goes on where it stopped. Prints, and keeps in OUT/draws.json, what the judge sees in held-out windows in which somebody plays."""
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import torch
import tyro

from cargan.classifier import load_classifier
from cargan.core import CarganError, write_json
from cargan.data import open_data
from cargan.evaluation import EvaluateConfig, open_case
from cargan.training import checkpoint_folders, load_run, make_accelerator, make_players, open_run, read_log, save_checkpoint, train
from common import run

KEPT = ("classifier.safetensors", "audio_classifier.safetensors", "evaluator.safetensors", "evaluator_paper.safetensors")  # of the run: the same for all draws


@dataclass(frozen=True)
class Draws:
    "Several draws of one run."
    out: tyro.conf.Positional[Path]  # folder of the draws
    run: Path = Path("runs/quickstart")  # a run that `cargan evaluate` has scored
    data: Path = Path("data/synthurmp.npz")  # its bundle
    nudges: tuple[int, ...] = (0, 1, 2, 3)  # k, in millionths
    max_steps: int = 720


def begin(c: Draws, k: int):
    "The training of draw `k`, with its checkpoint of step 0."
    cfg = replace(load_run(c.run)[1], data=c.data, out=c.out/f"draw_{k}", max_steps=c.max_steps)
    open_run(cfg, open_data(cfg.data, cfg.model.size))
    for name in KEPT: shutil.copy(c.run/name, cfg.out/name)
    if not checkpoint_folders(cfg.out):
        p = make_players(cfg, load_classifier(cfg.out/"classifier.safetensors"), make_accelerator(cfg))
        with torch.no_grad(): next(p.model.G1.parameters()).mul_(1 + k / 1e6)
        save_checkpoint(p, 0)
    return cfg


def draw(c: Draws, k: int) -> dict:
    "What the judge sees at the end; a draw that was trained further before stays so."
    run = train(begin(c, k))
    case = open_case(EvaluateConfig(run, c.data))
    fine, coarse = (case.likeness(of, case.playing) for of in ("true", "true_coarse"))
    return dict(k=k, steps=int(read_log(run).step.iloc[-1]), n=fine["n"], accuracy_true_label=fine["accuracy"], l1_coarse=coarse["l1"], l1_fine=fine["l1"])


def main(c: Draws):
    if not c.nudges: raise CarganError("no nudges were given; try --nudges 0 1 2 3")
    if c.max_steps < 1: raise CarganError(f"max_steps={c.max_steps} is not possible; give 1 or more")
    if lost := [name for name in KEPT if not (c.run/name).is_file()]: raise CarganError(f"run {c.run} has no {lost[0]}; train it and score it with cargan evaluate first")
    rows = [draw(c, k) for k in c.nudges]
    write_json(c.out/"draws.json", rows)
    print(pd.DataFrame(rows).round(3).to_markdown(index=False))


if __name__ == "__main__": run(main, Draws, __doc__)
