"""Train and score several seeds, and print mean ± standard deviation of everything that `cargan evaluate` measures.

    python bench/seeds.py OUT --data data/synthurmp.npz --seeds 0 1 2 [--method cargan] [--preset lab] [--max-steps 720]

OUT/seed_0, OUT/seed_1, … are runs, each with its own parts and ear; judges and probe are the same for all. Started again, it goes on where it stopped: finished runs are not trained again, and a run is scored
again only if it was trained further. Judges, probe and features of real pictures are shared, in OUT/parts. Writes OUT/seeds.md and OUT/seeds.json."""
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

import pandas as pd
import tyro

from cargan.core import CarganError, atomic_path, read_json, write_json
from cargan.evaluation import EvaluateConfig, evaluate
from cargan.methods import find_method
from cargan.metrics import mean_std
from cargan.training import flatten, read_log, train
from common import run


@dataclass(frozen=True)
class Seeds:
    "Several seeds of one configuration."
    out: tyro.conf.Positional[Path]  # folder of the runs
    data: Path = Path("data/synthurmp.npz")  # bundle
    seeds: tuple[int, ...] = (0, 1, 2)
    method: str = "cargan"
    preset: Literal["lab", "paper"] = "lab"
    max_steps: int | None = None  # stop training after so many steps
    pictures: int = 2080  # for the feature network
    listen: int = 520  # for the experiments


def score(c: Seeds, seed: int) -> dict:
    "The metrics of one seed; trained and scored unless that was done."
    preset = find_method(c.method).presets[c.preset]
    parts = {f.name: replace(v, seed=seed) for f in fields(preset) if hasattr(v := getattr(preset, f.name), "seed")}  # classifiers and the like
    seeded = replace(preset, seed=seed, **parts)
    run = train(replace(seeded, data=c.data, out=c.out/f"seed_{seed}", max_steps=c.max_steps, keep=50, checkpoint_every=400))  # several: γ and residue over training
    cfg, steps = EvaluateConfig(run, c.data, pictures=c.pictures, listen=c.listen, parts=c.out/"parts"), int(read_log(run).step.iloc[-1])
    done = read_json(run/"metrics.json") if (run/"metrics.json").exists() else {}
    return done if done.get("steps") == steps and done.get("data") == str(c.data) and "follows_sound" in done else evaluate(cfg)


def table(runs: list[dict], key: str) -> str:
    "One block of the metrics, every number as mean ± standard deviation (number of seeds); n as it is."
    flat = [flatten(m[key], "") for m in runs if key in m]
    names = [k for k in flat[0] if all(k in f for f in flat)]
    def cell(k):
        counts = k.rsplit(".", 1)[-1] in ("n", "n_real", "n_training") and len({f[k] for f in flat}) == 1
        return f"{flat[0][k]:.0f}" if counts else mean_std([f[k] for f in flat])
    rows = {}
    for k in names:
        row, _, column = k.rpartition(".")
        rows.setdefault(row or "value", {})[column] = cell(k)
    return pd.DataFrame(rows).T.fillna("").to_markdown()


def main(c: Seeds):
    if not c.seeds: raise CarganError("no seeds were given; try --seeds 0 1 2")
    runs = [score(c, seed) for seed in c.seeds]
    keys = [k for k, v in runs[0].items() if isinstance(v, dict) and k not in ("rest", "all")]
    top = {k: v for k, v in runs[0].items() if isinstance(v, float) and k != "seconds"}
    parts = {"all": table([{"top": {k: m[k] for k in top}} for m in runs], "top")} | {k: table(runs, k) for k in keys}
    text = f"# Seeds {', '.join(map(str, c.seeds))} of {c.method}'s `{c.preset}` on {c.data.name}, {runs[0]['steps']} steps each\n\nMean ± standard deviation (number of seeds).\n\n"
    text += "\n\n".join(f"## {name}\n\n{body}" for name, body in parts.items()) + "\n"
    with atomic_path(c.out/"seeds.md") as tmp: tmp.write_text(text)
    write_json(c.out/"seeds.json", {str(s): m for s, m in zip(c.seeds, runs)})
    print(text)


if __name__ == "__main__": run(main, Seeds, __doc__)
