# shellcheck shell=bash
# Sourced by the other scripts: takes their first argument --dry-run, `run` runs a command, or only
# prints it, and `check_numbers` refuses variables that are no numbers.
dry_run=""
if [ "${1:-}" = "--dry-run" ]; then
  dry_run=1
  shift
fi

# Bash runs commands in the index of what it computes with, and a test of no number is false.
check_numbers() {
  local name
  for name in "$@"; do
    if ! [[ ${!name} =~ ^[0-9]{1,6}$ ]]; then
      printf '%s is %q, expected a number\n' "$name" "${!name}" >&2
      exit 2
    fi
  done
}

run() {
  if [ -n "$dry_run" ]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}
