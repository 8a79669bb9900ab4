# Understudy: every step of the pipeline is a target here; `make` alone lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.ONESHELL:
.SHELLFLAGS := -eu -o pipefail -c

PYTHON ?= python3
VENV := .venv
DVC := .venv-dvc
BIN := $(VENV)/bin
PY := PYTHONPATH=. $(BIN)/python
READY := $(VENV)/.installed
# Where it is set, each of a service's processes compiles all it imports anew: two thirds of the time it takes to start.
unexport PYTHONDONTWRITEBYTECODE

# The moment training stands at: it sees nothing that became known later.
AS_OF ?= $(shell sed -n 's/^as_of: *"\(.*\)"$$/\1/p' params.yaml)
ROLE ?= auto
FRAME ?= training
# An estimator of training/estimators.py instead of each role's own.
ESTIMATOR ?=
TRIALS ?= 30
# A stage of dvc.yaml, with what it needs; all without.
STAGE ?=
LIMIT ?= 900
START ?= 2013-10-01
END ?= 2013-10-15
URL ?= http://127.0.0.1:3000
SPEED ?= 0
PORT ?= 3000
UI_PORT ?= 5000
HOST ?= 127.0.0.1
# `wall`, an ISO instant to start from, or a replay's clock file.
CLOCK ?= $(CURDIR)/state/clock
FILE ?=
VIEW ?=
DSN ?=
FOLLOW ?=
FOR ?=
AT ?=
BACKEND ?= docker

# FEATURE_STORE=redis (with REDIS=host:port) keeps online features there instead of in SQLite.
FEATURE_STORE ?=
REDIS ?=
ifneq ($(FEATURE_STORE),)
export UNDERSTUDY_FEATURE_STORE := $(FEATURE_STORE)
endif
ifneq ($(REDIS),)
export UNDERSTUDY_REDIS := $(REDIS)
endif
ifneq ($(DSN),)
export UNDERSTUDY_SHIP_DSN := $(DSN)
endif

export BENTOML_DO_NOT_TRACK := True
export DO_NOT_TRACK := 1
export DVC_NO_ANALYTICS := 1

.PHONY: help
help: ## list the targets in pipeline order
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  \033[1m%-15s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): requirements/dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is %s; set PYTHON=" % sys.version.split()[0])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	echo "==> installing the locked packages into $(VENV)" >&2
	# uv is an accelerator only: where it cannot be had, pip installs the same lock.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv || true
	if [ -x $(BIN)/uv ] && $(BIN)/uv pip install --quiet --require-hashes --python $(BIN)/python -r requirements/dev.txt; then :; \
	else $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt; fi
	touch $@

.PHONY: install
install: $(READY) ## make .venv from the lock

.PHONY: demo
demo: $(READY) ## the whole loop on real data: train, serve, replay, label, compare, audit (about 4 minutes)
	@$(PY) -m deploy.demo --primary-as-of 2013-07-01 --shadow-as-of 2013-10-01 --start 2013-10-01 --end 2013-10-15

.PHONY: demo-promotion
demo-promotion: $(READY) ## a campaign on real data to its end: promoted in traffic, watched, survived; a planted shadow rejected (about 12 minutes)
	@$(PY) -m deploy.demo_promotion --primary-as-of 2013-03-01 --shadow-as-of 2013-10-01 --start 2013-10-01 --days 14

.PHONY: validate
validate: $(READY) ## run the expectations every training runs first: FRAME=training (rows as of AS_OF) or vectors (the log)
	@if [ "$(FRAME)" = vectors ]; then
	  if [ -e "$(CLOCK)" ]; then export UNDERSTUDY_CLOCK="$(CLOCK)"; fi
	  $(PY) -m monitoring.validate_job
	else $(PY) -m training.validate --as-of $(AS_OF); fi

.PHONY: train
train: $(READY) ## train as of AS_OF; the first run seats primary and fallback, later ones propose a shadow
	@$(PY) -m training.train --as-of $(AS_OF) --role $(ROLE) --estimator "$(ESTIMATOR)"

.PHONY: pipeline
pipeline: $(READY) dvc-env ## what changed of prepare, validate and train (dvc.yaml), as of AS_OF in params.yaml
	@if [ -n "$${UNDERSTUDY_STATE_DIR:-}$${UNDERSTUDY_MODELS_DIR:-}" ]; then
	  echo "pipeline: dvc.yaml names files below state/; unset UNDERSTUDY_STATE_DIR and UNDERSTUDY_MODELS_DIR" >&2; exit 2; fi
	PATH="$(CURDIR)/$(BIN):$$PATH" PYTHONPATH=. DVC_SITE_CACHE_DIR="$(CURDIR)/.dvc/tmp/site" $(DVC)/bin/dvc repro $(STAGE)

