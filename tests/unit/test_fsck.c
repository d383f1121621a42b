/*
 * A small sound store is clean; each kind of damage to it is found under its own name
 * and no other; nothing in a database makes the check crash.
 */
#include "lib/fsck.h"

#include <errno.h>
#include <setjmp.h>
#include <sqlite3.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <fcntl.h>

#include <cmocka.h>

#include "lib/digest.h"
#include "tests/unit/fsck_store.h"
#include "tests/unit/support.h"

#define FUZZ_ROUNDS 400

/* ---- findings ---- */

struct seen {
	const char *kind; /* that is demanded; NULL: none may come */
	const char *also; /* kinds, each between spaces, that may come with it */
	const char *where; /* of one of the findings; NULL: anywhere */
	const char *text; /* part of the text of that one; NULL: any */
	unsigned wanted;  /* findings of `kind` (at `where`, with `text`) */
	unsigned other;   /* kinds that are neither */
	char unexpected[1200]; /* the last of those */
};

static bool is_in(const char *list, const char *kind)
{
	char between[64];

	snprintf(between, sizeof(between), " %s ", kind);
	return list && strstr(list, between);
}

static void see(void *ctx, const struct wfs_fsck_finding *f)
{
	struct seen *seen = ctx;

	assert_non_null(f->kind);
	assert_non_null(f->where);
	assert_non_null(f->text);
	if (seen->kind && strcmp(f->kind, seen->kind) == 0) {
		seen->wanted += (!seen->where || strcmp(f->where, seen->where) == 0) &&
				(!seen->text || strstr(f->text, seen->text));
		return;
	}
	if (is_in(seen->also, f->kind))
		return;
	seen->other++;
	snprintf(seen->unexpected, sizeof(seen->unexpected), "%s: %s: %s", f->kind, f->where,
		f->text);
}

static void demand(const char *store, struct seen seen)
{
	const struct wfs_fsck_options options = { .check_bytes = true };
	struct wfs_fsck_summary summary;
	struct wfs_err err = WFS_ERR_INIT;
	int ret = wfs_fsck(store, &options, see, &seen, &summary, &err);

	if (ret)
		fail_msg("fsck: %d %s", ret, err.text);
	if (seen.other)
		fail_msg("not only %s but %s", seen.kind ? seen.kind : "nothing", seen.unexpected);
	if (seen.kind && !seen.wanted)
		fail_msg("%s at %s was not found", seen.kind, seen.where ? seen.where : "any place");
	if (!seen.kind)
		assert_int_equal(summary.findings, 0);
}

static void demand_clean(const char *store)
{
	demand(store, (struct seen){ .kind = NULL });
}

/* ---- damage ---- */

struct damage {
	const char *name;
	const char *kind;
	const char *where;
	const char *sql;
	void (*act)(const char *store);
	const char *also;
	const char *text;
};

static void cut_pack(const char *store)
{
	WFS_AUTO_FREE char *path = wfs_test_path(store, "data/01/%016x", 1);

	assert_int_equal(truncate(path, FIRST_LENGTH + SECOND_LENGTH - 1), 0);
}

static void remove_file(const char *store, unsigned id)
{
	WFS_AUTO_FREE char *path = wfs_test_path(store, "data/%02x/%016x", id, id);

	assert_int_equal(unlink(path), 0);
}

static void remove_pack(const char *store)
{
	remove_file(store, 1);
}

static void remove_copy(const char *store)
{
	remove_file(store, 5);
}

static void cut_copy(const char *store)
{
	WFS_AUTO_FREE char *path = wfs_test_path(store, "data/05/%016x", 5);

	assert_int_equal(truncate(path, 19), 0);
}

static void flip_copy(const char *store)
{
	WFS_AUTO_FREE char *path = wfs_test_path(store, "data/05/%016x", 5);
	WFS_AUTO_CLOSE int fd = open(path, O_RDWR);
	uint8_t byte;

	assert_int_equal(pread(fd, &byte, 1, 15), 1);
	byte ^= 1;
	assert_int_equal(pwrite(fd, &byte, 1, 15), 1);
}

static void remove_staging(const char *store)
{
	remove_file(store, 2);
}

static void link_pack(const char *store)
{
	WFS_AUTO_FREE char *path = wfs_test_path(store, "data/01/%016x", 1);
	WFS_AUTO_FREE char *moved = wfs_test_path(store, "moved");

	assert_int_equal(rename(path, moved), 0);
	assert_int_equal(symlink("../../moved", path), 0);
}

