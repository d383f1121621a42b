/* lib/store_priv.h: data files whose flush has failed (docs/decisions/0020). */
#include "lib/db.h"
#include "lib/file_priv.h"
#include "lib/store_priv.h"

#define SYNC_FAILED_TEXT "the disk failed to write it: it may be lost when it is read again; write the file anew"

/* 1 and *ret_ino: recorded now; 0: it was already, or it is nobody's. */
static int record_failed_sync(struct wfs_store *s, uint64_t data_file, uint64_t *ret_ino)
{
	int ret = wfs_db_begin(&s->db);

	if (ret)
		return ret;
	/* It may have been emptied since the caller looked, and the record of it removed. */
	if (!wfs_datafile_is_unsure(&s->datafiles, data_file))
		return wfs_db_end(&s->db, 0);
	ret = wfs_db_run(&s->db, WFS_Q_INODE_SYNC_FAILED, "ti", SYNC_FAILED_TEXT, data_file);
	if (ret == 0 && wfs_db_changes(&s->db) > 0)
		ret = wfs_db_number(&s->db, WFS_Q_INODE_OF_STAGING, ret_ino, "i", data_file);
	return wfs_db_end(&s->db, ret);
}

/* What cannot be recorded now, since the database is on the same disk, is the next time. */
void wfs_store_report_unsure(struct wfs_store *s, uint64_t data_file)
{
	WFS_AUTO_FREE char *path = NULL;
	uint64_t ino = 0;
	int ret = record_failed_sync(s, data_file, &ino);

	if (ret == 0)
		return;
	if (ret > 0)
		wfs_name_path(s, ino, &path);
	wfs_store_log(s, "%s (data file %llu): " WFS_REASON_SYNC_FAILED ": " SYNC_FAILED_TEXT,
		path ? path : "a file", (unsigned long long)data_file);
}

int wfs_store_sync_staging(struct wfs_store *s, struct wfs_datafile *df)
{
	int ret = wfs_datafile_sync(&s->datafiles, df);

	if (ret && wfs_datafile_is_unsure(&s->datafiles, df->id))
		wfs_store_report_unsure(s, df->id);
	return ret;
}

void wfs_store_staging_is_empty(struct wfs_store *s, struct wfs_datafile *df)
{
	int ret;

	if (!wfs_datafile_is_unsure(&s->datafiles, df->id) || wfs_db_begin(&s->db) != 0)
		return;
	ret = wfs_db_run(&s->db, WFS_Q_INODE_SYNC_HEALED, "i", df->id);
	/* Within the transaction: who records that it is unsure looks again within his. */
	if (ret == 0)
		wfs_datafile_set_unsure(&s->datafiles, df->id, false);
	if (wfs_db_end(&s->db, ret) != 0 && ret == 0)
		wfs_datafile_set_unsure(&s->datafiles, df->id, true);
}

/* Which syncs have failed before this process. */
int wfs_store_load_unsure(struct wfs_store *s)
{
	sqlite3_stmt *row;
	int more = wfs_db_begin_read(&s->db);

	if (more)
		return more;
	for (more = wfs_db_first(&s->db, WFS_Q_DATA_SYNC_FAILED, &row, ""); more > 0;
		more = wfs_db_next(&s->db, row))
		wfs_datafile_set_unsure(&s->datafiles, (uint64_t)sqlite3_column_int64(row, 0), true);
	return wfs_db_end(&s->db, more);
}
