#!/usr/bin/env bash
# A real SLURM of one node: sweep.py's folds as an array, one of them killed, one put back as at its time limit.
#   bash tests/slurm/run.sh [FOLDER]     as root, on a Debian or Ubuntu that may be changed: about 10 minutes on 2 cores
# PYTHON names the interpreter, one with requirements-sweep.txt. Installs slurm-wlm where it is missing; keys, sockets
# and logs lie in FOLDER (default: a new one below /tmp), and the daemons end with this script.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
work=$(realpath "${1:-$(mktemp -d /tmp/slurm.XXXXXX)}")
mkdir -p "$work" && chmod 755 "$work"
export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 SLURM_CONF=$work/slurm.conf
"$python" -c 'import submitit' || { echo "error: pip install -r requirements-sweep.txt" >&2; exit 2; }
if ! command -v slurmctld > /dev/null; then
  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge
fi
fail() { echo "FAILED: $1; see $work" >&2; exit 1; }
wait_for() { # seconds, what, command …
  local end=$((SECONDS + $1)) what=$2
  until "${@:3}" > /dev/null 2>&1; do [ $SECONDS -lt $end ] || fail "no $what within $1 s"; sleep 1; done
}

# ------------------------------------------------------------ one node: munge, slurmctld, slurmd
host=$(hostname -s)
cat > "$SLURM_CONF" << END
ClusterName=one
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$work/munge.socket,cred_expire=10
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd.pid
SlurmctldLogFile=$work/slurmctld.log
SlurmdLogFile=$work/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
MpiDefault=none
NodeName=$host NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=all Nodes=$host Default=YES MaxTime=60 State=UP
END
mkdir -p "$work"/{state,spool}
pids=()
end() { # jobs first: without slurmctld they would wait for it
  if [ ${#pids[@]} = 3 ]; then scancel --me; fi
  for _ in $(seq 30); do [ -n "$(squeue -h 2> /dev/null)" ] || break; sleep 1; done
  kill "${pids[@]}" 2> /dev/null || true
  wait
}
trap end EXIT
head -c 1024 /dev/urandom > "$work/munge.key" && chmod 400 "$work/munge.key"
munged --foreground --force --key-file "$work/munge.key" --socket "$work/munge.socket" --num-threads 2 \
  --pid-file "$work/munged.pid" --log-file "$work/munged.log" --seed-file "$work/munged.seed" \
  > "$work/munged.out" 2>&1 &
pids+=($!)
wait_for 20 "munge" munge -n -S "$work/munge.socket"
slurmctld -D > "$work/slurmctld.out" 2>&1 & pids+=($!)
slurmd -D > "$work/slurmd.out" 2>&1 & pids+=($!)
wait_for 60 "idle node" sh -c 'sinfo -h -o %T | grep -qx idle'
sinfo

# ------------------------------------------------------------ five folds: the first alone, then an array of four
store=$work/store/processed_lmdb runs=$work/runs
[ -e "$store" ] || "$python" - "$store" << 'END'
import sys
from pathlib import Path

from datasets.description import load_description
from tests.conftest import small_store

small_store(Path(sys.argv[1]), load_description("BCICIV2b"), ["P1", "P2", "P3", "P4", "P5"], trials=8)
END
sweep() {
  "$python" sweep.py --protocol loso:all --output_dir "$runs" --engine slurm --gpus_per_run 0 --time_limit 30 -- \
    python finetune_eeg_llm.py --datasets_dir "$store" --llm tiny --encoder eegnet --epochs 4 --warmup_epochs 0 \
    --batch_size 8 --gradient_accumulation_steps 1 --max_new_tokens 8 --cuda -1
}
task() { # place in the array → its job, as 7_2
  squeue -h -r -t R -o %i | grep "_$1\$"
}
sweep > "$work/first.out" 2>&1 & sweeping=$!
wait_for 400 "epoch of P3" grep "^epoch 1 " "$runs/P3.log" # P2, P3, … are 0, 1, … in the array
killed=$(task 1) && scancel "$killed" && echo "killed P3, job $killed"
wait_for 400 "epoch of P4" grep "^epoch 1 " "$runs/P4.log"
put_back=$(task 2) && scancel --signal=USR2 "$put_back" && echo "time limit of P4, job $put_back"
if wait $sweeping; then fail "a sweep with a killed run ends with 0"; fi
tail -5 "$work/first.out"
grep -q "^failed: $runs/P3: " "$work/first.out" || fail "P3 is not listed"
[ "$(grep -c '^failed: ' "$work/first.out")" = 1 ] || fail "others failed as well"
[ "$(grep -c '^\$ ' "$runs/P4.log")" = 2 ] || fail "P4 was not put back"
[ "$(wc -l < "$runs/P4/metrics.jsonl")" = 4 ] || fail "P4 has not its four epochs"
if awk '/^\$ / {n++} n == 2' "$runs/P4.log" | grep -q "starting anew"; then fail "P4 did not go on"; fi
grep -q "(4 folds)" "$runs/tables/results.md" || fail "no table of the four folds that are there"

# ------------------------------------------------------------ the same command does what is missing
sweep > "$work/second.out" 2>&1 || fail "the second sweep"
grep -q "finished: 4, to do: 1" "$work/second.out" || fail "the second sweep does more than P3"
grep -q "(5 folds)" "$runs/tables/results.md" || fail "no table of all folds"
grep "folds)" "$runs/tables/results.md" | head -3
echo "passed: five folds on SLURM, one killed and made again, one put back and gone on with, one table ($SECONDS s)"
