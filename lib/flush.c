#include "lib/flush.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "lib/file_priv.h"

/* inode.target of a dirty file: both little endian. */
struct note {
	uint8_t size[8];
	uint8_t mtime_ns[8];
};

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

static bool is_noted(struct wfs_file *f, const struct stat *st)
{
	uint64_t size;
	int64_t mtime_ns;

	return wfs_flush_note(f->store, f->ino, &size, &mtime_ns) > 0 &&
	       size == (uint64_t)st->st_size && mtime_ns == wfs_ns(&st->st_mtim);
}

/* What is written while this waits is not in the note, or makes it untrue. */
static int flush_staging(struct wfs_file *f, struct wfs_datafile *staging)
{
	struct wfs_datafiles *table = &f->store->datafiles;
	struct stat st;
	int ret = wfs_datafile_stat(table, staging->id, &st);

	if (ret == 0)
		ret = wfs_datafile_sync(table, staging);
	if (ret)
		return ret == -ENOENT ? -EIO : ret;
	return is_noted(f, &st) ? 0 : set_note(f, staging->id, &st);
}

int wfs_flush_file(struct wfs_file *f)
{
	struct wfs_content *c = wfs_file_content(f);
	int ret = c->staging ? flush_staging(f, c->staging) : 0;

	wfs_content_unref(c);
	return ret;
}

int wfs_flush_inode(struct wfs_store *s, uint64_t ino)
{
	struct wfs_file *f;
	int ret = wfs_file_get(s, ino, &f);

	if (ret)
		return ret == -ENOENT || ret == -EISDIR || ret == -EINVAL ? 0 : ret;
	ret = wfs_flush_file(f);
	wfs_file_unref(f);
	return ret;
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
	return wfs_flush_inode(s, from.ino);
}
