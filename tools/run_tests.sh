#!/bin/sh
# run_tests.sh [--unit] PROGRAM… - the unit tests PROGRAM…, then pytest.
#
# Called by make: BUILD is where the binaries are, VENV the Python environment.
# Everything is run even if something before it failed; the exit status is
# that of the whole. A runner that ran nothing has failed. PYTEST_ARGS are
# handed to pytest. SANITIZE, if set, says what the binaries were built with:
# what its runtime reports, of a driver in the background too, is a failure.
#
# pytest runs PYTEST_PROCESSES processes: most tests wait for a driver, not for
# a processor. Called by root, it runs twice at once: as root, and USER_TESTS as the
# ordinary user weightfs-test, who has no privilege and mounts by fusermount3.
# His directory is a new one under TMPDIR; he and it are removed afterwards if
# they were not there before.
set -u
cd "$(dirname "$0")/.."
BUILD=${BUILD:-build}
VENV=${VENV:-build/venv}
export BUILD VENV

PYTEST_PROCESSES=${PYTEST_PROCESSES:-2}

# A hang is a failure: seconds for one unit test program. (pytest has its own limits.)
UNIT_SECONDS=${UNIT_SECONDS:-300}

# UNIT_UNDER: what each of them is run under, such as valgrind.

# The thread sanitizer of gcc 13 and older has no room for addresses with more random bits than 28.

tame_addresses()
{
	case ${SANITIZE-} in
	*thread*) ;;
	*) return 0 ;;
	esac
	[ "$(cat /proc/sys/vm/mmap_rnd_bits 2>/dev/null || echo 0)" -gt 28 ] || return 0
	[ -z "${ADDRESSES_TAMED-}" ] || return 0
	ADDRESSES_TAMED=yes exec setarch -R sh tools/run_tests.sh "$@"
}

tame_addresses "$@"

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
	# shellcheck disable=SC2086
	timeout "$UNIT_SECONDS" ${UNIT_UNDER-} "$1" >"$log" 2>&1 || status=$?
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

# judge WHO STATUS: what pytest's exit status says
judge()
{
	case $2 in
	0) ;;
	5) fail "pytest$1: ran no test" ;;
	*) fail "pytest$1: exit status $2" ;;
	esac
}

