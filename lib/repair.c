#include "lib/repair.h"

#include <errno.h>
#include <fcntl.h>
#include <fts.h>
#include <string.h>
#include <sys/stat.h>

#include "lib/array.h"
#include "lib/datafile_state.h"
#include "lib/file_priv.h"
#include "lib/npy.h"
#include "lib/seal.h"

#define CHUNK ((size_t)1 << 20)

/* An object that is wanted. */
struct want {
	const struct wfs_verify_bad *bad;
	size_t index;     /* in bad[] */
	char **names;     /* of the tensor, and of files that it was all of; n_names */
	size_t n_names, names_room;
	bool found;
	uint8_t *bytes;   /* found, for the database */
	uint64_t offset;  /* found, in the new data file */
};

struct repair {
	struct wfs_store *s;
	struct want *wants;
	size_t n, left;
	bool by_name;         /* first pass: only what has the name */
	uint8_t *buf;         /* CHUNK */
	uint64_t data_file;   /* 0: none was needed yet */
	struct wfs_content *to;
	uint64_t end;         /* bytes in it */
};

/* ---- what is wanted ---- */

static int by_object(const void *a, const void *b)
{
	const struct want *x = a, *y = b;

	return x->bad->object < y->bad->object ? -1 : x->bad->object > y->bad->object;
}

static int add_name(struct want *w, const char *name, size_t len)
{
	if (WFS_ARRAY_ROOM(w->names, w->n_names, w->names_room))
		return -ENOMEM;
	w->names[w->n_names] = strndup(name, len);
	return w->names[w->n_names++] ? 0 : -ENOMEM;
}

static int note_name(void *ctx, const struct wfs_damage_place *place)
{
	const struct wfs_verify_bad bad = { .object = place->object };
	const struct want key = { .bad = &bad };
	struct repair *r = ctx;
	struct want *w = bsearch(&key, r->wants, r->n, sizeof(key), by_object);
	const char *slash = strrchr(place->path, '/');

	if (!w)
		return 0;
	if (place->tensor)
		return add_name(w, place->tensor, place->tensor_len);
	return add_name(w, slash ? slash + 1 : place->path, strlen(slash ? slash + 1 : place->path));
}

static int list_wants(struct repair *r, const struct wfs_verify_bad *bad, size_t n, const bool *repaired)
{
	WFS_AUTO_FREE uint64_t *ids = reallocarray(NULL, n + 1, sizeof(*ids));

	r->wants = calloc(n + 1, sizeof(*r->wants));
	if (!r->wants || !ids)
		return -ENOMEM;
	for (size_t i = 0; i < n; i++)
		if (bad[i].reason != WFS_DAMAGE_NONE && !bad[i].copy_of && !repaired[i])
			r->wants[r->n++] = (struct want){ .bad = &bad[i], .index = i };
	qsort(r->wants, r->n, sizeof(*r->wants), by_object);
	for (size_t i = 0; i < r->n; i++)
		ids[i] = r->wants[i].bad->object;
	r->left = r->n;
	return wfs_damage_each_place(r->s, ids, r->n, note_name, r);
}

static bool has_name(const struct want *w, const char *name, size_t len)
{
	for (size_t i = 0; i < w->n_names; i++)
		if (strlen(w->names[i]) == len && memcmp(w->names[i], name, len) == 0)
			return true;
	return false;
}

/* ---- taking bytes ---- */

/* Hash a range of a file, and with `fd_out` copy it there on the way. -ENODATA: it cannot be read. */
static int pass(struct repair *r, int fd, uint64_t at, uint64_t length, int fd_out, uint64_t out_at,
	struct wfs_digest *ret)
{
	struct wfs_hasher h;

	wfs_hasher_init(&h, r->s->options.digest_bits);
	for (uint64_t done = 0; done < length;) {
		size_t part = WFS_MIN(CHUNK, length - done);

		if (wfs_pread_all(fd, r->buf, part, at + done) != 0)
			return -ENODATA;
		wfs_hasher_update(&h, r->buf, part);
		if (fd_out >= 0) {
			ssize_t n = wfs_pwrite_some(fd_out, r->buf, part, out_at + done);

			if (n != (ssize_t)part)
				return n < 0 ? (int)n : -ENOSPC;
		}
		done += part;
	}
	*ret = wfs_hasher_final(&h);
	return 0;
}

static int make_target(struct repair *r)
{
	int ret = wfs_filling_create(r->s, &r->data_file);

	if (ret)
		return ret;
	r->to = wfs_content_new_staging(&r->s->datafiles, r->data_file);
	return r->to ? 0 : -ENOMEM;
}

