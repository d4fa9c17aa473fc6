# shellcheck shell=bash
# Sourced by the other scripts: takes their first argument --dry-run, and `run` runs a command, or
# only prints it.
dry_run=""
if [ "${1:-}" = "--dry-run" ]; then
  dry_run=1
  shift
fi

run() {
  if [ -n "$dry_run" ]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}
