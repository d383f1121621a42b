/* Opening a store: made, refused, locked, migrated, brought back after a crash. */
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "tests/unit/store_fixture.h"
#include "lib/db.h"

static int try_open(const char *path, enum wfs_store_mode mode, bool create, const char **ret_reason)
{
	struct wfs_store_options options = { .mode = mode, .create = create };
	struct wfs_err err = WFS_ERR_INIT;
	struct wfs_store *store;
	int ret = wfs_store_open(path, &options, &store, &err);

	*ret_reason = err.reason;
	if (ret == 0)
		wfs_store_close(store);
	else
		assert_true(err.text[0] != '\0');
	return ret;
}

static void sql(const char *store, const char *text)
{
	char *path = wfs_test_path(store, "weightfs.db");
	sqlite3 *db;

	assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
	assert_int_equal(sqlite3_exec(db, text, NULL, NULL, NULL), SQLITE_OK);
	sqlite3_close(db);
	free(path);
}

static void test_missing(void **state)
{
	struct fixture *f = *state;
	char *path = wfs_test_path(f->dir, "nowhere");
	const char *reason;

	assert_int_equal(try_open(path, WFS_STORE_READ, false, &reason), -ENOENT);
	assert_string_equal(reason, "store-missing");
	assert_int_equal(try_open(path, WFS_STORE_WRITE, false, &reason), -ENOENT);
	assert_int_equal(access(path, F_OK), -1);
	free(path);
}

static void test_not_a_store(void **state)
{
	struct fixture *f = *state;
	char *dir = wfs_test_path(f->dir, "full");
	char *file = wfs_test_path(dir, "letter");
	const char *reason;

	assert_int_equal(mkdir(dir, 0700), 0);
	wfs_test_write(file, "dear", 4);
	assert_int_equal(try_open(dir, WFS_STORE_WRITE, true, &reason), -ENOTEMPTY);
	assert_string_equal(reason, "not-a-store");
	assert_int_equal(try_open(dir, WFS_STORE_READ, false, &reason), -ENOTEMPTY);
	assert_int_equal(try_open(file, WFS_STORE_WRITE, true, &reason), -ENOTDIR);
	assert_string_equal(reason, "not-a-directory");
	free(file);
	free(dir);
}

static void test_other_database(void **state)
{
	struct fixture *f = *state;
	char *dir = wfs_test_path(f->dir, "other");
	char *file = wfs_test_path(dir, "weightfs.db");
	const char *reason;

	assert_int_equal(mkdir(dir, 0700), 0);
	sql(dir, "CREATE TABLE t (x)");
	assert_int_equal(try_open(dir, WFS_STORE_WRITE, true, &reason), -EINVAL);
	assert_string_equal(reason, "not-a-store");
	wfs_test_write(file, "this is no database, and long enough to be looked at", 52);
	assert_int_equal(try_open(dir, WFS_STORE_WRITE, true, &reason), -EINVAL);
	assert_string_equal(reason, "not-a-store");
	free(file);
	free(dir);
}

static void test_version(void **state)
{
	struct fixture *f = *state;
	const char *reason;

	assert_int_equal(wfs_store_close(f->store), 0);
	f->store = NULL;
	sql(f->path, "PRAGMA user_version = 99");
	assert_int_equal(try_open(f->path, WFS_STORE_WRITE, true, &reason), -EPROTONOSUPPORT);
	assert_string_equal(reason, "store-version");
	assert_int_equal(try_open(f->path, WFS_STORE_READ, false, &reason), -EPROTONOSUPPORT);
	sql(f->path, "PRAGMA user_version = 0");
	assert_int_equal(try_open(f->path, WFS_STORE_WRITE, true, &reason), -EPROTONOSUPPORT);
	sql(f->path, "PRAGMA user_version = 5");
	assert_int_equal(try_open(f->path, WFS_STORE_WRITE, true, &reason), 0);
}

