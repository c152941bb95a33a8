"""Run notebooks as nbdev_test does, and after each the solutions of its exercises.  Usage: python tools/solutions.py [nbs/21_unet.ipynb ...]

A solution stands folded under its exercise; its blocks of Python run in the notebook's own kernel, after all its cells. What they print is shown.
Cells and blocks that begin with `#| slow` (or another flag of `tst_flags` in settings.ini) are left out, unless `--slow` is given."""
import configparser, json, os, re, sys, time
from pathlib import Path

from execnb.nbio import dict2nb
from execnb.shell import CaptureShell
from fastcore.xtras import working_directory
from nbdev.process import NBProcessor

ROOT = Path(__file__).resolve().parent.parent
FOLDED = re.compile(r"<details><summary>Solution.*?</details>", re.S)
BLOCK = re.compile(r"^```python\n(.*?)^```", re.S | re.M)


def solutions(nb: dict) -> list:
    "The blocks of Python in the folded solutions of a notebook, in their order."
    texts = ["".join(c["source"]) for c in nb["cells"] if c["cell_type"] == "markdown"]
    return [block for text in texts for folded in FOLDED.findall(text) for block in BLOCK.findall(folded)]


def flags() -> set:
    "Directives whose cells a test leaves out."
    settings = configparser.ConfigParser(interpolation=None)
    settings.read(ROOT/"settings.ini")
    return set(settings["DEFAULT"]["tst_flags"].split())


def run(path: Path, left_out: set):
    "Raise what a cell or a solution raises."
    raw, start = json.loads(path.read_text()), time.time()
    answers = solutions(raw)
    raw["cells"] += [dict(cell_type="code", id=f"answer{i}", source=s, metadata={}, outputs=[], execution_count=None) for i, s in enumerate(answers)]
    nb = NBProcessor(nb=dict2nb(raw), process=True).nb

    def skipped(cell) -> bool:
        if cell.cell_type != "code" or "nbdev_export(" in cell.source: return True
        return bool(left_out & (getattr(cell, "directives_", None) or {}).keys())

    shell = CaptureShell(path)
    with working_directory(path.parent):
        try: shell.run_all(nb, exc_stop=True, preproc=skipped)
        except Exception: raise SystemExit(f"{path.name}: {shell.prettytb(fname=path)}")
    for cell in nb.cells[len(nb.cells) - len(answers):]:
        for output in cell.get("outputs", []): print("".join(output.get("text", output.get("data", {}).get("text/plain", ""))).rstrip())
    print(f"{path.name}: {len(answers)} blocks of solutions, {time.time() - start:.0f} s", flush=True)


if __name__ == "__main__":
    os.environ.setdefault("MPLBACKEND", "agg")
    os.environ["IN_TEST"] = "1"
    sys.path.insert(0, str(ROOT))
    words = sys.argv[1:]
    paths = [Path(w) for w in words if w != "--slow"] or sorted((ROOT/"nbs").glob("*.ipynb"))
    for path in paths: run(path.resolve(), set() if "--slow" in words else flags())
