/*
 * fsck_store.h - a small sound store made by hand, from lib/schema.sql and rows of SQL: the
 * check that is tested must not depend on the code that makes stores otherwise. Included by
 * test_fsck.c alone.
 */
#ifndef WFS_TESTS_FSCK_STORE_H
#define WFS_TESTS_FSCK_STORE_H

#include <errno.h>
#include <setjmp.h>
#include <sqlite3.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "lib/digest.h"
#include "tests/unit/support.h"

#define FIRST_LENGTH 100
#define SECOND_LENGTH 1048581 /* more than is read at a time */

/* Bytes that depend on the length and the seed alone. */
static void fill(uint8_t *buf, size_t len, unsigned seed)
{
	uint32_t x = seed * 2654435761u + 1;

	for (size_t i = 0; i < len; i++) {
		x = x * 1664525u + 1013904223u;
		buf[i] = (uint8_t)(x >> 24);
	}
}

/* content(LENGTH, SEED) in SQL */
static void sql_content(sqlite3_context *ctx, int argc, sqlite3_value **argv)
{
	int len = sqlite3_value_int(argv[0]);
	uint8_t *buf = sqlite3_malloc(len);

	(void)argc;
	fill(buf, (size_t)len, (unsigned)sqlite3_value_int(argv[1]));
	sqlite3_result_blob(ctx, buf, len, sqlite3_free);
}

/* xxh3(BLOB) in SQL */
static void sql_xxh3(sqlite3_context *ctx, int argc, sqlite3_value **argv)
{
	struct wfs_digest d = wfs_digest_of(sqlite3_value_blob(argv[0]),
		(size_t)sqlite3_value_bytes(argv[0]), 128);

	(void)argc;
	sqlite3_result_blob(ctx, d.bytes, sizeof(d.bytes), SQLITE_TRANSIENT);
}

static sqlite3 *open_db(const char *store)
{
	WFS_AUTO_FREE char *path = wfs_test_path(store, "weightfs.db");
	sqlite3 *db;

	assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
	sqlite3_create_function(db, "content", 2, SQLITE_UTF8, NULL, sql_content, NULL, NULL);
	sqlite3_create_function(db, "xxh3", 1, SQLITE_UTF8, NULL, sql_xxh3, NULL, NULL);
	sqlite3_exec(db, "PRAGMA synchronous = OFF; PRAGMA ignore_check_constraints = ON", NULL,
		NULL, NULL);
	return db;
}

static void run_sql(const char *store, const char *sql)
{
	sqlite3 *db = open_db(store);
	char *message = NULL;

	if (sqlite3_exec(db, sql, NULL, NULL, &message) != SQLITE_OK)
		fail_msg("%s: %s", sql, message);
	sqlite3_close(db);
}