static void test_migration(void **state)
{
	static const struct wfs_db_migration steps[] = {
		{ 3, "INSERT INTO t VALUES ('three')" },
		{ 2, "CREATE TABLE t (x)" },
		{ 4, "INSERT INTO t VALUES ('four'); INSERT INTO no_such_table VALUES (1)" },
	};
	struct wfs_err err = WFS_ERR_INIT;
	sqlite3_stmt *stmt;
	sqlite3 *db;

	(void)state;
	assert_int_equal(sqlite3_open(":memory:", &db), SQLITE_OK);
	assert_int_equal(wfs_db_migrate(db, 1, 3, steps, 3, &err), 0);
	/* The step to 4 fails in its middle: nothing of it stays. */
	assert_true(wfs_db_migrate(db, 3, 4, steps, 3, &err) < 0);
	assert_string_equal(err.reason, "store-migration");
	sqlite3_prepare_v2(db, "SELECT count(*), max(x), (SELECT user_version FROM "
		"pragma_user_version) FROM t", -1, &stmt, NULL);
	assert_int_equal(sqlite3_step(stmt), SQLITE_ROW);
	assert_int_equal(sqlite3_column_int(stmt, 0), 1);
	assert_string_equal((const char *)sqlite3_column_text(stmt, 1), "three");
	assert_int_equal(sqlite3_column_int(stmt, 2), 3);
	sqlite3_finalize(stmt);
	/* No step leads on. */
	wfs_err_clear(&err);
	assert_int_equal(wfs_db_migrate(db, 3, 9, steps, 2, &err), -EPROTONOSUPPORT);
	assert_string_equal(err.reason, "store-version");
	sqlite3_close(db);
}

/* A store of format 1, as the first version made it, with one sealed file. */
static void make_store_1(const char *path)
{
	char *data = wfs_test_path(path, "data");
	char *schema;
	size_t len;

	assert_int_equal(mkdir(path, 0700), 0);
	assert_int_equal(mkdir(data, 0700), 0);
	schema = wfs_test_read("tests/unit/schema-1.sql", &len);
	schema[len] = '\0';
	sql(path, "PRAGMA auto_vacuum = INCREMENTAL");
	sql(path, schema);
	sql(path, "PRAGMA application_id = 0x57744653; PRAGMA user_version = 1;"
		"INSERT INTO meta VALUES ('clean', 1), ('created_ns', 1);"
		"INSERT INTO object VALUES (1, x'95f64cad147d23ee983871c230125b12', 0, 5, 1, NULL, NULL);"
		"INSERT INTO object_bytes VALUES (1, CAST('bytes' AS BLOB));"
		"INSERT INTO manifest VALUES (1, NULL, 5, 1, 1);"
		"INSERT INTO manifest_object VALUES (1, 0, 1);"
		"INSERT INTO inode (ino, mode, uid, gid, nlink, size, atime_ns, mtime_ns, ctime_ns,"
		" btime_ns, manifest) VALUES (1, 16877, 0, 0, 2, 0, 1, 1, 1, 1, NULL),"
		" (2, 33188, 0, 0, 1, 5, 1, 1, 1, 1, 1);"
		"INSERT INTO dirent (parent, name, ino) VALUES (1, CAST('old' AS BLOB), 2)");
	free(schema);
	free(data);
}

/* A store of the format before: brought forward by the first mount; who only looks says so. */
static void test_migration_from_1(void **state)
{
	struct fixture *f = *state;
	const char *reason;
	struct wfs_attr a;

	assert_int_equal(wfs_store_close(f->store), 0);
	free(f->path);
	f->path = wfs_test_path(f->dir, "first");
	make_store_1(f->path);
	assert_int_equal(try_open(f->path, WFS_STORE_READ, false, &reason), -EPROTONOSUPPORT);
	assert_string_equal(reason, "store-version");
	f->store = open_store(f->path, 0);
	assert_int_equal(wfs_name_lookup(f->store, WFS_ROOT_INO, "old", &a), 0);
	check_bytes(f, a.ino, "bytes", 5);
	write_at(f, a.ino, "B", 1, 0);
	seal(f, a.ino);
	check_bytes(f, a.ino, "Bytes", 5);
	assert_int_equal(wfs_store_close(f->store), 0);
	f->store = NULL;
	assert_int_equal(try_open(f->path, WFS_STORE_READ, false, &reason), 0);
}