.PHONY: dvc-env
dvc-env: $(DVC)/.installed ## make .venv-dvc, DVC's own environment, from its lock

$(DVC)/.installed: requirements/dvc.txt
	@test -x $(DVC)/bin/python || $(PYTHON) -m venv $(DVC)
	echo "==> installing DVC into $(DVC)" >&2
	if [ -x $(BIN)/uv ] && $(BIN)/uv pip install --quiet --require-hashes --python $(DVC)/bin/python -r requirements/dvc.txt; then :; \
	else $(DVC)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dvc.txt; fi
	touch $@

.PHONY: materialize
materialize: $(READY) ## bring the online store to what is known at AT (default: now): incremental, repeatable
	@$(PY) -m training.materialize $(if $(AT),--as-of $(AT))

.PHONY: push
push: $(READY) ## push streaming rows of a VIEW from FILE (JSON lines; default stdin) to the online store
	@$(PY) -m training.push --view "$(VIEW)" --file "$(or $(FILE),-)"

.PHONY: backtest
backtest: $(READY) ## train as of 1 October, score October to December
	@$(PY) -m training.backtest --estimator "$(ESTIMATOR)"

.PHONY: reproduce
reproduce: $(READY) ## train registered VERSION again in a clean checkout of its commit and compare: exit 1 when it differs
	@$(PY) -m training.reproduce --version "$(VERSION)"

.PHONY: tune
tune: $(READY) ## search for better parameters on time-ordered folds: ESTIMATOR, TRIALS, LIMIT (seconds); changes nothing
	@$(PY) -m training.tune --as-of $(AS_OF) --estimator "$(ESTIMATOR)" --trials $(TRIALS) --seconds $(LIMIT)

.PHONY: mlflow-ui
mlflow-ui: $(READY) ## MLflow's pages of the configured store, on loopback: UI_PORT
	@store="$${UNDERSTUDY_TRACKING_URI:-}" state="$${UNDERSTUDY_STATE_DIR:-$(CURDIR)/state}"
	case "$$store" in http*) echo "==> the tracking server has pages of its own: $$store"; exit 0;; esac
	if [ -z "$$store" ] && [ ! -e "$$state/mlflow.db" ]; then echo "mlflow-ui: $$state/mlflow.db does not exist; run \`make train\`" >&2; exit 2; fi
	# Without the query mlflow 3.17 opens with its pages for agents.
	echo "==> http://127.0.0.1:$(UI_PORT)/#/experiments?workflowType=machine_learning"
	exec $(BIN)/mlflow server --host 127.0.0.1 --port $(UI_PORT) --workers 1 --no-serve-artifacts \
	  --backend-store-uri "$${store:-sqlite:///$$state/mlflow.db}" --default-artifact-root "$$state/mlruns"

.PHONY: serve
serve: $(READY) ## bentoml serve on HOST:PORT, its clock CLOCK (wall, an ISO instant, or the replay's clock file)
	@if [ "$(CLOCK)" = "$(CURDIR)/state/clock" ] && [ ! -e "$(CLOCK)" ]; then mkdir -p state; echo "$(START)T00:00:00+00:00" > "$(CLOCK)"; fi
	PYTHONPATH=. UNDERSTUDY_CLOCK="$(CLOCK)" exec $(BIN)/bentoml serve --host $(HOST) --port $(PORT)

.PHONY: replay
replay: $(READY) ## send START..END to the service at URL in event time, at most SPEED times real time (0: no limit)
	@UNDERSTUDY_CLOCK="$(CLOCK)" $(PY) -m monitoring.replay --url $(URL) --start $(START) --end $(END) --speed $(SPEED)

.PHONY: labels
labels: $(READY) ## take ground truth from FILE (CSV, JSON lines, Parquet: request_id,label[,at]) or say how much there is; URL= of a service, STRICT=1
	@if [ -e "$(CLOCK)" ]; then export UNDERSTUDY_CLOCK="$(CLOCK)"; fi
	$(PY) -m monitoring.labels_job $(if $(FILE),--file "$(FILE)") $(if $(STRICT),--strict) \
	  $(if $(filter command line,$(origin URL)),--url "$(URL)")

.PHONY: monitor
monitor: $(READY) ## drift and silent degradation, window by window: page, JSON, series (AGAIN=1: judge windows anew; BUSINESS=file)
	@if [ -e "$(CLOCK)" ]; then export UNDERSTUDY_CLOCK="$(CLOCK)"; fi
	$(PY) -m monitoring.monitor_job $(if $(AGAIN),--again) $(if $(BUSINESS),--business "$(BUSINESS)")

.PHONY: status
status: $(READY) ## the health of each failure mode on one page, from files: URL= of a service to ask as well, STRICT=1
	@if [ -e "$(CLOCK)" ]; then export UNDERSTUDY_CLOCK="$(CLOCK)"; fi
	$(PY) -m monitoring.status $(if $(STRICT),--strict) $(if $(filter command line,$(origin URL)),--url "$(URL)")