static void flip_byte(const char *store)
{
	WFS_AUTO_FREE char *path = wfs_test_path(store, "data/01/%016x", 1);
	WFS_AUTO_CLOSE int fd = open(path, O_RDWR);
	uint8_t byte;

	assert_int_equal(pread(fd, &byte, 1, FIRST_LENGTH + SECOND_LENGTH - 1), 1);
	byte ^= 1;
	assert_int_equal(pwrite(fd, &byte, 1, FIRST_LENGTH + SECOND_LENGTH - 1), 1);
}

static void punch_first(const char *store)
{
	WFS_AUTO_FREE char *path = wfs_test_path(store, "data/01/%016x", 1);
	WFS_AUTO_CLOSE int fd = open(path, O_RDWR);
	static const uint8_t zeros[FIRST_LENGTH];

	assert_int_equal(pwrite(fd, zeros, sizeof(zeros), 0), sizeof(zeros));
}

static void put(const char *store, const char *name)
{
	WFS_AUTO_FREE char *path = wfs_test_path(store, "data/%s", name);

	wfs_test_write(path, "x", 1);
}

static void put_without_row(const char *store)
{
	put(store, "02/0000000000000102");
}

static void put_wrong_directory(const char *store)
{
	put(store, "02/0000000000000001");
}

static void put_upper_case(const char *store)
{
	put(store, "02/00000000000000A2");
}

static void put_beside(const char *store)
{
	put(store, "notes\n");
}

static void remove_data(const char *store)
{
	WFS_AUTO_FREE char *path = wfs_test_path(store, "data");
	WFS_AUTO_FREE char *moved = wfs_test_path(store, "moved");

	assert_int_equal(rename(path, moved), 0);
}

#define D(name, kind, where, sql) { name, kind, where, sql, NULL, NULL, NULL }
#define D_ALSO(name, kind, where, sql, also) { name, kind, where, sql, NULL, also, NULL }
#define D_TEXT(name, kind, where, sql, text) { name, kind, where, sql, NULL, NULL, text }
#define D_ACT(name, kind, where, act, also, text) { name, kind, where, "", act, also, text }

