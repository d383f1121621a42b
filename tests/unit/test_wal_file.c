/* The log that is written a transaction at a time holds what the default VFS's would. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "lib/wal_file.h"
#include "tests/unit/support.h"

struct fixture {
	char *dir, *path, *wal;
	sqlite3 *db;
	uint64_t seed;
};

static void run(sqlite3 *db, const char *sql)
{
	char *why = NULL;

	if (sqlite3_exec(db, sql, NULL, NULL, &why) != SQLITE_OK)
		fail_msg("%s: %s", sql, why);
}

static int setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	f->dir = wfs_test_mkdir();
	f->path = wfs_test_path(f->dir, "db");
	f->wal = wfs_test_path(f->dir, "db-wal");
	f->seed = 1;
	assert_non_null(wfs_wal_vfs());
	assert_int_equal(sqlite3_open_v2(f->path, &f->db,
				 SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, wfs_wal_vfs()),
		SQLITE_OK);
	/* A cache of ten pages: long transactions spill, and change again what they spilled. */
	run(f->db, "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA cache_size = 10;"
		   "PRAGMA wal_autocheckpoint = 0; CREATE TABLE t (id INTEGER PRIMARY KEY, b BLOB)");
	*state = f;
	return 0;
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	sqlite3_close(f->db);
	wfs_test_rmdir(f->dir);
	free(f->dir);
	free(f->path);
	free(f->wal);
	free(f);
	return 0;
}

static uint64_t draw(struct fixture *f, uint64_t below)
{
	f->seed = f->seed * 6364136223846793005u + 1442695040888963407u;
	return (f->seed >> 33) % below;
}

static char *text_of(sqlite3 *db, const char *sql)
{
	sqlite3_stmt *stmt;
	char *text;

	assert_int_equal(sqlite3_prepare_v2(db, sql, -1, &stmt, NULL), SQLITE_OK);
	assert_int_equal(sqlite3_step(stmt), SQLITE_ROW);
	text = strdup((const char *)sqlite3_column_text(stmt, 0));
	sqlite3_finalize(stmt);
	return text;
}

#define SUM "SELECT count(*) || ' ' || coalesce(sum(id * length(b)), 0) || ' ' || " \
	    "coalesce(sum(unicode(hex(b)) * id), 0) FROM t"

static void copy_file(const char *from, const char *to)
{
	size_t len;
	void *bytes = wfs_test_read(from, &len);

	wfs_test_write(to, bytes, len);
	free(bytes);
}

/* What a process finds that opens the files as they are now, by the default VFS: after a kill -9. */
static void check_copy(struct fixture *f)
{
	char *path = wfs_test_path(f->dir, "copy"), *wal = wfs_test_path(f->dir, "copy-wal");
	char *here = text_of(f->db, SUM), *there, *verdict;
	sqlite3 *db;

	copy_file(f->path, path);
	copy_file(f->wal, wal);
	assert_int_equal(sqlite3_open_v2(path, &db, SQLITE_OPEN_READWRITE, NULL), SQLITE_OK);
	there = text_of(db, SUM);
	assert_string_equal(there, here);
	verdict = text_of(db, "PRAGMA integrity_check");
	assert_string_equal(verdict, "ok");
	sqlite3_close(db); /* and its log is gone */
	free(here);
	free(there);
	free(verdict);
	free(path);
	free(wal);
}

static void change(struct fixture *f)
{
	char sql[200];

	snprintf(sql, sizeof(sql),
		draw(f, 4) ? "INSERT OR REPLACE INTO t VALUES (%d, randomblob(%d))"
			   : "DELETE FROM t WHERE id BETWEEN %d AND %d",
		(int)draw(f, 400), (int)draw(f, 2) ? (int)draw(f, 9000) : (int)draw(f, 300));
	run(f->db, sql);
}

