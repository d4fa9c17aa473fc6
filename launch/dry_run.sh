# shellcheck shell=bash
# Sourced by the other scripts: takes their first argument --dry-run, `run` runs a command, or only
# prints it, `check_numbers` refuses variables that are no numbers, and `check_names` those that are
# no names of Google Cloud's resources.
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

# A value that begins with a dash would be an option of the command that gets it.
check_names() {
  local name
  for name in "$@"; do
    if ! [[ ${!name} =~ ^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$ ]]; then
      printf '%s is %q, expected a name: small letters, digits and dashes, a letter first\n' \
        "$name" "${!name}" >&2
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
