# One command a task; each installs what it needs, configures and builds first. The build itself is CMake's: see
# CMakePresets.json.

JOBS ?= $(shell nproc)
# Tests and kernels share the processors: one test more at a time than half as many as there are processors.
CTEST_JOBS ?= $(shell expr $(JOBS) / 2 + 1)
FUZZ_SECONDS ?= 600
# Labels of tests that sanitizers leave out.
SKIP ?= source
# Where the peers of the benchmarks live; empty: the user's cache folder.
export PEERS
CTEST = ctest --output-on-failure -j$(CTEST_JOBS) --test-dir

.PHONY: help build test cuda test-cuda demo bench bench-growth bench-gpu bench-peers test-sanitize test-thread test-reference test-clang fuzz golden peft format docs clean
.DEFAULT_GOAL := help

help: ## list the tasks
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*## /\t/' | expand -t 18

build: ## libtaper.so and the taper command, in build/
	tools/install-deps.sh build
	cmake --preset release -DTAPER_TESTS=OFF
	cmake --build build -j$(JOBS)

test: ## build and run every test
	tools/install-deps.sh test
	cmake --preset release -DTAPER_TESTS=ON
	cmake --build build -j$(JOBS)
	$(CTEST) build

cuda: ## the CUDA plug-in for every architecture that it knows (needs nvcc)
	tools/install-deps.sh build
	cmake --preset release -DTAPER_CUDA=ON -DTAPER_CUDA_ARCHITECTURES=all
	cmake --build build -j$(JOBS)

test-cuda: ## the tests on a GPU; says that it skips where there is none
	tools/install-deps.sh test
	cmake --preset release -DTAPER_TESTS=ON
	cmake --build build -j$(JOBS)
	tests/cuda/run.sh build

demo: build ## fine-tune the shipped model on the verses, show it before and after
	tools/demo.sh

bench: build ## the benchmarks, beside the peers that are installed; JSON in build/bench (BENCH=--short)
	bench/run.sh
	python3 bench/bench.py $(BENCH)

bench-growth: build ## how speed grows with length, batch, rank, layers, graph, processes; plots in build/bench (GROWTH=--with=torch)
	python3 bench/growth.py $(GROWTH)

bench-gpu: build ## operations and models on a GPU, beside PyTorch and PEFT (GPU="--only train --models 0.5b")
	python3 bench/gpu/run.py $(GPU)

bench-peers: ## install the peers that make bench measures, outside the tree (PEERS=folder)
	tools/bench-peers.sh

test-sanitize: ## the tests under the address and undefined-behaviour sanitizers
	tools/install-deps.sh test
	cmake --preset sanitize
	cmake --build build/sanitize -j$(JOBS)
	$(CTEST) build/sanitize -LE '$(SKIP)'

test-thread: ## the programs tests/tsan_*.c under the thread sanitizer
	tools/install-deps.sh test
	cmake --preset thread
	cmake --build build/thread -j$(JOBS) --target tsan
	$(CTEST) build/thread -R ^tsan_

test-reference: ## the tests without taper's own vector kernels
	tools/install-deps.sh test
	cmake --preset reference
	cmake --build build/reference -j$(JOBS)
	$(CTEST) build/reference -LE 'source|harness'

test-clang: ## the tests as clang builds them
	tools/install-deps.sh ci
	cmake --preset clang
	cmake --build build/clang -j$(JOBS)
	$(CTEST) build/clang -LE source

fuzz: ## each fuzz target for FUZZ_SECONDS seconds
	tools/install-deps.sh ci
	cmake --preset fuzz
	cmake --build build/fuzz -j$(JOBS) --target fuzz
	tools/fuzz.sh build/fuzz $(FUZZ_SECONDS)

golden: ## make the golden files again (installs PyTorch into build/golden-venv)
	python3 tests/golden/make_golden.py
	python3 tests/golden/make_tokenizer_golden.py build/tokenizer-venv

peft: ## PEFT reads our adapters as we mean them (needs make golden)
	tools/install-deps.sh test
	cmake --preset release -DTAPER_TESTS=ON
	cmake --build build -j$(JOBS) --target peft_export
	tests/peft/run.sh build/tests/peft_export build/peft

format: ## format the C sources in place
	tools/install-deps.sh test
	tools/checks/format.sh -i

docs: ## the reference of the interface, in build/doxygen
	tools/install-deps.sh ci
	mkdir -p build
	doxygen docs/Doxyfile

clean: ## remove build/
	rm -rf build