static const struct damage damages[] = {
	/* the database as such */
	D("two indexes on one page", "database", "weightfs.db",
		"PRAGMA writable_schema = ON; UPDATE sqlite_schema SET rootpage = (SELECT rootpage"
		" FROM sqlite_schema WHERE name = 'inode_dirty') WHERE name = 'data_file_work'"),
	D("index gone", "schema", "index dirent_by_ino", "DROP INDEX dirent_by_ino"),
	D("table gone", "schema", "table xattr", "DROP TABLE xattr"),
	D("column more", "schema", "table inode", "ALTER TABLE inode ADD COLUMN extra"),
	D("table is a view", "schema", "table meta",
		"ALTER TABLE meta RENAME TO sqlite3_meta; CREATE VIEW meta AS SELECT 'clean' AS key,"
		" 1 AS value"),
	D("trigger", "schema", "trigger t",
		"CREATE TRIGGER t AFTER INSERT ON meta BEGIN DELETE FROM inode; END"),
	D("table more", "schema", "table extra", "CREATE TABLE extra (x)"),
	/* references */
	D("object_bytes without object", "dangling-reference", "object_bytes 9",
		"INSERT INTO object_bytes VALUES (9, x'00')"),
	D_ALSO("object without data file", "dangling-reference", "object 2",
		"UPDATE object SET data_file = 77 WHERE id = 2", " object-digest manifest-solid "),
	D_ALSO("inode without manifest", "dangling-reference", "inode 3",
		"UPDATE inode SET manifest = 77 WHERE ino = 3", " manifest-refs "),
	D("inode without data file", "dangling-reference", "inode 7",
		"UPDATE inode SET data_file = 77 WHERE ino = 7"),
	D_ALSO("row without manifest", "dangling-reference", "manifest_object 77 0",
		"INSERT INTO manifest_object VALUES (77, 0, 1)", " object-refs "),
	D_ALSO("row without object", "dangling-reference", "manifest_object 1 1",
		"UPDATE manifest_object SET object = 77 WHERE manifest = 1 AND seq = 1",
		" object-refs manifest-digest "),
	D("xattr without inode", "dangling-reference", "xattr 77 user.x",
		"INSERT INTO xattr VALUES (77, CAST('user.x' AS BLOB), x'')"),
	/* objects */
	D("object refs too high", "object-refs", "object 1",
		"UPDATE object SET refs = 2 WHERE id = 1"),
	D("object refs too low", "object-refs", "object 3",
		"UPDATE object SET refs = 2 WHERE id = 3"),
	D("object without rows", "object-refs", "object 9",
		"INSERT INTO object VALUES (9, xxh3(x'00'), 0, 1, 1, NULL, NULL);"
		"INSERT INTO object_bytes VALUES (9, x'00')"),
	D("dead object", "object-dead", "object 9",
		"INSERT INTO object VALUES (9, xxh3(x'00'), 0, 1, 0, NULL, NULL);"
		"INSERT INTO object_bytes VALUES (9, x'00')"),
	D_ALSO("bytes too short", "object-bytes", "object 3",
		"UPDATE object_bytes SET bytes = content(9, 3)", " object-digest "),
	D("bytes nowhere", "object-place", "object 3", "DELETE FROM object_bytes"),
	D("bytes in two places", "object-place", "object 1",
		"INSERT INTO object_bytes VALUES (1, content(100, 1))"),
	D_TEXT("other bytes in the database", "object-digest", "object 3",
		"UPDATE object_bytes SET bytes = content(10, 4)", "/small"),
	D_TEXT("digest of other bytes", "object-digest", "object 2",
		"UPDATE object SET digest = xxh3(x'00') WHERE id = 2", "/a/big"),
	D_ALSO("short digest", "column-type", "object 1",
		"UPDATE object SET digest = x'00' WHERE id = 1", " database object-digest "),
	D_ALSO("length as text", "column-type", "object 3",
		"UPDATE object SET length = 'ten' WHERE id = 3",
		" object-bytes manifest-size database whole-copy-digest "),
	D_ALSO("offset without data file", "column-type", "object 3",
		"UPDATE object SET offset = 0 WHERE id = 3", " database "),
	D("equal digests in two objects", "object-digest", "object 2",
		"UPDATE object SET digest = (SELECT digest FROM object WHERE id = 1), ordinal = 1"
		" WHERE id = 2"),
	D("damage of nothing", "damage", "damage of object 99", "INSERT INTO damage VALUES (99, 1, 0)"),
	D("damage without a reason", "damage", "damage of object 1", "INSERT INTO damage VALUES (1, 7, 0)"),
	/* extents */
	D_ALSO("extents overlap", "extent-overlap", "object 2",
		"UPDATE object SET offset = 99 WHERE id = 2", " object-digest manifest-solid "),
	D_ALSO("extent past the end", "extent-beyond-end", "object 2",
		"UPDATE object SET offset = 101 WHERE id = 2", " object-digest manifest-solid "),
	D_ALSO("extent past the end of all numbers", "extent-beyond-end", "object 2",
		"UPDATE object SET offset = 9223372036854775807 WHERE id = 2",
		" object-digest manifest-solid "),
	D_ALSO("extent before the start", "extent-beyond-end", "object 1",
		"UPDATE object SET offset = -100 WHERE id = 1", " object-digest manifest-solid "),
	D_ACT("pack cut off", "extent-beyond-end", "object 2", cut_pack, " object-digest ", NULL),
	D_ALSO("extent in staging", "extent-not-pack", "object 1",
		"UPDATE data_file SET state = 0 WHERE id = 1", " staging-orphan "),
	D_ACT("bit flipped in a pack", "object-digest", "object 2", flip_byte, NULL, "/a/big"),
	D_ACT("range punched out", "object-digest", "object 1", punch_first, NULL, "/a/big"),
	/* manifests */
	D("manifest refs", "manifest-refs", "manifest 2",
		"UPDATE manifest SET refs = 3 WHERE id = 2"),
	D("dead manifest", "manifest-dead", "manifest 9",
		"INSERT INTO manifest VALUES (9, NULL, 5, 1, 0, NULL, 0, 0)"),
	D_ALSO("dead manifest with a digest", "manifest-digest", "manifest 9",
		"INSERT INTO manifest VALUES (9, x'00', 5, 1, 0, NULL, 0, 0)", " manifest-dead "),
	D_ALSO("gap in seq", "manifest-rows", "manifest 1",
		"UPDATE manifest_object SET seq = 2 WHERE manifest = 1 AND seq = 1", NULL),
	D("count of rows", "manifest-rows", "manifest 3",
		"UPDATE manifest SET objects = 3 WHERE id = 3"),
	D_ALSO("manifest without rows", "manifest-rows", "manifest 1",
		"DELETE FROM manifest_object WHERE manifest = 1",
		" object-refs manifest-size manifest-digest "),
	D_ALSO("manifest size", "manifest-size", "manifest 3",
		"UPDATE manifest SET size = 21 WHERE id = 3;"
		"UPDATE inode SET size = 21 WHERE ino = 9", " whole-copy-size "),
	D_ALSO("sum of lengths overflows", "manifest-size", "manifest 3",
		"UPDATE object SET length = 9223372036854775807 WHERE id = 3",
		" object-bytes manifest-size whole-copy-digest "),
	D("manifest digest", "manifest-digest", "manifest 1",
		"UPDATE manifest SET digest = xxh3(x'') WHERE id = 1"),
	D("manifest digest NULL", "manifest-digest", "manifest 1",
		"UPDATE manifest SET digest = NULL WHERE id = 1"),
	D_ALSO("order of objects", "manifest-digest", "manifest 1",
		"UPDATE manifest_object SET object = 3 - object WHERE manifest = 1", " manifest-solid "),
	D("solid, but it is not", "manifest-solid", "manifest 2",
		"UPDATE manifest SET solid = 1 WHERE id = 2"),
	D("solid of two kinds", "column-type", "manifest 2",
		"UPDATE manifest SET solid = 2 WHERE id = 2"),
	D_ALSO("solid elsewhere", "manifest-solid", "manifest 1",
		"UPDATE object SET data_file = 5 WHERE id = 2", " object-digest extent-beyond-end "),
	D("one content in two manifests", "manifest-duplicate", "manifest 2",
		"INSERT INTO manifest VALUES (9, xxh3(x'0300000000000000'), 10, 1, 1, NULL, 0, 0);"
		"INSERT INTO manifest_object VALUES (9, 0, 3);"
		"UPDATE object SET refs = 4 WHERE id = 3;"
		"UPDATE manifest SET refs = 1 WHERE id = 2;"
		"UPDATE inode SET manifest = 9 WHERE ino = 11"),
	/* whole copies */
	D_ALSO("whole copy without data file", "dangling-reference", "manifest 3",
		"UPDATE manifest SET whole = 77 WHERE id = 3", " data-file-empty whole-copy-digest "),
	D_ALSO("whole copy in staging", "whole-copy-not-pack", "manifest 3",
		"UPDATE data_file SET state = 0 WHERE id = 5", " staging-orphan "),
	D_ALSO("whole copy of nobody", "data-file-empty", "data_file 5",
		"UPDATE manifest SET whole = NULL, shared = 0 WHERE id = 3", NULL),
	D("whole copy as text", "column-type", "manifest 1",
		"UPDATE manifest SET shared = 'all' WHERE id = 1"),
	D("more shared than there is", "column-type", "manifest 3",
		"UPDATE manifest SET shared = 21 WHERE id = 3"),
	D_ACT("whole copy too short", "whole-copy-size", "manifest 3", cut_copy,
		" whole-copy-digest ", NULL),
	D_ACT("whole copy gone", "data-file-missing", "data/05/0000000000000005", remove_copy,
		" whole-copy-digest ", NULL),
	D_ACT("bit flipped in a whole copy", "whole-copy-digest", "manifest 3", flip_copy, NULL,
		"/twice"),
	/* inodes */
	D("nlink of a file", "nlink", "inode 3", "UPDATE inode SET nlink = 1 WHERE ino = 3"),
	D("nlink 0 with a name", "nlink", "inode 4", "UPDATE inode SET nlink = 0 WHERE ino = 4"),
	D("nlink of a directory", "nlink", "inode 2", "UPDATE inode SET nlink = 2 WHERE ino = 2"),
	D("nlink of the root", "nlink", "inode 1", "UPDATE inode SET nlink = 4 WHERE ino = 1"),
	D("orphan", "orphan", "inode 7",
		"UPDATE inode SET nlink = 0 WHERE ino = 7; DELETE FROM dirent WHERE ino = 7"),
	D("name lost", "nlink", "inode 7", "DELETE FROM dirent WHERE ino = 7"),
	D("no type", "mode", "inode 8", "UPDATE inode SET mode = 420 WHERE ino = 8"),
	D("two types", "mode", "inode 8", "UPDATE inode SET mode = 65535 WHERE ino = 8"),
	D("uid out of range", "inode-range", "inode 8",
		"UPDATE inode SET uid = 4294967296 WHERE ino = 8"),
	D("time as text", "column-type", "inode 8",
		"UPDATE inode SET mtime_ns = 'now' WHERE ino = 8"),
	D("size of a sealed file", "inode-size", "inode 4",
		"UPDATE inode SET size = 11 WHERE ino = 4"),
	D("size of an empty file", "inode-size", "inode 7",
		"UPDATE inode SET size = 1 WHERE ino = 7"),
	D_ALSO("sealed and dirty", "inode-content", "inode 6",
		"UPDATE inode SET manifest = 2 WHERE ino = 6", " database manifest-refs "),
	D_ALSO("fifo with content", "inode-content", "inode 8",
		"UPDATE inode SET manifest = 2 WHERE ino = 8; UPDATE manifest SET refs = 3"
		" WHERE id = 2", NULL),
	D("file with a target", "inode-content", "inode 7",
		"UPDATE inode SET target = x'41' WHERE ino = 7"),
	D("link without target", "symlink", "inode 5",
		"UPDATE inode SET target = NULL WHERE ino = 5"),
	D("length of a link", "symlink", "inode 5", "UPDATE inode SET size = 4 WHERE ino = 5"),
	D("NUL in a link", "symlink", "inode 5",
		"UPDATE inode SET target = x'6100626364' WHERE ino = 5"),
	D("unknown verdict", "verdict", "inode 7", "UPDATE inode SET verdict = 6 WHERE ino = 7"),
	D("wrong without reason", "verdict", "inode 4",
		"UPDATE inode SET reason = NULL WHERE ino = 4"),
	D("reason without verdict", "verdict", "inode 7",
		"UPDATE inode SET reason = 'x' WHERE ino = 7"),
	D("staging shared", "staging-shared", "data_file 2",
		"UPDATE inode SET data_file = 2 WHERE ino = 7"),
	D("dirty in a pack", "staging-state", "inode 7",
		"UPDATE inode SET data_file = 1 WHERE ino = 7"),
	D("staging of nobody", "staging-orphan", "data_file 2",
		"UPDATE inode SET data_file = NULL WHERE ino = 6"),
	D_ALSO("empty xattr name", "xattr", "xattr 3 ",
		"INSERT INTO xattr VALUES (3, x'', x'')", NULL),
	D("large xattr", "xattr", "xattr 3 user.y",
		"INSERT INTO xattr VALUES (3, CAST('user.y' AS BLOB), zeroblob(65537))"),
	D("xattr name is text", "xattr", "xattr 3 user.y",
		"INSERT INTO xattr VALUES (3, 'user.y', x'')"),
	/* names */
	D_ALSO("root gone", "root", "inode 1", "DELETE FROM inode WHERE ino = 1",
		" dirent-parent dangling-reference "),
	D_ALSO("root is a file", "root", "inode 1",
		"UPDATE inode SET mode = 33188, nlink = 0 WHERE ino = 1", " dirent-parent orphan "),
	D("root has a name", "root", "dirent 99",
		"INSERT INTO dirent VALUES (99, 2, CAST('loop' AS BLOB), 1);"
		"UPDATE inode SET nlink = 4 WHERE ino = 2"),
	D("slash in a name", "dirent-name", "dirent 7",
		"UPDATE dirent SET name = CAST('a/b' AS BLOB) WHERE ino = 7"),
	D("NUL in a name", "dirent-name", "dirent 7",
		"UPDATE dirent SET name = x'610062' WHERE ino = 7"),
	D("name is ..", "dirent-name", "dirent 7",
		"UPDATE dirent SET name = x'2e2e' WHERE ino = 7"),
	D("empty name", "dirent-name", "dirent 7", "UPDATE dirent SET name = x'' WHERE ino = 7"),
	D("long name", "dirent-name", "dirent 7",
		"UPDATE dirent SET name = CAST(printf('%.256c', 'x') AS BLOB) WHERE ino = 7"),
	D("name is text", "dirent-name", "dirent 7",
		"UPDATE dirent SET name = 'empty' WHERE ino = 7"),
	D("parent is a file", "dirent-parent", "dirent 7",
		"UPDATE dirent SET parent = 4 WHERE ino = 7"),
	D("parent is nobody", "dirent-parent", "dirent 7",
		"UPDATE dirent SET parent = 77 WHERE ino = 7"),
	D("name of nobody", "dirent-dangling", "dirent 99",
		"INSERT INTO dirent VALUES (99, 2, CAST('ghost' AS BLOB), 77)"),
	D("directory without name", "directory-names", "inode 10",
		"DELETE FROM dirent WHERE ino = 10; UPDATE inode SET nlink = 2 WHERE ino = 2"),
	D("directory with two names", "directory-names", "inode 10",
		"INSERT INTO dirent VALUES (99, 1, CAST('again' AS BLOB), 10);"
		"UPDATE inode SET nlink = 4 WHERE ino = 1"),
	D_ALSO("cycle of directories", "directory-cycle", "inode 2",
		"UPDATE dirent SET parent = 10 WHERE ino = 2;"
		"UPDATE inode SET nlink = 2 WHERE ino = 1; UPDATE inode SET nlink = 3"
		" WHERE ino = 10", NULL),
	/* data files */
	D("unknown state", "data-file-state", "data_file 9",
		"INSERT INTO data_file VALUES (9, 7, 0)"),
	D("doomed", "data-file-pending", "data_file 9", "INSERT INTO data_file VALUES (9, 2, 0)"),
	D("filling", "data-file-pending", "data_file 9", "INSERT INTO data_file VALUES (9, 3, 0)"),
	D_ALSO("empty pack", "data-file-empty", "data_file 9",
		"INSERT INTO data_file VALUES (9, 1, 0)", " data-file-missing "),
	D_ACT("pack gone", "data-file-missing", "data/01/0000000000000001", remove_pack,
		" object-digest ", NULL),
	D_ACT("staging gone", "data-file-missing", "data/02/0000000000000002", remove_staging,
		NULL, NULL),
	D_ACT("data gone", "data-file-missing", "data", remove_data,
		" object-digest data-file-missing whole-copy-digest ", NULL),
	D_ACT("pack is a link", "data-file-stray", "data/01/0000000000000001", link_pack,
		" object-digest ", "regular"),
	D_ACT("file without row", "data-file-stray", "data/02/0000000000000102", put_without_row,
		NULL, "row"),
	D_ACT("file in another directory", "data-file-stray", "data/02/0000000000000001",
		put_wrong_directory, NULL, NULL),
	D_ACT("upper case", "data-file-stray", "data/02/00000000000000A2", put_upper_case, NULL,
		NULL),
	D_ACT("file beside", "data-file-stray", "data/notes\\x0a", put_beside, NULL, NULL),
	D("sequence of inodes", "sequence", "table inode",
		"UPDATE sqlite_sequence SET seq = 10 WHERE name = 'inode'"),
	D("sequence of data files", "sequence", "table data_file",
		"DELETE FROM sqlite_sequence WHERE name = 'data_file'"),
};

