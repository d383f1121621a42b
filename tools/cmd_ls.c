/*
 * cmd_ls.c - `weightfs ls`: what a directory of the store holds, or what a
 * file is made of. Reads the store, not the mount: it works without one, and
 * beside one.
 */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "lib/name.h"
#include "lib/store.h"
#include "tools/command.h"
#include "tools/ls_file.h"
#include "tools/target.h"
#include "tools/ui.h"

/* Entries that are asked for at a time. */
#define BATCH 1024

struct entry {
	char *name;
	struct wfs_attr attr;
};

struct listing {
	struct entry *list;
	size_t n, room;
	uint64_t last;   /* id to go on behind */
	size_t in_batch;
};

static const char *type_name(uint32_t mode)
{
	switch (mode & S_IFMT) {
	case S_IFREG:
		return "file";
	case S_IFDIR:
		return "directory";
	case S_IFLNK:
		return "symlink";
	case S_IFIFO:
		return "fifo";
	case S_IFSOCK:
		return "socket";
	case S_IFCHR:
		return "chardev";
	case S_IFBLK:
		return "blockdev";
	default:
		return "unknown";
	}
}

/* ---- directories ---- */

static int add_entry(void *ctx, const struct wfs_dirent *dirent)
{
	struct listing *l = ctx;

	UI_ARRAY_ROOM(l->list, l->n, l->room);
	l->list[l->n++] = (struct entry){ ui_format("%s", dirent->name), dirent->attr };
	l->last = dirent->id;
	l->in_batch++;
	return 0;
}

static int by_name(const void *a, const void *b)
{
	const struct entry *x = a, *y = b;

	return strcmp(x->name, y->name);
}

static int read_directory(struct wfs_store *store, uint64_t ino, struct listing *l)
{
	int ret;

	do {
		l->in_batch = 0;
		ret = wfs_name_readdir(store, ino, l->last, BATCH, true, add_entry, l);
	} while (ret == 0 && l->in_batch > 0);
	if (l->n > 0)
		qsort(l->list, l->n, sizeof(*l->list), by_name);
	return ret;
}

static void listing_release(struct listing *l)
{
	for (size_t i = 0; i < l->n; i++)
		free(l->list[i].name);
	free(l->list);
}

static void print_entries(const struct listing *l)
{
	static const char *const heads[] = { "TYPE", "MODE", "SIZE", "STATE", "VERDICT", "NAME" };
	struct ui_table *t = ui_table_new(WFS_ARRAY_SIZE(heads), heads, "llrlll");

	for (size_t i = 0; i < l->n; i++) {
		const struct wfs_attr *a = &l->list[i].attr;
		bool regular = S_ISREG(a->mode);

		ui_table_add(t, type_name(a->mode));
		ui_table_take(t, ui_format("%04" PRIo32, a->mode & 07777));
		ui_table_take(t, regular ? ui_size(a->size) : ui_format("-"));
		ui_table_add(t, regular ? ls_state(a) : "-");
		ui_table_add(t, regular ? wfs_verdict_name(a->verdict) : "-");
		ui_table_take(t, ui_escape(l->list[i].name, strlen(l->list[i].name)));
	}
	ui_table_print(t, "");
}

static json_t *entries_json(const struct listing *l)
{
	json_t *entries = json_array();

	for (size_t i = 0; i < l->n; i++) {
		const struct wfs_attr *a = &l->list[i].attr;
		json_t *o = json_object();

		ui_json_put(o, "name", ui_json_text(l->list[i].name));
		ui_json_put(o, "type", ui_json_text(type_name(a->mode)));
		ui_json_put(o, "mode", ui_json_number(a->mode & 07777));
		if (S_ISREG(a->mode)) {
			ui_json_put(o, "size", ui_json_number(a->size));
			ui_json_put(o, "state", ui_json_text(ls_state(a)));
			ui_json_put(o, "verdict", ui_json_text(wfs_verdict_name(a->verdict)));
		}
		ui_json_append(entries, o);
	}
	return entries;
}

