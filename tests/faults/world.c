#include "tests/faults/world_priv.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "lib/collect.h"
#include "lib/file.h"
#include "lib/fsck.h"
#include "lib/gate.h"
#include "lib/name.h"
#include "lib/repack.h"
#include "lib/seal.h"
#include "tests/faults/fault.h"

/* ---- the model ---- */

void world_fail(struct world *w, const char *fmt, ...)
{
	va_list ap;

	if (w->m->failed)
		return;
	w->m->failed = true;
	va_start(ap, fmt);
	vsnprintf(w->m->message, sizeof(w->m->message), fmt, ap);
	va_end(ap);
}

struct name *world_name(struct world *w, const char *name)
{
	struct model *m = w->m;

	for (uint32_t i = 0; i < m->n; i++)
		if (strcmp(m->names[i].name, name) == 0)
			return &m->names[i];
	if (m->n == MAX_NAMES)
		abort();
	snprintf(m->names[m->n].name, sizeof(m->names[m->n].name), "%s", name);
	m->names[m->n].history[0] = ABSENT;
	m->names[m->n].n = 1;
	return &m->names[m->n++];
}

enum content world_now(const struct name *n)
{
	return n->history[n->n - 1];
}

void world_set(struct name *n, enum content content)
{
	if (n->n == MAX_HISTORY)
		abort();
	n->history[n->n++] = (uint8_t)content;
	n->torn = false;
}

/* Did the operation do what it was asked for? Where not, the fault must be why. */
bool world_did(struct world *w, int ret, const char *what, const char *name)
{
	if (ret == 0)
		return true;
	if (w->m->hits == 0)
		w->m->hits = fault_hits();
	if (w->m->hits == 0)
		world_fail(w, "%s %s: %s, without a fault", what, name, strerror(-ret));
	/* SQLite takes a page that the disk cannot read for a damaged one. */
	else if (ret != -w->m->error && ret != -EIO && !(ret == -EUCLEAN && w->m->reads))
		world_fail(w, "%s %s: %s for a fault that is %s", what, name, strerror(-ret),
			strerror(w->m->error));
	return false;
}

bool world_is_there(struct world *w, const char *name)
{
	return w->store && world_now(world_name(w, name)) != ABSENT;
}

/* ---- opening and closing ---- */

static void show_line(void *ctx, const char *line)
{
	(void)ctx;
	if (getenv("WEIGHTFS_FAULT_LOG"))
		fprintf(stderr, "log: %s\n", line);
}

int world_open(struct world *w)
{
	struct wfs_store_options options = { .mode = WFS_STORE_WRITE, .create = true,
		.log = show_line, .max_size = w->max_size };
	struct wfs_err err = WFS_ERR_INIT;
	int ret;

	if (w->store)
		return 0;
	ret = wfs_store_open(w->path, &options, &w->store, &err);
	if (ret)
		w->store = NULL;
	world_did(w, ret, "open", err.text);
	return ret;
}

void world_close(struct world *w)
{
	struct wfs_store *s = w->store;

	if (!s)
		return;
	w->store = NULL;
	world_did(w, wfs_store_close(s), "close", "");
}

/* ---- files ---- */

/* 0, or the error of a look-up. */
int world_inode(struct world *w, const char *name, uint64_t *ret)
{
	struct wfs_attr a;
	int err = wfs_name_lookup(w->store, WFS_ROOT_INO, name, &a);

	if (err == 0)
		*ret = a.ino;
	return err;
}

int world_file(struct world *w, const char *name, struct wfs_file **ret)
{
	uint64_t ino = 0;
	int err = world_inode(w, name, &ino);

	return err ? err : wfs_file_get(w->store, ino, ret);
}

void world_create(struct world *w, const char *name)
{
	struct wfs_new new = { .mode = S_IFREG | 0644, .uid = 7, .gid = 8 };
	struct wfs_attr a;

	if (w->store && !world_is_there(w, name) &&
		world_wrote(w, wfs_name_create(w->store, WFS_ROOT_INO, name, &new, &a), name))
		world_set(world_name(w, name), EMPTY);
}

/* Where two contents begin and end to differ. */
static void find_patch(enum content from, enum content to, size_t *at, size_t *end)
{
	size_t len = world_contents[from].len;

	*at = 0;
	*end = world_contents[to].len;
	while (*at < WFS_MIN(len, *end) && world_contents[from].bytes[*at] == world_contents[to].bytes[*at])
		++*at;
	while (len == world_contents[to].len && *end > *at &&
		world_contents[from].bytes[*end - 1] == world_contents[to].bytes[*end - 1])
		--*end;
}

