# `make demo` and `make test` set everything up; see `make help`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= runs/demo

# Where the Python that makes .venv already has torch, that one is used: your build for your machine.
# To choose another build, set pip's own options, such as PIP_INDEX_URL, or install torch into .venv first.
SYSTEM_TORCH := $(shell $(PYTHON) -c "import importlib.util as u; print('--system-site-packages' if u.find_spec('torch') else '')" 2>/dev/null)

.PHONY: help demo test test-slow test-browser test-clusters test-zoo test-hub test-mutations test-random-networks test-random-graphs test-interoperability fuzz fuzz-guided lock locked sbom wheel check-dependencies check format docs docs-site same-results claims clean bench bench-cifar10 bench-training digits-weights bench-demo bench-threads \
	bench-aa bench-quantization bench-integer-speed bench-filled-widths bench-never-slower bench-files bench-imagenet bench-latency bench-structure bench-recovery bench-recurrent bench-dense-outputs bench-pruning-time bench-merging bench-low-rank bench-export-time bench-random-networks bench-mutations bench-trust bench-membership bench-sparsity bench-architectures bench-hub bench-classic bench-techniques bench-pack bench-folds bench-teachers bench-compare bench-search bench-exclusive bench-capacity bench-evaluations bench-studio bench-studio-load docs-studio

help:  ## list the targets
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

$(BIN)/python:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || \
	{ echo "Python 3.11 or newer is needed, $(PYTHON) is older; name another: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(SYSTEM_TORCH) $(VENV)

# A torch that is there already stays: its pin is left out.
$(VENV)/constraints.txt: $(BIN)/python constraints.txt
	@if $(BIN)/python -c "import torch" 2>/dev/null; then grep -v '^torch==' constraints.txt > $@; \
	else cp constraints.txt $@; fi

# The stamps make a second call quick; a changed pin installs again.
$(VENV)/installed: pyproject.toml $(VENV)/constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(VENV)/constraints.txt -e .
	@touch $@

$(VENV)/installed-dev: pyproject.toml $(VENV)/constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(VENV)/constraints.txt -e ".[dev,bench]"
	@touch $@ $(VENV)/installed

# Shorter than the recipe trains, for a first look.
demo: $(VENV)/installed  ## compress the embedded default, into runs/demo
	$(BIN)/compressor run drop_blocks_distill_int8 --set stages.1.epochs=6 --set stages.1.views=3 --workload digits --out $(OUT)
	@echo "Look at $(OUT)/report.html"

test: $(VENV)/installed-dev  ## the test suite
	$(BIN)/python -m pytest

test-slow: $(VENV)/installed-dev  ## real training, killed and resumed runs
	$(BIN)/python -m pytest -m slow

test-browser: $(VENV)/installed-dev  ## the report and the studio in headless Chromium (Debian: apt-get install chromium)
	$(BIN)/python -m pytest -m browser

# Hundreds of megabytes that nothing else needs.
.venv-clusters: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --target $@ -c constraints.txt "dask[distributed]" "ray[client]" || { rm -rf $@; exit 1; }

test-clusters: $(VENV)/installed-dev .venv-clusters  ## runs side by side in processes, on Dask and on Ray, a worker killed
	PYTHONPATH=.venv-clusters $(BIN)/python -m pytest -n 0 -m cluster

test-zoo: $(VENV)/installed-dev  ## every architecture of the zoo pruned to half
	$(BIN)/python -m pytest -m zoo

test-mutations: $(VENV)/installed-dev  ## thousands of damaged files: none is read as something else
	$(BIN)/python -m pytest -m mutations

FUZZ_EXAMPLES ?= 5000
FUZZ_SECONDS ?= 20
fuzz: $(VENV)/installed-dev fuzz-guided  ## damaged and made-up files for every reader (minutes; FUZZ_EXAMPLES=50000 for an hour)
	FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) $(BIN)/python -m pytest -m fuzz tests/fuzz

# A fuzzer with its own runtime, which no test needs.
.venv-atheris: $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --target $@ -c constraints.txt atheris || { rm -rf $@; exit 1; }
	@touch $@

