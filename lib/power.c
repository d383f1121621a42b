#include "lib/power.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lib/flush.h"
#include "lib/listdir.h"
#include "lib/seal.h"
#include "lib/store_priv.h"

#define REASON "power-cut"
#define DETAIL                                                                                     \
	"the power went before the file was on the disk, and nobody had asked for that (fsync): bytes " \
	"may be missing, at its end or inside"

/* ---- was it one ---- */

int wfs_power_boot_id(char ret[WFS_BOOT_ID_SIZE])
{
	const char *given = getenv("WEIGHTFS_BOOT_ID");
	WFS_AUTO_CLOSE int fd = -1;
	ssize_t n;

	snprintf(ret, WFS_BOOT_ID_SIZE, "%s", given ? given : "unknown");
	if (given)
		return 0;
	fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
	/* "unknown" for a passing reason would be another boot than the last one, and so a power cut. */
	if (fd < 0)
		return errno == ENOENT || errno == EACCES || errno == EPERM ? 0 : -errno;
	n = read(fd, ret, WFS_BOOT_ID_SIZE - 1);
	if (n < 0)
		return -errno;
	ret[n] = '\0';
	ret[strcspn(ret, "\n")] = '\0';
	return 0;
}

int wfs_power_was_cut(struct wfs_store *s, bool *ret)
{
	WFS_AUTO_FREE char *before = NULL;
	char now[WFS_BOOT_ID_SIZE];
	int err = wfs_store_read_note(s, WFS_META_BOOT_ID, &before);

	if (err == 0)
		err = wfs_power_boot_id(now);
	if (err)
		return err;
	*ret = !s->db.was_clean && before && strcmp(before, now) != 0;
	return 0;
}

/* ---- files that may lack bytes ---- */

/* Times of change may be older on the disk than the flush that came after it, but not newer. */
static int is_whole(struct wfs_store *s, const struct wfs_attr *a)
{
	int64_t mtime_ns;
	struct stat st;
	uint64_t size;
	int ret = wfs_flush_note(s, a->ino, &size, &mtime_ns);

	if (ret <= 0)
		return ret;
	ret = wfs_datafile_stat(&s->datafiles, a->data_file, &st);
	/* One file that the disk cannot show is reported, and keeps nobody from the others. */
	if (ret)
		return ret == -ENOENT || ret == -EIO ? 0 : ret;
	return (uint64_t)st.st_size == size && wfs_ns(&st.st_mtim) <= mtime_ns;
}

static int make_if_missing(struct wfs_store *s, const struct wfs_attr *a, void *ctx)
{
	int64_t mtime_ns;
	struct stat st;
	uint64_t size;
	int ret;

	(void)ctx;
	if (wfs_datafile_stat(&s->datafiles, a->data_file, &st) != -ENOENT)
		return 0;
	ret = wfs_flush_note(s, a->ino, &size, &mtime_ns);
	return ret ? WFS_MIN(ret, 0) : wfs_datafile_create(&s->datafiles, a->data_file);
}

int wfs_power_make_missing(struct wfs_store *s)
{
	return wfs_seal_each(s, make_if_missing, NULL);
}

static int set_reason(struct wfs_store *s, uint64_t ino)
{
	int ret = wfs_db_begin(&s->db);

	if (ret)
		return ret;
	return wfs_db_end(&s->db, wfs_db_run(&s->db, WFS_Q_INODE_SET_VERDICT, "itti",
		(uint64_t)WFS_VERDICT_INCOMPLETE, REASON, DETAIL, ino));
}

static int report_one(struct wfs_store *s, const struct wfs_attr *a, void *ctx)
{
	size_t *n = ctx;
	int ret;

	/* What the gate has against it is reason enough. */
	if (a->verdict >= WFS_VERDICT_INCOMPLETE)
		return 0;
	ret = is_whole(s, a);
	if (ret)
		return WFS_MIN(ret, 0);
	ret = set_reason(s, a->ino);
	*n += ret == 0;
	return ret;
}

int wfs_power_report(struct wfs_store *s, size_t *ret_n)
{
	*ret_n = 0;
	return wfs_seal_each(s, report_one, ret_n);
}

/* ---- tensors that were put by such files ---- */

static int unput(struct wfs_store *s, uint64_t ino, int *ret_rows)
{
	int ret = wfs_db_begin(&s->db);

	if (ret)
		return ret;
	ret = wfs_db_run(&s->db, WFS_Q_TENSOR_UNPUT, "i", ino);
	*ret_rows = ret ? 0 : wfs_db_changes(&s->db);
	/* Without a name and without a row it is dropped with the orphans. */
	if (*ret_rows)
		ret = wfs_db_run(&s->db, WFS_Q_INODE_NLINK, "iii", (int64_t)-*ret_rows, wfs_now_ns(), ino);
	return wfs_db_end(&s->db, ret);
}

static int unput_one(struct wfs_store *s, const struct wfs_attr *a, void *ctx)
{
	size_t *n = ctx;
	int rows = 0, ret = is_whole(s, a);

	if (ret)
		return WFS_MIN(ret, 0);
	ret = unput(s, a->ino, &rows);
	*n += (size_t)rows;
	return ret;
}

int wfs_power_unput(struct wfs_store *s, size_t *ret_n)
{
	*ret_n = 0;
	return wfs_seal_each(s, unput_one, ret_n);
}

/* ---- data files without a row ---- */

static int sweep_file(struct wfs_store *s, uint64_t id)
{
	uint64_t state;
	int found = wfs_db_begin_read(&s->db);

	if (found)
		return found;
	found = wfs_db_end(&s->db, wfs_db_number(&s->db, WFS_Q_DATA_GET, &state, "i", id));
	return found ? WFS_MIN(found, 0) : wfs_datafile_remove(&s->datafiles, id);
}

static int sweep_entry(void *store, int dir_fd, const char *name)
{
	(void)dir_fd;
	return wfs_datafile_is_hex(name, 16) ? sweep_file(store, strtoull(name, NULL, 16)) : 0;
}

static int sweep_directory(void *store, int data_fd, const char *name)
{
	return wfs_datafile_is_hex(name, 2) ? wfs_listdir(data_fd, name, sweep_entry, store) : 0;
}

int wfs_power_sweep(struct wfs_store *s)
{
	return wfs_listdir(s->datafiles.data_fd, ".", sweep_directory, s);
}
