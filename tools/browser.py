"""Open notebooks in JupyterLab in a real browser, run what the notebook test runs, and look at them.  Usage: python tools/browser.py [--root .|nbs] [--out FOLDER] [nbs/00_idea.ipynb ...]

Each notebook is opened from the repository's root and from `nbs`. A copy of the repository is used, so that nothing here changes; cells that the notebook test leaves out are not in it.
Fails if a cell ends in an error, if a picture, a film or a sound does not arrive, or if a red box holds something else than progress bars that came to their end. Leaves a screenshot of each notebook in FOLDER (default: runs/browser).
Needs Chromium: Debian's (`apt install chromium`), or `playwright install chromium`."""
import argparse, json, os, shutil, subprocess, sys, tempfile, time
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Error, sync_playwright

from solutions import flags

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
QUIET = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--mute-audio")
SETTINGS = {"@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},  # every cell is in the page, also those that are not on the screen
            "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False}}


def find_browser() -> str | None:
    "A Chromium of this machine."
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def browser():
    "A headless Chromium."
    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=find_browser(), args=list(QUIET))
        try: yield chromium
        finally: chromium.close()


def copied(folder: Path) -> Path:
    "A copy of the repository whose notebooks hold only what the notebook test runs."
    kept = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    for name in filter(None, kept):
        if not (ROOT/name).is_file(): continue
        (folder/name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT/name, folder/name)
    for path in (folder/"nbs").glob("*.ipynb"):
        nb = json.loads(path.read_text())
        nb["cells"] = [c for c in nb["cells"] if not left_out("".join(c["source"]))]
        path.write_text(json.dumps(nb))
    return folder


def left_out(source: str) -> bool:
    "Does the notebook test leave a cell out?"
    words = [line.removeprefix("#|").split()[:1] for line in source.splitlines() if line.startswith("#|")]
    return "nbdev_export(" in source or any(w and w[0] in flags() for w in words)


