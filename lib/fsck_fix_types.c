/* fsck_fix_types.c - columns with values that the schema does not have; ids; table meta. */
#include "lib/fsck_fix.h"

#include <errno.h>

#include "lib/format.h"

#define INT(c) "typeof(" c ") = 'integer'"
#define BETWEEN(c, low, high) INT(c) " AND " c " BETWEEN " low " AND " high
#define ID_OR_NULL(c) "(" c " IS NULL OR " BETWEEN(c, "1", WFS_FSCK_MAX_ID) ")"
#define NOW "strftime('%s', 'now') * 1000000000"

static const struct wfs_fix_column inode_columns[] = {
	{ "inode", "ino", "uid", BETWEEN("uid", "0", "4294967295"),
		"coalesce((SELECT max(r.uid) FROM inode r WHERE r.ino = 1 AND typeof(r.uid) = 'integer'), 0)" },
	{ "inode", "ino", "gid", BETWEEN("gid", "0", "4294967295"),
		"coalesce((SELECT max(r.gid) FROM inode r WHERE r.ino = 1 AND typeof(r.gid) = 'integer'), 0)" },
	{ "inode", "ino", "nlink", BETWEEN("nlink", "0", "4294967295"), "1" },
	{ "inode", "ino", "rdev", INT("rdev") " AND rdev >= 0", "0" },
	{ "inode", "ino", "size", INT("size") " AND size >= 0",
		"coalesce((SELECT m.size FROM manifest m WHERE m.id = inode.manifest), length(target), 0)" },
	{ "inode", "ino", "blocks", INT("blocks") " AND blocks >= 0", "(size + 511) / 512" },
	{ "inode", "ino", "mtime_ns", INT("mtime_ns"),
		"CASE typeof(ctime_ns) WHEN 'integer' THEN ctime_ns ELSE " NOW " END" },
	{ "inode", "ino", "atime_ns", INT("atime_ns"), "mtime_ns" },
	{ "inode", "ino", "ctime_ns", INT("ctime_ns"), "mtime_ns" },
	{ "inode", "ino", "btime_ns", INT("btime_ns"), "mtime_ns" },
	{ "inode", "ino", "target", "typeof(target) IN ('null', 'blob')", "CAST(target AS BLOB)" },
	{ "inode", "ino", "manifest", ID_OR_NULL("manifest"), "NULL" },
	{ "inode", "ino", "data_file", ID_OR_NULL("data_file"), "NULL" },
	{ "inode", "ino", "detail", "typeof(detail) IN ('null', 'text')", "NULL" },
	{ "inode", "ino", "reason", "typeof(reason) IN ('null', 'text')", "NULL" },
	{ "inode", "ino", "verdict", BETWEEN("verdict", "0", "5"), "0" },
};

/* Before the column is made NULL: a file without content would be an empty one. */
static const struct wfs_fix_step lost_content[] = {
	{ "content-lost", WFS_FSCK_ALWAYS,
		"SELECT ino FROM inode WHERE NOT " ID_OR_NULL("manifest") " OR NOT " ID_OR_NULL("data_file"),
		"inode %1", "@1 is damaged and cannot be read any more: the column that names its content "
			    "has no id; the content itself is in lost+found",
		"UPDATE inode SET verdict = 5, reason = 'content-lost', detail = 'what named its content "
		"was damaged; the content itself is in lost+found' WHERE NOT " ID_OR_NULL("manifest")
		" OR NOT " ID_OR_NULL("data_file") },
};

/* Of what holds bytes a damaged reference only makes it unnamed; it is found again below. */
static const struct wfs_fix_column content_columns[] = {
	{ "data_file", "id", "holes", INT("holes") " AND holes >= 0", "1" },
	{ "object_bytes", "object", "bytes", "typeof(bytes) = 'blob'", "CAST(bytes AS BLOB)" },
	{ "object", "id", "refs", INT("refs") " AND refs >= 0", "0" },
	{ "object", "id", "digest", "typeof(digest) = 'blob' AND length(digest) = 16",
		"coalesce(wfs_digest((SELECT b.bytes FROM object_bytes b WHERE b.object = object.id)),"
		" wfs_digest_at(data_file, offset, length), randomblob(16))" },
	{ "object", "id", "ordinal", INT("ordinal") " AND ordinal >= 0",
		"(SELECT 1 + max(0, coalesce(max(p.ordinal), 0)) FROM object p"
		" WHERE p.digest = object.digest AND typeof(p.ordinal) = 'integer')" },
	{ "object", "id", "length", INT("length") " AND length >= 1",
		"max(1, coalesce((SELECT length(b.bytes) FROM object_bytes b WHERE b.object = object.id), 1))" },
	{ "object", "id", "data_file", ID_OR_NULL("data_file"), "NULL" },
	{ "object", "id", "offset", "(offset IS NULL OR " INT("offset") " AND offset >= 0)", "NULL" },
	{ "object", "id", "data_file", "data_file IS NULL OR offset IS NOT NULL", "NULL" },
	{ "object", "id", "offset", "offset IS NULL OR data_file IS NOT NULL", "NULL" },
	{ "manifest", "id", "refs", INT("refs") " AND refs >= 0",
		"(SELECT count(*) FROM inode i WHERE i.manifest = manifest.id)" },
	{ "manifest", "id", "size", INT("size") " AND size >= 1", "1" },
	{ "manifest", "id", "objects", INT("objects") " AND objects >= 1", "1" },
	{ "manifest", "id", "digest", "typeof(digest) IN ('null', 'blob')", "NULL" },
	{ "manifest", "id", "whole", ID_OR_NULL("whole"), "NULL" },
	{ "manifest", "id", "shared", INT("shared") " AND shared BETWEEN 0 AND"
		" CASE WHEN whole IS NULL THEN 0 ELSE size END", "0" },
	{ "manifest", "id", "solid", INT("solid") " AND solid IN (0, 1)", "0" },
};