static void test_damage(void **state)
{
	const struct damage *d = *state;
	char *store = make_store();

	run_sql(store, d->sql);
	if (d->act)
		d->act(store);
	demand(store, (struct seen){ .kind = d->kind, .also = d->also, .where = d->where,
		.text = d->text });
	remove_store(store);
}

/* ---- sound stores ---- */

static void test_clean(void **state)
{
	const struct wfs_fsck_options options = { .check_bytes = true };
	struct wfs_fsck_summary summary;
	char *store = make_store();

	(void)state;
	demand_clean(store);
	assert_int_equal(wfs_fsck(store, &options, NULL, NULL, &summary, NULL), 0);
	assert_int_equal(summary.inodes, 11);
	assert_int_equal(summary.dirents, 11);
	assert_int_equal(summary.objects, 3);
	assert_int_equal(summary.manifests, 3);
	assert_int_equal(summary.data_files, 3);
	remove_store(store);
}

static void test_clean_with_log(void **state)
{
	char *store = make_store();
	sqlite3 *db;

	(void)state;
	run_sql(store, "PRAGMA journal_mode = WAL");
	demand_clean(store);
	db = open_db(store);
	assert_int_equal(sqlite3_exec(db, "UPDATE inode SET nlink = 9 WHERE ino = 7", NULL, NULL,
		NULL), SQLITE_OK);
	/* Committed, but only in the log. */
	demand(store, (struct seen){ .kind = "nlink", .where = "inode 7" });
	sqlite3_close(db);
	remove_store(store);
}