static int write_patch(struct wfs_file *f, enum content from, enum content to)
{
	size_t at, end;
	ssize_t n;

	find_patch(from, to, &at, &end);
	n = wfs_file_write(f, world_contents[to].bytes + at, end - at, at);
	return n < 0 ? (int)n : (size_t)n < end - at ? -ENOSPC : 0;
}

/* Close as the driver does. What the gate says of the bytes is noted, and no error. */
static int close_file(struct world *w, struct wfs_file *f, struct name *n)
{
	struct wfs_err err = WFS_ERR_INIT;
	int ret = wfs_gate_close(w->store, f, &err);

	wfs_file_close(f, true);
	wfs_file_unref(f);
	n->reason[0] = '\0';
	n->unjudged = ret && ret != -EBADMSG;
	if (ret == 0 || ret == -EBADMSG)
		snprintf(n->reason, sizeof(n->reason), "%s", err.reason ? err.reason : "");
	if (ret == -EBADMSG && (!err.reason || !err.text[0]))
		world_fail(w, "%s was refused, and nothing says why", n->name);
	return ret == -EBADMSG ? 0 : ret;
}

/* What fails by a short write has no errno of its own. */
bool world_wrote(struct world *w, int ret, const char *name)
{
	return ret == -ENOSPC && (fault_hits() || w->m->limited) ? false : world_did(w, ret, "write", name);
}

void world_write(struct world *w, const char *name, enum content content)
{
	struct name *n = world_name(w, name);
	struct wfs_file *f;
	int ret;

	if (!world_is_there(w, name) || n->torn)
		return;
	if (!world_did(w, world_file(w, name, &f), "open", name))
		return;
	wfs_file_open(f, true);
	ret = write_patch(f, world_now(n), content);
	if (world_wrote(w, ret, name)) {
		world_set(n, content);
	} else {
		n->torn = true;
		n->torn_to = (uint8_t)content;
	}
	world_did(w, close_file(w, f, n), "close", name);
}

void world_truncate(struct world *w, const char *name, enum content content)
{
	struct name *n = world_name(w, name);
	struct wfs_file *f;
	size_t len;

	if (!world_is_there(w, name) || n->torn)
		return;
	len = WFS_MIN(world_contents[content].len, world_contents[world_now(n)].len);
	/* Where a write before could not be begun it is not the start of what is there. */
	if (len && memcmp(world_contents[content].bytes, world_contents[world_now(n)].bytes, len) != 0)
		return;
	if (!world_did(w, world_file(w, name, &f), "open", name))
		return;
	wfs_file_open(f, true);
	if (world_did(w, wfs_file_truncate(f, world_contents[content].len), "truncate", name)) {
		world_set(n, content);
	} else {
		/* Unsealed, as long as it is to be, and then something failed. */
		n->torn = true;
		n->torn_to = (uint8_t)content;
	}
	world_did(w, close_file(w, f, n), "close", name);
}

void world_put(struct world *w, const char *name, enum content content)
{
	world_create(w, name);
	world_write(w, name, content);
}

/* Where nobody can say how full the disk is, a seal waits. */
static int full_or(int ret)
{
	return ret == -ENOSPC && fault_hits() ? -EIO : ret;
}

void world_seal(struct world *w, const char *name)
{
	struct wfs_err err = WFS_ERR_INIT;
	uint64_t ino = 0;

	if (world_is_there(w, name) && world_did(w, world_inode(w, name, &ino), "look up", name))
		world_did(w, full_or(wfs_seal(w->store, ino, &err)), "seal", name);
}

void world_seal_small(struct world *w)
{
	WFS_AUTO_FREE uint64_t *inos = NULL;
	size_t n = 0, part;

	if (!w->store || !world_did(w, wfs_seal_list(w->store, &inos, &n), "list", "what is dirty"))
		return;
	part = WFS_MIN(n, (size_t)WFS_SEAL_AT_ONCE);
	wfs_seal_small(w->store, inos, &part);
}

void world_unlink(struct world *w, const char *name)
{
	uint64_t ino = 0;
	bool gone;

	if (!world_is_there(w, name) ||
		!world_did(w, wfs_name_unlink(w->store, WFS_ROOT_INO, name, &ino, &gone), "unlink", name))
		return;
	world_set(world_name(w, name), ABSENT);
	if (gone)
		world_did(w, wfs_name_drop(w->store, &ino, 1), "drop", name);
}

