"""How well an ear hears real recordings: the instrument, its family, the note, and whether its probabilities can be believed.

    python bench/real_notes.py FOLDER [--ear shipped|RUN|FILE] [--out REPORT_FOLDER]

FOLDER holds `index.csv` with the columns `file` (relative to FOLDER) and `instrument`; a column `note` (such as A4) is compared with what is
heard, a column `source` splits the table. Each recording is heard as `cargan hear` does: its windows vote. Nothing is trained here."""
import csv
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import tyro

from cargan import makers
from cargan.core import INSTRUMENTS, CarganError, existing_file, write_json
from cargan.heard import FAMILIES, hear_file
from cargan.hearing import find_ear, load_audio_classifier

@dataclass(frozen=True)
class Config:
    folder: tyro.conf.Positional[Path]
    ear: str = "shipped"
    out: Path | None = None


def read_index(folder: Path) -> list:
    "Rows of `index.csv` with a known instrument."
    with open(existing_file(folder/"index.csv", "index"), newline="", encoding="utf-8") as f: rows = list(csv.DictReader(f))
    if not rows or not {"file", "instrument"} <= set(rows[0]): raise CarganError(f"{folder}/index.csv needs the columns file and instrument")
    unknown = {r["instrument"] for r in rows} - set(INSTRUMENTS)
    if unknown: raise CarganError(f"{folder}/index.csv names unknown instruments {sorted(unknown)}; known are {', '.join(INSTRUMENTS)}")
    return rows


def key_of(name: str) -> int | None:
    "The MIDI key of a name such as A4, Cs4, C#4 or Bb3; None if it is no such name."
    try: return makers.key_of(name) if name else None
    except ValueError: return None


def calibration(p: np.ndarray, right: np.ndarray, bins: int = 10) -> tuple:  # (expected calibration error, a row for each bin)
    "Confidence against accuracy."
    at = np.minimum((p * bins).astype(int), bins - 1)
    rows = [dict(confidence=float(p[at == b].mean()), accuracy=float(right[at == b].mean()), n=int((at == b).sum())) for b in np.unique(at)]
    return sum(abs(r["confidence"] - r["accuracy"]) * r["n"] for r in rows) / len(p), rows


def measure(folder: Path, ear) -> dict:
    "Every figure, and a table with one row a recording."
    family, rows = {name: f for f, names in FAMILIES.items() for name in names}, []
    for row in read_index(folder):
        found = hear_file(ear, folder/row["file"])
        p = found.instrument[:13] / found.instrument[:13].sum()
        guess, key, name = INSTRUMENTS[int(p.argmax())], key_of(row.get("note") or ""), found.whole.note
        rows.append(dict(file=row["file"], source=row.get("source") or "all", truth=row["instrument"], guess=guess, probability=float(p.max()),
                         heard=found.whole.heard, sure=found.whole.sure, right=guess == row["instrument"], family=family[guess] == family[row["instrument"]],
                         key=key, away=None if key is None or name is None else key_of(name) - key,
                         windows=len(found.windows), windows_right=sum(h.label == row["instrument"] for h in found.windows)))
    t = pd.DataFrame(rows)
    ece, bins = calibration(t.probability.to_numpy(), t.right.to_numpy())
    away = t.away.dropna().to_numpy()
    octave = (away != 0) & (away % 12 == 0)
    notes = dict(n=len(away), within_a_semitone=float((abs(away) <= 1).mean()), exact=float((away == 0).mean()), octave_errors=float(octave.mean())) if len(away) else None
    counts = pd.crosstab(t.truth, t.guess).reindex(index=INSTRUMENTS, columns=INSTRUMENTS, fill_value=0)
    return dict(accuracy=float(t.right.mean()), family=float(t.family.mean()), n=len(t), accuracy_per_window=float(t.windows_right.sum() / t.windows.sum()),
                called_nothing=int((~t.heard).sum()), ece=float(ece), reliability=bins, sure=float(t.sure.mean()),
                accuracy_when_sure=float(t.right[t.sure].mean()) if t.sure.any() else None, note=notes,
                per_instrument={k: dict(n=int(len(g)), accuracy=float(g.right.mean())) for k, g in t.groupby("truth")},
                per_source={k: dict(n=int(len(g)), accuracy=float(g.right.mean()), family=float(g.family.mean())) for k, g in t.groupby("source")},
                confusion=counts.to_numpy().tolist()), t, counts


def main(cfg: Config) -> dict:
    report, table, counts = measure(cfg.folder, load_audio_classifier(find_ear(cfg.ear)))
    print({k: v for k, v in report.items() if k not in ("reliability", "per_instrument", "confusion")})
    print(counts.rename(columns=lambda name: name[:6]).to_string())
    if cfg.out is not None:
        write_json(cfg.out/"report.json", report)
        table.to_csv(cfg.out/"recordings.csv", index=False)
    return report


if __name__ == "__main__":
    try: main(tyro.cli(Config, description=__doc__))
    except CarganError as e:
        print(e, file=sys.stderr)
        sys.exit(2)
