#include "tests/faults/world.h"

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
#include "lib/npy.h"
#include "lib/repack.h"
#include "lib/safetensors.h"
#include "lib/seal.h"
#include "tests/faults/fault.h"

#define EACH ((size_t)70000) /* bytes of a tensor: too many for the database */
#define TENSORS 3
#define FIRST_SEED 21 /* of what is put as a tensor; each later one has a greater one */

/* ---- contents ---- */

static struct {
	uint8_t *bytes;
	size_t len;
} contents[CONTENTS];

static uint8_t *noise(size_t len, uint64_t seed)
{
	uint8_t *bytes = malloc(len);
	uint64_t x = seed * 0x9e3779b97f4a7c15 + 1;

	for (size_t i = 0; i < len; i++) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		bytes[i] = (uint8_t)(x >> 32);
	}
	return bytes;
}

static void make_content(enum content which, uint8_t *bytes, size_t len)
{
	contents[which].bytes = bytes;
	contents[which].len = len;
}

static void make_shard(enum content which, const uint64_t seeds[TENSORS])
{
	static const char *const names[TENSORS] = { "a", "b", "c" };
	struct wfs_safetensors_entry entries[TENSORS] = { { 0 } };
	uint64_t shape[1] = { EACH }, data_len;
	size_t head_len;
	uint8_t *head, *all;

	for (size_t i = 0; i < TENSORS; i++)
		entries[i] = (struct wfs_safetensors_entry){ .name = names[i], .name_len = 1,
			.ndim = 1, .shape = shape, .dtype = WFS_DTYPE_U8 };
	if (wfs_safetensors_build(entries, TENSORS, NULL, 0, &head, &head_len, &data_len, NULL) != 0)
		abort();
	all = malloc(head_len + data_len);
	memcpy(all, head, head_len);
	free(head);
	for (size_t i = 0; i < TENSORS; i++) {
		uint8_t *bytes = noise(EACH, seeds[i]);

		memcpy(all + head_len + entries[i].begin, bytes, EACH);
		free(bytes);
	}
	make_content(which, all, head_len + data_len);
}

/* Others' bytes with `len` other ones at `at`. */
static void make_patched(enum content which, enum content from, size_t at, size_t len)
{
	uint8_t *bytes = malloc(contents[from].len);
	uint8_t *patch = noise(len, 99);

	memcpy(bytes, contents[from].bytes, contents[from].len);
	memcpy(bytes + at, patch, len);
	free(patch);
	make_content(which, bytes, contents[from].len);
}

void world_make_contents(void)
{
	make_content(EMPTY, noise(1, 1), 0);
	make_content(SMALL, noise(1000, 1), 1000);
	make_content(SMALL_2, noise(5000, 2), 5000);
	make_content(BIG, noise(150001, 3), 150001);
	make_patched(BIG_PATCHED, BIG, 70000, 9000);
	make_content(BIG_CUT, noise(150001, 3), 75000);
	make_shard(SHARD, (const uint64_t[]){ 11, 12, 13 });
	make_shard(SHARD_2, (const uint64_t[]){ 11, 15, 16 });
	make_patched(SHARD_PATCHED, SHARD, 100000, 9000);
}

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

static struct name *name_of(struct world *w, const char *name)
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

static enum content now(const struct name *n)
{
	return n->history[n->n - 1];
}

static void set(struct name *n, enum content content)
{
	if (n->n == MAX_HISTORY)
		abort();
	n->history[n->n++] = (uint8_t)content;
	n->torn = false;
}

/* Did the operation do what it was asked for? Where not, the fault must be why. */
static bool did(struct world *w, int ret, const char *what, const char *name)
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

static bool is_there(struct world *w, const char *name)
{
	return w->store && now(name_of(w, name)) != ABSENT;
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
		.log = show_line };
	struct wfs_err err = WFS_ERR_INIT;
	int ret;

	if (w->store)
		return 0;
	ret = wfs_store_open(w->path, &options, &w->store, &err);
	if (ret)
		w->store = NULL;
	did(w, ret, "open", err.text);
	return ret;
}

