"Every notebook runs; notebooks, package and README agree; nothing of anyone's machine is in them."
import builtins, dis, filecmp, importlib, json, os, re, shutil, subprocess, sys, types
from pathlib import Path

import pytest

from conftest import ROOT

NOTEBOOKS = sorted((ROOT/"nbs").glob("*.ipynb"))
BIN = Path(sys.executable).parent
LONGEST = ("61_export", "41_listening", "29_training", "45_evaluation", "40_metrics", "14_synth", "23_looking")  # started first, so that no long one runs alone at the end


def nbdev(command: str, *args, cwd: Path = ROOT):
    "Run one of nbdev's commands; fails with its output."
    done = subprocess.run([BIN/command, *map(str, args)], cwd=cwd, env={**os.environ, "MPLBACKEND": "agg"}, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return done


@pytest.fixture
def copy(tmp_path):
    "A copy of what nbdev reads and writes."
    for name in ("settings.ini", "pyproject.toml", "setup.py", "README.md"): shutil.copy(ROOT/name, tmp_path)
    for name in ("nbs", "cargan"): shutil.copytree(ROOT/name, tmp_path/name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    return tmp_path


@pytest.mark.parametrize("notebook", sorted(NOTEBOOKS, key=lambda p: p.stem not in LONGEST), ids=lambda p: p.stem)
def test_runs(notebook):
    nbdev("nbdev_test", "--path", notebook, "--n_workers", "0", "--do_print")


def test_a_failing_cell_fails(copy):
    "The test above can fail: a notebook with a wrong assertion does."
    notebook = copy/"nbs"/"01_core.ipynb"
    nb = json.loads(notebook.read_text())
    nb["cells"].insert(2, dict(cell_type="code", id="wrong", metadata={}, outputs=[], execution_count=None, source=["assert 1 + 1 == 3"]))
    notebook.write_text(json.dumps(nb))
    with pytest.raises(AssertionError): nbdev("nbdev_test", "--path", notebook, "--n_workers", "0", cwd=copy)


def test_clean(copy):
    "Notebooks hold no execution counts or metadata of a machine: `nbdev_clean` has nothing to do."
    nbdev("nbdev_clean", cwd=copy)
    assert [p.name for p in NOTEBOOKS if p.read_text() != (copy/"nbs"/p.name).read_text()] == []


def test_in_sync(copy):
    "Exporting the notebooks anew gives exactly the package: nothing stale, nothing edited by hand."
    for module in (copy/"cargan").glob("*.py"): module.unlink()
    nbdev("nbdev_export", cwd=copy)
    names = sorted({p.name for folder in (ROOT, copy) for p in (folder/"cargan").glob("*.py")})
    _, differ, missing = filecmp.cmpfiles(ROOT/"cargan", copy/"cargan", names, shallow=False)
    assert (differ, missing) == ([], [])
    assert (ROOT/"pyproject.toml").read_text() == (copy/"pyproject.toml").read_text()


def test_readme_is_the_index():
    sys.path.insert(0, str(ROOT/"tools"))
    from readme import render
    text, figures = render(ROOT/"nbs"/"index.ipynb")
    assert (ROOT/"README.md").read_text() == text, "run: .venv/bin/python tools/readme.py"
    assert {p: (ROOT/p).read_bytes() for p in figures} == figures


def test_links_of_the_readme_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)", (ROOT/"README.md").read_text())
    assert [link for link in links if not link.startswith("http") and not (ROOT/link).exists()] == []


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_fit_to_read(notebook):
    "Small, short, with exercises, and without paths of the machine that ran it."
    text = notebook.read_text()
    assert len(text) < 2**20
    assert not re.findall(r"(?:^|[^.\w/])/(?:work|root|home/\w+|Users/\w+|tmp/\w+)/", text)
    if notebook.stem == "index": return
    cells = json.loads(text)["cells"]
    assert len(cells) <= 90
    assert not [o for c in cells for o in c.get("outputs", []) if o.get("name") == "stderr"], "no progress bars, no warnings: run tools/notebooks.py"
    title = next("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    assert re.match(r"# .+\n\n> .+", title), "a notebook begins with '# Title' and '> one sentence'"
    assert re.search("#+ Exercises", text) and re.search("#+ What we learned", text)
    long = [n for c in cells if re.match(r"#\| *export", source := "".join(c["source"])) and (n := len(source.splitlines())) > 40]
    assert long == [], "exported cells of at most 25 lines read best"


def test_imports_point_to_lower_numbers():
    "A notebook may use what was explained before it."
    module = {p.stem: re.search(r"default_exp (\w+)", p.read_text()) for p in NOTEBOOKS}
    order = [(stem, m[1]) for stem, m in module.items() if m]
    seen = set()
    for stem, name in order:
        source = (ROOT/"cargan"/f"{name}.py").read_text()
        used = set(re.findall(r"^from \.(\w+) import", source, flags=re.M))
        assert used <= seen, f"{stem} imports {sorted(used - seen)}, which come later"
        seen.add(name)


def globals_read(code):
    "Names that a code object, or one inside it, looks up in its module."
    names = {i.argval for i in dis.get_instructions(code) if i.opname == "LOAD_GLOBAL"}
    return names.union(*(globals_read(c) for c in code.co_consts if isinstance(c, types.CodeType)))


@pytest.mark.parametrize("module", sorted(p.stem for p in (ROOT/"cargan").glob("[a-z]*.py")))
def test_a_module_knows_every_name_it_uses(module):
    "An import in a cell that isn't exported serves the notebook, and leaves the package without the name."
    names = globals_read(compile((ROOT/"cargan"/f"{module}.py").read_text(), module, "exec"))
    known = vars(importlib.import_module(f"cargan.{module}")).keys() | vars(builtins).keys()
    assert not names - known
