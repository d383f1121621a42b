#include "lib/flush.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "lib/array.h"
#include "lib/crash.h"
#include "lib/file_priv.h"
#include "lib/seal.h"

/* inode.target of a dirty file: both little endian. */
struct note {
	uint8_t size[8];
	uint8_t mtime_ns[8];
};

/* ---- the note ---- */

static void put_number(uint8_t out[8], uint64_t n)
{
	for (int i = 0; i < 8; i++)
		out[i] = (uint8_t)(n >> (8 * i));
}

static uint64_t get_number(const uint8_t in[8])
{
	uint64_t n = 0;

	for (int i = 0; i < 8; i++)
		n |= (uint64_t)in[i] << (8 * i);
	return n;
}

/* A file that was sealed meanwhile keeps none. */
static int set_note(struct wfs_file *f, uint64_t data_file, const struct stat *st)
{
	struct wfs_db *db = &f->store->db;
	struct note note;
	int ret = wfs_db_begin(db);

	if (ret)
		return ret;
	put_number(note.size, (uint64_t)st->st_size);
	put_number(note.mtime_ns, (uint64_t)wfs_ns(&st->st_mtim));
	return wfs_db_end(db, wfs_db_run(db, WFS_Q_INODE_FLUSHED, "bii", &note, sizeof(note), f->ino,
		data_file));
}

int wfs_flush_note(struct wfs_store *s, uint64_t ino, uint64_t *ret_size, int64_t *ret_mtime_ns)
{
	sqlite3_stmt *row;
	int found = wfs_db_begin_read(&s->db);

	if (found)
		return found;
	found = wfs_db_first(&s->db, WFS_Q_INODE_NOTE, &row, "i", ino);
	if (found > 0) {
		const struct note *note = sqlite3_column_blob(row, 0);

		found = note && sqlite3_column_bytes(row, 0) == sizeof(*note);
		if (found) {
			*ret_size = get_number(note->size);
			*ret_mtime_ns = (int64_t)get_number(note->mtime_ns);
		}
		wfs_db_done(row);
	}
	return wfs_db_end(&s->db, found);
}

/* ---- now ---- */

/* What is written while this waits is not in the note, or makes it untrue. */
static int flush_staging(struct wfs_file *f, struct wfs_datafile *staging, bool *ret_first)
{
	struct wfs_datafiles *table = &f->store->datafiles;
	uint64_t size = 0;
	int64_t mtime_ns = 0;
	struct stat st;
	int had, ret = wfs_datafile_stat(table, staging->id, &st);

	if (ret == 0)
		ret = wfs_store_sync_staging(f->store, staging);
	if (ret)
		return ret == -ENOENT ? -EIO : ret;
	wfs_crash_at("flush-before-note");
	had = wfs_flush_note(f->store, f->ino, &size, &mtime_ns);
	*ret_first = had <= 0;
	if (had > 0 && size == (uint64_t)st.st_size && mtime_ns == wfs_ns(&st.st_mtim))
		return 0;
	return set_note(f, staging->id, &st);
}

int wfs_flush_file(struct wfs_file *f, bool *ret_first)
{
	struct wfs_content *c = wfs_file_content(f);
	int ret;

	*ret_first = false;
	ret = c->staging ? flush_staging(f, c->staging, ret_first) : 0;
	wfs_content_unref(c);
	return ret;
}

int wfs_flush_inode(struct wfs_store *s, uint64_t ino)
{
	struct wfs_file *f;
	bool first;
	int ret = wfs_file_get(s, ino, &f);

	if (ret)
		return ret == -ENOENT || ret == -EISDIR || ret == -EINVAL ? 0 : ret;
	ret = wfs_flush_file(f, &first);
	wfs_file_unref(f);
	return ret;
}

int wfs_flush_take_back(struct wfs_file *f)
{
	struct wfs_content *c = wfs_file_content(f);
	uint64_t data_file = c->staging ? c->staging->id : 0;
	struct wfs_db *db = &f->store->db;
	int64_t mtime_ns;
	uint64_t size;
	int ret;

	wfs_content_unref(c);
	ret = data_file ? wfs_flush_note(f->store, f->ino, &size, &mtime_ns) : 0;
	if (ret <= 0)
		return ret;
	ret = wfs_db_begin(db);
	if (ret == 0)
		ret = wfs_db_end(db, wfs_db_run(db, WFS_Q_INODE_FLUSHED, "bii", NULL, (size_t)0, f->ino, data_file));
	return ret ? ret : wfs_store_sync_to(f->store, wfs_db_commits(db));
}

/* ---- later ---- */

int wfs_flush_later(struct wfs_store *s, uint64_t ino)
{
	int ret;

	pthread_mutex_lock(&s->flush_lock);
	ret = WFS_ARRAY_ROOM(s->flush, s->n_flush, s->flush_room);
	if (ret == 0)
		s->flush[s->n_flush++] = ino;
	pthread_mutex_unlock(&s->flush_lock);
	return ret;
}

int wfs_flush_or_report(struct wfs_store *s, uint64_t ino)
{
	struct wfs_attr a;
	int ret = wfs_flush_inode(s, ino);

	if (ret && wfs_name_getattr(s, ino, &a) == 0 && wfs_datafile_is_unsure(&s->datafiles, a.data_file))
		return 0;
	return ret;
}

int wfs_flush_all(struct wfs_store *s)
{
	uint64_t ino;
	int ret = 0;

	/* Whoever finds the list empty may rely on it that nobody still waits for one of it. */
	pthread_mutex_lock(&s->flush_run_lock);
	do {
		pthread_mutex_lock(&s->flush_lock);
		ino = s->n_flush ? s->flush[--s->n_flush] : 0;
		pthread_mutex_unlock(&s->flush_lock);
		if (ino)
			ret = wfs_flush_or_report(s, ino);
		if (ret)
			wfs_flush_later(s, ino);
	} while (ino && ret == 0);
	pthread_mutex_unlock(&s->flush_run_lock);
	return ret;
}

/* ---- before a rename ---- */

/* A small file that nobody has open goes into the database's log with the rename: no wait for the disk. */
static bool is_sealed_instead(struct wfs_store *s, const struct wfs_attr *a)
{
	uint64_t ino = a->ino;
	size_t n = 1;

	if (a->size > WFS_SMALL_FILE)
		return false;
	wfs_seal_small(s, &ino, &n);
	return n == 0;
}

int wfs_flush_for_rename(struct wfs_store *s, uint64_t parent, const char *name,
	uint64_t new_parent, const char *new_name, unsigned flags)
{
	struct wfs_attr from, target;

	/* Exchanged, both stay; and with RENAME_NOREPLACE nothing goes. */
	if (flags & (RENAME_EXCHANGE | RENAME_NOREPLACE))
		return 0;
	if (wfs_name_lookup(s, parent, name, &from) != 0 || !from.data_file ||
		from.verdict == WFS_VERDICT_DAMAGED)
		return 0;
	if (wfs_name_lookup(s, new_parent, new_name, &target) != 0 || target.ino == from.ino)
		return 0;
	return is_sealed_instead(s, &from) ? 0 : wfs_flush_inode(s, from.ino);
}
