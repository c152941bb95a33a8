"""Run notebooks in place and keep what a reader wants to see.  Usage: python tools/notebooks.py [nbs/21_unet.ipynb ...]

Progress bars and warnings (everything on stderr) are shown here and left out of the notebook; names of temporary folders become "…"."""
import json, os, re, sys, tempfile, time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent


def without_temporary(output: dict) -> dict:
    "The output with `…` for every temporary folder, whose name would change with each run."
    return json.loads(re.sub(re.escape(tempfile.gettempdir()) + r"/tmp\w+", "…", json.dumps(output, ensure_ascii=False)))


def run(path: Path):
    "Execute one notebook as nbdev does, in its own folder with the repository's root on the path."
    nb, start = nbformat.read(path, as_version=4), time.time()
    NotebookClient(nb, timeout=3600, kernel_name="python3", coalesce_streams=True, resources={"metadata": {"path": str(path.parent)}}).execute()
    for cell in nb.cells:
        if cell.cell_type != "code": continue
        aside = [o for o in cell.outputs if o.output_type == "stream" and o.name == "stderr"]
        for o in aside: print(*(line for line in o.text.split("\n") if "\r" not in line and line), sep="\n", file=sys.stderr)
        cell.outputs = [nbformat.from_dict(without_temporary(o)) for o in cell.outputs if o not in aside]
    nbformat.write(nb, path)
    print(f"{path.name}: {time.time() - start:.0f} s, {path.stat().st_size // 1024} kB", flush=True)


if __name__ == "__main__":
    os.environ["PYTHONPATH"] = str(ROOT)
    for path in map(Path, sys.argv[1:] or sorted((ROOT/"nbs").glob("*.ipynb"))): run(path.resolve())