static int take_to_file(struct repair *r, struct want *w, int fd, uint64_t at)
{
	struct wfs_digest have;
	int out, ret = r->to ? 0 : make_target(r);

	if (ret)
		return ret;
	out = wfs_datafile_use_to_write(&r->s->datafiles, r->to->staging);
	if (out < 0)
		return out;
	ret = pass(r, fd, at, w->bad->length, out, r->end, &have);
	wfs_datafile_unuse(&r->s->datafiles, r->to->staging);
	/* It may have been written meanwhile. */
	if (ret == -ENODATA || (ret == 0 && !wfs_digest_equal(&have, &w->bad->digest)))
		return 0;
	if (ret)
		return ret;
	w->offset = r->end;
	r->end += w->bad->length;
	return 1;
}

static int take_to_memory(struct repair *r, struct want *w, int fd, uint64_t at)
{
	struct wfs_digest have;

	w->bytes = malloc(w->bad->length);
	if (!w->bytes)
		return -ENOMEM;
	if (wfs_pread_all(fd, w->bytes, w->bad->length, at) == 0) {
		have = wfs_digest_of(w->bytes, w->bad->length, r->s->options.digest_bits);
		if (wfs_digest_equal(&have, &w->bad->digest))
			return 1;
	}
	free(w->bytes);
	w->bytes = NULL;
	return 0;
}

/* [at, +length) of an open file may be something that is wanted. */
static int try_range(struct repair *r, int fd, uint64_t at, uint64_t length, const char *name,
	size_t name_len)
{
	struct wfs_digest have;
	bool is_hashed = false;
	int ret = 0;

	for (size_t i = 0; i < r->n && ret >= 0; i++) {
		struct want *w = &r->wants[i];

		if (w->found || w->bad->length != length || has_name(w, name, name_len) != r->by_name)
			continue;
		if (!is_hashed && pass(r, fd, at, length, -1, 0, &have) != 0)
			return 0;
		is_hashed = true;
		if (!wfs_digest_equal(&have, &w->bad->digest))
			continue;
		ret = length <= WFS_SMALL_REST && !w->bad->data_file ? take_to_memory(r, w, fd, at)
								    : take_to_file(r, w, fd, at);
		w->found = ret > 0;
		r->left -= ret > 0;
	}
	return WFS_MIN(ret, 0);
}

/* ---- the files ---- */

static int try_tensors(struct repair *r, int fd, const struct wfs_safetensors *st, const char *name)
{
	uint64_t data_at = WFS_SAFETENSORS_PREFIX + st->header_len;
	int ret = try_range(r, fd, 0, data_at, name, strlen(name));

	for (size_t i = 0; i < st->n_tensors && ret == 0; i++) {
		const struct wfs_safetensors_tensor *t = &st->tensors[i];

		if (t->end > t->begin)
			ret = try_range(r, fd, data_at + t->begin, t->end - t->begin, t->name,
				t->name_len);
	}
	return ret;
}

static int read_start(int fd, uint64_t need, uint8_t **ret)
{
	*ret = malloc(WFS_MAX(need, 1));
	if (!*ret)
		return -ENOMEM;
	return wfs_pread_all(fd, *ret, need, 0) == 0 ? 0 : -ENODATA;
}

static int try_safetensors(struct repair *r, int fd, uint64_t size, const char *name)
{
	uint8_t head[WFS_SAFETENSORS_PREFIX];
	WFS_AUTO_FREE uint8_t *buf = NULL;
	struct wfs_safetensors st;
	int ret;

	if (size < sizeof(head) || wfs_pread_all(fd, head, sizeof(head), 0) != 0)
		return 0;
	ret = read_start(fd, wfs_safetensors_need(head, size), &buf);
	if (ret)
		return ret == -ENODATA ? 0 : ret;
	ret = wfs_safetensors_parse(buf, size, &st, NULL);
	if (ret)
		return ret;
	if (st.verdict == WFS_SAFETENSORS_VALID)
		ret = try_tensors(r, fd, &st, name);
	wfs_safetensors_release(&st);
	return ret;
}

static int try_array(struct repair *r, int fd, uint64_t size, const char *name)
{
	uint8_t head[WFS_NPY_PREFIX];
	WFS_AUTO_FREE uint8_t *buf = NULL;
	struct wfs_npy npy;
	int ret;

	if (size < sizeof(head) || wfs_pread_all(fd, head, sizeof(head), 0) != 0 ||
		memcmp(head, WFS_NPY_MAGIC, strlen(WFS_NPY_MAGIC)) != 0)
		return 0;
	ret = read_start(fd, wfs_npy_need(head, sizeof(head), size), &buf);
	if (ret)
		return ret == -ENODATA ? 0 : ret;
	if (wfs_npy_parse(buf, size, &npy, NULL) != 0)
		return 0;
	ret = try_range(r, fd, 0, npy.data_at, name, strlen(name));
	return ret ? ret : try_range(r, fd, npy.data_at, npy.data_len, name, strlen(name));
}

