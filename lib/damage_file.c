/* Damage, and files that are in use: lib/damage.h. */
#include <errno.h>
#include <string.h>

#include "lib/damage.h"
#include "lib/file_priv.h"

/* ---- found by reading ---- */

#define PROBE 4096 /* bytes read at once */

/* Can these bytes be read? */
static enum wfs_damage_reason probe(struct wfs_content *c, struct wfs_datafile *df, uint64_t from,
	uint64_t to)
{
	int fd = wfs_datafile_use(c->table, df);
	enum wfs_damage_reason ret = WFS_DAMAGE_NONE;
	char buf[PROBE];

	if (fd < 0)
		return fd == -ENOENT ? WFS_DAMAGE_MISSING : fd == -EIO ? WFS_DAMAGE_ERROR : ret;
	while (from < to && ret == WFS_DAMAGE_NONE) {
		ssize_t n = pread(fd, buf, WFS_MIN(to - from, (uint64_t)PROBE), (off_t)from);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			ret = n == 0 ? WFS_DAMAGE_MISSING : errno == EIO ? WFS_DAMAGE_ERROR : ret;
		if (n < 0)
			break;
		from += (uint64_t)n;
	}
	wfs_datafile_unuse(c->table, df);
	return ret;
}

struct found {
	struct wfs_damage list[16];
	uint64_t end[16]; /* of each, in its data file */
	size_t n;
};

/* The objects that live in [from, to) of a data file, as many as there is room for. */
static int objects_at(struct wfs_store *s, uint64_t data_file, uint64_t from, uint64_t to,
	struct found *found)
{
	sqlite3_stmt *row;
	int more = wfs_db_begin_read(&s->db);

	if (more)
		return more;
	for (more = wfs_db_first(&s->db, WFS_Q_DAMAGE_AT, &row, "iii", data_file, to, from); more > 0;
		more = wfs_db_next(&s->db, row)) {
		if (found->n == WFS_ARRAY_SIZE(found->list)) {
			wfs_db_done(row);
			more = 0;
			break;
		}
		found->list[found->n] = (struct wfs_damage){
			.object = (uint64_t)sqlite3_column_int64(row, 0), .data_file = data_file,
			.offset = (uint64_t)sqlite3_column_int64(row, 1) };
		found->end[found->n++] = (uint64_t)sqlite3_column_int64(row, 2);
	}
	return wfs_db_end(&s->db, more);
}

/* What of one extent cannot be read is left in the list. */
static void probe_extent(struct wfs_store *s, struct wfs_content *c, const struct wfs_extent *e,
	uint64_t skip, uint64_t length, struct found *found)
{
	uint64_t from = e->offset + skip, to = from + length;
	size_t n = 0;

	if (!e->df || wfs_datafile_is_bad(c->table, e->df, from, length) ||
		objects_at(s, e->df->id, from, to, found) != 0)
		return;
	for (size_t i = 0; i < found->n; i++) {
		struct wfs_damage d = found->list[i];

		d.reason = probe(c, e->df, WFS_MAX(from, d.offset), WFS_MIN(to, found->end[i]));
		if (d.reason != WFS_DAMAGE_NONE)
			found->list[n++] = d;
	}
	found->n = n;
}

static int log_place(void *ctx, const struct wfs_damage_place *place)
{
	struct wfs_store *s = ctx;

	wfs_store_log(s, "%s: %s%s%.*s, %llu bytes at %llu: %s", place->path, place->part,
		place->tensor ? " " : "", (int)WFS_MIN(place->tensor_len, (size_t)200),
		place->tensor ? place->tensor : "", (unsigned long long)place->length,
		(unsigned long long)place->at, wfs_damage_reason_text(place->reason));
	return 0;
}

static void mark(struct wfs_store *s, const struct found *found)
{
	size_t changed = 0;
	int ret = wfs_damage_set(s, found->list, found->n, &changed);

	for (size_t i = 0; i < found->n && ret == 0 && changed; i++)
		ret = wfs_damage_each_place(s, &found->list[i].object, 1, log_place, s);
	if (ret && ret != -EROFS)
		wfs_store_log(s, "what is damaged could not be noted: %s", strerror(-ret));
}

void wfs_damage_read_failed(struct wfs_store *s, struct wfs_content *c, uint64_t offset,
	uint64_t length)
{
	uint64_t end = offset + length;

	if (c->staging || offset >= c->size)
		return;
	end = WFS_MIN(end, c->size);
	for (size_t i = wfs_content_find(c, offset); i < c->n && c->extents[i].at < end; i++) {
		const struct wfs_extent *e = &c->extents[i];
		uint64_t from = WFS_MAX(offset, e->at), to = WFS_MIN(end, e->at + e->length);
		struct found found = { .n = 0 };

		probe_extent(s, c, e, from - e->at, to - from, &found);
		if (found.n)
			mark(s, &found);
	}
}

/* ---- contents anew ---- */

/* A reference to some file in use whose inode number is greater than `after`, the least; NULL: none. */
static struct wfs_file *next_file(struct wfs_store *s, uint64_t after)
{
	struct wfs_file *best = NULL;

	pthread_mutex_lock(&s->files_lock);
	for (size_t i = 0; i < WFS_FILE_BUCKETS; i++)
		for (struct wfs_file *f = s->files[i]; f; f = f->next)
			if (f->ino > after && (!best || f->ino < best->ino))
				best = f;
	if (best)
		best->refs++;
	pthread_mutex_unlock(&s->files_lock);
	return best;
}

/* Its manifest is what it was; where that lives may have changed. */
static void reload(struct wfs_file *f)
{
	struct wfs_store *s = f->store;
	struct wfs_content *new = NULL;
	uint64_t manifest;
	int ret;

	wfs_file_begin_change(f);
	pthread_mutex_lock(&f->lock);
	manifest = f->content && !f->content->staging ? f->content->manifest : 0;
	pthread_mutex_unlock(&f->lock);
	if (manifest) {
		ret = wfs_db_begin_read(&s->db);
		if (ret == 0)
			ret = wfs_db_end(&s->db,
				wfs_content_load(&s->db, &s->datafiles, manifest, &new));
		if (ret)
			new = NULL; /* as it was: it gives errors where it did */
	}
	wfs_file_end_change(f, new);
}

void wfs_damage_reload(struct wfs_store *s)
{
	struct wfs_file *f;
	uint64_t after = 0;

	wfs_models_clear(s->models);
	while ((f = next_file(s, after))) {
		after = f->ino;
		reload(f);
		wfs_file_unref(f);
	}
}
