# `make help` lists the targets. Everything runs in a virtual environment of its own, which the first target makes.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
INSTALLED := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c .ci/constraints.txt

.PHONY: help .venv demo test docs readme notebooks clean
.DEFAULT_GOAL := help

help: ## List the targets
	@grep -E '^[.a-z]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

.venv: $(INSTALLED) ## Make the virtual environment: PYTHON=python3.11 chooses its Python

$(INSTALLED): settings.ini setup.py .ci/constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch torchvision
	$(PIP) -e '.[dev]'
	touch $@

demo: $(INSTALLED) ## Train without a regulariser, with Hess and with routing and whitened HSIC on the embedded data, then compare (about 6 minutes)
	$(BIN)/disentangle_run --data embedded --kinds DC-BC --steps 1000 --reg none --out runs/demo/none --resume
	$(BIN)/disentangle_run --data embedded --kinds DC-BC --steps 1000 --reg hess --lam 0.1 --out runs/demo/hess --resume
	$(BIN)/disentangle_run --data embedded --kinds DC,BC --steps 700 --bs 256 --dim 20 --base routed --heads --reg hsic_white --lam 30 --warmup 200 --out runs/demo/routed --resume
	$(BIN)/disentangle_report runs/demo/none runs/demo/hess runs/demo/routed --out runs/demo/report

test: $(INSTALLED) ## Run every notebook and test, check that nothing is out of sync, build the site
	$(BIN)/python .ci/test_nbs.py
	$(BIN)/python -m pytest tests

docs: $(INSTALLED) ## Build the site into _docs/
	$(BIN)/python .ci/docs.py

readme: $(INSTALLED) ## Write README.md from nbs/index.ipynb
	$(BIN)/python .ci/readme.py

notebooks: $(INSTALLED) ## Run the notebooks in place and save their outputs
	$(BIN)/python .ci/run_nbs.py

clean: ## Remove what was built; the virtual environment and runs/ stay
	rm -rf _docs _proc _screens build dist .pytest_cache .hypothesis
	find disentangle_nb tests .ci -name __pycache__ -type d -prune -exec rm -rf {} +