fuzz-guided: $(VENV)/installed-dev .venv-atheris  ## every reader fed by atheris, which follows what inputs reach (minutes; FUZZ_SECONDS for each; Linux)
	PYTHONPATH=.venv-atheris $(BIN)/python -m benchmarks.trust.guided --seconds $(FUZZ_SECONDS)

test-random-networks: $(VENV)/installed-dev  ## two thousand networks grown at random, pruned and compared
	$(BIN)/python -m pytest -m random_networks

test-random-graphs: $(VENV)/installed-dev  ## a thousand ONNX graphs grown at random, quantized and held against their reports
	$(BIN)/python -m pytest -m "random_graphs or not random_graphs" tests/quantization/test_random_graphs.py

# torchvision runs with the torch that it was built for alone, several GB with CUDA: in an environment of its own.
.venv-hub/installed: pyproject.toml
	$(PYTHON) -m venv .venv-hub
	.venv-hub/bin/python -m pip install --quiet --disable-pip-version-check torchvision timm -e . \
	pytest pytest-timeout pytest-xdist hypothesis || { rm -rf .venv-hub; exit 1; }
	@touch $@

test-hub: .venv-hub/installed  ## one network of every family of torchvision and timm (hours; needs several GB)
	.venv-hub/bin/python -m pytest -m hub benchmarks/tests/structure/test_hub.py

check: $(VENV)/installed-dev  ## lint, types and import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/installed-dev  ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: bench-demo bench-compare bench-compare-itself bench-overhead bench-search bench-search-resnet20 bench-headline bench-exclusive bench-capacity bench-threads bench-training bench-aa bench-folds bench-latency bench-pruning-time bench-merging bench-low-rank bench-export-time bench-sparsity bench-techniques bench-teachers bench-evaluations bench-studio bench-studio-load bench-studio-drawing bench-classic bench-structure bench-recurrent bench-dense-outputs bench-architectures bench-quantization \
	bench-integer-speed bench-filled-widths bench-never-slower bench-files bench-imagenet \
	bench-cifar10 bench-recovery  ## every benchmark

digits-weights: $(VENV)/installed-dev  ## train the network of the demo anew, into the package
	$(BIN)/python -m benchmarks.digits_weights

bench-demo: $(VENV)/installed-dev  ## seconds of make demo, alone and beside eight busy processes (minutes; wants a quiet machine)
	$(BIN)/python -m benchmarks.demo

bench-compare: $(VENV)/installed-dev  ## twelve recipes compared, beside the same run one by one: seconds, and the files (hours; resumes; wants a quiet machine)
	$(BIN)/python -m benchmarks.compare.tree

.PHONY: bench-compare-itself bench-overhead
bench-compare-itself: $(VENV)/installed-dev  ## a recipe compared with itself over seeds: how often a difference is declared (five minutes; resumes)
	$(BIN)/python -m benchmarks.compare.itself

bench-overhead: $(VENV)/installed-dev  ## what an empty stage costs, and looking up ten thousand stored ones (a minute)
	$(BIN)/python -m benchmarks.compare.overhead

bench-search: $(VENV)/installed-dev  ## a search among 48 recipes of the digits beside all of them: share of the volume and of the work (half an hour; resumes)
	$(BIN)/python -m benchmarks.compare.search

.PHONY: bench-search-resnet20 bench-headline
bench-search-resnet20: $(VENV)/installed-dev  ## the same of ResNet-20, trained on some of the photographs (an hour and a half of one core; resumes)
	$(BIN)/python -m benchmarks.compare.search --workload resnet20 --images 6000 --eta 3 --shipped int8 int4

bench-headline: $(VENV)/installed-dev  ## ResNet-56 by a search of an hour: what it finds, on test data (wants a quiet machine)
	$(BIN)/python -m benchmarks.compare.headline

bench-exclusive: $(VENV)/installed-dev  ## a file timed while eight workers train, beside a quiet machine, in turns (minutes; wants a quiet machine)
	$(BIN)/python -m benchmarks.compare.exclusive

bench-capacity: $(VENV)/installed-dev  ## the capacity model of docs/scale.md against a simulation to a thousand workers (seconds)
	$(BIN)/python -m benchmarks.compare.capacity

bench-threads: $(VENV)/installed-dev  ## training beside 0 to 4 busy processes: threads by timing against each fixed number (half an hour; wants a quiet machine)
	$(BIN)/python -m benchmarks.training_threads

