#!/usr/bin/env bash
# Create the environment if it is missing, then run `python -m jobs <command>`.
# M2F_VENV is the environment's folder (default: .venv); M2F_PYTHON is the Python that creates it.
set -Eeuo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
venv=${M2F_VENV:-$root/.venv}
log=$venv/setup.log
needed_gib=6

fail() { printf 'launch.sh: %s\n' "$1" >&2; exit 2; }

find_python() {
  local candidate
  for candidate in ${M2F_PYTHON:-} python3.13 python3.12 python3.11 python3 python; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  fail 'no python >= 3.11 found; install one, or set M2F_PYTHON=/path/to/python'
}

# On a machine without a GPU, DeepSpeed compiles one small C++ helper.
check_machine() {
  local python=$1 free_gib
  "$python" -c 'import venv, ensurepip' 2>/dev/null \
    || fail "$python lacks the venv module; on Debian: apt install python3-venv"
  if ! command -v nvidia-smi >/dev/null; then
    command -v c++ >/dev/null || fail 'no C++ compiler (c++); on Debian: apt install g++'
    "$python" -c 'import os, sysconfig
raise SystemExit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' \
      || fail "Python.h of $python is missing; on Debian: apt install python3-dev"
  fi
  free_gib=$(( $(df -Pk "$(dirname "$venv")" | awk 'NR==2 {print $4}') / 1048576 ))
  (( free_gib >= needed_gib )) || [[ -d $venv ]] \
    || fail "$(dirname "$venv") has $free_gib GiB free, setup needs $needed_gib; free space or set M2F_VENV"
}

# The environment is complete if it holds this stamp. It is written last, so that an interrupted
# install is repeated. A second stamp says that the test tools are complete too.
stamp() { cat "$root/pyproject.toml" "$root/constraints.txt" | cksum | tr -d ' '; }
has_stamp() { [[ $(cat "$venv/$1" 2>/dev/null) == "$(stamp)" ]]; }
is_ready() {
  [[ -x $venv/bin/python ]] && has_stamp .complete && { [[ $1 == run ]] || has_stamp .complete-dev; }
}

# The progress is on stderr, because stdout belongs to the command that started the setup.
say() { printf 'setup: %d:%02d %s\n' $((SECONDS / 60)) $((SECONDS % 60)) "$1" >&2; }
count_packages() { compgen -G "$venv/lib/python*/site-packages/*.dist-info" | wc -l; }

# Print every few seconds what a step does, by its log. pip fetches one package after the other, then
# installs them all.
report_step() {
  local before line commas
  before=$(count_packages)
  while sleep 4 2>/dev/null && kill -0 $$ 2>/dev/null; do
    line=$(grep '^Installing collected packages' "$log" | tail -n 1) || true
    if [[ $line ]]; then
      commas=${line//[^,]/}
      line="installing: $(($(count_packages) - before)) of $((${#commas} + 1)) packages"
    else
      line=$(grep -E '^ *(Collecting|Downloading|Using|Processing|Building)' "$log" | tail -n 1) || true
    fi
    line=${line:-still working}
    say "${line:0:100}"
  done
}

# Run a command whose output goes to the log, and print the end of the log if the command fails.
run_step() {
  local reporter status=0
  : >"$log"
  report_step 9>&- &
  reporter=$!
  trap 'kill "$reporter" 2>/dev/null || true' EXIT
  trap 'say "interrupted; run ./launch.sh setup again to resume"; exit 130' INT
  "$@" >"$log" 2>&1 || status=$?
  kill "$reporter" 2>/dev/null || true
  trap - EXIT INT
  (( status == 0 )) || tail -n 15 "$log" | cut -c 1-300 >&2
  return "$status"
}

write_requirements() {
  "$venv/bin/python" - "$root/pyproject.toml" "$1" >"$venv/requirements.txt" <<'PY'
import sys, tomllib
project = tomllib.load(open(sys.argv[1], "rb"))["project"]
tools = project["optional-dependencies"]["dev"] if sys.argv[2] == "dev" else []
print(*project["dependencies"], *tools, sep="\n")
PY
}

# setup run: install what the commands need. setup dev: install the test tools too.
setup() {
  local python
  is_ready "$1" && return
  python=$(find_python)
  check_machine "$python"
  mkdir -p "$(dirname "$venv")"
  exec 9>"$venv.lock"
  flock -n 9 || { say "waiting for another setup of $venv"; flock 9; }
  if ! is_ready "$1"; then
    say "step 1 of 3: create $venv with $python"
    rm -f "$venv/.complete" "$venv/.complete-dev"
    [[ -x $venv/bin/python ]] || "$python" -m venv "$venv"
    say "step 2 of 3: download and install the packages (a few minutes, the first time)"
    write_requirements "$1"
    run_step "$venv/bin/python" -m pip install --disable-pip-version-check --progress-bar off \
      -c "$root/constraints.txt" -r "$venv/requirements.txt" setuptools wheel \
      || fail "pip could not install the packages (see above, and $log); run ./launch.sh setup again"
    say 'step 3 of 3: compile the CPU helper of DeepSpeed, for machines without a GPU (a minute)'
    run_step "$venv/bin/python" -P -c 'import torch
if not torch.cuda.is_available():
    from pipeline.step.cpu_helper import load_cpu_helper
    load_cpu_helper()' \
      || fail "DeepSpeed's CPU helper did not compile (see above, and $log)"
    [[ $1 == run ]] || stamp >"$venv/.complete-dev"
    stamp >"$venv/.complete"
    say "the environment takes $(du -sh "$venv" | cut -f 1)"
  fi
  exec 9>&-
}

export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
case ${1:-} in
  setup)
    case ${2:-} in
      '') setup run ;;
      --dev) setup dev ;;
      *)
        usage='./launch.sh setup [--dev]: create or complete the environment; --dev adds the test tools'
        [[ $2 == -h || $2 == --help ]] || fail "unknown option $2; usage: $usage"
        echo "Usage: $usage"
        exit 0
        ;;
    esac
    echo "setup: ready ($venv)"
    exit 0
    ;;
  test)
    setup dev
    cd "$root"
    # One process per core: half of the time is spent waiting. The tests of a file share fixtures.
    exec "$venv/bin/python" -m pytest -n auto --maxprocesses 4 --dist loadfile "${@:2}"
    ;;
esac
setup run
exec "$venv/bin/python" -P -m jobs "$@" # -P: do not import from the current folder