void world_rename(struct world *w, const char *from, const char *to)
{
	struct name *a = world_name(w, from), *b = world_name(w, to);
	struct wfs_renamed r = { 0 };

	if (!world_is_there(w, from) || !world_did(w, wfs_name_rename(w->store, WFS_ROOT_INO, from,
		WFS_ROOT_INO, to, 0, &r), "rename", from))
		return;
	world_set(b, world_now(a));
	b->torn = a->torn;
	b->torn_to = a->torn_to;
	b->unjudged = a->unjudged;
	memcpy(b->reason, a->reason, sizeof(b->reason));
	world_set(a, ABSENT);
	if (r.replaced_gone)
		world_did(w, wfs_name_drop(w->store, &r.replaced, 1), "drop", to);
}

void world_link(struct world *w, const char *from, const char *to)
{
	struct name *a = world_name(w, from), *b = world_name(w, to);
	struct wfs_attr attr;
	uint64_t ino = 0;

	if (!world_is_there(w, from) || a->torn || !world_did(w, world_inode(w, from, &ino), "look up", from) ||
		!world_did(w, wfs_name_link(w->store, ino, WFS_ROOT_INO, to, &attr), "link", from))
		return;
	world_set(b, world_now(a));
}

void world_clone(struct world *w, const char *from, const char *to)
{
	struct name *a = world_name(w, from), *b = world_name(w, to);
	struct wfs_file *in, *out;
	ssize_t n;

	world_create(w, to);
	if (!world_is_there(w, from) || !world_is_there(w, to) || a->torn)
		return;
	if (!world_did(w, world_file(w, from, &in), "open", from))
		return;
	if (world_did(w, world_file(w, to, &out), "open", to)) {
		wfs_file_open(out, true);
		n = wfs_file_copy(in, 0, out, 0, world_contents[world_now(a)].len);
		if (world_wrote(w, n < 0 ? (int)n : (size_t)n < world_contents[world_now(a)].len ? -ENOSPC : 0, to)) {
			world_set(b, world_now(a));
		} else {
			b->torn = true;
			b->torn_to = (uint8_t)world_now(a);
		}
		world_did(w, close_file(w, out, b), "close", to);
	}
	wfs_file_unref(in);
}

/* ---- names ---- */

void world_attributes(struct world *w, const char *name)
{
	struct wfs_attr a = { .mode = 0600, .mtime_ns = 5 };
	WFS_AUTO_FREE char *list = NULL;
	void *value = NULL;
	uint64_t ino = 0;
	size_t len;
	int ret;

	if (!world_is_there(w, name) || !world_did(w, world_inode(w, name, &ino), "look up", name))
		return;
	world_did(w, wfs_name_setattr(w->store, ino, WFS_SET_MODE | WFS_SET_MTIME, &a, &a), "setattr", name);
	if (!world_did(w, wfs_xattr_set(w->store, ino, "user.x", "value", 5, 0), "setxattr", name))
		return;
	ret = wfs_xattr_get(w->store, ino, "user.x", &value, &len);
	if (world_did(w, ret, "getxattr", name) && (len != 5 || memcmp(value, "value", 5) != 0))
		world_fail(w, "%s has another value of user.x than the one that was set", name);
	if (ret == 0)
		free(value);
	world_did(w, wfs_xattr_list(w->store, ino, &list, &len), "listxattr", name);
	world_did(w, wfs_xattr_remove(w->store, ino, "user.x"), "removexattr", name);
}

/* A directory with all that is no file, made and removed again. */
void world_directory(struct world *w)
{
	struct wfs_new new = { .mode = S_IFDIR | 0755 };
	struct wfs_new link = { .mode = S_IFLNK | 0777, .target = "to/where" };
	WFS_AUTO_FREE char *target = NULL;
	struct wfs_attr dir, a;
	uint64_t ino = 0;
	bool gone;

	if (!w->store || !world_did(w, wfs_name_create(w->store, WFS_ROOT_INO, "d", &new, &dir), "mkdir", "d"))
		return;
	world_set(world_name(w, "d"), EMPTY);
	if (world_did(w, wfs_name_create(w->store, dir.ino, "link", &link, &a), "symlink", "d/link")) {
		world_did(w, wfs_name_readlink(w->store, a.ino, &target), "readlink", "d/link");
		if (!world_did(w, wfs_name_unlink(w->store, dir.ino, "link", &ino, &gone), "unlink", "d/link"))
			return;
		world_did(w, wfs_name_drop(w->store, &ino, 1), "drop", "d/link");
	}
	if (!world_did(w, wfs_name_rmdir(w->store, WFS_ROOT_INO, "d", &ino), "rmdir", "d"))
		return;
	world_set(world_name(w, "d"), ABSENT);
	world_did(w, wfs_name_drop(w->store, &ino, 1), "drop", "d");
}

