# Everything from a fresh clone on a machine without ROS and without a GPU. In a ROS workspace colcon builds the package instead.
#   make demo      make test      make help

SHELL := /bin/bash
.DEFAULT_GOAL := help

# the ROS 2 that pip has wheels of: one virtual environment for each, side by side
ROS ?= jazzy
ifeq ($(ROS),jazzy)
VENV := .venv
else ifeq ($(ROS),kilted)
VENV := .venv-kilted
else
$(error ROS=$(ROS) is not available from pip: give jazzy (the default) or kilted, as in: make test ROS=kilted)
endif
REQUIREMENTS := .ci/requirements-$(ROS).txt

BIN := $(VENV)/bin
STAMP := $(VENV)/.come_ros_$(ROS)

PYTHON ?= python3
TORCH ?= torch==2.13.0
BAG ?=
ARGS ?=
# two cores, and tests that mostly wait for nodes
JOBS ?= 3
# tests that compute: as many as there are cores
FAST_JOBS ?= logical

# with it, each process of a test, some hundreds of them, would compile all modules again
unexport PYTHONDONTWRITEBYTECODE
# a ROS installation sourced in this shell would mix with the one from pip
unexport PYTHONPATH LD_LIBRARY_PATH AMENT_PREFIX_PATH CMAKE_PREFIX_PATH COLCON_PREFIX_PATH ROS_DISTRO ROS_VERSION \
  ROS_PYTHON_VERSION RMW_IMPLEMENTATION PYTHONHOME VIRTUAL_ENV _ROS_WHEELS_BOOTSTRAP_COMPLETE

.PHONY: help venv demo test fast docs lint format clean clean-venv

help:
	@echo 'make demo [BAG=path]  render a room (or take a bag), run the live node on it over DDS; results in out/demo'
	@echo 'make test [ARGS=...]  all tests, in JOBS=$(JOBS) processes (ARGS go to pytest)'
	@echo 'make fast [ARGS=...]  those without DDS that take less than about a second each: some 80 s on two cores'
	@echo 'make lint             ruff and mypy; make format lets ruff rewrite'
	@echo 'make docs             write what the pages and config/come.yaml repeat from the code'
	@echo 'make venv             only make $(VENV), which the others do by themselves: ROS 2, torch, come_ros ($(BIN)/come_ros)'
	@echo 'make clean            remove caches, build folders and out/; make clean-venv removes $(VENV)'
	@echo
	@echo 'With each of them:'
	@echo '  ROS=$(ROS)  the ROS 2 from pip: jazzy (LTS), in .venv, or kilted, in .venv-kilted'
	@echo 'Read when $(VENV) is made:'
	@echo '  PYTHON=$(PYTHON)  Python 3.10 to 3.13'
	@echo '  TORCH=$(TORCH)  what pip installs as torch: a requirement, a wheel file, or --index-url and more'

venv: $(STAMP)

# Shows one line of progress on a terminal, nothing elsewhere; pip's own log tells all.
# $(1): what it is, $(2): arguments of pip install
define pip_install
	@echo '$(VENV): $(1)'
	@set -o pipefail; $(BIN)/python -m pip install --disable-pip-version-check --log $(VENV)/pip.log $(2) </dev/null 2>&1 \
	  | awk -v terminal=$$(test -t 1 && echo 1 || echo 0) \
	    '/^ERROR/ {print; next} terminal && /^ *(Collecting|Downloading|Building|Installing)/ {printf "\r\033[K  %.76s", $$0; fflush()} \
	     END {if (terminal) printf "\r\033[K"}' \
	  || { echo 'pip failed; everything it said is in $(VENV)/pip.log' >&2; exit 1; }
endef

$(STAMP): $(REQUIREMENTS) .ci/requirements-common.txt setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { echo \
	  'come_ros needs Python 3.10 or newer as "$(PYTHON)": install one, or name it: make PYTHON=python3.12 $(MAKECMDGOALS)' >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo \
	  '"$(PYTHON)" cannot make virtual environments; on Debian and Ubuntu: sudo apt install python3-venv' >&2; exit 1; }
	@# made for another ROS, or another version of this one: the files of two would mix
	@wanted=ros_rclpy-$$(sed -n 's/^ros-rclpy.*==//p' $(REQUIREMENTS)).dist-info; \
	  for found in $(VENV)/lib/python*/site-packages/ros_rclpy-*.dist-info; do \
	    if test -d "$$found" && test "$${found##*/}" != "$$wanted"; then \
	      echo '$(VENV): made for another ROS 2 than $(ROS), so it is made again'; rm -rf $(VENV); fi; done
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@rm -f $(VENV)/pip.log
	$(call pip_install,torch,$(TORCH))
	$(call pip_install,ROS 2 $(ROS) and the other packages,-r $(REQUIREMENTS))
	$(call pip_install,come_ros as it stands in this folder,--no-deps --no-build-isolation -e .)
	@# pip installs no data_files of a package in development: what colcon would put into share/ and lib/ is linked
	@mkdir -p $(VENV)/share/come_ros $(VENV)/lib/come_ros $(VENV)/share/ament_index/resource_index/packages
	@ln -sfn $(CURDIR)/launch $(CURDIR)/config $(CURDIR)/package.xml $(VENV)/share/come_ros/
	@ln -sfn $(CURDIR)/resource/come_ros $(VENV)/share/ament_index/resource_index/packages/come_ros
	@ln -sfn ../../bin/come_ros ../../bin/come_node $(VENV)/lib/come_ros/
	@touch $@

demo: venv
	@$(BIN)/come_ros demo $(if $(BAG),--bag '$(BAG)') $(ARGS)

# test/conftest.py keeps DDS on this machine, in a domain of its own, and fails if a process or shared memory is left behind
test: venv
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup --no-loadscope-reorder $(ARGS)

# no DDS, nothing slow
fast: venv
	@$(BIN)/python -m pytest -n $(FAST_JOBS) --dist loadgroup --no-loadscope-reorder -m 'not ros and not slow' $(ARGS)

lint: venv
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

docs: venv
	@$(BIN)/python .ci/docs.py

format: venv
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:
	@rm -rf out build install log *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -not -path './.venv*/*' -prune -exec rm -rf {} +

clean-venv:
	@rm -rf $(VENV)
