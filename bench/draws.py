"""How much of a short run is chance: the same training again and again, its first weights nudged by some millionths.

  python bench/draws.py OUT --run runs/cargan --data data/synthurmp.npz [--nudges 0 1 2 3] [--max-steps 720]

Every draw has the run's configuration, seed, parts and judges. It begins from a checkpoint of step 0 in which the weights of the first network's first convolution are
multiplied by 1 + k/10^6: some ten roundings, in one layer and once, in place of what another version of the code or another number of threads does to every sum. OUT/draw_0, OUT/draw_1, … are runs;
started again, it goes on where it stopped. Prints, and keeps in OUT/draws.json, what the judge sees in held-out windows in which somebody plays."""
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import torch
import tyro

from cargan.core import CarganError, write_json
from cargan.data import open_data
from cargan.evaluation import EvaluateConfig, open_case
from cargan.methods import find_method
from cargan.training import checkpoint_folders, load_run, make_accelerator, make_players, open_run, read_log, save_checkpoint, train
from common import run


@dataclass(frozen=True)
class Draws:
    "Several draws of one run."
    out: tyro.conf.Positional[Path]  # folder of the draws
    run: Path = Path("runs/cargan")  # a run; what it made beforehand, and judges that `cargan evaluate` trained for it, are the same for all draws
    data: Path = Path("data/synthurmp.npz")  # its bundle
    nudges: tuple[int, ...] = (0, 1, 2, 3)  # k, in millionths
    max_steps: int = 720


def begin(c: Draws, k: int):
    "The training of draw `k`, with its checkpoint of step 0."
    cfg = replace(load_run(c.run)[1], data=c.data, out=c.out/f"draw_{k}", max_steps=c.max_steps)
    open_run(cfg, open_data(cfg.data, cfg.model.size))
    for part in c.run.glob("*.safetensors"): shutil.copy(part, cfg.out)
    if not checkpoint_folders(cfg.out):
        p = make_players(cfg, lambda: find_method(cfg.method).make_model(cfg, cfg.out), make_accelerator(cfg))
        with torch.no_grad(): next(next(iter(p.networks.values())).parameters()).mul_(1 + k / 1e6)
        save_checkpoint(p, 0)
    return cfg


def draw(c: Draws, k: int) -> dict:
    "What the judge sees at the end; a draw that was trained further before stays so."
    run = train(begin(c, k))
    case = open_case(EvaluateConfig(run, c.data))
    scores = {stage: case.likeness("true" if stage == "fine" else f"true_{stage}", case.playing) for stage in case.model.stages}
    l1 = {f"l1_{stage}": s["l1"] for stage, s in scores.items()}
    return dict(k=k, steps=int(read_log(run).step.iloc[-1]), n=scores["fine"]["n"], accuracy_true_label=scores["fine"]["accuracy"], **l1)


def main(c: Draws):
    if not c.nudges: raise CarganError("no nudges were given; try --nudges 0 1 2 3")
    if c.max_steps < 1: raise CarganError(f"max_steps={c.max_steps} is not possible; give 1 or more")
    load_run(c.run)  # refuses what is not a trained run, before anything is written
    rows = [draw(c, k) for k in c.nudges]
    write_json(c.out/"draws.json", rows)
    print(pd.DataFrame(rows).round(3).to_markdown(index=False))


if __name__ == "__main__": run(main, Draws, __doc__)
