#!/bin/sh
# run.sh BUILD "NAMES" SECONDS - run fuzz targets one after the other, each for so many seconds.
#
# What was found stays: new inputs in BUILD/corpus-NAME, what fails in BUILD/crash-NAME-*. To keep one
# for good, copy it to tests/fuzz/regress/NAME/ under a name that says what it is.
set -u
cd "$(dirname "$0")/../.."
build=$1
seconds=${3:-10}
failed=

case $build in
/*) ;;
*) build=$(pwd)/$build ;;
esac
TMPDIR=$(mktemp -d /dev/shm/weightfs-fuzz.XXXXXX 2>/dev/null || mktemp -d)
ASAN_OPTIONS=${ASAN_OPTIONS:-quarantine_size_mb=16}
export TMPDIR ASAN_OPTIONS
trap 'rm -rf "$TMPDIR"' EXIT

# Longest input, megabytes, seconds for one input: nothing may take more for so little.
limits()
{
	case $1 in
	store) echo '-max_len=256 -rss_limit_mb=1024 -timeout=30' ;;
	names) echo '-max_len=512 -rss_limit_mb=512 -timeout=5 -only_ascii=0' ;;
	*) echo '-max_len=8192 -rss_limit_mb=1024 -timeout=5' ;;
	esac
}

seeds()
{
	case $1 in
	safetensors) echo tests/corpus/valid tests/corpus/invalid ;;
	json) echo tests/fuzz/seeds/index ;;
	names) ;;
	*) echo "tests/fuzz/seeds/$1" ;;
	esac
	[ ! -d "tests/fuzz/regress/$1" ] || echo "tests/fuzz/regress/$1"
}

for name in $2; do
	mkdir -p "$build/corpus-$name"
	dict=tests/fuzz/dict/$name.dict
	# shellcheck disable=SC2046
	if "$build/fuzz-$name" -max_total_time="$seconds" $(limits "$name") -print_final_stats=1 \
		$([ ! -f "$dict" ] || echo "-dict=$dict") -artifact_prefix="$build/crash-$name-" \
		"$build/corpus-$name" $(seeds "$name") >"$build/fuzz-$name.log" 2>&1; then
		printf 'fuzz %s: %s inputs in %s s, %s, nothing found\n' "$name" \
			"$(sed -n 's/^stat::number_of_executed_units: *//p' "$build/fuzz-$name.log")" "$seconds" \
			"$(grep -o 'cov: [0-9]* ft: [0-9]*' "$build/fuzz-$name.log" | tail -1)"
	else
		tail -n 40 "$build/fuzz-$name.log"
		failed="$failed $name"
	fi
done
[ -z "$failed" ] || { echo "fuzz: FAILED:$failed" >&2; exit 1; }