static const char rows[] =
	"INSERT INTO meta VALUES ('clean', 1), ('created_ns', 1);"
	"INSERT INTO data_file (id, state) VALUES (1, 1), (2, 0), (5, 1);"
	"INSERT INTO object (id, digest, ordinal, length, refs, data_file, offset) VALUES"
	" (1, xxh3(content(100, 1)), 0, 100, 1, 1, 0),"
	" (2, xxh3(content(1048581, 2)), 0, 1048581, 1, 1, 100),"
	" (3, xxh3(content(10, 3)), 0, 10, 3, NULL, NULL);"
	"INSERT INTO object_bytes VALUES (3, content(10, 3));"
	"INSERT INTO manifest (id, digest, size, objects, refs) VALUES"
	" (1, xxh3(x'01000000000000000200000000000000'), 1048681, 2, 1),"
	" (2, xxh3(x'0300000000000000'), 10, 1, 2),"
	" (3, xxh3(x'03000000000000000300000000000000'), 20, 2, 1);"
	"UPDATE manifest SET solid = 1 WHERE id = 1;"
	"UPDATE manifest SET whole = 5, shared = 7 WHERE id = 3;"
	"INSERT INTO manifest_object VALUES (1, 0, 1), (1, 1, 2), (2, 0, 3), (3, 0, 3), (3, 1, 3);"
	"INSERT INTO inode (ino, mode, uid, gid, nlink, size, atime_ns, mtime_ns, ctime_ns,"
	" btime_ns, target, manifest, data_file, verdict, reason) VALUES"
	" (1, 16877, 0, 0, 3, 0, 1, 1, 1, 1, NULL, NULL, NULL, 0, NULL),"
	" (2, 16877, 0, 0, 3, 0, 1, 1, 1, 1, NULL, NULL, NULL, 0, NULL),"
	" (3, 33188, 9, 9, 2, 1048681, 1, 1, 1, 1, NULL, 1, NULL, 1, 'warning'),"
	" (4, 33188, 9, 9, 1, 10, 1, 1, 1, 1, NULL, 2, NULL, 4, 'data-long'),"
	" (5, 41471, 9, 9, 1, 5, 1, 1, 1, 1, CAST('a/big' AS BLOB), NULL, NULL, 0, NULL),"
	" (6, 33188, 9, 9, 1, 0, 1, 1, 1, 1, NULL, NULL, 2, 0, NULL),"
	" (7, 33188, 9, 9, 1, 0, -1, 1, 1, 1, NULL, NULL, NULL, 2, NULL),"
	" (8, 4516, 9, 9, 1, 0, 1, 1, 1, 1, NULL, NULL, NULL, 0, NULL),"
	" (9, 33188, 9, 9, 1, 20, 1, 1, 1, 1, NULL, 3, NULL, 0, NULL),"
	" (10, 16877, 9, 9, 2, 0, 1, 1, 1, 1, NULL, NULL, NULL, 0, NULL),"
	" (11, 33188, 9, 9, 1, 10, 1, 1, 1, 1, NULL, 2, NULL, 0, NULL);"
	"INSERT INTO dirent (parent, name, ino) VALUES (1, CAST('a' AS BLOB), 2),"
	" (2, CAST('big' AS BLOB), 3), (1, CAST('hard' AS BLOB), 3),"
	" (1, CAST('small' AS BLOB), 4), (1, CAST('link' AS BLOB), 5),"
	" (1, CAST('dirty' AS BLOB), 6), (1, CAST('empty' AS BLOB), 7),"
	" (1, CAST('fifo' AS BLOB), 8), (1, CAST('twice' AS BLOB), 9),"
	" (2, CAST('deep' AS BLOB), 10), (10, x'ff0a22', 11);"
	"INSERT INTO xattr VALUES (3, CAST('user.x' AS BLOB), x'00ff'),"
	" (1, CAST('user.x' AS BLOB), x'');";

static void make_database(const char *store)
{
	const char *schema_path = getenv("WEIGHTFS_SCHEMA");
	WFS_AUTO_FREE char *schema = NULL;
	size_t len;

	schema = wfs_test_read(schema_path ? schema_path : "lib/schema.sql", &len);
	schema[len] = '\0';
	run_sql(store, "PRAGMA application_id = 0x57744653; PRAGMA user_version = 5");
	run_sql(store, schema);
	run_sql(store, rows);
}

static void make_data(const char *store)
{
	WFS_AUTO_FREE uint8_t *bytes = malloc(FIRST_LENGTH + SECOND_LENGTH);
	WFS_AUTO_FREE char *data = wfs_test_path(store, "data");
	WFS_AUTO_FREE char *one = wfs_test_path(store, "data/01");
	WFS_AUTO_FREE char *two = wfs_test_path(store, "data/02");
	WFS_AUTO_FREE char *pack = wfs_test_path(one, "%016x", 1);
	WFS_AUTO_FREE char *staging = wfs_test_path(two, "%016x", 2);
	WFS_AUTO_FREE char *five = wfs_test_path(store, "data/05");
	WFS_AUTO_FREE char *copy = wfs_test_path(five, "%016x", 5);
	WFS_AUTO_FREE char *lock = wfs_test_path(store, "lock");
	uint8_t twice[20];

	assert_non_null(bytes);
	fill(twice, 10, 3);
	fill(twice + 10, 10, 3);
	fill(bytes, FIRST_LENGTH, 1);
	fill(bytes + FIRST_LENGTH, SECOND_LENGTH, 2);
	mkdir(data, 0700);
	mkdir(one, 0700);
	mkdir(two, 0700);
	mkdir(five, 0700);
	wfs_test_write(pack, bytes, FIRST_LENGTH + SECOND_LENGTH);
	wfs_test_write(staging, "half a file", 11);
	wfs_test_write(copy, twice, sizeof(twice));
	wfs_test_write(lock, "", 0);
}

static char *make_store(void)
{
	char *store = wfs_test_mkdir();

	make_database(store);
	make_data(store);
	return store;
}

static void remove_store(char *store)
{
	wfs_test_rmdir(store);
	free(store);
}

#endif
