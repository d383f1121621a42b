#!/bin/sh
# coverage.sh BUILD - what of lib/ and fs/ the tests have run, by gcovr; BUILD was built with COVERAGE=1
# and its tests have been run. Drivers that were killed have left no counters.
set -eu
cd "$(dirname "$0")/.."

for part in lib fs tools; do
	printf '%s: ' "$part"
	gcovr --root . --object-directory "$1" --filter "$part/" --gcov-ignore-parse-errors \
		--exclude-throw-branches --print-summary --output "$1/coverage-$part.txt" "$1/obj/$part" |
		sed -n -e 's/^lines: *//p' -e 's/^branches: */branches /p' | tr '\n' ' '
	echo
done
gcovr --root . --object-directory "$1" --filter 'lib/' --filter 'fs/' --html-details "$1/coverage.html" \
	--gcov-ignore-parse-errors "$1/obj/lib" "$1/obj/fs" >/dev/null 2>&1 || :
echo "each file: $1/coverage-*.txt; each line: $1/coverage.html"
