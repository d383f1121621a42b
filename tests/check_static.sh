#!/bin/sh
# check_static.sh - static analysis by cppcheck, where it is installed.
#
# Not asked for: uninitvar and uninitStructMember, which do not see that an
# output is written where 0 is returned (the compiler and the sanitizers do);
# varFuncNullUB, since NULL is a pointer in every C library that weightfs is for.
set -eu
cd "$(dirname "$0")/.."

if ! command -v cppcheck >/dev/null 2>&1; then
	echo 'static: SKIPPED, cppcheck is not installed'
	exit 0
fi
mkdir -p build/cppcheck
cppcheck --quiet --error-exitcode=1 --inline-suppr --std=c11 --language=c \
	--enable=warning,performance,portability --suppress=missingIncludeSystem \
	--suppress=normalCheckLevelMaxBranches --suppress=unmatchedSuppression \
	--suppress=uninitvar --suppress=uninitStructMember --suppress=varFuncNullUB \
	-D_GNU_SOURCE -D_FILE_OFFSET_BITS=64 '-DWFS_VERSION=""' -I. \
	--cppcheck-build-dir=build/cppcheck -j "$(nproc)" lib fs tools tests/bench
echo 'static: cppcheck found nothing'
