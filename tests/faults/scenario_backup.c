/*
 * Backups: whatever fails, what is in the target is the backup that was there, whole, or the
 * new one, or says that it is none; and the store is as it was.
 */
#include "tests/faults/scenario.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "lib/backup.h"
#include "tests/faults/fault.h"
#include "tests/faults/world_priv.h"
#include "tests/unit/support.h"

#define TARGET "backup"
#define ARCHIVE "backup.tar"
#define RESTORED "restored"
#define WORK "work"

/* ---- making one ---- */

static const struct wfs_backup_options no_options;

/* This is what it has to have from here on. */
static void note_backup(struct world *w)
{
	w->m->backed_up = w->m->saved = true;
	*w->saved = *w->m;
}

static void back_up(struct world *w)
{
	struct wfs_backup_summary summary;
	struct wfs_err err = WFS_ERR_INIT;
	char dir[PATH_ROOM];

	world_side_path(w, TARGET, dir);
	if (world_did(w, wfs_backup_to_dir(w->path, dir, &no_options, &summary, &err), "backup", err.text))
		note_backup(w);
}

static void finish(struct world *w)
{
	struct wfs_err err = WFS_ERR_INIT;
	char dir[PATH_ROOM];
	int ret;

	world_side_path(w, TARGET, dir);
	ret = wfs_backup_finish(dir, &err);
	world_did(w, WFS_MIN(ret, 0), "finish", err.text);
}

static void finish_and_back_up(struct world *w)
{
	finish(w);
	back_up(w);
}