/* What a driver at work, or one that was killed, leaves for a moment. */
static const char in_flight[] =
	"UPDATE meta SET value = 0 WHERE key = 'clean';"
	"UPDATE inode SET nlink = 0 WHERE ino = 7; DELETE FROM dirent WHERE ino = 7;"
	"INSERT INTO data_file VALUES (3, 2, 0), (4, 3, 0);"
	"INSERT INTO manifest VALUES (9, NULL, 1048681, 2, 0, NULL, 0, 0);"
	"INSERT INTO manifest_object VALUES (9, 0, 1);"
	"UPDATE object SET refs = 2 WHERE id = 1;";

static void test_after_crash(void **state)
{
	char *store = make_store();

	(void)state;
	run_sql(store, in_flight);
	put(store, "02/0000000000000102"); /* beyond the last id */
	demand_clean(store);
	run_sql(store, "UPDATE sqlite_sequence SET seq = 1000 WHERE name = 'data_file'");
	demand(store, (struct seen){ .kind = "data-file-stray",
		.where = "data/02/0000000000000102" });
	remove_store(store);
}

/* A power cut brings back a file whose row went for good: the next mount removes it, if it can tell. */
static void test_after_power_cut(void **state)
{
	char *store = make_store();
	const struct seen stray = { .kind = "data-file-stray", .where = "data/02/0000000000000102" };

	(void)state;
	assert_int_equal(setenv("WEIGHTFS_BOOT_ID", "this boot", 1), 0);
	run_sql(store, "UPDATE sqlite_sequence SET seq = 1000 WHERE name = 'data_file'");
	run_sql(store, "INSERT OR REPLACE INTO meta (key, value) VALUES ('boot_id', 'the one before')");
	put(store, "02/0000000000000102");
	demand(store, stray); /* it was unmounted */
	run_sql(store, in_flight);
	demand_clean(store);
	run_sql(store, "UPDATE meta SET value = 'this boot' WHERE key = 'boot_id'");
	demand(store, stray);
	assert_int_equal(unsetenv("WEIGHTFS_BOOT_ID"), 0);
	remove_store(store);
}