static const struct wfs_fix_column name_columns[] = {
	/* Entries that name nothing, or are in nothing; both are looked after later. */
	{ "dirent", "id", "parent", INT("parent"), "0" },
	{ "dirent", "id", "ino", INT("ino"), "0" },
	{ "dirent", "id", "name", "typeof(name) = 'blob'", "CAST(name AS BLOB)" },
	{ "xattr", "ino", "name", "typeof(name) = 'blob'", "CAST(name AS BLOB)" },
	{ "xattr", "ino", "value", "typeof(value) = 'blob'", "CAST(value AS BLOB)" },
};

/* What still is of a wrong type could not be set: the right value was there, too. */
static const struct wfs_fix_step leftovers[] = {
	{ "column-type", WFS_FSCK_ALWAYS,
		"SELECT id, ordinal FROM object WHERE typeof(ordinal) <> 'integer'",
		"object %1", "ordinal was %2",
		"UPDATE object SET ordinal = abs(random() / 2), digest = randomblob(16)"
		" WHERE typeof(ordinal) <> 'integer'" },
	{ "column-type", WFS_FSCK_ALWAYS,
		"SELECT id, name FROM dirent WHERE typeof(name) <> 'blob'",
		"dirent %1", "\"%2\" was there twice; the other one gets a new name",
		"UPDATE dirent SET name = CAST(name || '~' || id AS BLOB) WHERE typeof(name) <> 'blob'" },
	{ "column-type", WFS_FSCK_ALWAYS,
		"SELECT ino, name FROM xattr WHERE typeof(name) <> 'blob'",
		"xattr %1 %2", "it was there twice; one is dropped",
		"DELETE FROM xattr WHERE typeof(name) <> 'blob'" },
	/* Their lists are closed up by wfs_fix_manifests. */
	{ "column-type", WFS_FSCK_ALWAYS,
		"SELECT manifest, seq FROM manifest_object WHERE NOT (" INT("manifest") " AND "
		INT("seq") " AND " INT("object") ")",
		"manifest_object %1 %2", "a column is not an integer; the row is dropped",
		"DELETE FROM manifest_object WHERE NOT (" INT("manifest") " AND " INT("seq") " AND "
		INT("object") ")" },
	{ "column-type", WFS_FSCK_ALWAYS,
		"SELECT object FROM object_bytes WHERE length(bytes) = 0 OR bytes IS NULL",
		"object_bytes %1", "it has no bytes; the row is dropped",
		"DELETE FROM object_bytes WHERE length(bytes) = 0 OR bytes IS NULL" },
	{ "meta", WFS_FSCK_ALWAYS,
		"SELECT key FROM meta WHERE typeof(key) <> 'text'"
		" OR key IN ('clean', 'created_ns') AND (typeof(value) <> 'integer'"
		" OR key = 'clean' AND value NOT IN (0, 1))",
		"meta %1", "the row is dropped",
		"DELETE FROM meta WHERE typeof(key) <> 'text' OR key IN ('clean', 'created_ns')"
		" AND (typeof(value) <> 'integer' OR key = 'clean' AND value NOT IN (0, 1))" },
	{ "meta", WFS_FSCK_ALWAYS,
		"SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM meta WHERE key = 'clean')",
		"meta clean", "it is set to 0: the next mount recovers the store",
		"INSERT INTO meta (key, value) VALUES ('clean', 0)" },
	{ "meta", WFS_FSCK_ALWAYS,
		"SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM meta WHERE key = 'created_ns')",
		"meta created_ns", "it is set to the time of the oldest file",
		"INSERT INTO meta (key, value) SELECT 'created_ns', coalesce(min(btime_ns), 0) FROM inode" },
};

/* ---- ids ---- */