static void back_up_to_tar(struct world *w)
{
	struct wfs_backup_summary summary;
	struct wfs_err err = WFS_ERR_INIT;
	char file[PATH_ROOM], work[PATH_ROOM];
	int fd, ret;

	world_side_path(w, ARCHIVE, file);
	world_side_path(w, WORK, work);
	fault_pause();
	fd = open(file, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	fault_resume();
	ret = wfs_backup_to_tar(w->path, fd, work, &no_options, &summary, &err);
	close(fd);
	if (world_did(w, ret, "backup", err.text))
		note_backup(w);
}

/* ---- what it holds ---- */

/* Is the store that was restored as this model says? Else *ret_why says why not. */
static bool is_as(struct world *w, const struct model *model, char ret_why[600])
{
	static struct model scratch;
	struct world r = { .m = &scratch };

	scratch = *model;
	scratch.failed = scratch.loses = scratch.syncs = scratch.reads = false;
	scratch.hits = 0;
	world_side_path(w, RESTORED, r.path);
	if (world_open(&r) == 0) {
		world_check(&r);
		world_finish(&r);
		world_check(&r);
	}
	world_close(&r);
	if (!scratch.failed)
		world_check_clean(&r);
	snprintf(ret_why, 600, "%s", scratch.message);
	return !scratch.failed;
}

static bool has(struct world *w, const char *dir, const char *name)
{
	char path[PATH_ROOM], top[PATH_ROOM];

	world_side_path(w, dir, top);
	world_format(path, "%s/%s", top, name);
	return access(path, F_OK) == 0;
}

static void restore(struct world *w)
{
	char from[PATH_ROOM], to[PATH_ROOM];

	world_side_path(w, TARGET, from);
	world_side_path(w, RESTORED, to);
	world_copy_tree(from, to);
}

/* It counts, and waits for its last step: whoever has nothing but the directory can do that. */
static void finish_restored(struct world *w)
{
	struct wfs_err err = WFS_ERR_INIT;
	char dir[PATH_ROOM];
	bool waits = has(w, RESTORED, "weightfs.db.next");
	int ret;

	world_side_path(w, RESTORED, dir);
	ret = wfs_backup_finish(dir, &err);
	if (ret != (waits ? 1 : 0))
		world_fail(w, "the backup cannot be finished: %d %s", ret, err.text);
}

static void check_target(struct world *w)
{
	char why_new[600] = "", why_old[600] = "";
	bool must_be_new = w->m->backed_up || has(w, TARGET, "weightfs.db.next");

	restore(w);
	if (!has(w, RESTORED, "lock")) {
		if (must_be_new || w->m->saved)
			world_fail(w, "the backup is gone");
		return;
	}
	finish_restored(w);
	if (!has(w, RESTORED, "weightfs.db")) {
		if (must_be_new || w->m->saved)
			world_fail(w, "the backup has no database");
		return;
	}
	if (w->m->failed || is_as(w, w->m->backed_up ? w->saved : w->m, why_new))
		return;
	if (must_be_new || !w->m->saved) {
		world_fail(w, "the backup is not what was there: %s", why_new);
		return;
	}
	restore(w);
	if (!is_as(w, w->saved, why_old))
		world_fail(w, "the backup is neither the old one (%s) nor the new one (%s)", why_old, why_new);
}

/* Without faults the next run makes it whole, from whatever was left. */
static void settle_target(struct world *w)
{
	check_target(w);
	if (!w->m->failed)
		back_up(w);
	if (!w->m->failed)
		check_target(w);
}

static void check_archive(struct world *w)
{
	char command[3 * PATH_ROOM], dir[PATH_ROOM], why[600];

	world_side_path(w, RESTORED, dir);
	if (access(dir, F_OK) == 0)
		wfs_test_rmdir(dir);
	world_side_mkdir(w, RESTORED);
	snprintf(command, sizeof(command), "tar -C '%s' -xf '%s/" ARCHIVE "' 2>/dev/null", dir, w->side);
	if (system(command) != 0) {
		if (w->m->backed_up)
			world_fail(w, "tar cannot read the archive");
		return;
	}
	if (!has(w, RESTORED, "weightfs.db")) {
		if (w->m->backed_up)
			world_fail(w, "the archive has no database");
	} else if (!is_as(w, w->m->backed_up ? w->saved : w->m, why)) {
		world_fail(w, "the archive is not what was there: %s", why);
	}
}

static void settle_archive(struct world *w)
{
	check_archive(w);
	if (!w->m->failed)
		back_up_to_tar(w);
	if (!w->m->failed)
		check_archive(w);
}

/* ---- how they begin ---- */

static void set_up_first(struct world *w)
{
	scenario_set_up_sealed(w);
	world_put(w, "dirty", BIG_CUT);
	world_close(w);
	world_side_mkdir(w, WORK);
}

/* A backup, and a store that has changed since in each way that there is. */
static void set_up_second(struct world *w)
{
	set_up_first(w);
	back_up(w);
	w->m->backed_up = false;
	world_open(w);
	world_write(w, "alone", BIG); /* in its old pack */
	world_unlink(w, "c.safetensors");
	world_put(w, "new", BIG_CUT);
	world_seal(w, "new");
	world_rename(w, "small", "small-2");
	world_put(w, "dirty-2", SMALL_2);
	world_collect(w);
	world_close(w);
}

static void move(struct world *w, const char *from, const char *to)
{
	char a[PATH_ROOM], b[PATH_ROOM];

	world_side_path(w, from, a);
	world_side_path(w, to, b);
	if (rename(a, b) != 0)
		world_fail(w, "%s: %s", from, strerror(errno));
}

/* A backup that was killed in its last step, when some of its files were not in their place yet. */
static void set_up_third(struct world *w)
{
	char name[80], path[PATH_ROOM];
	uint64_t id;

	set_up_first(w);
	back_up(w);
	w->m->backed_up = w->m->saved = false;
	id = world_ask(w, "SELECT min(id) FROM data_file WHERE state = 1");
	world_side_mkdir(w, TARGET "/data.next");
	snprintf(name, sizeof(name), TARGET "/data.next/%02x", (unsigned)id & 0xff);
	world_side_mkdir(w, name);
	snprintf(name, sizeof(name), TARGET "/data/%02x/%016llx", (unsigned)id & 0xff, (unsigned long long)id);
	world_format(path, TARGET "/data.next/%02x/%016llx", (unsigned)id & 0xff,
		(unsigned long long)id);
	move(w, name, path);
	move(w, TARGET "/weightfs.db", TARGET "/weightfs.db.next");
}

const struct scenario scenarios_of_backups[] = {
	{ .name = "backup", .set_up = set_up_first, .run = back_up, .settle = settle_target, .opens = true },
	{ .name = "backup-again", .set_up = set_up_second, .run = back_up, .settle = settle_target, .opens = true },
	{ .name = "backup-finish", .set_up = set_up_third, .run = finish_and_back_up, .settle = settle_target, .opens = true },
	{ .name = "backup-tar", .set_up = set_up_first, .run = back_up_to_tar, .settle = settle_archive, .opens = true },
	{ .name = NULL },
};
