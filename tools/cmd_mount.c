/* cmd_mount.c - `weightfs mount STORE DIR`: arguments and -o options. */
#include <dirent.h>
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "fs/session.h"
#include "lib/size_text.h"
#include "lib/store.h"
#include "tools/command.h"
#include "tools/target.h"
#include "tools/ui.h"

/* What -o may name that the kernel or fusermount3 understands: handed on. */
static const char *const passed[] = {
	"suid", "nosuid", "dev", "nodev", "exec", "noexec", "sync", "async", "dirsync",
	"noatime",
};
static const char *const passed_prefixes[] = { "context=", "fscontext=", "defcontext=",
	"rootcontext=" };

/* What mount(8) and systemd write into fstab for themselves, and what is so anyway: no reading moves atime. */
static const char *const ignored[] = {
	"defaults", "auto", "noauto", "user", "nouser", "users", "owner", "group", "_netdev",
	"nofail", "atime", "diratime", "nodiratime", "relatime", "norelatime", "nostrictatime",
	"default_permissions",
};
static const char *const ignored_prefixes[] = { "x-", "X-", "comment=", "user=" };

static bool is_one_of(const char *s, const char *const *list, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (!strcmp(s, list[i]))
			return true;
	return false;
}

static bool begins_with_one_of(const char *s, const char *const *list, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (!strncmp(s, list[i], strlen(list[i])))
			return true;
	return false;
}

#define IS_ONE_OF(s, list) is_one_of(s, list, WFS_ARRAY_SIZE(list))
#define BEGINS_WITH_ONE_OF(s, list) begins_with_one_of(s, list, WFS_ARRAY_SIZE(list))

static bool parse_validate(const char *value, enum wfs_validate *ret)
{
	if (!strcmp(value, "on"))
		*ret = WFS_VALIDATE_ON;
	else if (!strcmp(value, "strict"))
		*ret = WFS_VALIDATE_STRICT;
	else if (!strcmp(value, "off"))
		*ret = WFS_VALIDATE_OFF;
	else
		return false;
	return true;
}

static bool parse_passthrough(const char *value, enum wfs_passthrough_option *ret)
{
	if (!strcmp(value, "auto"))
		*ret = WFS_PASSTHROUGH_AUTO;
	else if (!strcmp(value, "on"))
		*ret = WFS_PASSTHROUGH_ON;
	else if (!strcmp(value, "off"))
		*ret = WFS_PASSTHROUGH_OFF;
	else
		return false;
	return true;
}

static bool parse_views(const char *value, enum wfs_views_option *ret)
{
	if (!strcmp(value, "hidden"))
		*ret = WFS_VIEWS_HIDDEN;
	else if (!strcmp(value, "listed"))
		*ret = WFS_VIEWS_LISTED;
	else if (!strcmp(value, "off"))
		*ret = WFS_VIEWS_OFF;
	else
		return false;
	return true;
}

/* Add one option to those that are handed on. */
static void pass_on(char **rest, const char *option)
{
	char *all = ui_format("%s%s%s", *rest ? *rest : "", *rest ? "," : "", option);

	free(*rest);
	*rest = all;
}