static void test_in_use(void **state)
{
	char *store = make_store();
	WFS_AUTO_FREE char *path = wfs_test_path(store, "lock");
	int fd = open(path, O_RDWR);

	(void)state;
	run_sql(store, in_flight);
	run_sql(store, "UPDATE sqlite_sequence SET seq = 1000 WHERE name = 'data_file'");
	put(store, "02/0000000000000102");
	remove_staging(store);
	assert_int_equal(flock(fd, LOCK_EX), 0);
	demand_clean(store);
	/* What is wrong at any time is found at any time. */
	run_sql(store, "UPDATE object SET refs = 7 WHERE id = 2");
	demand(store, (struct seen){ .kind = "object-refs", .where = "object 2" });
	close(fd);
	remove_store(store);
}

/* ---- no store ---- */

static void refuse(const char *path, int ret, const char *reason)
{
	const struct wfs_fsck_options options = { .check_bytes = false };
	struct wfs_fsck_summary summary;
	struct wfs_err err = WFS_ERR_INIT;

	assert_int_equal(wfs_fsck(path, &options, NULL, NULL, &summary, &err), ret);
	assert_string_equal(err.reason, reason);
}

static void test_refused(void **state)
{
	char *store = wfs_test_mkdir();
	WFS_AUTO_FREE char *missing = wfs_test_path(store, "missing");
	WFS_AUTO_FREE char *db = wfs_test_path(store, "weightfs.db");

	(void)state;
	refuse(missing, -ENOENT, "store-missing");
	refuse(store, -ENOTEMPTY, "not-a-store");
	assert_int_equal(symlink("/etc/passwd", db), 0);
	refuse(store, -ENOTEMPTY, "not-a-store");
	unlink(db);
	wfs_test_write(db, "this is no database, but it has many bytes, more than a hundred of "
		"them, which is the length of the header that SQLite wants", 122);
	refuse(db, -ENOTDIR, "not-a-directory");
	refuse(store, -EINVAL, "not-a-store");
	unlink(db);
	run_sql(store, "CREATE TABLE t (x)");
	refuse(store, -EINVAL, "not-a-store");
	run_sql(store, "PRAGMA application_id = 0x57744653; PRAGMA user_version = 1");
	refuse(store, -EPROTONOSUPPORT, "store-version");
	run_sql(store, "PRAGMA user_version = 5; PRAGMA writable_schema = ON;"
		"UPDATE sqlite_schema SET sql = 'CREATE TABLE t (' WHERE name = 't'");
	refuse(store, -EUCLEAN, "store-damaged");
	remove_store(store);
}

