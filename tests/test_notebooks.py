"Every notebook runs; notebooks, package and README agree; nothing of anyone's machine is in them."
import ast, builtins, dis, filecmp, importlib, json, os, re, shutil, subprocess, sys, types
from pathlib import Path

import pytest

from conftest import ROOT

NOTEBOOKS = sorted((ROOT/"nbs").glob("*.ipynb"))
BIN = Path(sys.executable).parent
LONGEST = ("61_export", "41_listening", "29_training", "43_judging", "44_report", "45_evaluation", "40_metrics", "14_synth", "23_looking")  # started first, so that no long one runs alone at the end


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
    "As nbdev_test runs it, and then the solutions of its exercises in the same kernel."
    run_solutions(notebook)


def run_solutions(notebook: Path):
    command = [sys.executable, ROOT/"tools"/"solutions.py", notebook]
    done = subprocess.run(command, env={**os.environ, "MPLBACKEND": "agg"}, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]


def with_cell(notebook: Path, **cell) -> Path:
    "The notebook with one more cell."
    nb = json.loads(notebook.read_text())
    nb["cells"].insert(2, dict(id="wrong", metadata={}, **cell))
    notebook.write_text(json.dumps(nb))
    return notebook


def test_a_failing_cell_fails(copy):
    "The test above can fail: a notebook with a wrong assertion does, here and in nbdev's own command."
    notebook = with_cell(copy/"nbs"/"01_core.ipynb", cell_type="code", outputs=[], execution_count=None, source=["assert 1 + 1 == 3"])
    with pytest.raises(AssertionError): nbdev("nbdev_test", "--path", notebook, "--n_workers", "0", cwd=copy)
    with pytest.raises(AssertionError, match="1 \\+ 1 == 3"): run_solutions(notebook)


def test_a_failing_solution_fails(copy):
    wrong = "<details><summary>Solution</summary>\n\n```python\nassert 1 + 1 == 3\n```\n\n</details>"
    notebook = with_cell(copy/"nbs"/"01_core.ipynb", cell_type="markdown", source=[wrong])
    nbdev("nbdev_test", "--path", notebook, "--n_workers", "0", cwd=copy)
    with pytest.raises(AssertionError, match="1 \\+ 1 == 3"): run_solutions(notebook)


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


PAGES = sorted(NOTEBOOKS + [p for p in (*ROOT.glob("*.md"), *ROOT.glob("bench/*.md"), *ROOT.glob("cargan/weights/*.md"))])


def texts_of(page: Path) -> list:
    "The Markdown of a page: of a notebook, its cells."
    if page.suffix == ".md": return [page.read_text()]
    return ["".join(c["source"]) for c in json.loads(page.read_text())["cells"] if c["cell_type"] == "markdown"]


def anchors_of(page: Path) -> set:
    "Where a link into a page may lead: its headings, as JupyterLab and GitHub name them."
    text = "\n".join(re.sub(r"^```.*?^```", "", t, flags=re.S | re.M) for t in texts_of(page))
    titles = [re.sub(r"[`*$]|\[|\]\([^)]*\)", "", t).strip() for t in re.findall(r"^#+ (.+)$", text, flags=re.M)]
    return {t.replace(" ", "-") for t in titles} | {re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    "A link to a file of the project, or to a heading in it."
    wrong = []
    for link in re.findall(r"\]\(([^)\s]+)", "\n".join(texts_of(page))):
        if re.match(r"https?://|mailto:|data:|attachment:", link): continue
        name, _, anchor = link.partition("#")
        target = page.parent/name if name else page
        if page.stem == "index" and not target.exists(): target = ROOT/name  # README is made of it, and its figures lie beside README
        if not target.exists() or (anchor and anchor not in anchors_of(target)): wrong.append(link)
    assert wrong == []


def test_addresses_name_nothing_that_is_not_ours():
    "No repository and no site of that name belongs to the project; an address that is made up would send readers to a stranger."
    text = (ROOT/"settings.ini").read_text()
    for key in ("git_url", "doc_host", "author_email", "user"): assert re.search(rf"^{key} =\s*$", text, flags=re.M), key
    assert "github.com/cargan" not in "".join(t for page in PAGES for t in texts_of(page))


ASIDE = ("index", "03_glossary", "04_teaching", "66_projects")  # pages without exercises


def nested(source: str) -> list:
    "Lines with a comprehension inside another, or over two loops at once."
    kinds = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
    outer = [n for n in ast.walk(ast.parse(source)) if isinstance(n, kinds)]
    return [n.lineno for n in outer if len(n.generators) > 1 or any(isinstance(m, kinds) for m in ast.walk(n) if m is not n)]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_fit_to_read(notebook):
    "Small, short, and without paths of the machine that ran it."
    text = notebook.read_text()
    assert len(text) < 2**20
    assert not re.findall(r"(?:^|[^.\w/])/(?:work|root|home/\w+|Users/\w+|tmp/\w+)/", text)
    cells = json.loads(text)["cells"]
    assert len(cells) <= 60
    assert not [o for c in cells for o in c.get("outputs", []) if o.get("name") == "stderr"], "no progress bars, no warnings: run tools/notebooks.py"
    if notebook.stem == "index": return
    title = next("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    assert re.match(r"# .+\n\n> .+", title), "a notebook begins with '# Title' and '> one sentence'"
    for source in ("".join(c["source"]) for c in cells if "".join(c["source"]).startswith("#| export")):
        lines = source.splitlines()[1:]
        assert len(lines) <= 25, "exported cells of at most 25 lines read best: " + lines[0]
        assert [line for line in lines if len(line) > 140] == []
        assert nested(source) == [], "one loop a line: " + source[:200]


@pytest.mark.parametrize("notebook", [p for p in NOTEBOOKS if p.stem not in ASIDE], ids=lambda p: p.stem)
def test_fit_to_learn_from(notebook):
    "What one should know before, what was learned, what comes next; two or three exercises, each with a hint and a solution."
    text = "\n".join(texts_of(notebook))
    assert "**Before:**" in text and "**Next:**" in text and re.search("#+ What we learned", text)
    exercises = re.split(r"^#+ Exercises$", text, flags=re.M)[1]
    outside = re.sub(r"<details>.*?</details>", "", exercises, flags=re.S)
    numbers = re.findall(r"^\**(\d)\.", outside, flags=re.M)
    assert numbers in (["1", "2"], ["1", "2", "3"])
    assert outside.count("*Hint:") == len(numbers) == exercises.count("<details><summary>Solution</summary>")


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
