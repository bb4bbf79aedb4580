# Every target sets up what it needs. VENV and PYTHON may be overridden: make test VENV=~/venv
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
READY := $(VENV)/.rnnext-ready
TESTED := $(VENV)/.rnnext-tests-ready

.PHONY: demo memory-policy perceptual-decision sample-text
.PHONY: test quick fuzz coverage faults bench clients docs lint lint-style lint-headers weight build sdist wheel cuda-build cuda-check clang-build sanitize clean

# What compiles the extension prints its commands here, and shows their end when it fails.
LOG := build/build.log
LOGGED = > $(LOG) 2>&1 || { tail -50 $(LOG); exit 1; }

# A first look needs the kernels of this machine alone, which are built in a third of the time.
demo: export RNNEXT_ISAS ?= native
demo: build
	$(BIN)/python examples/train_text.py $(ARGS)

memory-policy: build
	$(BIN)/python -m pip install -q -e '.[rl]' --no-build-isolation
	$(BIN)/python examples/memory_policy.py $(ARGS)

perceptual-decision: build
	$(BIN)/python -m pip install -q -e '.[neuro]' --no-build-isolation
	$(BIN)/python examples/perceptual_decision.py $(ARGS)

sample-text: build
	$(BIN)/python examples/sample_text.py $(ARGS)

# With the stand-in of AMX, which tests need and the product does not.
test: export RNNEXT_ISAS ?= all,amx_stand_in
test: $(TESTED) build
	$(BIN)/python -m pytest -n 2 $(ARGS)

# This machine's kernels alone, and tests of about a minute that find most of what breaks.
QUICK ?= tests/fuzz tests/modules/test_rnn.py tests/modules/test_leaky.py tests/modules/test_stepper.py
quick: export RNNEXT_ISAS ?= native
quick: $(TESTED) build
	$(BIN)/python -m pytest -n 2 $(QUICK) $(ARGS)

# 50,400 random calls against float64 and 36,000 of ops with arguments that may be wrong, planned for
# three machines. Memory of every tensor ends at a page that nobody may touch.
fuzz: export RNNEXT_ISAS ?= all,amx_stand_in
fuzz: $(TESTED) build
	$(CXX) -O2 -shared -fPIC tests/fuzz/ends.cpp -o build/ends.so -ldl
	for machine in zen4 zen5 xeon-amx; do \
	  LD_PRELOAD=$(CURDIR)/build/ends.so RNNEXT_CPU_MACHINE=$$machine RNNEXT_FUZZ=2400 $(BIN)/python -m pytest -n 2 -o faulthandler_timeout=0 tests/fuzz $(ARGS) || exit 1; \
	done

# The share of Python's lines that the tests run. (What they notice in C++ `make faults` tells.)
coverage: $(TESTED) build
	$(BIN)/python -m pip install -q pytest-cov
	$(BIN)/python -m pytest -n 2 --cov=rnnext --cov-report=term $(ARGS)

faults: $(TESTED)
	$(BIN)/python -m tools.faults $(ARGS)

bench: build
	$(BIN)/python -m pip install -q -e '.[bench]' --no-build-isolation
	$(BIN)/python -m benchmarks run --label latest $(ARGS)
	-$(BIN)/python -m benchmarks edges
	$(BIN)/python -m benchmarks plot --label latest
	-$(BIN)/python -m benchmarks bars --label latest

# Models of other libraries, converted: in an environment that can hold all of these libraries.
clients:
	$(MAKE) build VENV=build/clients-venv
	build/clients-venv/bin/python -m pip install -q -e '.[clients]' --no-build-isolation
	build/clients-venv/bin/python -m benchmarks clients $(ARGS)

docs: $(TESTED) build
	$(BIN)/sphinx-build -q -W --keep-going -c docs -E . build/site

lint: lint-style lint-headers

lint-style: $(TESTED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files 'csrc/*.cpp' 'csrc/*.h' 'csrc/*.cu' 'csrc/*.cuh')
	$(BIN)/clang-tidy --quiet csrc/cpu/isa/generic.cpp csrc/cpu/rnn/*.cpp -- -std=c++20 -Icsrc
	$(BIN)/mypy
	$(BIN)/codespell $$(git ls-files ':!*.ipynb')

lint-headers: $(TESTED)
	$(BIN)/python tools/check_headers.py

# torch comes first: the extension is built against the torch that it will run beside.
$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q 'torch>=2.11' ninja pybind11 'setuptools>=77' wheel
	@mkdir -p build; echo "compiling the extension: a minute for this machine alone, else two or three"
	@$(BIN)/python -m pip install -q -e '.[demo]' --no-build-isolation $(LOGGED)
	touch $@

$(TESTED): $(READY)
	@$(BIN)/python -m pip install -q -e '.[test,dev,docs]' --no-build-isolation $(LOGGED)
	touch $@

# How much the tree has grown since tools/weight.json was recorded: a note, no gate.
weight: $(TESTED) build
	$(BIN)/python -m tools.weight $(ARGS)

build: $(READY)
	@mkdir -p build; $(BIN)/python setup.py -q build_ext --inplace $(LOGGED)

sdist: $(TESTED)
	$(BIN)/python -m build --sdist --no-isolation

# For the torch of this environment and this machine's Linux; `auditwheel repair` makes it a manylinux one.
wheel: $(TESTED) build
	rm -f dist/*.whl
	$(BIN)/python -m build --wheel --no-isolation
	$(BIN)/python -m tools.check_wheel dist/*.whl

cuda-build: build
	$(BIN)/python -m tools.cuda_build $(ARGS)

cuda-check:
	$(PYTHON) -m tools.cuda_check $(ARGS)

clang-build: $(TESTED)
	$(BIN)/python -m tools.clang_build $(ARGS)

# The kernels' threads and Python's under ThreadSanitizer, then random calls under AddressSanitizer
# and UndefinedBehaviorSanitizer, in a build of their own. libstdc++ comes first too:
# AddressSanitizer looks for its __cxa_throw when the process starts. (-s: it ends the process, and
# what it said must not be lost.)
SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=undefined
sanitize: $(TESTED)
	$(BIN)/pytest -p no:cacheprovider tests/races/check_races.py
	CFLAGS='$(SANITIZE)' LDFLAGS='$(SANITIZE)' $(BIN)/python setup.py -q build_py --build-lib build/sanitize/lib \
	  build_ext --build-temp build/sanitize/temp --build-lib build/sanitize/lib
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 PYTHONPATH=build/sanitize/lib \
	  $(BIN)/pytest -s -p no:cacheprovider -o faulthandler_timeout=0 tests/fuzz $(ARGS)

clean:
	rm -rf build dist rnnext/*.so *.egg-info