.PHONY: retrain-check
retrain-check: $(READY) ## whether to train again: drift, performance, age, schedule; keeps the decision, trains nothing
	@if [ -e "$(CLOCK)" ]; then export UNDERSTUDY_CLOCK="$(CLOCK)"; fi
	$(PY) -m monitoring.retraining

.PHONY: retrain
retrain: $(READY) ## decide, and when it is due train as of the clock into a free shadow slot; promotes nothing
	@if [ -e "$(CLOCK)" ]; then export UNDERSTUDY_CLOCK="$(CLOCK)"; fi
	$(PY) -m deploy.retrain

.PHONY: compare
compare: $(READY) ## compare shadow with primary from the logs: page, JSON, verdict
	@if [ -e "$(CLOCK)" ]; then export UNDERSTUDY_CLOCK="$(CLOCK)"; fi
	$(PY) -m monitoring.compare_job

.PHONY: rehearse
rehearse: $(READY) ## score the vectors logged from START to END (all when not given) with VERSION: offline evidence, opens no door
	@if [ -e "$(CLOCK)" ]; then export UNDERSTUDY_CLOCK="$(CLOCK)"; fi
	$(PY) -m monitoring.rehearse --version "$(VERSION)" \
	  $(if $(filter command line,$(origin START)),--start "$(START)") $(if $(filter command line,$(origin END)),--end "$(END)")

.PHONY: split
split: $(READY) ## treat SHARE % (1, 5, 25, 50; 0 ends) with the shadow's answers: GOAL=higher|lower, KEY, METRIC, SHADOW, WINDOW
	@if [ -e "$(CLOCK)" ]; then export UNDERSTUDY_CLOCK="$(CLOCK)"; fi
	$(PY) -m deploy.split --share "$(SHARE)" --key "$(KEY)" --shadow "$(SHADOW)" --metric "$(METRIC)" --goal "$(GOAL)" \
	  --window "$(WINDOW)" $(if $(FILE),--file "$(FILE)") $(if $(FORCE),--force) --reason "$(REASON)"

.PHONY: split-verdict
split-verdict: $(READY) ## judge the split from the logs: page, JSON, verdict; METRIC of a FILE of request_id,value,at
	@if [ -e "$(CLOCK)" ]; then export UNDERSTUDY_CLOCK="$(CLOCK)"; fi
	$(PY) -m monitoring.split_job --metric "$(METRIC)" --goal "$(GOAL)" $(if $(FILE),--file "$(FILE)")

.PHONY: promote
promote: $(READY) ## make the shadow primary on a current verdict: SHADOW=slot, SPLIT=1, URL= to wait for; FORCE=1 REASON= without one
	@if [ -e "$(CLOCK)" ]; then export UNDERSTUDY_CLOCK="$(CLOCK)"; fi
	$(PY) -m deploy.promote --shadow "$(SHADOW)" $(if $(VERDICT),--verdict "$(VERDICT)") $(if $(SPLIT),--split) $(if $(FORCE),--force) \
	  --reason "$(REASON)" --url "$(if $(filter command line,$(origin URL)),$(URL))"

.PHONY: watch
watch: $(READY) ## look at the promoted model; takes it back on a critical breach (exit 3): FOLLOW=1 looks until the watch ends
	@if [ -e "$(CLOCK)" ]; then export UNDERSTUDY_CLOCK="$(CLOCK)"; fi
	$(PY) -m deploy.watch $(if $(FOLLOW),--follow)

.PHONY: rollback
rollback: $(READY) ## put back the primary from before the last promotion: REASON=, URL= to wait for; TO=revision for another
	@if [ -e "$(CLOCK)" ]; then export UNDERSTUDY_CLOCK="$(CLOCK)"; fi
	$(PY) -m deploy.rollback --reason "$(REASON)" $(if $(TO),--to "$(TO)") $(if $(FORCE),--force) \
	  --url "$(if $(filter command line,$(origin URL)),$(URL))"

.PHONY: roles
roles: $(READY) ## who plays and how it came to be; brings MLflow's aliases and the Bentos' labels up to it
	@$(PY) -m deploy.moves

.PHONY: ledger
ledger: $(READY) ## whether the logs account for everything: served = logged + dropped, sampled = scored + dropped
	@$(PY) -m monitoring.ledger

.PHONY: ship
ship: $(READY) ## copy the logs into PostgreSQL, each line once: DSN=postgresql://..., FOLLOW=seconds [FOR=seconds]
	@$(PY) -m monitoring.shipping_job $(if $(FOLLOW),--follow $(FOLLOW)) $(if $(FOR),--for $(FOR))