bench-cifar10: $(VENV)/installed-dev  ## ResNet-56 and ResNet-20 by the shipped recipes, beside today's chains (hours; resumes)
	$(BIN)/python -m benchmarks.cifar10
	$(BIN)/python -m benchmarks.documents

bench-training: $(VENV)/installed-dev  ## throughput of the training loop; what defaults do to eight kinds of small networks (resumes)
	$(BIN)/python -m benchmarks.training_throughput
	$(BIN)/python -m benchmarks.training_harm
	$(BIN)/python -m benchmarks.soft_weight --images 0
	$(BIN)/python -m benchmarks.documents

bench-aa: $(VENV)/installed-dev  ## one file measured against itself, 100 times
	$(BIN)/python -m benchmarks.aa
	$(BIN)/python -m benchmarks.documents

bench-folds: $(VENV)/installed-dev  ## two recipes cross-validated, and how often one differs from itself (half an hour; resumes)
	$(BIN)/python -m benchmarks.judging.folds
	$(BIN)/python -m benchmarks.documents

bench-latency: $(VENV)/installed-dev  ## predicted against measured milliseconds of whole models
	$(BIN)/python -m benchmarks.structure.latency_table
	$(BIN)/python -m benchmarks.documents

bench-structure: $(VENV)/installed-dev  ## measured speed-up for every MAC saved, beside Torch-Pruning (an hour; resumes)
	$(BIN)/python -m benchmarks.structure.efficiency
	$(BIN)/python -m benchmarks.documents

bench-recovery: $(VENV)/installed-dev  ## ResNet-56 pruned and recovered beside Torch-Pruning, three seeds (hours; resumes)
	$(BIN)/python -m benchmarks.structure.recovery
	$(BIN)/python -m benchmarks.documents

bench-recurrent: $(VENV)/installed-dev  ## spoken digits by GRU and LSTM, MNIST by an autoencoder: prune, recover, quantize
	$(BIN)/python -m benchmarks.structure.recurrent
	$(BIN)/python -m benchmarks.documents

bench-dense-outputs: $(VENV)/installed-dev  ## a U-Net on street scenes and a detector of blood cells: prune, distill, quantize (half an hour; resumes)
	$(BIN)/python -m benchmarks.structure.dense_outputs
	$(BIN)/python -m benchmarks.documents

bench-pruning-time: $(VENV)/installed-dev  ## seconds and memory of pruning, beside Torch-Pruning
	$(BIN)/python -m benchmarks.structure.pruning_time
	$(BIN)/python -m benchmarks.documents

bench-low-rank: $(VENV)/installed-dev  ## layers factorised: ranks by milliseconds beside ranks by energy
	$(BIN)/python -m benchmarks.structure.low_rank

bench-merging: $(VENV)/installed-dev  ## accuracy without training: channels merged on noise, and removed
	$(BIN)/python -m benchmarks.structure.merging
	$(BIN)/python -m benchmarks.documents

bench-export-time: $(VENV)/installed-dev  ## CPU seconds of one export, with and without decomposing operators (minutes)
	$(BIN)/python -m benchmarks.export_time

bench-random-networks: $(VENV)/installed-dev  ## counts of networks grown at random, pruned and compared (10 minutes)
	$(BIN)/python -m benchmarks.random_networks

bench-mutations: $(VENV)/installed-dev  ## counts of damaged files, read or refused (10 minutes)
	$(BIN)/python -m benchmarks.mutations

bench-trust: $(VENV)/installed-dev  ## a signed folder changed at random, readers fed damage, commands killed, and what trust costs (half an hour)
	$(BIN)/python -m benchmarks.trust.attacks
	$(BIN)/python -m benchmarks.documents

bench-membership: $(VENV)/installed-dev  ## how well attacks tell training samples, before and after shipped recipes (an hour and a half; resumes)
	$(BIN)/python -m benchmarks.trust.membership
	$(BIN)/python -m benchmarks.documents

bench-techniques: $(VENV)/installed-dev  ## one network by every technique: accuracy, size, size after zstd, latency (an hour; resumes)
	$(BIN)/python -m benchmarks.techniques
	$(BIN)/python -m benchmarks.documents

