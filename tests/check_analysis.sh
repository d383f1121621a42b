#!/bin/sh
# check_analysis.sh - slow static analysis of lib/, fs/ and tools/: clang-tidy by .clang-tidy, and gcc -fanalyzer.
#
# BUILD is where the made header is. What gcc's analyzer is not asked for:
#   malloc-leak, fd-leak, file-leak, possible-null-*: does not know that a cleanup attribute frees
#     what it is put on, nor that functions without `nonnull` are not handed NULL
#   use-after-free: takes a block that reallocarray could not grow for freed
#   use-of-uninitialized-value: as .clang-tidy says of core.uninitialized
set -u
cd "$(dirname "$0")/.."
build=${BUILD:-build}
failed=
flags="-std=gnu11 -DWFS_ANALYSIS -D_GNU_SOURCE -D_FILE_OFFSET_BITS=64 -DWFS_VERSION=\"check\" -I. -I$build/gen
	$(pkg-config --cflags fuse3 jansson libxxhash sqlite3)"
export flags
log=$(mktemp)
trap 'rm -f "$log"' EXIT

make --no-print-directory -s BUILD="$build" "$build/gen/schema_sql.h" || exit 1

# each COMMAND…: one call of it for each source file, as many at once as there are processors
each()
{
	find lib fs tools -name '*.c' | sort | xargs -P "$(nproc)" -n 1 sh -c "$1" _ >"$log" 2>&1
	status=$?
	grep -E '(warning|error):' "$log" | sort -u
	[ "$status" -eq 0 ] || failed="$failed $2"
	[ "$status" -ne 0 ] || echo "analysis: $2 found nothing"
}

if command -v clang-tidy >/dev/null 2>&1; then
	# shellcheck disable=SC2016
	each 'clang-tidy --quiet "$1" -- $flags' clang-tidy
else
	echo 'analysis: SKIPPED, clang-tidy is not installed'
fi
if gcc -fanalyzer -x c -c /dev/null -o /dev/null 2>/dev/null; then
	# shellcheck disable=SC2016
	each 'gcc $flags -O2 -Werror -fanalyzer -Wno-analyzer-malloc-leak -Wno-analyzer-file-leak \
		-Wno-analyzer-use-after-free -Wno-analyzer-possible-null-argument -Wno-analyzer-possible-null-dereference \
		-Wno-analyzer-use-of-uninitialized-value -c -o /dev/null "$1"' 'gcc -fanalyzer'
fi
[ -z "$failed" ] || { echo "analysis: FAILED:$failed" >&2; exit 1; }
