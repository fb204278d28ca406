# Sourced by reproduce_tables.sh and ablations.sh: steps that are told beforehand, done once, and gone on with after a
# kill.
#   steps() { step NAME MINUTES RESULT COMMAND…; … }
#   do_steps
# RESULT is a file that COMMAND writes last: a step whose file is there is done.
step() { # name, minutes, the file that says it is done, command …
  local name=$1 minutes=$2 result=$3
  shift 3
  if [ -e "$result" ]; then return; fi
  if [ "$mode" = plan ]; then
    echo "  $name (about $minutes min)"
    left=$((left + 1)) total=$((total + minutes))
    return
  fi
  echo "== $name (step $((done_now += 1)) of $left, $((SECONDS / 60)) min)"
  "$@"
  if [ ! -e "$result" ]; then echo "error: $name has not written $result" >&2; exit 1; fi
}
made_from_all() { # as step, for what is made from all before it: to be made where any of them is
  if [ "$mode" = plan ] && [ $left -gt 0 ]; then step "$1" "$2" "$3.not_yet" "${@:4}"; else step "$@"; fi
}
do_steps() {
  local mode=plan left=0 total=0 done_now=0
  echo "to do:"
  steps
  if [ $left = 0 ]; then echo "  nothing; all is there"; return; fi
  echo "steps: $left, about $total min in all; an interrupted step goes on, or begins anew, when this is said again"
  mode=run
  steps
}