bench-teachers: $(VENV)/installed-dev  ## ResNet-20's structure taught by ResNet-56: every objective, three seeds, equal minutes of a processor (five hours; resumes)
	$(BIN)/python -m benchmarks.teaching.teachers
	$(BIN)/python -m benchmarks.documents

bench-evaluations: $(VENV)/installed-dev  ## calibration and robustness of ResNet-20 by shipped recipes (a quarter of an hour; resumes)
	$(BIN)/python -m benchmarks.judging.evaluations
	$(BIN)/python -m benchmarks.documents

STUDIO_PLANS ?= 100
bench-studio: $(VENV)/installed-dev  ## what the studio's sliders foretell beside what comes of it, and how promptly they answer (an hour; resumes; wants a quiet machine)
	$(BIN)/python -m benchmarks.studio.foresight --plans $(STUDIO_PLANS)
	$(BIN)/python -m benchmarks.documents

bench-studio-load: $(VENV)/installed-dev  ## twenty people at one studio, ten requests a second each: what is lost, how long they wait, and what a question costs (five minutes; wants a quiet machine)
	$(BIN)/python -m benchmarks.studio.load

.PHONY: bench-studio-drawing
bench-studio-drawing: $(VENV)/installed-dev  ## the studio on a screen, in headless Chromium: its first paint, and five thousand operators from the click (a minute; wants a quiet machine)
	$(BIN)/python -m benchmarks.studio.drawing

docs-studio: $(VENV)/installed-dev  ## the pictures of docs/studio.md, from a studio of the digits in headless Chromium (minutes)
	$(BIN)/python -m benchmarks.studio.pictures

bench-classic: $(VENV)/installed-dev .venv-tfmot  ## MNIST pruned to 90 % beside tensorflow_model_optimization (half an hour; resumes)
	$(BIN)/python -m benchmarks.classic
	$(BIN)/python -m benchmarks.documents

bench-sparsity: $(VENV)/installed-dev  ## what 2:4 keeps of a matrix whose columns may change places, beside apex (seconds)
	$(BIN)/python -m benchmarks.sparsity_permutation

bench-architectures: $(VENV)/installed-dev  ## what pruning to half does to every architecture of the zoo
	$(BIN)/python -m benchmarks.structure.architectures
	$(BIN)/python -m benchmarks.documents

bench-hub: .venv-hub/installed $(VENV)/installed-dev  ## the same, stored for docs/architectures.md (hours; resumes)
	.venv-hub/bin/python -m benchmarks.structure.hub
	$(BIN)/python -m benchmarks.documents

# Peers pin what others need newer: each has an environment of its own.
.venv-nncf .venv-aimet: .venv-%:
	$(PYTHON) -m venv $@
	$@/bin/python -m pip install --quiet --disable-pip-version-check onnx onnxruntime $(PEER_$*) || { rm -rf $@; exit 1; }

# What signs as the OpenSSF does brings some dozen packages of its own (and forgets to name pyopenssl).
.venv-trust:
	$(PYTHON) -m venv $@
	$@/bin/python -m pip install --quiet --disable-pip-version-check model-signing pyopenssl || { rm -rf $@; exit 1; }

test-interoperability: $(VENV)/installed-dev .venv-trust  ## signatures verified by the OpenSSF's model-signing, and its own here
	$(BIN)/python -m pytest -n 0 tests/trust/test_openssf.py

# torch is the user's own build, as above; all else is what requirements.lock names by its hashes.
lock: $(VENV)/installed-dev  ## requirements.lock anew: every package of the development environment with its hash
	$(BIN)/python -m workbench.supply lock

locked: $(BIN)/python  ## the development environment from requirements.lock alone: nothing whose hash is not in it
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(VENV)/installed-dev $(VENV)/installed

sbom: $(VENV)/installed-dev  ## build/sbom.cdx.json: what the package needs at run time, in CycloneDX, from what is installed
	$(BIN)/python -m workbench.supply sbom --out build/sbom.cdx.json

wheel: $(VENV)/installed-dev  ## build/wheel/*.whl, the same bytes from the same commit
	$(BIN)/python -m workbench.supply wheel

.venv-supply: $(BIN)/python
	$(PYTHON) -m venv $@
	$@/bin/python -m pip install --quiet --disable-pip-version-check pip-audit || { rm -rf $@; exit 1; }