@contextmanager
def jupyterlab(root: Path, wait: float = 120):
    "A JupyterLab whose files are those under `root`; its address, with the token."
    with tempfile.TemporaryDirectory() as own:
        own = Path(own)
        (own/"config"/"labconfig").mkdir(parents=True)
        (own/"config"/"labconfig"/"default_setting_overrides.json").write_text(json.dumps(SETTINGS))
        where = dict(JUPYTER_CONFIG_DIR="config", JUPYTER_RUNTIME_DIR="runtime", JUPYTERLAB_SETTINGS_DIR="settings", JUPYTERLAB_WORKSPACES_DIR="workspaces")
        env = {**os.environ, **{k: str(own/v) for k, v in where.items()}, "IN_TEST": "1", "PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        options = ["--no-browser", "--allow-root", "--port=0", f"--ServerApp.root_dir={root}", "--LabApp.expose_app_in_browser=True", "--LabApp.extension_manager=readonly"]
        with open(own/"log", "w+") as log:
            server = subprocess.Popen([sys.executable, "-m", "jupyterlab", *options], env=env, cwd=root, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            try:
                until = time.time() + wait
                while not (found := list((own/"runtime").glob("jpserver-*.json"))):
                    if server.poll() is not None or time.time() > until: raise SystemExit(f"JupyterLab did not start: {(own/'log').read_text()[-2000:]}")
                    time.sleep(0.2)
                about = json.loads(found[0].read_text())
                yield about["url"], about["token"]
            finally:
                server.terminate(); server.wait(30)


BEGIN = "() => { window.done = null; jupyterapp.commands.execute('notebook:run-all-cells').then(() => window.done = 'yes', e => window.done = String(e)); }"
READY = "() => !!(window.jupyterapp?.shell?.currentWidget?.context?.isReady && jupyterapp.shell.currentWidget.sessionContext.session?.kernel?.status === 'idle')"
BARS = "() => [...document.querySelectorAll('.jp-Notebook .jp-OutputArea-output')].map(o => o.innerText).filter(t => t.includes('%|')).map(t => t.trim().split('\\n').at(-1))"
RED = "() => [...document.querySelectorAll('.jp-OutputArea-output[data-mime-type=\"application/vnd.jupyter.stderr\"]')].flatMap(o => o.innerText.split('\\n'))"
OUTPUTS = "() => jupyterapp.shell.currentWidget.content.model.sharedModel.toJSON().cells.map(c => ({source: [c.source].flat().join(''), outputs: c.outputs ?? []}))"
MEDIA = """async () => {
    const varied = m => {  // a film that shows something: its pixels are not all alike
        const c = Object.assign(document.createElement('canvas'), {width: 32, height: 32}), pen = c.getContext('2d');
        pen.drawImage(m, 0, 0, 32, 32);
        return new Set(pen.getImageData(0, 0, 32, 32).data).size > 8;
    };
    const there = async m => {
        if (m.tagName === 'IMG') return m.complete && m.naturalWidth > 0;
        for (let i = 0; i < 100 && m.readyState < 2 && !m.error; i++) await new Promise(r => setTimeout(r, 100));
        if (m.error || m.readyState < 2) return false;
        if (m.tagName === 'AUDIO') return m.duration > 0;
        m.scrollIntoView();  // a film is painted when it is on the screen
        for (let i = 0; i < 50 && !varied(m); i++) await new Promise(r => setTimeout(r, 100));
        return varied(m);
    };
    const all = [...document.querySelectorAll('.jp-OutputArea-output img, .jp-OutputArea-output video, .jp-OutputArea-output audio')];
    return Promise.all(all.map(async m => ({kind: m.tagName.toLowerCase(), there: await there(m)})));
}"""
HEIGHT = "() => { jupyterapp.shell.collapseLeft(); return [...document.querySelectorAll('.jp-WindowedPanel-outer, .jp-Notebook')].reduce((h, e) => Math.max(h, e.scrollHeight), 0); }"
END = "() => jupyterapp.shell.currentWidget?.sessionContext?.shutdown()"  # the kernel of every notebook would otherwise stay in memory
TOP = "() => document.querySelectorAll('.jp-WindowedPanel-outer').forEach(e => e.scrollTop = 0)"


def look(chromium, address: str, token: str, path: str, screenshot: Path, limit: float = 600) -> str:
    "Open one notebook, run it, check it; a line that says what was seen. Raises `AssertionError` if something is wrong."
    page, start = chromium.new_page(viewport=dict(width=1300, height=1000)), time.time()
    page.set_default_timeout(1000 * limit)
    try:
        page.goto(f"{address}lab/tree/{path}?token={token}&reset")
        page.wait_for_function(READY)
        bars, kinds, cells = run_all(page, path, start + limit)
        page.set_viewport_size(dict(width=1300, height=min(16_000, page.evaluate(HEIGHT) + 200)))
        page.evaluate(TOP)
        page.wait_for_timeout(500)
        screenshot.parent.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=screenshot)
        page.evaluate(END)
    except Error as e: raise AssertionError(f"{path}: {e}") from e
    finally: page.close()
    return f"{path}: {cells} cells, {kinds['img']} pictures, {kinds['video']} films, {kinds['audio']} sounds, {bars} states of progress bars, {time.time() - start:.0f} s"


def run_all(page, path: str, until: float) -> tuple[int, dict, int]:
    "Run a notebook that is open and check what it shows: states of progress bars, pictures, films and sounds, cells."
    page.evaluate(BEGIN)
    bars = []
    while not (done := page.evaluate("() => window.done")):
        bars += [b for b in page.evaluate(BARS) if b not in bars]
        assert time.time() < until, f"{path}: not finished in time"
        page.wait_for_timeout(150)
    assert done == "yes", f"{path}: {done}"
    cells = page.evaluate(OUTPUTS)
    wrong = [(c["source"][:200], o.get("ename"), o.get("evalue")) for c in cells for o in c["outputs"] if o["output_type"] == "error"]
    assert not wrong, f"{path}: {wrong}"
    left = [line for line in page.evaluate(RED) if line.strip() and "100%|" not in line]
    assert not left, f"{path}: in a red box, and no progress bar that has come to its end: {left}"
    page.wait_for_timeout(500)
    media = page.evaluate(MEDIA)
    missing = [m["kind"] for m in media if not m["there"]]
    assert not missing, f"{path}: not to be seen or heard: {missing}"
    asked = sum("image/png" in o.get("data", {}) or "image/jpeg" in o.get("data", {}) for c in cells for o in c["outputs"])
    kinds = {k: sum(m["kind"] == k for m in media) for k in ("img", "video", "audio")}
    assert kinds["img"] >= asked, f"{path}: {asked} plots, {kinds['img']} of them in the page"
    return len(bars), kinds, len(cells)


def main():
    ask = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ask.add_argument("notebooks", nargs="*", help="default: all")
    ask.add_argument("--root", choices=(".", "nbs"), action="append", help="where JupyterLab is started; default: both")
    ask.add_argument("--out", type=Path, default=ROOT/"runs"/"browser")
    asked = ask.parse_args()
    if find_browser() is None: raise SystemExit("no Chromium here: install it, for example by `apt install chromium`")
    names = [Path(n).name for n in asked.notebooks] or sorted(p.name for p in (ROOT/"nbs").glob("*.ipynb"))
    failed = 0
    with tempfile.TemporaryDirectory() as folder, browser() as chromium:
        copy = copied(Path(folder))
        for root in asked.root or (".", "nbs"):
            with jupyterlab(copy/root) as (address, token):
                for name in names:
                    path = name if root == "nbs" else f"nbs/{name}"
                    try: print(look(chromium, address, token, path, asked.out/f"{Path(path).with_suffix('.png').as_posix().replace('/', '-')}"), flush=True)
                    except AssertionError as e: failed += 1; print(f"FAILED {e}", flush=True)
    sys.exit(bool(failed))


if __name__ == "__main__": main()
