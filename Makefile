# Everything here works on a fresh clone: the environment is made first, in .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-fast test-wheel check manual clean

demo: .venv/demo.done
	$(BIN)/python -m launch.main --config configs/demo.py --workdir runs/demo

test: .venv/dev.done
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder tests

# Three minutes on two cores: all but the modules that train or run the command.
test-fast: .venv/dev.done
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not wheel" tests

# The wheel in an empty environment, on each Python at hand; needs a package index.
test-wheel: .venv/dev.done
	$(BIN)/python -m pytest -m wheel tests/wheel_test.py

check: .venv/dev.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy saat_jax launch configs

# The manual, from docs/ and the docstrings: runs/manual/index.html.
manual: .venv/dev.done
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs runs/manual

.venv/demo.done: setup.cfg setup.py
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable ".[data,report]"
	touch $@

.venv/dev.done: setup.cfg setup.py
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@ .venv/demo.done

clean:
	rm -rf .venv .jax_cache build *.egg-info