void world_close(struct world *w)
{
	struct wfs_store *s = w->store;

	if (!s)
		return;
	w->store = NULL;
	did(w, wfs_store_close(s), "close", "");
}

/* ---- files ---- */

/* 0, or the error of a look-up. */
static int inode_of(struct world *w, const char *name, uint64_t *ret)
{
	struct wfs_attr a;
	int err = wfs_name_lookup(w->store, WFS_ROOT_INO, name, &a);

	if (err == 0)
		*ret = a.ino;
	return err;
}

static int file_of(struct world *w, const char *name, struct wfs_file **ret)
{
	uint64_t ino = 0;
	int err = inode_of(w, name, &ino);

	return err ? err : wfs_file_get(w->store, ino, ret);
}

void world_create(struct world *w, const char *name)
{
	struct wfs_new new = { .mode = S_IFREG | 0644, .uid = 7, .gid = 8 };
	struct wfs_attr a;

	if (w->store && !is_there(w, name) &&
		did(w, wfs_name_create(w->store, WFS_ROOT_INO, name, &new, &a), "create", name))
		set(name_of(w, name), EMPTY);
}

/* Where two contents begin and end to differ. */
static void find_patch(enum content from, enum content to, size_t *at, size_t *end)
{
	size_t len = contents[from].len;

	*at = 0;
	*end = contents[to].len;
	while (*at < WFS_MIN(len, *end) && contents[from].bytes[*at] == contents[to].bytes[*at])
		++*at;
	while (len == contents[to].len && *end > *at &&
		contents[from].bytes[*end - 1] == contents[to].bytes[*end - 1])
		--*end;
}

static int write_patch(struct wfs_file *f, enum content from, enum content to)
{
	size_t at, end;
	ssize_t n;

	find_patch(from, to, &at, &end);
	n = wfs_file_write(f, contents[to].bytes + at, end - at, at);
	return n < 0 ? (int)n : (size_t)n < end - at ? -ENOSPC : 0;
}

/* Close as the driver does. What the gate says of the bytes is not our matter. */
static int close_file(struct world *w, struct wfs_file *f)
{
	int ret = wfs_gate_close(w->store, f, NULL);

	wfs_file_close(f, true);
	wfs_file_unref(f);
	return ret == -EBADMSG ? 0 : ret;
}

/* What fails by a short write has no errno of its own. */
static bool wrote(struct world *w, int ret, const char *name)
{
	return ret == -ENOSPC && fault_hits() ? false : did(w, ret, "write", name);
}

void world_write(struct world *w, const char *name, enum content content)
{
	struct name *n = name_of(w, name);
	struct wfs_file *f;
	int ret;

	if (!is_there(w, name) || n->torn)
		return;
	if (!did(w, file_of(w, name, &f), "open", name))
		return;
	wfs_file_open(f, true);
	ret = write_patch(f, now(n), content);
	if (wrote(w, ret, name)) {
		set(n, content);
	} else {
		n->torn = true;
		n->torn_to = (uint8_t)content;
	}
	did(w, close_file(w, f), "close", name);
}

void world_truncate(struct world *w, const char *name, enum content content)
{
	struct name *n = name_of(w, name);
	struct wfs_file *f;

	if (!is_there(w, name) || n->torn || !did(w, file_of(w, name, &f), "open", name))
		return;
	wfs_file_open(f, true);
	if (did(w, wfs_file_truncate(f, contents[content].len), "truncate", name)) {
		set(n, content);
	} else {
		/* Unsealed, as long as it is to be, and then something failed. */
		n->torn = true;
		n->torn_to = (uint8_t)content;
	}
	did(w, close_file(w, f), "close", name);
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

	if (is_there(w, name) && did(w, inode_of(w, name, &ino), "look up", name))
		did(w, full_or(wfs_seal(w->store, ino, &err)), "seal", name);
}