/* One word of -o. 0 or 2 with the error printed. */
static int parse_mount_option(const char *word, struct wfs_mount_options *m, char **rest)
{
	if (!*word || IS_ONE_OF(word, ignored) || BEGINS_WITH_ONE_OF(word, ignored_prefixes))
		return 0;
	if (!strcmp(word, "allow_other")) {
		m->allow_other = true;
	} else if (!strcmp(word, "ro")) {
		m->read_only = true;
	} else if (!strcmp(word, "rw")) {
		m->read_only = false;
	} else if (!strncmp(word, "validate=", 9)) {
		if (!parse_validate(word + 9, &m->validate)) {
			ui_error("it is on, strict or off", "-o %s: no such value", word);
			return 2;
		}
	} else if (!strncmp(word, "passthrough=", 12)) {
		if (!parse_passthrough(word + 12, &m->passthrough)) {
			ui_error("it is auto, on or off", "-o %s: no such value", word);
			return 2;
		}
	} else if (!strncmp(word, "views=", 6)) {
		if (!parse_views(word + 6, &m->views)) {
			ui_error("it is hidden, listed or off", "-o %s: no such value", word);
			return 2;
		}
	} else if (!strncmp(word, "sandbox=", 8)) {
		if (strcmp(word + 8, "auto") && strcmp(word + 8, "off")) {
			ui_error("it is auto or off", "-o %s: no such value", word);
			return 2;
		}
		m->no_sandbox = !strcmp(word + 8, "off");
	} else if (!strncmp(word, "max_shard_size=", 15)) {
		if (!wfs_size_parse(word + 15, &m->max_shard_size) || m->max_shard_size == 0) {
			ui_error("write it as 5GB, 500MB or 200MiB", "-o %s: no such size", word);
			return 2;
		}
	} else if (!strncmp(word, "max_size=", 9)) {
		if (!wfs_size_parse(word + 9, &m->max_size) || m->max_size == 0) {
			ui_error("write it as 500GB, 1.5TB or 200GiB", "-o %s: no such size", word);
			return 2;
		}
	} else if (IS_ONE_OF(word, passed) || BEGINS_WITH_ONE_OF(word, passed_prefixes)) {
		pass_on(rest, word);
	} else {
		ui_error("`weightfs help mount` lists the options", "-o %s: no such mount option",
			word);
		return 2;
	}
	return 0;
}

/* All words of one -o, cut in place. */
static int parse_mount_options(char *words, struct wfs_mount_options *m, char **rest)
{
	char *word;
	int ret;

	while ((word = strsep(&words, ","))) {
		ret = parse_mount_option(word, m, rest);
		if (ret != 0)
			return ret;
	}
	return 0;
}

