#include "lib/wal_file.h"

#include <pthread.h>
#include <sqlite3.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "lib/base.h"

#define FRAME_HEAD 24
#define COMMIT_AT 4 /* in the head: the database's size in pages, where the frame commits; else 0 */
#define ROOM (120 * 1024) /* at once; the default VFS takes less than 128 KiB in one call */

struct wal_file {
	sqlite3_file base;
	/* Bytes that the file has yet to get, all in one piece. */
	uint8_t *waiting;
	size_t n;
	sqlite3_int64 offset;
	sqlite3_int64 end; /* behind the last byte that was written, here or below */
	bool commits; /* the next write is the page of a frame that commits */
	/* The default VFS's file is behind this, as long as that VFS says. */
};

static sqlite3_file *real(sqlite3_file *file)
{
	return (sqlite3_file *)((struct wal_file *)file + 1);
}

/* SQLITE_FULL, SQLITE_IOERR_WRITE: as if this write had been the one that SQLite made first. */
static int flush(struct wal_file *f)
{
	sqlite3_file *below = real(&f->base);
	size_t n = f->n;

	f->n = 0; /* after an error, too: SQLite takes the whole transaction back */
	return n ? below->pMethods->xWrite(below, f->waiting, (int)n, f->offset) : SQLITE_OK;
}

static bool is_commit(const uint8_t *head)
{
	uint32_t pages;

	memcpy(&pages, head + COMMIT_AT, sizeof(pages));
	return pages != 0;
}

/*
 * Frames behind each other wait, the log's own head before the first of them.
 * What is written again where something was (a page that changed once more in a
 * long transaction, and the checksums behind it) goes through.
 */
static bool can_wait(const struct wal_file *f, size_t len, sqlite3_int64 offset)
{
	return (offset >= f->end || offset == 0) && len <= ROOM;
}

static bool fits(const struct wal_file *f, size_t len, sqlite3_int64 offset)
{
	return f->n == 0 || (offset == f->offset + (sqlite3_int64)f->n && f->n + len <= ROOM);
}

static int file_write(sqlite3_file *file, const void *bytes, int len, sqlite3_int64 offset)
{
	struct wal_file *f = (struct wal_file *)file;
	bool is_last = f->commits, waits = can_wait(f, (size_t)len, offset);
	int code = SQLITE_OK;

	f->commits = len == FRAME_HEAD && is_commit(bytes);
	if (!waits || !fits(f, (size_t)len, offset))
		code = flush(f);
	if (code != SQLITE_OK)
		return code;
	if (!waits)
		return real(file)->pMethods->xWrite(real(file), bytes, len, offset);
	if (f->n == 0)
		f->offset = offset;
	memcpy(f->waiting + f->n, bytes, (size_t)len);
	f->n += (size_t)len;
	f->end = offset + len;
	return is_last ? flush(f) : SQLITE_OK;
}

static int file_close(sqlite3_file *file)
{
	struct wal_file *f = (struct wal_file *)file;
	int code = flush(f);
	int closed = real(file)->pMethods->xClose(real(file));

	free(f->waiting);
	return code != SQLITE_OK ? code : closed;
}

static int file_read(sqlite3_file *file, void *buf, int len, sqlite3_int64 offset)
{
	int code = flush((struct wal_file *)file);

	return code != SQLITE_OK ? code
				 : real(file)->pMethods->xRead(real(file), buf, len, offset);
}

static int file_truncate(sqlite3_file *file, sqlite3_int64 size)
{
	int code = flush((struct wal_file *)file);

	return code != SQLITE_OK ? code : real(file)->pMethods->xTruncate(real(file), size);
}

static int file_sync(sqlite3_file *file, int flags)
{
	int code = flush((struct wal_file *)file);

	return code != SQLITE_OK ? code : real(file)->pMethods->xSync(real(file), flags);
}

static int file_size(sqlite3_file *file, sqlite3_int64 *ret)
{
	int code = flush((struct wal_file *)file);

	return code != SQLITE_OK ? code : real(file)->pMethods->xFileSize(real(file), ret);
}

static int file_lock(sqlite3_file *file, int level)
{
	return real(file)->pMethods->xLock(real(file), level);
}

static int file_unlock(sqlite3_file *file, int level)
{
	return real(file)->pMethods->xUnlock(real(file), level);
}

static int file_check_reserved(sqlite3_file *file, int *ret)
{
	return real(file)->pMethods->xCheckReservedLock(real(file), ret);
}

static int file_control(sqlite3_file *file, int op, void *arg)
{
	return real(file)->pMethods->xFileControl(real(file), op, arg);
}

static int file_sector(sqlite3_file *file)
{
	return real(file)->pMethods->xSectorSize(real(file));
}

static int file_device(sqlite3_file *file)
{
	return real(file)->pMethods->xDeviceCharacteristics(real(file));
}

static const sqlite3_io_methods methods = {
	.iVersion = 1,
	.xClose = file_close,
	.xRead = file_read,
	.xWrite = file_write,
	.xTruncate = file_truncate,
	.xSync = file_sync,
	.xFileSize = file_size,
	.xLock = file_lock,
	.xUnlock = file_unlock,
	.xCheckReservedLock = file_check_reserved,
	.xFileControl = file_control,
	.xSectorSize = file_sector,
	.xDeviceCharacteristics = file_device,
};

static sqlite3_vfs *default_vfs;

static int open_file(sqlite3_vfs *vfs, const char *name, sqlite3_file *file, int flags,
	int *ret_flags)
{
	struct wal_file *f = (struct wal_file *)file;
	int code;

	(void)vfs;
	if (!(flags & SQLITE_OPEN_WAL))
		return default_vfs->xOpen(default_vfs, name, file, flags, ret_flags);
	*f = (struct wal_file){ .waiting = malloc(ROOM) };
	if (!f->waiting)
		return SQLITE_NOMEM;
	code = default_vfs->xOpen(default_vfs, name, real(file), flags, ret_flags);
	if (code == SQLITE_OK) {
		f->base.pMethods = &methods;
	} else {
		free(f->waiting);
		f->base.pMethods = NULL; /* SQLite calls no xClose */
	}
	return code;
}

static sqlite3_vfs wal_vfs;
static const char *vfs_name;

static void make_vfs(void)
{
	default_vfs = sqlite3_vfs_find(NULL);
	if (!default_vfs)
		return;
	wal_vfs = *default_vfs;
	wal_vfs.pNext = NULL;
	wal_vfs.zName = "weightfs";
	wal_vfs.szOsFile = default_vfs->szOsFile + (int)sizeof(struct wal_file);
	wal_vfs.xOpen = open_file;
	if (sqlite3_vfs_register(&wal_vfs, 0) == SQLITE_OK)
		vfs_name = wal_vfs.zName;
}

const char *wfs_wal_vfs(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, make_vfs);
	return vfs_name;
}
