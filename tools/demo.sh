#!/bin/sh
# demo.sh start [MODEL] | stop - what `make run` shows, and its end.
#
# A store under build/demo/store is mounted at build/demo/mnt and stays
# mounted. A model (the sample, or a copy of the directory MODEL) is saved there
# twice; figures are disk blocks of the store (du), not counters. May be run
# again at any time: what is mounted or there already is used.
set -eu
cd "$(dirname "$0")/.."
BUILD=${BUILD:-build}

demo=$(pwd)/build/demo
store=$demo/store
mnt=$demo/mnt
weightfs=$BUILD/weightfs

fail()
{
	printf 'demo: %s\n' "$*" >&2
	exit 1
}

step()
{
	printf '\n--- %s\n' "$*"
}

is_mounted()
{
	awk -v dir="$(printf '%s' "$mnt" | sed 's/ /\\\\040/g')" \
		'$5 == dir { found = 1 } END { exit !found }' /proc/self/mountinfo
}

# What is in the way of a FUSE mount here, said before anything fails.
check_fuse()
{
	if [ ! -e /dev/fuse ]; then
		fail 'there is no /dev/fuse. Load the module (as root: modprobe fuse); in a container,
  start it with --device /dev/fuse --cap-add SYS_ADMIN'
	fi
	if ! { : <>/dev/fuse; } 2>/dev/null; then
		fail '/dev/fuse may not be opened by this user. As root: chmod 666 /dev/fuse
  (in a container, start it with --device /dev/fuse)'
	fi
}

mount_store()
{
	mkdir -p "$demo"
	if is_mounted; then
		if ls "$mnt" >/dev/null 2>&1; then
			printf 'the store is mounted already at %s\n' "$mnt"
			return 0
		fi
		printf 'the driver of an earlier run is gone; mounting anew\n'
		"$weightfs" umount "$mnt"
	fi
	check_fuse
	mkdir -p "$mnt"
	"$weightfs" mount "$store" "$mnt"
	printf 'mounted %s at %s\n' "$store" "$mnt"
}

# figure KEY: a number of `weightfs status --json`
figure()
{
	"$weightfs" status --json "$store" | sed -n "s/^  \"$1\": \\([0-9]*\\),*\$/\\1/p"
}

# Wait until nothing is left to seal or to give back, and the database has emptied its log.
settle()
{
	tries=0
	while [ "$(figure dirty)" != 0 ] || [ "$(figure pending_bytes)" != 0 ] ||
		[ -s "$store/weightfs.db-wal" ]; do
		tries=$((tries + 1))
		[ "$tries" -lt 3000 ] || fail "files are still dirty; see: $weightfs status -v $mnt"
		sleep 0.1
	done
}

store_kib()
{
	du -sk "$store" | cut -f1
}

# save DIR: the model into a directory of the mount; ends up new or as it was.
save()
{
	if [ -n "$model" ]; then
		rm -rf "${mnt:?}/$1"
		cp -rL "$model" "$mnt/$1" # -L: a hub cache is symbolic links
	else
		"$BUILD/sample-model" "$mnt/$1"
	fi
	settle
}

mib()
{
	awk -v kib="$1" 'BEGIN { printf "%.1f MiB", kib / 1024 }'
}

row()
{
	printf '  %-44s %12s %14s\n' "$@"
}

show_figures()
{
	printf '\n'
	row '' 'size' 'store on disk'
	row 'before' '-' "$(mib "$before")"
	row "$name saved" "$(mib "$size")" "$(mib "$first")"
	row "$name-again saved" "$(mib "$size")" "$(mib "$second")"
	row 'grown by the second save' '' "$((second - first)) KiB"
}

show_next()
{
	cat <<END

It stays mounted. To go on:

  $weightfs status $mnt
  $weightfs ls $mnt/$name/$(basename "$shard")
  cp -r $mnt/$name $mnt/copy        # takes no space
  $weightfs umount $mnt

In Python:

  from transformers import AutoModelForCausalLM
  model = AutoModelForCausalLM.from_pretrained("$mnt/$name")
  model.save_pretrained("$mnt/from-python", max_shard_size="20MB")
END
}

start()
{
	model=${1-}
	name=sample-model
	if [ -n "$model" ]; then
		[ -d "$model" ] || fail "$model: not a directory"
		model=$(cd "$model" && pwd)
		name=$(basename "$model")
	fi

	step 'mount a store'
	mount_store
	settle
	before=$(store_kib)

	step "save $name"
	save "$name"
	first=$(store_kib)
	size=$(du -sk --apparent-size "$mnt/$name" | cut -f1)
	ls -la "$mnt/$name"
	"$weightfs" ls "$mnt/$name"
	shard=$(find "$mnt/$name" -name '*.safetensors' | sort | head -n 1)
	if [ -n "$shard" ]; then
		step "what is in $(basename "$shard")"
		"$weightfs" ls "$shard"
	fi

	step "save it again, as $name-again"
	save "$name-again"
	second=$(store_kib)
	show_figures

	step 'the store'
	"$weightfs" status "$mnt"
	show_next
}

stop()
{
	if is_mounted; then
		if [ -x "$weightfs" ]; then
			"$weightfs" umount "$mnt"
		elif [ "$(id -u)" -eq 0 ]; then
			umount "$mnt"
		else
			fusermount3 -u "$mnt"
		fi
	fi
}

case ${1-} in
start) start "${2-}" ;;
stop) stop ;;
*)
	echo 'usage: demo.sh start [MODEL] | stop' >&2
	exit 2
	;;
esac
