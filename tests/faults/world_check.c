/* What files may hold, and what is to be found afterwards. */
#include "tests/faults/world_priv.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "lib/collect.h"
#include "lib/file.h"
#include "lib/fsck.h"
#include "lib/name.h"
#include "lib/safetensors.h"
#include "lib/seal.h"

#define TENSORS 3
#define FIRST_SEED 21 /* of what is put as a tensor; each later one has a greater one */

/* ---- contents ---- */

struct world_content world_contents[CONTENTS];

uint8_t *world_noise(size_t len, uint64_t seed)
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
	world_contents[which].bytes = bytes;
	world_contents[which].len = len;
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
		uint8_t *bytes = world_noise(EACH, seeds[i]);

		memcpy(all + head_len + entries[i].begin, bytes, EACH);
		free(bytes);
	}
	make_content(which, all, head_len + data_len);
}

/* Others' bytes with `len` other ones at `at`. */
static void make_patched(enum content which, enum content from, size_t at, size_t len)
{
	uint8_t *bytes = malloc(world_contents[from].len);
	uint8_t *patch = world_noise(len, 99);

	memcpy(bytes, world_contents[from].bytes, world_contents[from].len);
	memcpy(bytes + at, patch, len);
	free(patch);
	make_content(which, bytes, world_contents[from].len);
}

void world_make_contents(void)
{
	make_content(EMPTY, world_noise(1, 1), 0);
	make_content(SMALL, world_noise(1000, 1), 1000);
	make_content(SMALL_2, world_noise(5000, 2), 5000);
	make_content(BIG, world_noise(150001, 3), 150001);
	make_patched(BIG_PATCHED, BIG, 70000, 9000);
	make_content(BIG_CUT, world_noise(150001, 3), 75000);
	make_shard(SHARD, (const uint64_t[]){ 11, 12, 13 });
	make_shard(SHARD_2, (const uint64_t[]){ 11, 15, 16 });
	make_patched(SHARD_PATCHED, SHARD, 100000, 9000);
	make_patched(SHARD_WRONG, SHARD, 8, 30);
	make_content(SHARD_CUT, world_contents[SHARD].bytes, world_contents[SHARD].len / 2);
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
	return content != ABSENT && world_contents[content].len == len &&
	       memcmp(world_contents[content].bytes, bytes, len) == 0;
}

/* Each byte is the old one or the new one; past the end of the old one, it may be a hole. */
static bool is_between(enum content from, enum content to, const uint8_t *bytes, size_t len)
{
	if (len < WFS_MIN(world_contents[from].len, world_contents[to].len) ||
		len > WFS_MAX(world_contents[from].len, world_contents[to].len))
		return false;
	for (size_t i = 0; i < len; i++)
		if (!(i < world_contents[from].len && bytes[i] == world_contents[from].bytes[i]) &&
			!(i < world_contents[to].len && bytes[i] == world_contents[to].bytes[i]))
			return false;
	return true;
}

/* Of a file that was never synced any write may be lost: each byte is what it was at some time, or was never written. */
static bool is_mixed(const struct name *n, const uint8_t *bytes, size_t len)
{
	for (size_t i = 0; i < len; i++) {
		bool known = bytes[i] == 0;

		for (unsigned k = 0; k < n->n && !known; k++) {
			const struct world_content *c = &world_contents[n->history[k]];

			known = i < c->len && c->bytes[i] == bytes[i];
		}
		if (!known)
			return false;
	}
	return true;
}

static bool is_right(struct world *w, const struct name *n, const uint8_t *bytes, size_t len)
{
	if (is_content(world_now(n), bytes, len) ||
		(n->torn && is_between(world_now(n), n->torn_to, bytes, len)))
		return true;
	if (!w->m->loses)
		return false;
	for (unsigned i = n->durable; i < n->n; i++)
		if (is_content(n->history[i], bytes, len))
			return true;
	return n->durable == 0 && (is_reported(w, n->name) || is_mixed(n, bytes, len));
}