.PHONY: skew
skew: $(READY) ## audit served vectors against the offline store at their instant: page, JSON, exit 1 on skew
	@$(PY) -m monitoring.skew_job

.PHONY: plan
plan: $(READY) ## show what the feature definitions would change for the seated models
	@$(PY) -m deploy.plan

.PHONY: dashboards
dashboards: $(READY) ## write Grafana's dashboards (deploy/grafana/dashboards) from deploy/dashboards*.py
	@$(PY) -m deploy.dashboards

.PHONY: bento
bento: $(READY) ## build the Bento: service, feature definitions and models (refused when `make plan` refuses)
	@PYTHONPATH=. $(BIN)/bentoml build
	$(PY) -m deploy.moves

.PHONY: containerize
containerize: $(READY) ## make an image of the newest Bento with BACKEND (docker, podman, buildah, ...)
	@PYTHONPATH=. $(BIN)/bentoml containerize understudy:latest --backend $(BACKEND) --image-tag understudy:latest

.PHONY: bench-join
bench-join: $(READY) ## time and memory of the point-in-time join over all rows
	@$(PY) -W ignore -m benchmarks.join

.PHONY: bench-lookup
bench-lookup: $(READY) ## time of a feature lookup against plain Feast, SQLite and Redis (needs redis-server)
	@$(PY) -W ignore -m benchmarks.lookup

.PHONY: bench-serving
bench-serving: $(READY) ## requests per second and latency against stock BentoML and a hand-written service (about 15 minutes)
	@$(PY) -W ignore -m benchmarks.serving

.PHONY: bench-verdict
bench-verdict: $(READY) ## simulated campaigns: wrong promotes, power, planted shadows
	@$(PY) -W ignore -m benchmarks.verdict

.PHONY: bench-split
bench-split: $(READY) ## simulated A/B splits: wrong verdicts under peeking, ramps and keys; lost requests found; power
	@$(PY) -W ignore -m benchmarks.split

.PHONY: bench-monitor
bench-monitor: $(READY) ## the drift job over a year of predictions: time, memory, false alarms, days to find December (about 8 minutes)
	@$(PY) -W ignore -m benchmarks.monitor

.PHONY: bench-estimate
bench-estimate: $(READY) ## performance estimated without labels against realized, over real months and three models (about 3 minutes)
	@$(PY) -W ignore -m benchmarks.estimate

.PHONY: soak
soak: $(READY) ## a million requests: memory growth, longest stall (about 15 minutes)
	@$(PY) -W ignore -m benchmarks.soak

.PHONY: chaos
chaos: $(READY) ## kill, stop and corrupt the service's parts under load: every answer in time, nothing lost (needs redis-server)
	@$(PY) -W ignore -m benchmarks.chaos

.PHONY: bench-promotion
bench-promotion: $(READY) ## promote and roll back a service under load: failed requests, seconds until every worker plays it
	@$(PY) -W ignore -m benchmarks.promotion

.PHONY: fuzz
fuzz: $(READY) ## 10,000 made-up requests against the OpenAPI document: no 5xx
	@$(PY) -W ignore -m benchmarks.fuzz

.PHONY: bench
bench: bench-join bench-lookup bench-verdict bench-serving backtest ## every benchmark

.PHONY: check
check: $(READY) ## ruff, mypy strict, import directions, docs are current
	@$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(PY) -m pytest tests/project

.PHONY: test
test: $(READY) ## every test that needs no server
	@$(PY) -m pytest -m "not services"

.PHONY: test-services
test-services: $(READY) ## tests against real servers (see docs/development.md)
	@$(PY) -m pytest -m services

.PHONY: audit
audit: $(READY) ## known vulnerabilities of what an image carries (asks a vulnerability service)
	@$(BIN)/uv tool run pip-audit --requirement requirements/service.txt --require-hashes --disable-pip

.PHONY: docs
docs: $(READY) ## rewrite the generated parts of the documentation
	@$(PY) -m tests.project.generate

.PHONY: lock
lock: $(READY) ## resolve the lock files anew
	@$(BIN)/uv pip compile --quiet --no-emit-index-url --generate-hashes --universal --python-version 3.11 \
	  --custom-compile-command "make lock" --group dev pyproject.toml -o requirements/dev.txt
	$(BIN)/uv pip compile --quiet --no-emit-index-url --generate-hashes --universal --python-version 3.11 \
	  --custom-compile-command "make lock" --group service pyproject.toml -c requirements/dev.txt -o requirements/service.txt
	$(BIN)/uv pip compile --quiet --no-emit-index-url --generate-hashes --universal --python-version 3.11 \
	  --custom-compile-command "make lock" --group dvc pyproject.toml -o requirements/dvc.txt

.PHONY: clean
clean: ## remove what demo, training and builds made (not .venv)
	@rm -rf demo state models bentos
