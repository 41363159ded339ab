# make lab     open the course in JupyterLab
# make test    prove everything
# make classroom  for teachers: the course for nbgrader, and a zip without solutions
# make doctor  what to paste when asking for help

PYTHON ?= python3
BIN := .venv/bin
# JupyterLab neither asks about news nor looks for updates: the course needs no network. Widgets are saved with
# a notebook, or it would show errors in their places when it is opened again.
SETTINGS := {"@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": false}, \
	"@jupyter-widgets/jupyterlab-manager:plugin": {"saveState": true}}

# Strict: all that notebooks print is compared with what is stored.
NBVAL := $(BIN)/pytest -q -o addopts= -o filterwarnings=default -p no:python --nbval --nbval-current-env \
	--nbval-sanitize-with tests/nbval_sanitize.cfg --nbval-cell-timeout 180 notebooks

.PHONY: lab test doctor classroom notebooks repeat bench
.DEFAULT_GOAL := lab

lab: .venv/ready
	@$(BIN)/python -m avlib.course lab

doctor: .venv/ready
	@$(BIN)/python -m avlib.course doctor

classroom: .venv/ready
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements-classroom.txt
	@$(BIN)/python -m avlib.course classroom

test: .venv/ready-for-tests
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/pytest -q -rs -n 2 --dist worksteal --durations=10
	$(NBVAL) --durations=10

# For authors: run every notebook from top to bottom and store its outputs.
notebooks: .venv/ready-for-tests
	$(BIN)/python tests/execute_notebooks.py

# For authors: twenty times the notebooks, on one thread and on two, with the CPU's own instructions and
# with the plainest ones. Every time must print what is stored.
repeat: .venv/ready-for-tests
	for i in $$(seq 5); do for threads in 1 2; do for capability in "" default; do \
		echo "$$i: $$threads threads, instructions: $${capability:-own}"; \
		OMP_NUM_THREADS=$$threads $${capability:+env ATEN_CPU_CAPABILITY=$$capability} $(NBVAL) || exit 1; \
	done; done; done

# Measure beside other packages and write the tables in benchmarks/ (about 40 minutes; an hour more
# where benchmarks/training.py and writing.py have to train anew). With a GPU: .venv/bin/python benchmarks/gpu.py
bench: .venv/ready-for-tests
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps -r benchmarks/requirements.txt
	for name in reversible memory zorro late_fusion nuwa training writing; do $(BIN)/python benchmarks/$$name.py || exit 1; done
	PYTHONPATH=tests $(BIN)/python benchmarks/explorer.py

.venv/ready: requirements.txt pyproject.toml
	@echo "First call: installing into .venv (some minutes; what is downloaded is in the README)"
	@$(PYTHON) -c 'import ensurepip, venv' || { echo "Python needs its venv module; on Debian:" \
		"apt install python3-venv"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements.txt
	@mkdir -p .venv/share/jupyter/lab/settings
	@echo '$(SETTINGS)' > .venv/share/jupyter/lab/settings/overrides.json
	@touch $@

.venv/ready-for-tests: .venv/ready requirements-test.txt
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements-test.txt
	@touch $@
