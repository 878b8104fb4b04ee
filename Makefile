# make book [PROFILE=smoke|laptop|gpu|paper]   execute what is out of date, build _build/html
# make test                                    the test suite, every notebook at smoke included
# make lock                                    resolve requirements.lock anew from pyproject.toml

PROFILE ?= laptop
PYTHON ?= python3.11
VENV := .venv
INSTALLED := $(VENV)/.installed

export PYTHONUNBUFFERED := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Progress is for a person to watch: without a terminal, one line in ten seconds is enough.
export TQDM_MININTERVAL ?= $(shell test -t 2 && echo 0.2 || echo 10)

.PHONY: book test venv lock clean

book: $(INSTALLED)
	$(VENV)/bin/fa book --profile $(PROFILE)

test: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/python -m pytest

venv: $(INSTALLED)

# torch first, with what its build needs (on a machine with CUDA that is more than the lock holds). The lock is complete,
# and goes in without dependencies because onnx2torch and torchattacks ask for a torchvision that neither uses here.
$(INSTALLED): requirements.lock pyproject.toml
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -qq --constraint requirements.lock $$(grep '^torch==' requirements.lock)
	$(VENV)/bin/pip install --no-deps --progress-bar off -qq --requirement requirements.lock
	$(VENV)/bin/pip install --no-deps --no-build-isolation -qq --editable .
	touch $@

# What asks for torchvision goes in without its dependencies, as above.
TORCH := torch==2.13.0
PINS := jupyter-book==1.0.4.post1 sphinx-book-theme==1.2.0
ALONE := onnx2torch torchattacks
WANTED = $(PYTHON) -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
  wanted = project['dependencies'] + sum(project['optional-dependencies'].values(), []); \
  print(*(name for name in wanted if name.startswith(tuple('$(ALONE)'.split())) is $(1)))"

lock:
	rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install -qq $(TORCH)
	.venv-lock/bin/pip install -qq $(TORCH) $(PINS) setuptools $$($(call WANTED,False))
	.venv-lock/bin/pip install -qq --no-deps $$($(call WANTED,True))
	{ echo '# Every package of the environment. Made by "make lock"; install it with "make venv".'; \
	  .venv-lock/bin/pip freeze --all | grep -v '^pip==' | sed 's/+cpu$$//'; } > requirements.lock
	rm -rf .venv-lock

clean:
	rm -rf _build book/notebooks runs