void world_seal_small(struct world *w)
{
	WFS_AUTO_FREE uint64_t *inos = NULL;
	size_t n = 0, part;

	if (!w->store || !did(w, wfs_seal_list(w->store, &inos, &n), "list", "what is dirty"))
		return;
	part = WFS_MIN(n, (size_t)WFS_SEAL_AT_ONCE);
	wfs_seal_small(w->store, inos, &part);
}

void world_unlink(struct world *w, const char *name)
{
	uint64_t ino = 0;
	bool gone;

	if (!is_there(w, name) ||
		!did(w, wfs_name_unlink(w->store, WFS_ROOT_INO, name, &ino, &gone), "unlink", name))
		return;
	set(name_of(w, name), ABSENT);
	if (gone)
		did(w, wfs_name_drop(w->store, &ino, 1), "drop", name);
}

void world_rename(struct world *w, const char *from, const char *to)
{
	struct name *a = name_of(w, from), *b = name_of(w, to);
	struct wfs_renamed r = { 0 };

	if (!is_there(w, from) || !did(w, wfs_name_rename(w->store, WFS_ROOT_INO, from,
		WFS_ROOT_INO, to, 0, &r), "rename", from))
		return;
	set(b, now(a));
	b->torn = a->torn;
	b->torn_to = a->torn_to;
	set(a, ABSENT);
	if (r.replaced_gone)
		did(w, wfs_name_drop(w->store, &r.replaced, 1), "drop", to);
}

void world_link(struct world *w, const char *from, const char *to)
{
	struct name *a = name_of(w, from), *b = name_of(w, to);
	struct wfs_attr attr;
	uint64_t ino = 0;

	if (!is_there(w, from) || a->torn || !did(w, inode_of(w, from, &ino), "look up", from) ||
		!did(w, wfs_name_link(w->store, ino, WFS_ROOT_INO, to, &attr), "link", from))
		return;
	set(b, now(a));
}