# What both runs of pytest find in their environment; the tree is seen at $1.
environment_at()
{
	case $BUILD in
	/*) build=$BUILD ;;
	*) build=$1/$BUILD ;;
	esac
	printf '%s\n' "WEIGHTFS=$build/weightfs" "WEIGHTFS_BUILD=$build" "WEIGHTFS_SAFETENSORS_DIR=$1/build" \
		"WEIGHTFS_NODE_DIR=$1/build/node"
}

run_pytest()
{
	status=0
	# shellcheck disable=SC2046,SC2086
	env $(environment_at "$(pwd)") "$VENV/bin/python" -m pytest -q -ra \
		-n "$PYTEST_PROCESSES" --dist loadfile tests ${PYTEST_ARGS-} || status=$?
	judge '' $status
}

# ---- the ordinary user ----

USER_NAME=weightfs-test
USER_TESTS='tests/posix tests/programs tests/mount/test_gate.py
	tests/mount/test_bytes.py tests/mount/test_random.py tests/mount/test_model_based.py tests/mount/test_bad_cases.py
	tests/mount/test_passthrough.py tests/mount/test_backup.py tests/mount/test_hostile_user.py tests/mount/test_repack.py
	tests/mount/test_view_commands.py
	tests/loaders/test_save_load.py tests/loaders/test_trainer.py'
# What is the same for every user is left to the long run.
USER_TESTS_LONG='tests/loaders tests/programs tests/crash tests/mount/test_tensor_writes.py
	tests/mount/test_tensor_input.py tests/mount/test_tensor_races.py tests/mount/test_model_based.py
	tests/mount/test_model_tensors.py tests/mount/test_load.py'

as_user()
{
	setpriv --reuid="$USER_NAME" --regid="$USER_NAME" --clear-groups --inh-caps=-all "$@"
}

# The tree as he may see it: where it is, or below his directory if a directory
# above it is closed to him. Runs in a mount namespace of its own, in which a
# mount that is here by chance, of other tests, must not live on.
tree_for_user()
{
	findmnt -rn -t fuse.weightfs -o TARGET | while read -r mountpoint; do
		umount -l "$mountpoint" || true
	done
	tree=$(pwd)
	if ! as_user test -r "$tree/pytest.ini" || ! as_user test -x "$tree/$VENV/bin/python"; then
		mkdir "$1/tree"
		mount --bind "$tree" "$1/tree"
		tree=$1/tree
	fi
	cd "$tree"
}

# as_ordinary_user DIR: pytest; the output is in DIR/log, the status in DIR/status
as_ordinary_user()
{
	status=0
	case " ${PYTEST_ARGS-} " in
	*' --long '*) tests="--long $USER_TESTS_LONG" ;;
	*) tests="$USER_TESTS ${PYTEST_ARGS-}" ;;
	esac
	# GCOV_PREFIX: counters of a build for coverage, which is root's to write, stay below his home.
	(
		tree_for_user "$1"
		# shellcheck disable=SC2046,SC2086
		as_user env $(environment_at "$tree") HOME="$1/home" TMPDIR="$1/home" PYTHONDONTWRITEBYTECODE=1 \
			GCOV_PREFIX="$1/home/gcov" \
			"$VENV/bin/python" -m pytest -q -ra -p no:cacheprovider --basetemp="$1/home/pytest" \
			-n "$PYTEST_PROCESSES" --dist loadfile $tests
	) >"$1/log" 2>&1 </dev/null || status=$?
	echo $status >"$1/status"
}

# In the background, while root's runs.
start_as_ordinary_user()
{
	user_dir=
	[ "$(id -u)" -eq 0 ] || return 0
	made_user=
	if ! id "$USER_NAME" >/dev/null 2>&1; then
		useradd --system --user-group --no-create-home --shell /bin/sh "$USER_NAME" || {
			fail "the user $USER_NAME cannot be made: nothing is tested as an ordinary user"
			return 0
		}
		made_user=yes
	fi
	user_dir=$(mktemp -d "${TMPDIR:-/tmp}/weightfs-user.XXXXXX")
	chmod 755 "$user_dir"
	mkdir -m 700 "$user_dir/home"
	chown "$USER_NAME:" "$user_dir/home"
	unshare --mount --propagation slave sh tools/run_tests.sh --as-ordinary-user "$user_dir" &
	user_pid=$!
}

end_as_ordinary_user()
{
	[ -n "$user_dir" ] || return 0
	wait "$user_pid"
	printf '\n---- as the ordinary user %s ----\n' "$USER_NAME"
	cat "$user_dir/log"
	judge " as $USER_NAME" "$(cat "$user_dir/status" 2>/dev/null || echo '(it did not run)')"
	rm -rf --one-file-system "$user_dir"
	[ -z "$made_user" ] || userdel "$USER_NAME"
}

if [ "${1-}" = --as-ordinary-user ]; then
	as_ordinary_user "$2"
	exit 0
fi

# ---- sanitizers ----

# A driver has no terminal: its reports go to files.
keep_reports()
{
	[ -n "${SANITIZE-}" ] || return 0
	reports=$(mktemp -d "${TMPDIR:-/tmp}/weightfs-reports.XXXXXX")
	chmod 1777 "$reports"
	# A size that overflows is NULL and ENOMEM, as the C library says it.
	# What is kept of freed memory, to be seen when it is used, would be taken for growth.
	export ASAN_OPTIONS="log_path=$reports/address:allocator_may_return_null=1:quarantine_size_mb=8"
	export UBSAN_OPTIONS="log_path=$reports/undefined:print_stacktrace=1"
	# io_sync: see fs/order.h. Nothing is gained by a second of sleep at the end of each command.
	TSAN_OPTIONS="log_path=$reports/thread:second_deadlock_stack=1:allocator_may_return_null=1"
	export TSAN_OPTIONS="$TSAN_OPTIONS:io_sync=0:atexit_sleep_ms=0"
}

show_reports()
{
	[ -n "${SANITIZE-}" ] || return 0
	for report in "$reports"/*; do
		[ -s "$report" ] || continue
		cat "$report"
		fail "the sanitizer's report above ($(basename "$report"))"
	done
	rm -rf "$reports"
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
keep_reports
for program in "$@"; do
	run_unit "$program"
done
[ "$ran" -gt 0 ] || fail 'unit tests: there are none'

if [ "$unit_only" = no ]; then
	warn_without_fuse
	start_as_ordinary_user
	run_pytest
	end_as_ordinary_user
	warn_without_fuse
fi
show_reports

if [ -n "$failed" ]; then
	printf 'FAILED:%s\n' "$failed" >&2
	exit 1
fi
printf 'passed: %d unit test programs%s\n' "$ran" "$([ "$unit_only" = yes ] || echo ' and pytest')"