check-dependencies: .venv-supply  ## known holes in what requirements.lock names (asks the advisory database, so needs a network)
	.venv-supply/bin/pip-audit --strict --disable-pip --no-deps --require-hashes -r requirements.lock

# TensorFlow and onnx want different protobufs.
.venv-tfmot:
	$(PYTHON) -m venv $@
	$@/bin/python -m pip install --quiet --disable-pip-version-check tensorflow tf_keras tensorflow_model_optimization || { rm -rf $@; exit 1; }

PEER_nncf := nncf
PEER_aimet := aimet-onnx

bench-quantization: $(VENV)/installed-dev .venv-nncf .venv-aimet  ## int8 and int4 beside ONNX Runtime's quantizer, NNCF and AIMET (an hour; resumes)
	$(BIN)/python -m benchmarks.quantization.quantizers
	$(BIN)/python -m benchmarks.quantization.calibration
	$(BIN)/python -m benchmarks.quantization.saturation
	$(BIN)/python -m benchmarks.quantization.ablation
	$(BIN)/python -m benchmarks.documents

bench-integer-speed: $(VENV)/installed-dev  ## where the microseconds of fp32 and int8 go, node by node
	$(BIN)/python -m benchmarks.quantization.integer_speed
	$(BIN)/python -m benchmarks.documents

bench-filled-widths: $(VENV)/installed-dev  ## what channels of zeros gain and cost, by CPU class and over the zoo
	$(BIN)/python -m benchmarks.quantization.filled_widths
	$(BIN)/python -m benchmarks.documents

bench-never-slower: $(VENV)/installed-dev  ## every architecture of the zoo quantized under a budget, timed (an hour; resumes)
	$(BIN)/python -m benchmarks.quantization.never_slower
	$(BIN)/python -m benchmarks.documents

bench-files: $(VENV)/installed-dev  ## ONNX files that packages ship, quantized by evidence (half an hour; resumes)
	$(BIN)/python -m benchmarks.quantization.files
	$(BIN)/python -m benchmarks.documents

bench-imagenet: $(VENV)/installed-dev .venv-nncf .venv-aimet  ## EfficientNet-Lite1 in 8 and 4 bits on photographs, beside other quantizers (half an hour; resumes)
	$(BIN)/python -m benchmarks.quantization.photographs
	$(BIN)/python -m benchmarks.documents

# Peers that are installed nowhere else: general coders to compare with.
.venv-pack: $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --target $@ brotli || { rm -rf $@; exit 1; }

bench-pack: $(VENV)/installed-dev .venv-pack  ## packed files beside zlib, LZMA, zstd, brotli and order-0 entropy; LeNets on MNIST; ResNet-56 (hours; resumes)
	PYTHONPATH=.venv-pack $(BIN)/python -m benchmarks.packing.coder
	$(BIN)/python -m benchmarks.packing.lenets
	$(BIN)/python -m benchmarks.packing.residual
	$(BIN)/python -m benchmarks.documents

same-results: $(VENV)/installed-dev  ## do OLD=<commit> and the working tree (or NEW=<commit>) give the same files and reports? (resumes)
	$(BIN)/python -m benchmarks.same_results $(OLD) $(NEW)

# The tools of the site stay out of the project's environment.
.venv-docs:
	$(PYTHON) -m venv $@
	$@/bin/python -m pip install --quiet --disable-pip-version-check mkdocs-material "mkdocstrings[python]" || { rm -rf $@; exit 1; }

docs-site: .venv-docs  ## the docs as a site, in build/site; it opens from the disk
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/python -m mkdocs build --strict --quiet
	.venv-docs/bin/python -m benchmarks.documents.site build/site

docs: $(VENV)/installed-dev  ## tables and plots in docs/ from the stored results
	$(BIN)/python -m benchmarks.documents

claims: $(VENV)/installed-dev  ## figures in the texts against the stored results, and what falls short of its goal
	$(BIN)/python -m benchmarks.claims

clean:
	rm -rf $(VENV) .venv-hub .venv-docs .venv-pack .venv-clusters .venv-trust .venv-supply .venv-atheris build *.egg-info .mypy_cache .ruff_cache .pytest_cache