static void test_random_transactions(void **state)
{
	struct fixture *f = *state;

	for (unsigned round = 0; round < 300; round++) {
		/* Now and then longer than all that waits at once. */
		uint64_t changes = draw(f, 10) ? draw(f, 6) : draw(f, 200);

		run(f->db, "BEGIN IMMEDIATE");
		while (changes-- > 0)
			change(f);
		if (draw(f, 5) == 0) {
			run(f->db, "SAVEPOINT s");
			change(f);
			run(f->db, "ROLLBACK TO s; RELEASE s");
		}
		run(f->db, draw(f, 6) ? "COMMIT" : "ROLLBACK");
		check_copy(f);
		if (draw(f, 15) == 0)
			run(f->db, draw(f, 2) ? "PRAGMA wal_checkpoint(PASSIVE)"
					      : "PRAGMA wal_checkpoint(TRUNCATE)");
	}
}

/* Sizes around the number of bytes that wait together, in pages of one transaction. */
static void test_every_length(void **state)
{
	struct fixture *f = *state;
	char sql[200];

	run(f->db, "PRAGMA cache_size = 1000");
	for (int pages = 1; pages < 72; pages++) {
		snprintf(sql, sizeof(sql), "INSERT OR REPLACE INTO t VALUES (1, randomblob(%d))",
			pages * 4080);
		run(f->db, sql);
		check_copy(f);
	}
}

/* A reader that came before the commit sees the state before, one that came after it the state after. */
static void test_reader_beside(void **state)
{
	struct fixture *f = *state;
	sqlite3 *reader;
	char *n;

	assert_int_equal(sqlite3_open_v2(f->path, &reader, SQLITE_OPEN_READONLY, NULL), SQLITE_OK);
	run(f->db, "INSERT INTO t VALUES (1, x'00')");
	run(reader, "BEGIN; SELECT * FROM t");
	run(f->db, "INSERT INTO t VALUES (2, randomblob(300000))");
	n = text_of(reader, "SELECT count(*) FROM t");
	assert_string_equal(n, "1");
	free(n);
	run(reader, "COMMIT");
	n = text_of(reader, "SELECT count(*) || ' ' || sum(length(b)) FROM t");
	assert_string_equal(n, "2 300001");
	free(n);
	sqlite3_close(reader);
}

/* ---- the file below ---- */

/*
 * A log by this VFS or by the default one; NULL: it cannot be opened. To be closed by close_log.
 * What stands before the "-" is the database, which there must be.
 */
static sqlite3_file *open_log(const char *vfs_name, const char *path)
{
	sqlite3_vfs *vfs = sqlite3_vfs_find(vfs_name);
	sqlite3_file *file = calloc(1, (size_t)vfs->szOsFile);
	int flags = SQLITE_OPEN_WAL | SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE;

	if (vfs->xOpen(vfs, path, file, flags, NULL) == SQLITE_OK)
		return file;
	assert_null(file->pMethods); /* or SQLite would close it */
	free(file);
	return NULL;
}

static int close_log(sqlite3_file *file)
{
	int code = file->pMethods->xClose(file);

	free(file);
	return code;
}

/* What it is asked for is what the default VFS says. */
static void test_asked(void **state)
{
	struct fixture *f = *state;
	char *path = wfs_test_path(f->dir, "db-asked");
	sqlite3_file *ours = open_log(wfs_wal_vfs(), path), *theirs = open_log(NULL, path);
	sqlite3_int64 size = -1;
	int reserved = -1, hint = 4096;

	assert_int_equal(ours->pMethods->xSectorSize(ours), theirs->pMethods->xSectorSize(theirs));
	assert_int_equal(ours->pMethods->xDeviceCharacteristics(ours),
		theirs->pMethods->xDeviceCharacteristics(theirs));
	assert_int_equal(ours->pMethods->xFileControl(ours, SQLITE_FCNTL_CHUNK_SIZE, &hint), SQLITE_OK);
	assert_int_equal(ours->pMethods->xFileControl(ours, 12345, &hint), SQLITE_NOTFOUND);
	assert_int_equal(ours->pMethods->xLock(ours, SQLITE_LOCK_SHARED), SQLITE_OK);
	assert_int_equal(ours->pMethods->xCheckReservedLock(ours, &reserved), SQLITE_OK);
	assert_int_equal(reserved, 0);
	assert_int_equal(ours->pMethods->xUnlock(ours, SQLITE_LOCK_NONE), SQLITE_OK);
	/* What waits is counted, by who asks how long it is. */
	assert_int_equal(ours->pMethods->xWrite(ours, "0123456789", 10, 0), SQLITE_OK);
	assert_int_equal(theirs->pMethods->xFileSize(theirs, &size), SQLITE_OK);
	assert_int_equal(size, 0);
	assert_int_equal(ours->pMethods->xFileSize(ours, &size), SQLITE_OK);
	assert_int_equal(size, 10);
	assert_int_equal(close_log(theirs), SQLITE_OK);
	assert_int_equal(close_log(ours), SQLITE_OK);
	free(path);
}

