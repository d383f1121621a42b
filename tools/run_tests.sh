#!/bin/sh
# run_tests.sh [--unit] PROGRAM… - the unit tests PROGRAM…, then pytest.
#
# Called by make: BUILD is where the binaries are, VENV the Python environment.
# Everything is run even if something before it failed; the exit status is
# that of the whole. A runner that ran nothing has failed. PYTEST_ARGS are
# handed to pytest.
set -u
cd "$(dirname "$0")/.."
BUILD=${BUILD:-build}
VENV=${VENV:-build/venv}

# A hang is a failure: seconds for one unit test program. (pytest has its own limits.)
UNIT_SECONDS=${UNIT_SECONDS:-300}

unit_only=no
if [ "${1-}" = --unit ]; then
	unit_only=yes
	shift
fi

failed=
ran=0

fail()
{
	printf '%s\n' "$1" >&2
	failed="$failed
  $1"
}

# cmocka's closing lines are shown; all of its output only where it failed.
run_unit()
{
	log=$BUILD/tests/$(basename "$1").log
	status=0
	timeout "$UNIT_SECONDS" "$1" >"$log" 2>&1 || status=$?
	if [ "$status" -ne 0 ]; then
		cat "$log"
		fail "$1: exit status $status"
	elif ! grep -q '^\[ *RUN *\]' "$log"; then
		cat "$log"
		fail "$1: ran no test"
	else
		printf '%s: %s\n' "$(basename "$1")" \
			"$(sed -n -e 's/^\[==========\] \([0-9].*\)/\1/p' -e 's/^\[  PASSED  \] \(.*\)/passed: \1/p' \
				"$log" | tr '\n' ' ')"
		grep -E '^\[  SKIPPED \]' "$log" || true
	fi
	ran=$((ran + 1))
}

run_pytest()
{
	status=0
	build=$(cd "$BUILD" && pwd)
	# shellcheck disable=SC2086
	WEIGHTFS=$build/weightfs WEIGHTFS_BUILD=$build WEIGHTFS_SAFETENSORS_DIR=$(pwd)/build \
		"$VENV/bin/python" -m pytest -q -ra tests ${PYTEST_ARGS-} || status=$?
	case $status in
	0) ;;
	5) fail 'pytest: ran no test' ;;
	*) fail "pytest: exit status $status" ;;
	esac
}

# What cannot be tested here, said where nobody overlooks it.
warn_without_fuse()
{
	if ! { : <>/dev/fuse; } 2>/dev/null; then
		printf '%s\n' \
			'*** /dev/fuse is missing or may not be opened: NOTHING THAT NEEDS A MOUNT IS TESTED ***'
	fi
}

mkdir -p "$BUILD/tests"
for program in "$@"; do
	run_unit "$program"
done
[ "$ran" -gt 0 ] || fail 'unit tests: there are none'

if [ "$unit_only" = no ]; then
	warn_without_fuse
	run_pytest
	warn_without_fuse
fi

if [ -n "$failed" ]; then
	printf 'FAILED:%s\n' "$failed" >&2
	exit 1
fi
printf 'passed: %d unit test programs%s\n' "$ran" "$([ "$unit_only" = yes ] || echo ' and pytest')"
