/* The log that is written a transaction at a time holds what the default VFS's would. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
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

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_random_transactions, setup, teardown),
		cmocka_unit_test_setup_teardown(test_every_length, setup, teardown),
		cmocka_unit_test_setup_teardown(test_reader_beside, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