static ssize_t write_nothing(int fd, const void *buf, size_t len, off_t offset)
{
	(void)fd;
	(void)buf;
	(void)len;
	(void)offset;
	errno = ENOSPC;
	return -1;
}

/* The disk is full, or is not any more: SQLite has a way to say so, for its own tests. */
static void set_full(bool is_full)
{
	static const char *const calls[] = {"write", "pwrite", "pwrite64"};
	sqlite3_vfs *vfs = sqlite3_vfs_find("unix");

	for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]); i++)
		vfs->xSetSystemCall(vfs, calls[i],
			is_full ? (sqlite3_syscall_ptr)write_nothing : NULL);
}

/* What waited cannot be written: whoever comes next is told, whatever it wants, and it is gone. */
static void test_full(void **state)
{
	struct fixture *f = *state;
	char *path = wfs_test_path(f->dir, "db-full"), buf[10];
	sqlite3_int64 size;
	sqlite3_file *log;

	log = open_log(wfs_wal_vfs(), path);
	assert_non_null(log);
	set_full(true);
	for (int what = 0; what < 6; what++) {
		sqlite3_int64 at = 1000 * what;
		int code = log->pMethods->xWrite(log, "0123456789", 10, at);

		assert_int_equal(code, SQLITE_OK);
		if (what == 0)
			code = log->pMethods->xRead(log, buf, 10, 0);
		else if (what == 1)
			code = log->pMethods->xTruncate(log, 0);
		else if (what == 2)
			code = log->pMethods->xSync(log, SQLITE_SYNC_NORMAL);
		else if (what == 3)
			code = log->pMethods->xFileSize(log, &size);
		else if (what == 4)
			code = log->pMethods->xWrite(log, "0", 1, at + 500); /* not behind it */
		else
			code = close_log(log);
		if (code != SQLITE_FULL)
			set_full(false);
		assert_int_equal(code, SQLITE_FULL);
	}
	set_full(false);
	free(path);
	path = wfs_test_path(f->dir, "no/db-wal");
	assert_null(open_log(wfs_wal_vfs(), path));
	free(path);
}

/* ---- written again ---- */

#define FRAME (24 + 4096)

static uint32_t word(const uint8_t *p, bool is_big)
{
	return is_big ? (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3]
		      : (uint32_t)p[3] << 24 | (uint32_t)p[2] << 16 | (uint32_t)p[1] << 8 | p[0];
}

static void put_big(uint8_t *p, uint32_t x)
{
	for (int i = 0; i < 4; i++)
		p[i] = (uint8_t)(x >> (24 - 8 * i));
}

static void sum(uint32_t s[2], const uint8_t *p, size_t len, bool is_big)
{
	for (size_t i = 0; i < len; i += 8) {
		s[0] += word(p + i, is_big) + s[1];
		s[1] += word(p + i + 4, is_big) + s[0];
	}
}

/* The checksums that the log must have, by section 4 of the format. */
static void add_sums(uint8_t *log, size_t len, bool is_big)
{
	uint32_t s[2] = {0, 0};

	put_big(log, 0x377f0682u | (is_big ? 1 : 0));
	sum(s, log, 24, is_big);
	put_big(log + 24, s[0]);
	put_big(log + 28, s[1]);
	for (size_t at = 32; at + FRAME <= len; at += FRAME) {
		sum(s, log + at, 8, is_big);
		sum(s, log + at + 24, 4096, is_big);
		put_big(log + at + 16, s[0]);
		put_big(log + at + 20, s[1]);
	}
}

