# Everything here works on a fresh clone: the environment is made first, in .venv.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check api clean

demo: .venv/demo.done
	$(BIN)/python -m launch.main --config configs/demo.py --workdir runs/demo

test: .venv/dev.done
	$(BIN)/python -m pytest -n 2 --dist loadfile tests

check: .venv/dev.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy saat_jax launch configs

# The API reference from the docstrings: runs/api/index.html.
api: .venv/dev.done
	$(BIN)/pip install --quiet --editable ".[docs]"
	$(BIN)/pdoc --docformat google --output-directory runs/api saat_jax $(subst /,.,$(basename $(filter-out %.typed,$(wildcard saat_jax/[a-z]*))))

.venv/demo.done: setup.cfg
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable ".[data,viz]"
	touch $@

.venv/dev.done: setup.cfg
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@ .venv/demo.done

clean:
	rm -rf .venv .jax_cache build *.egg-info
