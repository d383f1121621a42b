#include "lib/fsck_check.h"

#include <stdio.h>
#include <string.h>

/* Columns as "name:place in the primary key:hidden"; then whether it is WITHOUT ROWID. */
static const struct {
	const char *name;
	const char *shape;
} tables[] = {
	{ "meta", "key:1:0,value:0:0 1" },
	{ "object",
		"id:1:0,digest:0:0,ordinal:0:0,length:0:0,refs:0:0,data_file:0:0,offset:0:0 0" },
	{ "object_bytes", "object:1:0,bytes:0:0 0" },
	{ "manifest", "id:1:0,digest:0:0,size:0:0,objects:0:0,refs:0:0,whole:0:0,shared:0:0,solid:0:0 0" },
	{ "manifest_object", "manifest:1:0,seq:2:0,object:0:0 1" },
	{ "data_file", "id:1:0,state:0:0,holes:0:0 0" },
	{ "inode",
		"ino:1:0,mode:0:0,uid:0:0,gid:0:0,nlink:0:0,rdev:0:0,size:0:0,blocks:0:0,"
		"atime_ns:0:0,mtime_ns:0:0,ctime_ns:0:0,btime_ns:0:0,target:0:0,manifest:0:0,"
		"data_file:0:0,verdict:0:0,reason:0:0,detail:0:0 0" },
	{ "dirent", "id:1:0,parent:0:0,name:0:0,ino:0:0 0" },
	{ "xattr", "ino:1:0,name:2:0,value:0:0 1" },
	{ "tensor",
		"dir:1:0,variant:2:0,name:3:0,ino:0:0,form:0:0,dtype:0:0,shape:0:0,start:0:0,"
		"length:0:0 1" },
	{ "damage", "object:1:0,reason:0:0,found_ns:0:0 0" },
	{ "sqlite_sequence", "name:0:0,seq:0:0 0" },
};

/* What else the schema has, and what it must not have: code that runs when it is read. */
static const struct wfs_fsck_check schema_checks[] = {
	{ "schema", WFS_FSCK_ALWAYS,
		"WITH expected (name) AS (VALUES ('object_by_place'), ('manifest_by_digest'),"
		" ('manifest_dead'), ('manifest_by_whole'), ('data_file_work'), ('inode_dirty'), ('inode_orphan'),"
		" ('inode_reported'), ('inode_by_manifest'), ('dirent_by_parent'),"
		" ('dirent_by_ino'), ('tensor_by_ino'), ('sqlite_autoindex_object_1'),"
		" ('sqlite_autoindex_dirent_1'))"
		" SELECT name FROM expected WHERE name NOT IN"
		" (SELECT name FROM sqlite_schema WHERE type = 'index' AND name IS NOT NULL)",
		"index %1", "the index is missing" },
	{ "schema", WFS_FSCK_ALWAYS,
		"SELECT type, name FROM sqlite_schema WHERE type NOT IN ('table', 'index')",
		"%1 %2", "format version 5 has no %1s" },
	{ "schema", WFS_FSCK_ALWAYS,
		"SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%'"
		" ESCAPE '\\' AND name NOT IN ('meta', 'object', 'object_bytes', 'manifest',"
		" 'manifest_object', 'data_file', 'inode', 'dirent', 'xattr', 'tensor',"
		" 'damage')",
		"table %1", "format version 5 has no such table" },
};

/* 1 if the table is as it should be, 0 if not, -errno. */
static int check_table(struct wfs_fsck_run *run, const char *name, const char *shape)
{
	sqlite3_stmt *stmt;
	const char *have;
	char where[64];
	int same = 0;
	int ret = wfs_fsck_query(run,
		"SELECT (SELECT group_concat(name || ':' || pk || ':' || hidden)"
		" FROM pragma_table_xinfo(?1)) || ' ' || wr"
		" FROM pragma_table_list(?1) WHERE schema = 'main' AND type = 'table'", &stmt);

	if (stmt)
		sqlite3_bind_text(stmt, 1, name, -1, SQLITE_STATIC);
	if (ret == 0)
		ret = wfs_fsck_step(run, stmt);
	if (ret > 0) {
		have = (const char *)sqlite3_column_text(stmt, 0);
		same = have && strcmp(have, shape) == 0;
	}
	sqlite3_finalize(stmt);
	if (ret < 0 || same)
		return ret < 0 ? ret : 1;
	snprintf(where, sizeof(where), "table %s", name);
	wfs_fsck_report_at(run, "schema", where,
		ret ? "its columns are not those of format version 5" : "the table is missing");
	return 0;
}

int wfs_fsck_schema(struct wfs_fsck_run *run)
{
	int all = 1;
	int ret;

	wfs_fsck_begin(run, "schema");
	for (size_t i = 0; i < WFS_ARRAY_SIZE(tables); i++) {
		ret = check_table(run, tables[i].name, tables[i].shape);
		if (ret < 0)
			return ret;
		all &= ret;
	}
	ret = wfs_fsck_table(run, schema_checks, WFS_ARRAY_SIZE(schema_checks));
	return ret < 0 ? ret : all;
}

static const struct wfs_fsck_check integrity_checks[] = {
	{ "database", WFS_FSCK_ALWAYS,
		"SELECT integrity_check FROM pragma_integrity_check(20) WHERE integrity_check <> 'ok'",
		"weightfs.db", "%1" },
};

int wfs_fsck_integrity(struct wfs_fsck_run *run)
{
	return wfs_fsck_table(run, integrity_checks, WFS_ARRAY_SIZE(integrity_checks));
}

/* sum(1), because count(*) walks a tree of pages without looking at the budget. */
int wfs_fsck_count(struct wfs_fsck_run *run)
{
	const struct {
		const char *sql;
		uint64_t *ret;
	} counts[] = {
		{ "SELECT sum(1) FROM inode", &run->summary.inodes },
		{ "SELECT sum(1) FROM dirent", &run->summary.dirents },
		{ "SELECT sum(1) FROM object", &run->summary.objects },
		{ "SELECT sum(1) FROM manifest", &run->summary.manifests },
		{ "SELECT sum(1) FROM data_file", &run->summary.data_files },
	};
	int ret = 0;

	for (size_t i = 0; i < WFS_ARRAY_SIZE(counts) && ret >= 0; i++) {
		sqlite3_stmt *stmt;

		wfs_fsck_begin(run, "count");
		ret = wfs_fsck_query(run, counts[i].sql, &stmt);
		if (ret == 0 && (ret = wfs_fsck_step(run, stmt)) > 0)
			*counts[i].ret = (uint64_t)sqlite3_column_int64(stmt, 0);
		sqlite3_finalize(stmt);
	}
	return WFS_MIN(ret, 0);
}