/* A log of `n` frames or more, of SQLite's; the caller frees it. */
static uint8_t *make_log(struct fixture *f, size_t n, size_t *ret_len)
{
	uint8_t *log;

	for (size_t i = 0; i < n; i++)
		run(f->db, "INSERT INTO t VALUES (NULL, randomblob(3000))");
	log = wfs_test_read(f->wal, ret_len);
	assert_true(*ret_len >= 32 + n * FRAME);
	return log;
}

/* How many frames of these bytes can be written again, at most; they stay as they are. */
static int rewritten(struct fixture *f, const uint8_t *log, size_t len)
{
	char *path = wfs_test_path(f->dir, "again");
	int fd, most = (int)(len / FRAME) + 1;
	uint8_t *after;
	size_t after_len;

	wfs_test_write(path, log, len);
	fd = open(path, O_RDWR | O_CLOEXEC);
	while (most > 0) {
		int ret = wfs_wal_rewrite(fd, most);

		if (ret == 0)
			break;
		assert_int_equal(ret, -EIO);
		most--;
	}
	assert_int_equal(wfs_wal_rewrite(fd, 0), 0);
	close(fd);
	after = wfs_test_read(path, &after_len);
	assert_int_equal(after_len, len);
	assert_memory_equal(after, log, len);
	free(after);
	free(path);
	return most;
}

static void test_rewrite(void **state)
{
	struct fixture *f = *state;
	size_t len;
	uint8_t *log = make_log(f, 5, &len);
	int n = (int)((len - 32) / FRAME);

	assert_int_equal(rewritten(f, log, len), n);
	assert_int_equal(rewritten(f, log, len - 1), n - 1); /* cut */
	assert_int_equal(rewritten(f, log, 31), 0);
	assert_int_equal(rewritten(f, log, 0), 0);
	for (int i = 0; i < n; i++) {
		static const size_t at[] = {0, 5, 8, 15, 16, 20, 24, 24 + 4095};

		for (size_t k = 0; k < sizeof(at) / sizeof(at[0]); k++) {
			size_t byte = 32 + (size_t)i * FRAME + at[k];

			log[byte] ^= 1;
			assert_int_equal(rewritten(f, log, len), i);
			log[byte] ^= 1;
		}
	}
	for (size_t byte = 0; byte < 32; byte++) {
		log[byte] ^= 0x10;
		assert_int_equal(rewritten(f, log, len), 0);
		log[byte] ^= 0x10;
	}
	free(log);
}

/* By machines of either order; and what says of itself that it is right, and cannot be. */
static void test_rewrite_orders(void **state)
{
	static const uint32_t pages[] = {0, 256, 131072, 4100};
	struct fixture *f = *state;
	size_t len;
	uint8_t *log = make_log(f, 3, &len);
	int n = (int)((len - 32) / FRAME);

	add_sums(log, len, false);
	assert_int_equal(rewritten(f, log, len), n);
	add_sums(log, len, true);
	assert_int_equal(rewritten(f, log, len), n);
	log[3] ^= 1; /* of the other order than its sums */
	assert_int_equal(rewritten(f, log, len), 0);
	for (size_t i = 0; i < sizeof(pages) / sizeof(pages[0]); i++) {
		put_big(log + 8, pages[i]);
		add_sums(log, len, true);
		assert_int_equal(rewritten(f, log, len), 0);
	}
	free(log);
}

static void test_rewrite_fails(void **state)
{
	struct fixture *f = *state;
	size_t len;
	uint8_t *log = make_log(f, 3, &len);
	int fd = open(f->wal, O_RDONLY | O_CLOEXEC);

	assert_int_equal(wfs_wal_rewrite(-1, 0), -EBADF);
	assert_int_equal(wfs_wal_rewrite(fd, 1), -EBADF);
	close(fd);
	free(log);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_random_transactions, setup, teardown),
		cmocka_unit_test_setup_teardown(test_every_length, setup, teardown),
		cmocka_unit_test_setup_teardown(test_reader_beside, setup, teardown),
		cmocka_unit_test_setup_teardown(test_asked, setup, teardown),
		cmocka_unit_test_setup_teardown(test_full, setup, teardown),
		cmocka_unit_test_setup_teardown(test_rewrite, setup, teardown),
		cmocka_unit_test_setup_teardown(test_rewrite_orders, setup, teardown),
		cmocka_unit_test_setup_teardown(test_rewrite_fails, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