static int try_file(struct repair *r, const FTSENT *e)
{
	WFS_AUTO_CLOSE int fd = open(e->fts_accpath, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	struct stat st;
	int ret;

	/* What cannot be read cannot help. */
	if (fd < 0 || fstat(fd, &st) != 0 || !S_ISREG(st.st_mode) || st.st_size == 0)
		return 0;
	ret = try_range(r, fd, 0, (uint64_t)st.st_size, e->fts_name, e->fts_namelen);
	if (ret == 0)
		ret = try_safetensors(r, fd, (uint64_t)st.st_size, e->fts_name);
	return ret ? ret : try_array(r, fd, (uint64_t)st.st_size, e->fts_name);
}

static int search(struct repair *r, char *dir)
{
	char *paths[] = { dir, NULL };
	FTS *tree = fts_open(paths, FTS_LOGICAL | FTS_NOCHDIR, NULL);
	const FTSENT *e;
	int ret = 0;

	if (!tree)
		return -errno;
	while (ret == 0 && r->left > 0 && (e = fts_read(tree)))
		if (e->fts_info == FTS_F)
			ret = try_file(r, e);
	fts_close(tree);
	return ret;
}

/* ---- the transaction ---- */

static int place_all(struct repair *r)
{
	struct wfs_db *db = &r->s->db;
	int ret = 0;

	for (size_t i = 0; i < r->n && ret == 0; i++) {
		const struct want *w = &r->wants[i];

		if (w->found)
			ret = wfs_damage_replace(db, w->bad->object, w->bytes ? 0 : r->data_file,
				w->offset, w->bytes, w->bad->length);
	}
	if (ret == 0 && r->data_file)
		ret = wfs_db_run(db, WFS_Q_DATA_STATE, "ii", (uint64_t)WFS_DATA_PACK, r->data_file);
	return ret;
}

static int commit(struct repair *r)
{
	struct wfs_store *s = r->s;
	int ret = r->to ? wfs_datafile_sync(&s->datafiles, r->to->staging) : 0;

	if (ret == 0)
		ret = wfs_db_begin(&s->db);
	if (ret == 0)
		ret = wfs_db_end(&s->db, place_all(r));
	if (ret)
		return ret;
	r->data_file = 0; /* a pack now */
	atomic_store(&s->collect_wanted, true);
	ret = wfs_damage_load(s);
	wfs_damage_reload(s);
	return ret ? ret : wfs_store_sync(s);
}

/* ---- the whole ---- */

static void release(struct repair *r)
{
	wfs_content_unref(r->to);
	if (r->data_file)
		wfs_filling_abandon(r->s, r->data_file);
	for (size_t i = 0; i < r->n; i++) {
		for (size_t k = 0; k < r->wants[i].n_names; k++)
			free(r->wants[i].names[k]);
		free(r->wants[i].names);
		free(r->wants[i].bytes);
	}
	free(r->wants);
	free(r->buf);
}

static int repair(struct repair *r, char *dir)
{
	int ret = 0;

	for (int pass_no = 0; pass_no < 2 && ret == 0 && r->left > 0; pass_no++) {
		r->by_name = pass_no == 0;
		ret = search(r, dir);
	}
	return ret == 0 && r->left < r->n ? commit(r) : ret;
}

int wfs_repair(struct wfs_store *s, const char *dir, const struct wfs_verify_bad *bad, size_t n,
	bool *repaired, struct wfs_err *err)
{
	struct repair r = { .s = s, .buf = malloc(CHUNK) };
	WFS_AUTO_FREE char *path = strdup(dir);
	struct stat st;
	int ret = r.buf && path ? 0 : -ENOMEM;

	if (ret == 0 && stat(dir, &st) != 0)
		ret = -errno;
	if (ret == 0)
		ret = list_wants(&r, bad, n, repaired);
	if (ret == 0)
		ret = repair(&r, path);
	for (size_t i = 0; i < r.n && ret == 0; i++)
		repaired[r.wants[i].index] |= r.wants[i].found;
	release(&r);
	return ret ? wfs_err_errno(err, ret, "repairing from %s", dir) : 0;
}
