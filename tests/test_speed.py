"What the notebook on speed doesn't need to show: launch lines name real options, and its benchmarks run and refuse."
import ctypes, json, re, subprocess, sys
from dataclasses import fields

import pytest

from cargan.core import CarganError
from cargan.speed import LAUNCH
from cargan.methods import TrainConfig
from conftest import ROOT


def run(*command): return subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_launch_lines_name_options_that_exist():
    known = {name: set(re.findall(r"--[\w-]+", run("-m", module, "--help").stdout))
             for name, module in {"accelerate launch": "accelerate.commands.launch", "torchrun": "torch.distributed.run"}.items()}
    known = {name: {option.replace("-", "_") for option in options} for name, options in known.items()}
    ours = {f"--{f.name.replace('_', '-')}" for f in fields(TrainConfig)} | {"--preset"}
    for line in LAUNCH.values():
        theirs, _, rest = line.partition(" -m cargan.cli train ")
        launcher = next(name for name in known if theirs.startswith(name))
        options = re.findall(r"--\w+", theirs)
        assert options and {o.replace("-", "_") for o in options} <= known[launcher], line
        assert set(re.findall(r"--[\w-]+", rest)) <= ours, line
    assert "--main_process_ip".replace("-", "_") in known["accelerate launch"] and "__no_such_option" not in known["accelerate launch"]


def test_growth_of_attention(tmp_path):
    "Tiny maps; rows of other kinds stay as they are in the file."
    out = tmp_path/"growth.json"
    out.write_text(json.dumps(dict(rows=[dict(what="memory", kept=True)])))
    done = run("bench/growth.py", "--what", "attention", "--positions", 64, 256, "--naive-up-to", 64, "--out", out)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads(out.read_text())["rows"]
    assert [(r.get("variant"), r.get("positions")) for r in rows] == [(None, None), ("fused", 64), ("fused", 256), ("naive", 64)]
    assert all(r["seconds"] > 0 for r in rows[1:])


@pytest.mark.parametrize("script, option, value, words", [
    ("growth", "--positions", 10, "squares"), ("growth", "--sizes", 100, "powers of two"), ("scaling", "--seconds", -1, "between 0 and 600"),
    ("step", "--seconds", 0, "above 0"), ("inference", "--batches", 0, "above 0"), ("inference", "--run", "nowhere", "does not exist")])
def test_benchmarks_refuse_in_one_line(tmp_path, script, option, value, words):
    done = run(f"bench/{script}.py", option, value, "--out", tmp_path/"x.json")
    assert done.returncode and words in done.stderr and len(done.stderr.strip().splitlines()) == 1 and not list(tmp_path.iterdir())


def test_rows_of_earlier_runs(tmp_path, monkeypatch):
    "The tracked rows can be read, so that `make bench` may go on from them; no file is no rows; anything else is refused."
    monkeypatch.syspath_prepend(ROOT/"bench")
    from common import read_rows
    assert {r["size"] for r in read_rows(ROOT/"bench"/"results.json")} == {64, 128, 256}
    assert read_rows(tmp_path/"none.json") == []
    for text in ('{"a": 1}', "[1]", "no json"):
        (tmp_path/"x.json").write_text(text)
        with pytest.raises(CarganError, match="does not hold the rows"): read_rows(tmp_path/"x.json")


@pytest.mark.skipif(sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="a setting of glibc")
def test_freed_memory_is_used_again():
    "After `tune`, a tensor made again and again soon finds its pages filled; without it, each time they are new."
    code = """
import torch
from resource import RUSAGE_SELF, getrusage
from cargan.training import tune
def page_faults():
    before = getrusage(RUSAGE_SELF).ru_minflt
    torch.ones(1 << 24)
    return getrusage(RUSAGE_SELF).ru_minflt - before
new = [page_faults() for _ in range(3)]
tune(torch.device("cpu"))
print(min(new), [page_faults() for _ in range(8)][-1])
"""
    done = run("-c", code)
    assert done.returncode == 0, done.stderr
    new, again = map(int, done.stdout.split())
    assert again < 20 < new