/* Of these manifests one lies in one data file, in order and from its start. */
static void test_migration_finds_what_is_solid(void **state)
{
	struct fixture *f = *state;
	WFS_AUTO_FREE char *path = wfs_test_path(f->dir, "first");
	WFS_AUTO_FREE char *file = wfs_test_path(path, "weightfs.db");
	sqlite3_stmt *stmt;
	sqlite3 *db;

	make_store_1(path);
	sql(path,
		"INSERT INTO data_file (id, state) VALUES (1, 1), (2, 1);"
		"INSERT INTO object VALUES (2, zeroblob(16), 0, 7, 2, 1, 0),"
		" (3, zeroblob(16), 1, 9, 2, 1, 7), (4, zeroblob(16), 2, 9, 2, 2, 16);"
		"INSERT INTO manifest VALUES (2, x'02', 16, 2, 1),"
		" (3, x'03', 16, 2, 1), (4, x'04', 25, 3, 1), (5, x'05', 21, 2, 1), (6, NULL, 16, 2, 0);"
		"INSERT INTO manifest_object VALUES (2, 0, 2), (2, 1, 3), (3, 0, 3), (3, 1, 2),"
		" (4, 0, 2), (4, 1, 3), (4, 2, 4), (5, 0, 4), (5, 1, 1), (6, 0, 2), (6, 1, 3);");
	assert_int_equal(wfs_store_close(open_store(path, 0)), 0);
	assert_int_equal(sqlite3_open(file, &db), SQLITE_OK);
	sqlite3_prepare_v2(db, "SELECT group_concat(id) FROM manifest WHERE solid = 1", -1, &stmt,
		NULL);
	assert_int_equal(sqlite3_step(stmt), SQLITE_ROW);
	assert_string_equal((const char *)sqlite3_column_text(stmt, 0), "2");
	sqlite3_finalize(stmt);
	sqlite3_close(db);
}

/* flock is the open file's, not the process's: one process will do. */
static void test_locked(void **state)
{
	struct fixture *f = *state;
	const char *reason;
	int pid;

	assert_true(wfs_store_is_locked(f->path, &pid));
	assert_int_equal(pid, getpid());
	assert_int_equal(try_open(f->path, WFS_STORE_WRITE, true, &reason), -EBUSY);
	assert_string_equal(reason, "store-locked");
	/* Who only looks needs no lock. */
	assert_int_equal(try_open(f->path, WFS_STORE_READ, false, &reason), 0);
	assert_int_equal(wfs_store_close(f->store), 0);
	f->store = NULL;
	assert_false(wfs_store_is_locked(f->path, &pid));
}