/* ---- hostile databases ---- */

static void count(void *ctx, const struct wfs_fsck_finding *f)
{
	assert_true(strlen(f->kind) > 0 && strlen(f->where) < 1000 && strlen(f->text) < 1000);
	++*(unsigned *)ctx;
}

/* It may say anything, but it must come back. */
static unsigned survive(const char *store)
{
	const struct wfs_fsck_options options = { .check_bytes = true };
	struct wfs_fsck_summary summary;
	struct wfs_err err = WFS_ERR_INIT;
	unsigned findings = 0;
	int ret = wfs_fsck(store, &options, count, &findings, &summary, &err);

	if (ret == 0)
		assert_int_equal(summary.findings, findings);
	else
		assert_non_null(err.reason);
	return ret ? 1 : findings;
}

static const char *const tables[] = { "meta", "object", "object_bytes", "manifest",
	"manifest_object", "data_file", "inode", "dirent", "xattr", "sqlite_sequence" };
static const char *const values[] = { "NULL", "'text'", "x'00'", "x''", "0", "-1", "1e300",
	"9223372036854775807", "(-9223372036854775807 - 1)", "zeroblob(1000000)" };

static void set_column(char *store, const char *table, const char *column, const char *value)
{
	sqlite3 *db = open_db(store);
	char *sql = sqlite3_mprintf("UPDATE OR IGNORE %s SET %s = %s", table, column, value);

	sqlite3_exec(db, sql, NULL, NULL, NULL); /* NOT NULL may refuse it */
	sqlite3_free(sql);
	sqlite3_close(db);
}