static bool may_be_absent(const struct world *w, const struct name *n)
{
	for (unsigned i = n->durable; w->m->loses && i < n->n; i++)
		if (n->history[i] == ABSENT)
			return true;
	return n->loose || world_now(n) == ABSENT;
}

static void check_bytes(struct world *w, const struct name *n)
{
	WFS_AUTO_FREE uint8_t *have = NULL;
	struct wfs_file *f;
	uint64_t size = 0;
	ssize_t got;
	int ret = world_file(w, n->name, &f);

	if (ret) {
		if (!(w->m->loses && is_reported(w, n->name)) && !(n->loose && ret == -EIO))
			world_fail(w, "%s cannot be opened: %s", n->name, strerror(-ret));
		return;
	}
	ret = wfs_file_size(f, &size);
	have = malloc(size + 1);
	got = ret ? ret : wfs_file_read(f, have, size, 0);
	if (n->loose && got == -EIO)
		; /* it says that it is damaged */
	else if (ret == 0 && got != (ssize_t)size)
		world_fail(w, "%s cannot be read: %s", n->name, got < 0 ? strerror((int)-got) : "short");
	else if (ret == 0 && !is_right(w, n, have, size))
		world_fail(w, "%s has wrong bytes: %" PRIu64 ", where %zu of content %d%s are right", n->name,
			size, world_contents[world_now(n)].len, (int)world_now(n), n->torn ? " (torn)" : "");
	wfs_file_unref(f);
}

static bool is_tensor(struct world *w, const struct name *n, const uint8_t *have)
{
	bool same = false;

	/* What was not synced may be what it was before. */
	for (uint64_t seed = w->m->loses ? FIRST_SEED : n->tensor_seed; !same && seed <= n->tensor_seed; seed++) {
		WFS_AUTO_FREE uint8_t *want = world_noise(EACH, seed);

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
	int ret = world_inode(w, "m", &dir);

	/* One whose file a sync may have lost waits until it is put again. */
	if ((w->m->syncs && is_reported(w, NULL)) || n->loose)
		return;
	if (ret == 0)
		ret = wfs_model_get(w->store, dir, NULL, &m);
	if (ret) {
		world_fail(w, "the model cannot be read: %s", strerror(-ret));
		return;
	}
	if (!wfs_model_find(m, n->name + 2, strlen(n->name) - 2, &i)) {
		if (world_now(n) != ABSENT && !w->m->loses)
			world_fail(w, "tensor %s is missing", n->name);
	} else if (world_now(n) == ABSENT && !w->m->loses) {
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
	ret = world_inode(w, n->name, &ino);
	if (ret == -ENOENT) {
		if (!may_be_absent(w, n))
			world_fail(w, "%s is missing", n->name);
	} else if (ret) {
		world_fail(w, "%s cannot be looked up: %s", n->name, strerror(-ret));
	} else if (world_now(n) == ABSENT && !w->m->loses) {
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
	/* What has lost its name has got another. */
	if (!w->m->repaired)
		world_fail(w, "%s is there, and nobody made it", entry->name);
	return 0;
}

void world_check(struct world *w)
{
	if (wfs_name_readdir(w->store, WFS_ROOT_INO, 0, 1000, false, check_entry, w) != 0)
		world_fail(w, "the root cannot be listed");
	if (world_is_there(w, "m") && !world_name(w, "m")->loose)
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
	w->m->finished = true;
	if (ret)
		world_fail(w, "afterwards nothing can be sealed and given back: %s %s", strerror(-ret),
			err.text);
}

void world_check_clean(struct world *w)
{
	struct wfs_fsck_options options = { .check_bytes = true };
	struct wfs_fsck_summary summary;
	struct wfs_err err = WFS_ERR_INIT;

	if (wfs_fsck(w->path, &options, world_note_finding, w, &summary, &err) != 0)
		world_fail(w, "fsck cannot run: %s", err.text);
}