static int list_directory(struct wfs_store *store, const struct target *target, uint64_t ino,
	bool json)
{
	struct listing l = { 0 };
	int ret = read_directory(store, ino, &l);
	json_t *root;

	if (ret < 0) {
		ret = ui_error(NULL, "%s: %s", target->path, strerror(-ret));
	} else if (json) {
		root = json_object();
		ui_json_put(root, "store", ui_json_text(target->store));
		ui_json_put(root, "path", ui_json_text(target->path));
		ui_json_put(root, "type", ui_json_text("directory"));
		ui_json_put(root, "entries", entries_json(&l));
		ret = ui_json_print(root);
	} else {
		print_entries(&l);
		ret = ui_finish();
	}
	listing_release(&l);
	return ret;
}

/* ---- all other types ---- */

static int list_other(const struct target *target, const struct wfs_attr *attr, bool json)
{
	WFS_AUTO_FREE char *path = NULL;
	json_t *root;

	if (json) {
		root = json_object();
		ui_json_put(root, "store", ui_json_text(target->store));
		ui_json_put(root, "path", ui_json_text(target->path));
		ui_json_put(root, "type", ui_json_text(type_name(attr->mode)));
		return ui_json_print(root);
	}
	path = ui_escape(target->path, strlen(target->path));
	printf("%s: %s\n", path, type_name(attr->mode));
	return ui_finish();
}

static int list_target(struct wfs_store *store, const struct target *target, bool json)
{
	struct wfs_attr attr;
	int ret = wfs_name_resolve(store, target->path, &attr);

	if (ret < 0)
		return ui_error(NULL, "%s in %s: %s", target->path, target->store, strerror(-ret));
	if (S_ISDIR(attr.mode))
		return list_directory(store, target, attr.ino, json);
	if (S_ISREG(attr.mode))
		return ls_file(store, target, &attr, json);
	return list_other(target, &attr, json);
}

static int list(const char *what, bool json)
{
	const struct wfs_store_options options = { .mode = WFS_STORE_READ };
	struct wfs_err err = WFS_ERR_INIT;
	struct wfs_store *store;
	struct target target;
	int ret;

	if (target_resolve(what, &target) != 0)
		return 1;
	ret = wfs_store_open(target.store, &options, &store, &err);
	if (ret < 0) {
		ret = ui_error_from(&err, ret, "ls");
	} else {
		ret = list_target(store, &target, json);
		wfs_store_close(store);
	}
	target_release(&target);
	return ret;
}

static int run(const struct command *self, int argc, char **argv)
{
	bool json;
	int status = command_json_option(self, argc, argv, &json);

	if (status >= 0)
		return status;
	if (argc - optind == 1)
		return list(argv[optind], json);
	ui_error(NULL, "ls: one store, directory or file is needed");
	return command_usage(self);
}

const struct command command_ls = {
	.name = "ls",
	.summary = "what a directory holds; the tensors of a shard with dtype, shape and digest",
	.run = run,
	.help = "usage: weightfs ls [--json] STORE[:PATH]|DIR[:PATH]|FILE\n"
		"\n"
		"Of a directory: type, mode, size, state and verdict of each entry.\n"
		"Of a safetensors file: each tensor in the order of the file, with dtype,\n"
		"shape, bytes, offset in the file, digest, and how often manifests name its\n"
		"object (SHARED).\n"
		"Of any other file: the objects that it is made of.\n"
		"While a file is dirty, it has no digests yet (\"-\").\n"
		"\n"
		"  --json  one JSON object; sizes and offsets in bytes\n"
		"\n"
		"examples:\n"
		"  weightfs ls ~/models/llama\n"
		"  weightfs ls ~/models/llama/model-00001-of-00003.safetensors\n"
		"  weightfs ls --json ~/store:/llama/config.json\n",
};
