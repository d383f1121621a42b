#!/bin/sh
# check_lengths.sh - a source file is at most 800 lines.
set -eu
cd "$(dirname "$0")/.."

find lib fs tools tests \( -name '*.[ch]' -o -name '*.py' -o -name '*.sh' -o -name '*.sql' \) \
	-exec awk '
	FNR == 801 { print FILENAME ": more than 800 lines; it is two files"; bad = 1 }
	END { exit bad }' {} + && echo 'lengths: none over 800 lines'