void world_clone(struct world *w, const char *from, const char *to)
{
	struct name *a = name_of(w, from), *b = name_of(w, to);
	struct wfs_file *in, *out;
	ssize_t n;

	world_create(w, to);
	if (!is_there(w, from) || !is_there(w, to) || a->torn)
		return;
	if (!did(w, file_of(w, from, &in), "open", from))
		return;
	if (did(w, file_of(w, to, &out), "open", to)) {
		wfs_file_open(out, true);
		n = wfs_file_copy(in, 0, out, 0, contents[now(a)].len);
		if (wrote(w, n < 0 ? (int)n : (size_t)n < contents[now(a)].len ? -ENOSPC : 0, to)) {
			set(b, now(a));
		} else {
			b->torn = true;
			b->torn_to = (uint8_t)now(a);
		}
		did(w, close_file(w, out), "close", to);
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

	if (!is_there(w, name) || !did(w, inode_of(w, name, &ino), "look up", name))
		return;
	did(w, wfs_name_setattr(w->store, ino, WFS_SET_MODE | WFS_SET_MTIME, &a, &a), "setattr", name);
	if (!did(w, wfs_xattr_set(w->store, ino, "user.x", "value", 5, 0), "setxattr", name))
		return;
	ret = wfs_xattr_get(w->store, ino, "user.x", &value, &len);
	if (did(w, ret, "getxattr", name) && (len != 5 || memcmp(value, "value", 5) != 0))
		world_fail(w, "%s has another value of user.x than the one that was set", name);
	if (ret == 0)
		free(value);
	did(w, wfs_xattr_list(w->store, ino, &list, &len), "listxattr", name);
	did(w, wfs_xattr_remove(w->store, ino, "user.x"), "removexattr", name);
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

	if (!w->store || !did(w, wfs_name_create(w->store, WFS_ROOT_INO, "d", &new, &dir), "mkdir", "d"))
		return;
	set(name_of(w, "d"), EMPTY);
	if (did(w, wfs_name_create(w->store, dir.ino, "link", &link, &a), "symlink", "d/link")) {
		did(w, wfs_name_readlink(w->store, a.ino, &target), "readlink", "d/link");
		if (!did(w, wfs_name_unlink(w->store, dir.ino, "link", &ino, &gone), "unlink", "d/link"))
			return;
		did(w, wfs_name_drop(w->store, &ino, 1), "drop", "d/link");
	}
	if (!did(w, wfs_name_rmdir(w->store, WFS_ROOT_INO, "d", &ino), "rmdir", "d"))
		return;
	set(name_of(w, "d"), ABSENT);
	did(w, wfs_name_drop(w->store, &ino, 1), "drop", "d");
}

/* ---- the disk ---- */

void world_sync(struct world *w, const char *name)
{
	struct name *n = name_of(w, name);
	struct wfs_file *f;

	if (!is_there(w, name) || !did(w, file_of(w, name, &f), "open", name))
		return;
	if (did(w, wfs_file_sync(f), "fsync", name))
		n->durable = (uint8_t)(n->n - 1);
	wfs_file_unref(f);
}

void world_sync_all(struct world *w)
{
	if (w->store)
		did(w, wfs_store_sync(w->store), "sync", "the store");
}

void world_checkpoint(struct world *w)
{
	if (w->store)
		did(w, wfs_store_checkpoint(w->store, 0), "checkpoint", "");
}

void world_tidy(struct world *w)
{
	if (w->store)
		did(w, WFS_MIN(wfs_store_tidy(w->store), 0), "tidy", "");
}

void world_collect(struct world *w)
{
	if (w->store)
		did(w, wfs_collect(w->store), "collect", "");
}

void world_repack(struct world *w, const char *name)
{
	struct wfs_repack *r;
	struct wfs_file *f;
	int more;

	if (!is_there(w, name) || !did(w, file_of(w, name, &f), "open", name))
		return;
	more = wfs_repack_begin(f, &r);
	if (more > 0) {
		while ((more = wfs_repack_step(r)) > 0)
			;
		wfs_repack_end(r);
	}
	/* Dirty, since its seal has failed. */
	if (more != -EAGAIN)
		did(w, full_or(more), "repack", name);
	wfs_file_unref(f);
}

/* ---- tensors, in directory "m" ---- */

static int model_dir(struct world *w, uint64_t *ret)
{
	return inode_of(w, "m", ret);
}

void world_mkdir_model(struct world *w)
{
	struct wfs_new new = { .mode = S_IFDIR | 0755 };
	struct wfs_attr a;

	if (w->store && did(w, wfs_name_create(w->store, WFS_ROOT_INO, "m", &new, &a), "mkdir", "m"))
		set(name_of(w, "m"), EMPTY);
}

static int write_npy(struct world *w, uint64_t ino, const uint8_t *bytes)
{
	uint64_t shape[1] = { EACH };
	struct wfs_file *f;
	uint8_t *head;
	ssize_t n;
	size_t len;
	int ret = wfs_file_get(w->store, ino, &f);

	if (ret)
		return ret;
	wfs_file_open(f, true);
	ret = wfs_npy_build(WFS_DTYPE_U8, shape, 1, &head, &len);
	if (ret == 0) {
		n = wfs_file_write(f, head, len, 0);
		if (n >= 0)
			n = (size_t)n < len ? -ENOSPC : wfs_file_write(f, bytes, EACH, len);
		ret = n < 0 ? (int)n : (size_t)n < EACH ? -ENOSPC : 0;
		free(head);
	}
	wfs_file_close(f, true);
	wfs_file_unref(f);
	return ret;
}

static void drop_gone(struct world *w, struct wfs_gone *gone)
{
	if (gone->n)
		did(w, wfs_name_drop(w->store, gone->inos, gone->n), "drop", "old shards");
	free(gone->inos);
}

static struct name *tensor_of(struct world *w, const char *tensor)
{
	char path[32];

	snprintf(path, sizeof(path), "m/%s", tensor);
	return name_of(w, path);
}

/* A shard that cannot be read is one that is left out: the model is then not changed. */
static int busy_or(const struct world *w, int ret)
{
	return ret == -EBUSY && w->m->reads ? -EIO : ret;
}

static int put_bytes(struct world *w, uint64_t dir, const char *tensor, const uint8_t *bytes)
{
	struct wfs_model_name name = { .dir = dir, .tensor = tensor, .tensor_len = strlen(tensor) };
	struct wfs_new new = { .mode = S_IFREG | 0600 };
	struct wfs_gone gone = { .inos = NULL };
	struct wfs_err err = WFS_ERR_INIT;
	struct wfs_attr a;
	int ret = wfs_name_create_unnamed(w->store, dir, &new, &a);

	if (ret)
		return ret;
	ret = write_npy(w, a.ino, bytes);
	if (ret == 0)
		ret = wfs_model_put(w->store, &name, WFS_TENSOR_NPY, a.ino, &gone, &err);
	drop_gone(w, &gone);
	if (ret)
		did(w, wfs_name_drop(w->store, &a.ino, 1), "drop", "what was not put");
	return busy_or(w, ret);
}

void world_put_tensor(struct world *w, const char *tensor, uint64_t seed)
{
	WFS_AUTO_FREE uint8_t *bytes = NULL;
	struct name *n = tensor_of(w, tensor);
	uint64_t dir = 0;

	if (!is_there(w, "m") || !did(w, model_dir(w, &dir), "look up", "m"))
		return;
	fault_pause();
	bytes = noise(EACH, seed);
	fault_resume();
	if (!wrote(w, put_bytes(w, dir, tensor, bytes), n->name))
		return;
	set(n, SMALL);
	n->tensor_seed = seed;
}

void world_remove_tensor(struct world *w, const char *tensor)
{
	struct wfs_gone gone = { .inos = NULL };
	struct wfs_model_name name = { .tensor = tensor, .tensor_len = strlen(tensor) };
	struct name *n = tensor_of(w, tensor);

	if (!w->store || now(n) == ABSENT || !did(w, model_dir(w, &name.dir), "look up", "m"))
		return;
	if (did(w, busy_or(w, wfs_model_remove(w->store, &name, &gone, NULL)), "remove", n->name))
		set(n, ABSENT);
	drop_gone(w, &gone);
}

void world_settle(struct world *w)
{
	struct wfs_gone gone = { .inos = NULL };
	struct wfs_err err = WFS_ERR_INIT;
	uint64_t dir = 0;

	if (!is_there(w, "m") || !did(w, model_dir(w, &dir), "look up", "m"))
		return;
	did(w, busy_or(w, wfs_model_settle(w->store, dir, &gone, &err)), "settle", err.text);
	drop_gone(w, &gone);
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
	size_t len = contents[now(n)].len;
	struct wfs_file *f;
	uint8_t *have;
	ssize_t got;

	if (now(n) == ABSENT || n->torn || n->tensor_seed || !strcmp(n->name, "m") ||
		!did(w, file_of(w, n->name, &f), "open", n->name))
		return;
	fault_pause();
	have = malloc(len + 1);
	fault_resume();
	got = wfs_file_read(f, have, len + 1, 0);
	if (did(w, got < 0 ? (int)got : 0, "read", n->name) &&
		((size_t)got != len || memcmp(have, contents[now(n)].bytes, len) != 0))
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
	did(w, wfs_store_stats(w->store, &stats, NULL), "stats", "");
	did(w, wfs_store_each_report(w->store, see_report, NULL, NULL), "reports", "");
	did(w, wfs_name_readdir(w->store, WFS_ROOT_INO, 0, 1000, true, see_entry, &entries), "readdir", "");
	for (uint32_t i = 0; i < w->m->n; i++)
		look_at(w, &w->m->names[i]);
}

static void note_finding(void *ctx, const struct wfs_fsck_finding *finding)
{
	world_fail(ctx, "fsck: %s: %s: %s", finding->kind, finding->where, finding->text);
}

/* What cannot be read is a finding; what can be is none. */
static void see_finding(void *ctx, const struct wfs_fsck_finding *finding)
{
	if (fault_hits() == 0)
		note_finding(ctx, finding);
}

void world_fsck(struct world *w)
{
	struct wfs_fsck_options options = { .check_bytes = true };
	struct wfs_fsck_summary summary;
	struct wfs_err err = WFS_ERR_INIT;

	did(w, wfs_fsck(w->path, &options, see_finding, w, &summary, &err), "fsck", err.text);
}

/* ---- afterwards ---- */

/* Is it one of those that a sync which failed has lost, and said so? */
struct search {
	const char *name; /* NULL: any */
	bool found;
};

static int match_report(void *ctx, const struct wfs_store_report *report)
{
	struct search *s = ctx;

	if ((!s->name || strcmp(report->path + 1, s->name) == 0) && report->reason &&
		strcmp(report->reason, "sync-failed") == 0)
		s->found = true;
	return 0;
}

static bool is_reported(struct world *w, const char *name)
{
	struct search s = { name, false };

	return wfs_store_each_report(w->store, match_report, &s, NULL) == 0 && s.found;
}

static bool is_content(enum content content, const uint8_t *bytes, size_t len)
{
	return content != ABSENT && contents[content].len == len &&
	       memcmp(contents[content].bytes, bytes, len) == 0;
}

/* Each byte is the old one or the new one; past the end of the old one, it may be a hole. */
static bool is_between(enum content from, enum content to, const uint8_t *bytes, size_t len)
{
	if (len < WFS_MIN(contents[from].len, contents[to].len) ||
		len > WFS_MAX(contents[from].len, contents[to].len))
		return false;
	for (size_t i = 0; i < len; i++)
		if (!(i < contents[from].len && bytes[i] == contents[from].bytes[i]) &&
			!(i < contents[to].len && bytes[i] == contents[to].bytes[i]))
			return false;
	return true;
}

static bool is_right(struct world *w, const struct name *n, const uint8_t *bytes, size_t len)
{
	if (is_content(now(n), bytes, len) ||
		(n->torn && is_between(now(n), n->torn_to, bytes, len)))
		return true;
	if (!w->m->loses)
		return false;
	for (unsigned i = n->durable; i < n->n; i++)
		if (is_content(n->history[i], bytes, len))
			return true;
	return n->durable == 0 && is_reported(w, n->name);
}

static bool may_be_absent(const struct world *w, const struct name *n)
{
	for (unsigned i = n->durable; w->m->loses && i < n->n; i++)
		if (n->history[i] == ABSENT)
			return true;
	return now(n) == ABSENT;
}

static void check_bytes(struct world *w, const struct name *n)
{
	WFS_AUTO_FREE uint8_t *have = NULL;
	struct wfs_file *f;
	uint64_t size = 0;
	int ret = file_of(w, n->name, &f);

	if (ret) {
		if (!(w->m->loses && is_reported(w, n->name)))
			world_fail(w, "%s cannot be opened: %s", n->name, strerror(-ret));
		return;
	}
	ret = wfs_file_size(f, &size);
	have = malloc(size + 1);
	if (ret == 0 && wfs_file_read(f, have, size, 0) != (ssize_t)size)
		world_fail(w, "%s cannot be read", n->name);
	else if (ret == 0 && !is_right(w, n, have, size))
		world_fail(w, "%s has wrong bytes: %" PRIu64 ", where %zu of content %d%s are right", n->name,
			size, contents[now(n)].len, (int)now(n), n->torn ? " (torn)" : "");
	wfs_file_unref(f);
}

static bool is_tensor(struct world *w, const struct name *n, const uint8_t *have)
{
	bool same = false;

	/* What was not synced may be what it was before. */
	for (uint64_t seed = w->m->loses ? FIRST_SEED : n->tensor_seed; !same && seed <= n->tensor_seed; seed++) {
		WFS_AUTO_FREE uint8_t *want = noise(EACH, seed);

		same = memcmp(have, want, EACH) == 0;
	}
	return same;
}

static void check_tensor(struct world *w, const struct name *n)
{
	WFS_AUTO_FREE uint8_t *have = malloc(EACH);
	struct wfs_content *c = NULL;
	struct wfs_model *m;
	uint64_t dir = 0;
	size_t i;
	int ret = model_dir(w, &dir);

	/* One whose file a sync may have lost waits until it is put again. */
	if (w->m->syncs && is_reported(w, NULL))
		return;
	if (ret == 0)
		ret = wfs_model_get(w->store, dir, NULL, &m);
	if (ret) {
		world_fail(w, "the model cannot be read: %s", strerror(-ret));
		return;
	}
	if (!wfs_model_find(m, n->name + 2, strlen(n->name) - 2, &i)) {
		if (now(n) != ABSENT && !w->m->loses)
			world_fail(w, "tensor %s is missing", n->name);
	} else if (now(n) == ABSENT && !w->m->loses) {
		world_fail(w, "tensor %s is there, though it was removed", n->name);
	} else if (wfs_model_tensor_file(m, i, WFS_TENSOR_SAFETENSORS, &c) != 0 ||
		wfs_content_read(c, have, EACH, c->size - EACH) != (ssize_t)EACH ||
		!is_tensor(w, n, have)) {
		world_fail(w, "tensor %s has wrong bytes", n->name);
	}
	wfs_content_unref(c);
	wfs_model_unref(m);
}

static void check_name(struct world *w, const struct name *n)
{
	uint64_t ino = 0;
	int ret;

	if (n->tensor_seed || !strncmp(n->name, "m/", 2)) {
		if (n->tensor_seed)
			check_tensor(w, n);
		return;
	}
	ret = inode_of(w, n->name, &ino);
	if (ret == -ENOENT) {
		if (!may_be_absent(w, n))
			world_fail(w, "%s is missing", n->name);
	} else if (ret) {
		world_fail(w, "%s cannot be looked up: %s", n->name, strerror(-ret));
	} else if (now(n) == ABSENT && !w->m->loses) {
		world_fail(w, "%s is there, though it was removed or never made", n->name);
	} else if (strcmp(n->name, "m") != 0 && strcmp(n->name, "d") != 0) {
		check_bytes(w, n);
	}
}

static int check_entry(void *ctx, const struct wfs_dirent *entry)
{
	struct world *w = ctx;

	for (uint32_t i = 0; i < w->m->n; i++)
		if (strcmp(w->m->names[i].name, entry->name) == 0)
			return 0;
	world_fail(w, "%s is there, and nobody made it", entry->name);
	return 0;
}

void world_check(struct world *w)
{
	if (wfs_name_readdir(w->store, WFS_ROOT_INO, 0, 1000, false, check_entry, w) != 0)
		world_fail(w, "the root cannot be listed");
	if (is_there(w, "m"))
		world_settle(w);
	for (uint32_t i = 0; i < w->m->n; i++)
		check_name(w, &w->m->names[i]);
}

void world_finish(struct world *w)
{
	WFS_AUTO_FREE uint64_t *inos = NULL;
	struct wfs_err err = WFS_ERR_INIT;
	size_t n = 0;
	int ret = wfs_seal_list(w->store, &inos, &n);

	for (size_t i = 0; i < n && ret == 0; i++) {
		WFS_AUTO_FREE char *path = NULL;

		ret = wfs_seal(w->store, inos[i], &err);
		/* What a sync may have lost stays as it is, and is reported. */
		if (ret && w->m->syncs && wfs_name_path(w->store, inos[i], &path) == 0 &&
			is_reported(w, path[0] ? path + 1 : NULL))
			ret = 0;
		if (ret == 0)
			wfs_err_clear(&err);
	}
	if (ret == 0)
		ret = wfs_collect(w->store);
	if (ret)
		world_fail(w, "afterwards nothing can be sealed and given back: %s %s", strerror(-ret),
			err.text);
}

void world_check_clean(struct world *w)
{
	struct wfs_fsck_options options = { .check_bytes = true };
	struct wfs_fsck_summary summary;
	struct wfs_err err = WFS_ERR_INIT;

	if (wfs_fsck(w->path, &options, note_finding, w, &summary, &err) != 0)
		world_fail(w, "fsck cannot run: %s", err.text);
}
