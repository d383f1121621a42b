#include "lib/wal_file.h"

#include <errno.h>
#include <pthread.h>
#include <sqlite3.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

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

/* ---- after a sync that failed; the format is that of section 4 of the page above ---- */

#define LOG_HEAD 32
#define MAGIC 0x377f0682u /* its last bit: checksums are of big-endian words */

static uint32_t big(const uint8_t *p)
{
	return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static uint32_t little(const uint8_t *p)
{
	return (uint32_t)p[3] << 24 | (uint32_t)p[2] << 16 | (uint32_t)p[1] << 8 | p[0];
}

static void add_sum(uint32_t sum[2], const uint8_t *p, size_t len, bool is_big)
{
	for (size_t i = 0; i < len; i += 8) {
		sum[0] += (is_big ? big(p + i) : little(p + i)) + sum[1];
		sum[1] += (is_big ? big(p + i + 4) : little(p + i + 4)) + sum[0];
	}
}

/* Bytes from the start of the log that are whole frames with right checksums; how many frames. */
static size_t right_bytes(const uint8_t *log, size_t len, int *ret_frames)
{
	bool is_big = len >= LOG_HEAD && big(log) & 1;
	size_t page, at = LOG_HEAD;
	uint32_t sum[2] = { 0, 0 };

	*ret_frames = 0;
	if (len < LOG_HEAD || (big(log) & ~1u) != MAGIC)
		return 0;
	page = big(log + 8);
	add_sum(sum, log, 24, is_big);
	if (sum[0] != big(log + 24) || sum[1] != big(log + 28) || page < 512 || page > 65536 || page % 8)
		return 0;
	while (len - at >= FRAME_HEAD + page) {
		const uint8_t *head = log + at;

		add_sum(sum, head, 8, is_big);
		add_sum(sum, head + FRAME_HEAD, page, is_big);
		if (memcmp(head + 8, log + 16, 8) != 0 || sum[0] != big(head + 16) ||
			sum[1] != big(head + 20))
			break;
		at += FRAME_HEAD + page;
		++*ret_frames;
	}
	return at;
}

static int read_log(int fd, uint8_t *log, size_t len)
{
	for (size_t done = 0; done < len;) {
		ssize_t n = pread(fd, log + done, len - done, (off_t)done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -EIO;
		done += (size_t)n;
	}
	return 0;
}

static int write_log(int fd, const uint8_t *log, size_t len)
{
	for (size_t done = 0; done < len;) {
		ssize_t n = pwrite(fd, log + done, len - done, (off_t)done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -EIO;
		done += (size_t)n;
	}
	return fdatasync(fd) != 0 ? -errno : 0;
}

int wfs_wal_rewrite(int fd, int min_frames)
{
	WFS_AUTO_FREE uint8_t *log = NULL;
	struct stat st;
	int ret, frames;
	size_t len;

	if (fstat(fd, &st) != 0)
		return -errno;
	len = (size_t)st.st_size;
	log = malloc(len ? len : 1);
	ret = log ? read_log(fd, log, len) : -ENOMEM;
	if (ret)
		return ret;
	len = right_bytes(log, len, &frames);
	if (frames < min_frames)
		return -EIO;
	return frames ? write_log(fd, log, len) : 0;
}
