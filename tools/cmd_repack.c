/*
 * cmd_repack.c - `weightfs repack`: composed files made whole, by the driver of the
 * mount that they are in (fs/ioctl.h).
 */
#include <errno.h>
#include <fcntl.h>
#include <fts.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "fs/ioctl.h"
#include "tools/command.h"
#include "tools/target.h"
#include "tools/ui.h"

#define SEAL_POLL_NS (50 * 1000 * 1000)
#define SEAL_POLLS 1200 /* a minute: for a file that was written just now */

struct repack {
	uint64_t files, repacked, unchanged, failed;
	uint64_t bytes, copied; /* of the files that were repacked */
	json_t *list, *errors;  /* for --json, else NULL */
};

/* ---- one file ---- */

/* What to do about an error of the driver; NULL: nothing that is known here. */
static const char *hint_for(int err)
{
	switch (err) {
	case ENOTTY:
		return "the driver of this mount does not know `repack`: unmount, and mount again with "
		       "this version";
	case EPERM:
		return "root, the user who mounted and the owner of the file may";
	case EROFS:
		return "mount the store without -o ro";
	case EAGAIN:
		return "it is not sealed yet; `weightfs status -v` lists what is not, and why";
	case ETXTBSY:
		return "a program writes it or has it open for writing; try again when it is closed";
	case ENOSPC:
	case EDQUOT:
		return "a whole copy takes the space of what the file shares; remove something first";
	case EIO:
		return "run weightfs fsck --bytes on the store";
	default:
		return NULL;
	}
}

static void failed(struct repack *r, const char *path, int err)
{
	json_t *o;

	r->failed++;
	ui_progress_end();
	if (!r->errors) {
		ui_error(hint_for(err), "%s could not be repacked, and is as it was: %s", path,
			strerror(err));
		return;
	}
	o = json_object();
	ui_json_put(o, "path", ui_json_text(path));
	ui_json_put(o, "error", ui_json_text(strerror(err)));
	ui_json_put(o, "hint", ui_json_text(hint_for(err)));
	ui_json_append(r->errors, o);
}

static void repacked(struct repack *r, const char *path, const struct wfs_ioc_repack *step)
{
	WFS_AUTO_FREE char *shown = ui_escape(path, strlen(path));
	WFS_AUTO_FREE char *size = ui_size(step->total);
	WFS_AUTO_FREE char *copied = ui_size(step->copied);
	json_t *o;

	r->repacked++;
	r->bytes += step->total;
	r->copied += step->copied;
	if (!r->list) {
		ui_progress_end();
		printf("%s: whole, %s, of which %s copied\n", shown, size, copied);
		return;
	}
	o = json_object();
	ui_json_put(o, "path", ui_json_text(path));
	ui_json_put(o, "bytes", ui_json_number(step->total));
	ui_json_put(o, "copied", ui_json_number(step->copied));
	ui_json_append(r->list, o);
}

/* The driver's next answer; waits for the seal of a file that is closed but dirty. 0 or an errno. */
static int next_step(int fd, struct wfs_ioc_repack *ret)
{
	const struct timespec moment = { .tv_nsec = SEAL_POLL_NS };

	for (unsigned i = 0; ioctl(fd, WFS_IOC_REPACK, ret) != 0; i++) {
		if (errno != EAGAIN || i == SEAL_POLLS)
			return errno;
		nanosleep(&moment, NULL);
	}
	return 0;
}

static void repack_open(struct repack *r, const char *path, int fd)
{
	WFS_AUTO_FREE char *shown = ui_escape(path, strlen(path));
	struct wfs_ioc_repack step;
	int err;

	while ((err = next_step(fd, &step)) == 0 && step.state == WFS_IOC_REPACK_MORE)
		ui_progress(shown, step.done, step.total);
	if (err)
		failed(r, path, err);
	else if (step.state == WFS_IOC_REPACK_DONE)
		repacked(r, path, &step);
	else
		r->unchanged++;
}

static void repack_file(struct repack *r, const char *path)
{
	WFS_AUTO_CLOSE int fd = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	struct stat st;

	r->files++;
	if (fd < 0 || fstat(fd, &st) != 0)
		failed(r, path, errno);
	else if (S_ISREG(st.st_mode))
		repack_open(r, path, fd);
}

/* ---- all files below a path ---- */

