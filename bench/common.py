"What the benchmarks have in common: errors in one line, rows that are kept as JSON."
import json, sys
from pathlib import Path

from cargan.core import CarganError


def run(main, config: type, doc: str):
    "Call `main` with what the command line says; bad input ends with one line and status 2."
    import tyro  # here, not above: bench/gpu.py needs none
    try: main(tyro.cli(config, description=doc))
    except CarganError as e:
        print(f"{Path(sys.argv[0]).stem}: {e}", file=sys.stderr)
        sys.exit(2)


def read_rows(path: Path) -> list:
    "The rows that an earlier run wrote, none if there was none; raises `CarganError` if the file holds anything else."
    if not path.exists(): return []
    try: rows = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError): rows = None
    if not isinstance(rows, list) or not all(isinstance(r, dict) for r in rows):
        raise CarganError(f"{path} does not hold the rows of a benchmark; remove it, or give another file")
    return rows


def learning() -> tuple:
    "The names of the methods that have something to learn."
    import torch
    from cargan.cost import fake_players
    from cargan.methods import METHODS, find_method
    return tuple(name for name in METHODS if fake_players(find_method(name).presets["lab"], torch.device("meta")).optimisers)