/* A process that dies with dirty files, an orphan and half a copy. */
static void crash_in_child(struct fixture *f, void (*work)(struct fixture *f))
{
	pid_t pid;
	int status;

	assert_int_equal(wfs_store_close(f->store), 0);
	f->store = NULL;
	pid = fork();
	if (pid == 0) {
		f->store = open_store(f->path, 0);
		work(f);
		kill(getpid(), SIGKILL); /* without closing the store */
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
	f->store = open_store(f->path, 0);
}

static void leave_things(struct fixture *f)
{
	uint64_t ino = make(f, WFS_ROOT_INO, "dirty", S_IFREG | 0600);
	bool gone;

	write_at(f, ino, "half a thought", 14, 0);
	make(f, WFS_ROOT_INO, "orphan", S_IFREG | 0600);
	if (wfs_name_unlink(f->store, WFS_ROOT_INO, "orphan", &ino, &gone) != 0)
		_exit(1);
	put(f, "sealed", "whole", 5);
}

static void test_crash(void **state)
{
	struct fixture *f = *state;
	struct wfs_attr a;

	crash_in_child(f, leave_things);
	assert_int_equal(wfs_name_lookup(f->store, WFS_ROOT_INO, "dirty", &a), 0);
	assert_int_equal(a.size, 14);
	assert_true(a.data_file != 0);
	check_bytes(f, a.ino, "half a thought", 14);
	seal(f, a.ino);
	check_bytes(f, a.ino, "half a thought", 14);
	assert_int_equal(wfs_name_lookup(f->store, WFS_ROOT_INO, "sealed", &a), 0);
	check_bytes(f, a.ino, "whole", 5);
	assert_int_equal(stats(f).files, 2);
}

static void lose_staging(struct fixture *f)
{
	uint64_t ino = make(f, WFS_ROOT_INO, "lost", S_IFREG | 0600);
	struct wfs_attr a;
	char *path;

	write_at(f, ino, "bytes", 5, 0);
	if (wfs_name_getattr(f->store, ino, &a) != 0)
		_exit(1);
	path = wfs_test_path(f->path, "data/%02x/%016llx", (unsigned)(a.data_file & 0xff),
		(unsigned long long)a.data_file);
	if (unlink(path) != 0)
		_exit(1);
}

/* Bytes that are gone are named, and never read as something else. */
static void test_damaged(void **state)
{
	struct fixture *f = *state;
	struct wfs_file *file;
	struct wfs_attr a;
	uint64_t ino;
	bool gone;

	crash_in_child(f, lose_staging);
	assert_int_equal(stats(f).damaged, 1);
	assert_int_equal(wfs_name_lookup(f->store, WFS_ROOT_INO, "lost", &a), 0);
	assert_int_equal(a.verdict, WFS_VERDICT_DAMAGED);
	assert_int_equal(wfs_file_get(f->store, a.ino, &file), -EIO);
	assert_int_equal(wfs_name_unlink(f->store, WFS_ROOT_INO, "lost", &ino, &gone), 0);
	assert_int_equal(wfs_name_drop(f->store, &ino, 1), 0);
}

static void make_stray(struct fixture *f)
{
	uint64_t ino = make(f, WFS_ROOT_INO, "x", S_IFREG | 0600);
	struct wfs_attr a;
	char *path;

	if (wfs_name_getattr(f->store, ino, &a) != 0)
		_exit(1);
	/* As a crash between the making of a data file and the commit of its row. */
	path = wfs_test_path(f->path, "data/%02x", (unsigned)((a.data_file + 1) & 0xff));
	if (mkdir(path, 0700) != 0)
		_exit(1);
	free(path);
	path = wfs_test_path(f->path, "data/%02x/%016llx", (unsigned)((a.data_file + 1) & 0xff),
		(unsigned long long)a.data_file + 1);
	wfs_test_write(path, "left over", 9);
}

static void test_uncommitted_data_file(void **state)
{
	struct fixture *f = *state;
	struct wfs_attr a;

	crash_in_child(f, make_stray);
	assert_int_equal(wfs_name_lookup(f->store, WFS_ROOT_INO, "x", &a), 0);
	seal(f, a.ino);
	/* tear_down's fsck finds a stray if there is one. */
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_missing, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_not_a_store, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_other_database, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_version, set_up, tear_down),
		cmocka_unit_test(test_migration),
		cmocka_unit_test_setup_teardown(test_migration_from_1, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_migration_finds_what_is_solid, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_locked, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_crash, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_damaged, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_uncommitted_data_file, set_up, tear_down),
	};

	return cmocka_run_group_tests_name("store", tests, NULL, NULL);
}