static void repack_tree(struct repack *r, char *path)
{
	char *paths[] = { path, NULL };
	FTS *tree = fts_open(paths, FTS_PHYSICAL | FTS_NOCHDIR | FTS_XDEV, NULL);
	const FTSENT *e;

	if (!tree) {
		failed(r, path, errno);
		return;
	}
	while ((e = fts_read(tree))) {
		if (e->fts_info == FTS_F)
			repack_file(r, e->fts_path);
		else if (e->fts_info == FTS_DNR || e->fts_info == FTS_ERR || e->fts_info == FTS_NS)
			failed(r, e->fts_path, e->fts_errno);
	}
	fts_close(tree);
}

static char *path_in_mount(const char *text)
{
	char *path = target_absolute(text);
	struct target_mounts mounts;
	const struct target_mount *mount;
	bool is_there = false;

	if (target_mounts_read(&mounts) == 0) {
		mount = target_mounts_of_path(&mounts, path);
		is_there = mount && strcmp(mount->fstype, TARGET_FSTYPE) == 0;
		target_mounts_release(&mounts);
	}
	if (is_there)
		return path;
	free(path);
	return NULL;
}

/* Where `text` can be opened. 0, or 1 with the error printed. */
static int find_path(const char *text, char **ret)
{
	struct target target;

	*ret = path_in_mount(text);
	if (*ret)
		return 0;
	if (target_resolve(text, &target) != 0)
		return 1;
	if (target.mountpoint)
		*ret = ui_format("%s%s", target.mountpoint, target.path);
	else
		ui_error("mount it, and name the path there: weightfs mount STORE DIR && weightfs "
			 "repack DIR/PATH", "%s is not mounted", target.store);
	target_release(&target);
	return *ret ? 0 : 1;
}

/* ---- the command ---- */

static int print_json(struct repack *r)
{
	json_t *root = json_object();

	ui_json_put(root, "files", ui_json_number(r->files));
	ui_json_put(root, "unchanged", ui_json_number(r->unchanged));
	ui_json_put(root, "bytes", ui_json_number(r->bytes));
	ui_json_put(root, "copied", ui_json_number(r->copied));
	ui_json_put(root, "repacked", json_incref(r->list));
	ui_json_put(root, "errors", json_incref(r->errors));
	return ui_json_print(root);
}

static int print_text(const struct repack *r)
{
	WFS_AUTO_FREE char *copied = ui_size(r->copied);

	ui_progress_end();
	printf("%" PRIu64 " file%s repacked, %s copied; %" PRIu64 " had nothing to be made whole\n",
		r->repacked, r->repacked == 1 ? "" : "s", copied, r->unchanged);
	return ui_finish();
}

static int repack_all(int n, char **paths, bool json)
{
	struct repack r = { .list = json ? json_array() : NULL, .errors = json ? json_array() : NULL };
	int ret = 0;

	for (int i = 0; i < n && ret == 0; i++) {
		WFS_AUTO_FREE char *path = NULL;

		ret = find_path(paths[i], &path);
		if (ret == 0)
			repack_tree(&r, path);
	}
	if (ret == 0)
		ret = json ? print_json(&r) : print_text(&r);
	json_decref(r.list);
	json_decref(r.errors);
	return ret || r.failed ? 1 : 0;
}

static int run(const struct command *self, int argc, char **argv)
{
	bool json;
	int status = command_json_option(self, argc, argv, &json);

	if (status >= 0)
		return status;
	if (argc > optind)
		return repack_all(argc - optind, argv + optind, json);
	ui_error(NULL, "repack: a file or directory in a mount is needed");
	return command_usage(self);
}

const struct command command_repack = {
	.name = "repack",
	.summary = "make composed files whole: faster to read, at the cost of space",
	.run = run,
	.help = "usage: weightfs repack [--json] PATH...\n"
		"\n"
		"A file that shares tensors with others is composed: it is read from several\n"
		"places, through the driver. This copies its content to one data file, from\n"
		"which it is then read at the speed of the disk. PATH is a file in a mount, or\n"
		"a directory, for all files below it. What the file shares is then stored\n"
		"twice (`weightfs status` says how much), unless the disk can share blocks\n"
		"(XFS, btrfs) at these places; what no other file has moves, and is stored once.\n"
		"\n"
		"Files that are open for reading go on with what they have, and are read directly\n"
		"when they are opened next. A file that is written is refused. Stopped at any\n"
		"moment, a file is as it was. Exit status 1: not all could be repacked.\n"
		"\n"
		"  --json  what was done as one JSON object; sizes in bytes\n"
		"\n"
		"examples:\n"
		"  weightfs repack ~/models/llama-tuned\n"
		"  weightfs ls ~/models/llama-tuned/model.safetensors   # \"whole\" or \"composed\"\n",
};