/* ---- the disk ---- */

void world_sync(struct world *w, const char *name)
{
	struct name *n = world_name(w, name);
	struct wfs_file *f;

	if (!world_is_there(w, name) || !world_did(w, world_file(w, name, &f), "open", name))
		return;
	if (world_did(w, wfs_file_sync(f), "fsync", name))
		n->durable = (uint8_t)(n->n - 1);
	wfs_file_unref(f);
}

void world_sync_all(struct world *w)
{
	if (w->store)
		world_did(w, wfs_store_sync(w->store), "sync", "the store");
}

void world_checkpoint(struct world *w)
{
	if (w->store)
		world_did(w, wfs_store_checkpoint(w->store, 0), "checkpoint", "");
}

void world_tidy(struct world *w)
{
	int ret = w->store ? wfs_store_tidy(w->store) : 0;

	world_did(w, WFS_MIN(ret, 0), "tidy", "");
}

void world_collect(struct world *w)
{
	if (w->store)
		world_did(w, wfs_collect(w->store), "collect", "");
}

void world_repack(struct world *w, const char *name)
{
	struct wfs_repack *r;
	struct wfs_file *f;
	int more;

	if (!world_is_there(w, name) || !world_did(w, world_file(w, name, &f), "open", name))
		return;
	more = wfs_repack_begin(f, &r);
	if (more > 0) {
		while ((more = wfs_repack_step(r)) > 0)
			;
		wfs_repack_end(r);
	}
	/* Dirty, since its seal has failed. */
	if (more != -EAGAIN)
		world_did(w, full_or(more), "repack", name);
	wfs_file_unref(f);
}

/* ---- looking, while calls fail ---- */

static int see_report(void *ctx, const struct wfs_store_report *report)
{
	(void)ctx;
	(void)report;
	return 0;
}

static int see_entry(void *ctx, const struct wfs_dirent *entry)
{
	(void)entry;
	++*(unsigned *)ctx;
	return 0;
}

/* What is read is right, or it is an error. */
static void look_at(struct world *w, const struct name *n)
{
	size_t len = world_contents[world_now(n)].len;
	struct wfs_file *f;
	uint8_t *have;
	ssize_t got;

	if (world_now(n) == ABSENT || n->torn || n->tensor_seed || !strcmp(n->name, "m") ||
		!world_did(w, world_file(w, n->name, &f), "open", n->name))
		return;
	fault_pause();
	have = malloc(len + 1);
	fault_resume();
	got = wfs_file_read(f, have, len + 1, 0);
	if (world_did(w, got < 0 ? (int)got : 0, "read", n->name) &&
		((size_t)got != len || memcmp(have, world_contents[world_now(n)].bytes, len) != 0))
		world_fail(w, "%s: wrong bytes were read", n->name);
	free(have);
	wfs_file_unref(f);
}

void world_look(struct world *w)
{
	struct wfs_store_stats stats;
	unsigned entries = 0;

	if (!w->store)
		return;
	world_did(w, wfs_store_stats(w->store, &stats, NULL), "stats", "");
	world_did(w, wfs_store_each_report(w->store, see_report, NULL, NULL), "reports", "");
	world_did(w, wfs_name_readdir(w->store, WFS_ROOT_INO, 0, 1000, true, see_entry, &entries), "readdir", "");
	for (uint32_t i = 0; i < w->m->n; i++)
		look_at(w, &w->m->names[i]);
}

void world_note_finding(void *ctx, const struct wfs_fsck_finding *finding)
{
	world_fail(ctx, "fsck: %s: %s: %s", finding->kind, finding->where, finding->text);
}

/* What the disk cannot read is a finding; what there was no memory or no descriptor for is none. */
static void see_finding(void *ctx, const struct wfs_fsck_finding *finding)
{
	struct world *w = ctx;

	if (fault_hits() == 0 || w->m->error != EIO)
		world_note_finding(ctx, finding);
}

void world_fsck(struct world *w)
{
	struct wfs_fsck_options options = { .check_bytes = true };
	struct wfs_fsck_summary summary;
	struct wfs_err err = WFS_ERR_INIT;

	world_did(w, wfs_fsck(w->path, &options, see_finding, w, &summary, &err), "fsck", err.text);
}
