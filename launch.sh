#!/usr/bin/env bash
# Create the environment if it is missing, then run `python -m jobs <command>`.
# M2F_VENV is the environment's folder (default: .venv); M2F_PYTHON is the Python that creates it.
set -Eeuo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
venv=${M2F_VENV:-$root/.venv}
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
# install is repeated.
stamp() { cat "$root/pyproject.toml" "$root/constraints.txt" | cksum | tr -d ' '; }
is_ready() { [[ -x $venv/bin/python && $(cat "$venv/.complete" 2>/dev/null) == "$(stamp)" ]]; }

setup() {
  local python
  python=$(find_python)
  check_machine "$python"
  mkdir -p "$(dirname "$venv")"
  exec 9>"$venv.lock"
  flock 9 # a concurrent setup waits here, and then finds the environment complete
  if ! is_ready; then
    echo "setup: installing into $venv (a few minutes)"
    rm -f "$venv/.complete"
    [[ -x $venv/bin/python ]] || "$python" -m venv "$venv"
    "$venv/bin/python" - "$root/pyproject.toml" >"$venv/requirements.txt" <<'PY'
import sys, tomllib
project = tomllib.load(open(sys.argv[1], "rb"))["project"]
print(*project["dependencies"], *project["optional-dependencies"]["dev"], sep="\n")
PY
    "$venv/bin/python" -m pip install --disable-pip-version-check --quiet --progress-bar off \
      -c "$root/constraints.txt" -r "$venv/requirements.txt" setuptools wheel \
      || fail 'pip could not install the packages (its message is above); run ./launch.sh setup again'
    "$venv/bin/python" -P -c 'import torch
if not torch.cuda.is_available():
    from pipeline.step.cpu_helper import load_cpu_helper
    load_cpu_helper()' \
      || fail "DeepSpeed's CPU helper did not compile (its message is above)"
    stamp >"$venv/.complete"
  fi
  exec 9>&-
}

export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
case ${1:-} in
  setup)
    [[ ${2:-} != -h && ${2:-} != --help ]] \
      || { echo 'Usage: ./launch.sh setup   create or complete the environment'; exit 0; }
    setup
    echo "setup: ready ($venv)"
    exit 0
    ;;
  test)
    is_ready || setup
    cd "$root"
    exec "$venv/bin/python" -m pytest "${@:2}"
    ;;
esac
is_ready || setup
exec "$venv/bin/python" -P -m jobs "$@" # -P: do not import from the current folder