/* The arguments of the command. 0: go on; else *ret_status is the exit status. */
static int parse_arguments(const struct command *self, int argc, char **argv,
	struct wfs_mount_options *m, char **rest, int *ret_status)
{
	static const struct option options[] = {
		{ "foreground", no_argument, NULL, 'f' },
		{ "debug", no_argument, NULL, 'd' },
		{ "verbose", no_argument, NULL, 'v' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	int opt;

	while ((opt = getopt_long(argc, argv, "fdvo:rwh", options, NULL)) != -1) {
		if (opt == 'f') {
			m->foreground = true;
		} else if (opt == 'd') {
			m->debug = m->foreground = true;
		} else if (opt == 'v') {
			m->verbose = true;
		} else if (opt == 'r' || opt == 'w') {
			m->read_only = opt == 'r';
		} else if (opt == 'o') {
			*ret_status = parse_mount_options(optarg, m, rest);
			if (*ret_status != 0)
				return 1;
		} else {
			*ret_status = command_other_option(self, opt);
			return 1;
		}
	}
	if (argc - optind == 2) {
		m->store = argv[optind];
		m->mountpoint = argv[optind + 1];
		return 0;
	}
	ui_error(NULL, "mount: a store and a directory are needed");
	*ret_status = command_usage(self);
	return 1;
}

/* A mount whose driver was killed; the new driver detaches it. Of one that lives, stopped perhaps, nothing is asked. */
static bool is_dead(const struct target_mount *mount)
{
	return wfs_store_is_left(mount->source) && wfs_is_dead_mount(mount->mountpoint);
}

/*
 * A second mount over the first would succeed or fail in confusing ways; all
 * else that can be wrong with DIR the driver says itself. 0 or 1, printed.
 */
static int check_not_mounted(const char *dir)
{
	WFS_AUTO_FREE char *path = target_absolute(dir);
	const struct target_mount *mount;
	struct target_mounts mounts;
	int ret = 0;

	if (target_mounts_read(&mounts) != 0)
		return 1;
	mount = target_mounts_of_path(&mounts, path);
	if (mount && !strcmp(mount->fstype, TARGET_FSTYPE) && !strcmp(mount->mountpoint, path) &&
		!is_dead(mount))
		ret = ui_error("unmount it first: weightfs umount DIR",
			"%s: store %s is mounted here already", dir, mount->source);
	target_mounts_release(&mounts);
	return ret;
}

/* No error: it is so with every mount. But whoever did not mean it misses files. */
static void warn_if_not_empty(const char *dir)
{
	DIR *d = opendir(dir);
	struct dirent *e;
	bool is_empty = true;

	while (d && is_empty && (e = readdir(d)))
		is_empty = !strcmp(e->d_name, ".") || !strcmp(e->d_name, "..");
	if (d)
		closedir(d);
	if (!is_empty)
		fprintf(stderr, "weightfs: note: %s is not empty; what is in it is hidden until the "
			"unmount\n", dir);
}

static void report(const struct wfs_err *err)
{
	ui_error_from(err, -EIO, "mount");
}

static int run(const struct command *self, int argc, char **argv)
{
	struct wfs_mount_options m = { .validate = WFS_VALIDATE_ON };
	WFS_AUTO_FREE char *rest = NULL;
	int status;

	if (parse_arguments(self, argc, argv, &m, &rest, &status) != 0)
		return status;
	if (check_not_mounted(m.mountpoint) != 0)
		return 1;
	warn_if_not_empty(m.mountpoint);
	m.fuse_options = rest;
	return wfs_session_run(&m, report);
}

const struct command command_mount = {
	.name = "mount",
	.summary = "mount a store at a directory (and make the store, if it is missing)",
	.run = run,
	.help = "usage: weightfs mount STORE DIR [-f] [-v] [-d] [-o OPTION[,OPTION...]]\n"
		"\n"
		"Mounts the store STORE at the directory DIR and goes to the background. If\n"
		"STORE is missing or an empty directory, a store is made there. One mount at\n"
		"a time may have a store.\n"
		"\n"
		"  -f, --foreground  stay in the foreground, log to stderr\n"
		"  -v, --verbose     log what is sealed, shared and given back\n"
		"  -d, --debug       log every request of the kernel; implies -f\n"
		"  -o OPTION         as below; several are separated by commas\n"
		"\n"
		"  allow_other       other users may use the mount, as permissions allow (an\n"
		"                    ordinary user needs user_allow_other in /etc/fuse.conf)\n"
		"  ro, rw            read only, or not (rw)\n"
		"  passthrough=auto  programs read, write and map data files themselves, at the speed\n"
		"                    of the disk, where the kernel lets the driver arrange it (root,\n"
		"                    Linux 6.9); on: or the mount fails; off: never\n"
		"  views=hidden      DIR/.tensors and DIR/.shards are found by name, and in no\n"
		"                    listing; listed: in those of models; off: not at all\n"
		"  max_shard_size=SIZE  of shards that are made from tensors (50GB)\n"
		"  max_size=SIZE     writers get ENOSPC when the store takes SIZE of disk blocks\n"
		"                    (500GB, 1.5TB; also KiB, MiB, GiB, TiB)\n"
		"  sandbox=auto      mounted by root, the driver gives up capabilities and system\n"
		"                    calls that it never needs; off: it keeps them\n"
		"  validate=on       refuse files that are not valid safetensors: wrong ones at\n"
		"                    close, wrong and incomplete ones at rename (the default)\n"
		"  validate=strict   refuse incomplete files at close, too\n"
		"  validate=off      refuse nothing, only report\n"
		"  nosuid, nodev, noexec, noatime, sync, ... as mount(8) knows them\n"
		"\n"
		"In fstab:  /srv/store  /models  fuse.weightfs  allow_other,nofail  0 0\n"
		"\n"
		"examples:\n"
		"  weightfs mount ~/store ~/models\n"
		"  weightfs mount /srv/store /models -o allow_other,validate=strict\n",
};
