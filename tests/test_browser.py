"Two notebooks and a report in a real browser; all notebooks: `make browser`."
import json, sys
from dataclasses import replace

import pytest

from cargan.evaluation import evaluate
from cargan.training import train
from conftest import ROOT
from methods import tiny
from test_methods import quick

sys.path.insert(0, str(ROOT/"tools"))
import browser as tool

pytestmark = pytest.mark.skipif(tool.find_browser() is None, reason="no Chromium here: apt install chromium")


@pytest.fixture(scope="module")
def chromium():
    with tool.browser() as it: yield it


@pytest.fixture
def copy(tmp_path): return tool.copied(tmp_path/"copy")


@pytest.mark.parametrize("root, path", [(".", "nbs/28_runs.ipynb"), ("nbs", "65_gallery.ipynb")])
def test_a_notebook_runs_in_jupyterlab(chromium, copy, tmp_path, root, path):
    "No error, every plot and the film to be seen, progress bars that move."
    with tool.jupyterlab(copy/root) as (address, token): said = tool.look(chromium, address, token, path, tmp_path/"seen.png")
    assert (tmp_path/"seen.png").stat().st_size > 50_000
    if "gallery" in path: assert " 1 films" in said and " 0 pictures" not in said and " 0 states" not in said, said


def test_an_error_and_a_broken_film_are_found(chromium, copy, tmp_path):
    "The test above can fail."
    wrong = {"error": "1 / 0", "film": "from IPython.display import Video\nVideo(b'no film', embed=True, mimetype='video/mp4')"}
    with tool.jupyterlab(copy/"nbs") as (address, token):
        for name, source in wrong.items():
            cell = dict(cell_type="code", id="a1b2c3d4", metadata={}, outputs=[], execution_count=None, source=source)
            meta = dict(kernelspec=dict(display_name="python3", language="python", name="python3"))
            (copy/"nbs"/f"{name}.ipynb").write_text(json.dumps(dict(cells=[cell], metadata=meta, nbformat=4, nbformat_minor=5)))
            with pytest.raises(AssertionError, match="ZeroDivisionError" if name == "error" else "not to be seen"):
                tool.look(chromium, address, token, f"{name}.ipynb", tmp_path/"seen.png")


def test_a_report_fits_a_phone(chromium, tmp_path, tiny_data):
    "Nothing is wider than the screen, and every picture is there."
    cfg = replace(tiny("mean", tmp_path, max_steps=2), data=tiny_data/"data.npz", parts=tmp_path/"parts")
    evaluate(quick(run := train(cfg), cfg.data, tmp_path/"parts"))
    page = chromium.new_page(viewport=dict(width=390, height=844))
    page.goto((run/"report.html").as_uri())
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 390
    assert page.evaluate("() => document.images.length > 2 && [...document.images].every(m => m.complete && m.naturalWidth > 0)")
    page.screenshot(path=tmp_path/"phone.png", full_page=True)