/* Where an id of a table is named. */
static const struct {
	const char *table, *id;
	const char *refs[4][2];
} id_tables[] = {
	{ "inode", "ino", { { "dirent", "ino" }, { "dirent", "parent" }, { "xattr", "ino" } } },
	{ "dirent", "id", { { NULL } } },
	{ "object", "id", { { "manifest_object", "object" }, { "object_bytes", "object" } } },
	{ "object_bytes", "object", { { "manifest_object", "object" } } },
	{ "manifest", "id", { { "manifest_object", "manifest" }, { "inode", "manifest" } } },
};

#define BAD_ID "NOT BETWEEN 1 AND " WFS_FSCK_MAX_ID

static int give_new_id(struct wfs_fix *fix, size_t table, int64_t old)
{
	WFS_AUTO_FREE char *sql = NULL;
	int64_t id = 0;
	int ret;

	/* Objects and their bytes share their ids. */
	sql = wfs_format("SELECT 1 + max(coalesce((SELECT max(%s) FROM %s WHERE %s <= " WFS_FSCK_MAX_ID
		"), 0), coalesce((SELECT max(id) FROM object WHERE id <= " WFS_FSCK_MAX_ID "), 0),"
		" coalesce((SELECT max(object) FROM object_bytes WHERE object <= " WFS_FSCK_MAX_ID
		"), 0))", id_tables[table].id, id_tables[table].table, id_tables[table].id);
	if (!sql)
		return -ENOMEM;
	ret = wfs_fix_number(fix, sql, &id, "");
	id = WFS_MAX(id, 2);
	if (ret < 0)
		return ret;
	free(sql);
	sql = wfs_format("UPDATE %s SET %s = ?1 WHERE %s = ?2", id_tables[table].table,
		id_tables[table].id, id_tables[table].id);
	if (!sql)
		return -ENOMEM;
	ret = wfs_fix_exec(fix, sql, "ii", id, old);
	for (size_t i = 0; ret == 0 && id_tables[table].refs[i][0]; i++) {
		const char *const *r = id_tables[table].refs[i];

		free(sql);
		sql = wfs_format("UPDATE OR IGNORE %s SET %s = ?1 WHERE %s = ?2", r[0], r[1], r[1]);
		if (!sql)
			return -ENOMEM;
		ret = wfs_fix_exec(fix, sql, "ii", id, old);
	}
	if (ret == 0)
		wfs_fix_sayf(fix, "id-range", id_tables[table].table, old,
			"no such id was ever given out; it is %lld now", (long long)id);
	return ret;
}

static int fix_ids(struct wfs_fix *fix)
{
	int ret = 0;

	for (size_t t = 0; t < WFS_ARRAY_SIZE(id_tables) && ret == 0; t++) {
		WFS_AUTO_FREE char *sql = wfs_format("SELECT %s FROM %s WHERE %s " BAD_ID, id_tables[t].id,
			id_tables[t].table, id_tables[t].id);
		struct wfs_fix_rows rows;

		if (!sql)
			return -ENOMEM;
		ret = wfs_fix_rows(fix, sql, &rows, "");
		for (size_t i = 0; i < rows.n && ret == 0; i++)
			ret = give_new_id(fix, t, rows.list[i].a);
		free(rows.list);
	}
	return ret;
}

/* A data file's id is its name: such a row can have none. What names it is told so below. */
static const struct wfs_fix_step id_steps[] = {
	{ "id-range", WFS_FSCK_ALWAYS, "SELECT id FROM data_file WHERE id " BAD_ID,
		"data_file %1", "no such id was ever given out; the row is dropped",
		"DELETE FROM data_file WHERE id " BAD_ID },
	{ "sequence", WFS_FSCK_ALWAYS,
		"SELECT name, seq FROM sqlite_sequence WHERE NOT (" BETWEEN("seq", "0",
		WFS_FSCK_MAX_SEQUENCE) ")",
		"table %1", "sqlite_sequence said %2; it goes on behind the largest id",
		"DELETE FROM sqlite_sequence WHERE NOT (" BETWEEN("seq", "0", WFS_FSCK_MAX_SEQUENCE) ")" },
};

int wfs_fix_types(struct wfs_fix *fix)
{
	int ret = wfs_fix_columns(fix, content_columns, WFS_ARRAY_SIZE(content_columns));

	if (ret == 0)
		ret = wfs_fix_table(fix, lost_content, WFS_ARRAY_SIZE(lost_content));
	if (ret == 0)
		ret = wfs_fix_columns(fix, inode_columns, WFS_ARRAY_SIZE(inode_columns));
	if (ret == 0)
		ret = wfs_fix_columns(fix, name_columns, WFS_ARRAY_SIZE(name_columns));
	if (ret == 0)
		ret = wfs_fix_table(fix, leftovers, WFS_ARRAY_SIZE(leftovers));
	if (ret == 0)
		ret = wfs_fix_table(fix, id_steps, WFS_ARRAY_SIZE(id_steps));
	return ret ? ret : fix_ids(fix);
}