static void hold_to_values(const uint8_t *image, size_t len, char *store, const char *table,
	const char *column)
{
	WFS_AUTO_FREE char *path = wfs_test_path(store, "weightfs.db");

	for (size_t i = 0; i < WFS_ARRAY_SIZE(values); i++) {
		wfs_test_write(path, image, len);
		set_column(store, table, column, values[i]);
		survive(store);
	}
}

static void test_any_value(void **state)
{
	char *store = make_store();
	WFS_AUTO_FREE char *path = wfs_test_path(store, "weightfs.db");
	size_t len;
	WFS_AUTO_FREE uint8_t *image = wfs_test_read(path, &len);

	(void)state;
	for (size_t t = 0; t < WFS_ARRAY_SIZE(tables); t++) {
		char *sql = sqlite3_mprintf("SELECT name FROM pragma_table_info('%s')", tables[t]);
		sqlite3 *db = NULL;
		sqlite3_stmt *stmt = NULL;

		/* From a database of its own: the store's is rewritten meanwhile. */
		assert_int_equal(sqlite3_open(":memory:", &db), SQLITE_OK);
		assert_int_equal(sqlite3_deserialize(db, "main", image, (sqlite3_int64)len,
			(sqlite3_int64)len, SQLITE_DESERIALIZE_READONLY), SQLITE_OK);
		assert_int_equal(sqlite3_prepare_v2(db, sql, -1, &stmt, NULL), SQLITE_OK);
		while (sqlite3_step(stmt) == SQLITE_ROW)
			hold_to_values(image, len, store, tables[t],
				(const char *)sqlite3_column_text(stmt, 0));
		sqlite3_finalize(stmt);
		sqlite3_close(db);
		sqlite3_free(sql);
	}
	remove_store(store);
}

static uint32_t next_random(uint32_t *x)
{
	*x ^= *x << 13;
	*x ^= *x >> 17;
	*x ^= *x << 5;
	return *x;
}

/* The first rounds keep to the header and the schema, where a flip does most. */
static void test_flipped_bytes(void **state)
{
	char *store = make_store();
	WFS_AUTO_FREE char *path = wfs_test_path(store, "weightfs.db");
	uint32_t x = 20240607;
	unsigned found = 0;
	size_t len;
	WFS_AUTO_FREE uint8_t *image = wfs_test_read(path, &len);

	(void)state;
	for (unsigned round = 0; round < FUZZ_ROUNDS; round++) {
		size_t range = round < FUZZ_ROUNDS / 4 ? WFS_MIN(len, 4096) : len;
		unsigned flips = 1 + next_random(&x) % 16;
		WFS_AUTO_FREE uint8_t *copy = malloc(len);

		assert_non_null(copy);
		memcpy(copy, image, len);
		for (unsigned i = 0; i < flips; i++)
			copy[next_random(&x) % range] ^= (uint8_t)(1u << next_random(&x) % 8);
		wfs_test_write(path, copy, len);
		found += survive(store) > 0;
	}
	/* Free space within pages takes most flips without harm. */
	assert_true(found > FUZZ_ROUNDS / 8);
	remove_store(store);
}

static void test_cut_database(void **state)
{
	char *store = make_store();
	WFS_AUTO_FREE char *path = wfs_test_path(store, "weightfs.db");
	size_t len;
	WFS_AUTO_FREE uint8_t *image = wfs_test_read(path, &len);

	(void)state;
	for (size_t at = 0; at < len; at += 1500) {
		size_t zeros = at;

		/* SQLite reads what is missing of the last page as zeros: where it was, nothing is lost. */
		while (zeros < len && image[zeros] == 0)
			zeros++;
		wfs_test_write(path, image, at);
		assert_true(survive(store) > 0 || zeros == len);
	}
	remove_store(store);
}

static const struct CMUnitTest others[] = {
	cmocka_unit_test(test_clean),
	cmocka_unit_test(test_clean_with_log),
	cmocka_unit_test(test_after_crash),
	cmocka_unit_test(test_after_power_cut),
	cmocka_unit_test(test_in_use),
	cmocka_unit_test(test_refused),
	cmocka_unit_test(test_any_value),
	cmocka_unit_test(test_flipped_bytes),
	cmocka_unit_test(test_cut_database),
};

int main(void)
{
	struct CMUnitTest fsck[WFS_ARRAY_SIZE(damages) + WFS_ARRAY_SIZE(others)];

	for (size_t i = 0; i < WFS_ARRAY_SIZE(damages); i++)
		fsck[i] = (struct CMUnitTest){ .name = damages[i].name, .test_func = test_damage,
			.initial_state = (void *)(uintptr_t)&damages[i] };
	memcpy(fsck + WFS_ARRAY_SIZE(damages), others, sizeof(others));
	return cmocka_run_group_tests(fsck, NULL, NULL);
}
