/* fsck_fix_names.c - types of inodes; entries, directories, attributes, tensors that wait. */
#include "lib/fsck_fix.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "lib/format.h"

#define IS_DIR WFS_FSCK_IS_DIR
#define IS_REG WFS_FSCK_IS_REG
#define IS_LNK WFS_FSCK_IS_LNK

#define CHILDREN(t) "EXISTS (SELECT 1 FROM dirent e WHERE e.parent = " t ".ino)"
#define CONTENT(t) "(" t ".manifest IS NOT NULL OR " t ".data_file IS NOT NULL)"
#define TARGET(t) "(" t ".target IS NOT NULL AND length(" t ".target) BETWEEN 1 AND 4095"              \
		  " AND instr(" t ".target, x'00') = 0)"
#define NO_TYPE(t) "(typeof(" t ".mode) <> 'integer' OR " t ".mode NOT BETWEEN 0 AND 65535"           \
		   " OR " WFS_FSCK_TYPE(t) " NOT IN (4096, 8192, 16384, 24576, 32768, 40960, 49152))"
/* What it is by everything but its mode. */
#define IS_NO_LONGER_WHAT_IT_SAYS(t)                                                                  \
	"(" NO_TYPE(t) " OR NOT " IS_REG(t) " AND " CONTENT(t) " AND NOT " CHILDREN(t)                 \
	" OR NOT " IS_DIR(t) " AND NOT " CONTENT(t) " AND " t ".target IS NULL AND " t ".nlink > 1 AND " \
	CHILDREN(t) " OR NOT " IS_LNK(t) " AND " TARGET(t) " AND NOT " CONTENT(t) " AND NOT "           \
	CHILDREN(t) ")"
#define TYPE_BY_THE_REST(t)                                                                           \
	"CASE WHEN " CONTENT(t) " AND NOT " CHILDREN(t) " THEN 32768 WHEN " CHILDREN(t)                \
	" THEN 16384 WHEN " TARGET(t) " THEN 40960 ELSE 32768 END"
#define PERMISSIONS(t) "CASE typeof(" t ".mode) WHEN 'integer' THEN " t ".mode & 4095 ELSE 384 END"

static const struct wfs_fix_step mode_steps[] = {
	{ "root", WFS_FSCK_ALWAYS,
		"SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM inode WHERE ino = 1)",
		"inode %1", "the root was missing, and is made anew",
		"INSERT INTO inode (ino, mode, uid, gid, nlink, atime_ns, mtime_ns, ctime_ns, btime_ns)"
		" SELECT 1, 16877, coalesce((SELECT uid FROM inode ORDER BY ino LIMIT 1), 0),"
		" coalesce((SELECT gid FROM inode ORDER BY ino LIMIT 1), 0), 2, n, n, n, n FROM"
		" (SELECT strftime('%s', 'now') * 1000000000 AS n)" },
	{ "root", WFS_FSCK_ALWAYS,
		"SELECT 1, printf('%o', mode) FROM inode i WHERE ino = 1 AND (NOT " IS_DIR("i") " OR "
		NO_TYPE("i") ")",
		"inode %1", "the root had mode %2 (octal), and is a directory",
		"UPDATE inode SET mode = 16384 | " PERMISSIONS("inode") " WHERE ino = 1" },
	{ "mode", WFS_FSCK_ALWAYS,
		"SELECT i.ino, printf('%o', i.mode), printf('%o', " TYPE_BY_THE_REST("i") ") FROM inode i"
		" WHERE ino <> 1 AND " IS_NO_LONGER_WHAT_IT_SAYS("i"),
		"inode %1", "@1 had mode %2 (octal); by what belongs to it its type is %3",
		"UPDATE inode AS i SET mode = " TYPE_BY_THE_REST("i") " | " PERMISSIONS("i")
		" WHERE ino <> 1 AND " IS_NO_LONGER_WHAT_IT_SAYS("i") },
	{ "inode-content", WFS_FSCK_ALWAYS,
		"SELECT i.ino FROM inode i WHERE NOT " IS_REG("i") " AND " CONTENT("i"),
		"inode %1", "@1 is no regular file; the content that it had goes to lost+found",
		"UPDATE inode AS i SET manifest = NULL, data_file = NULL WHERE NOT " IS_REG("i") " AND "
		CONTENT("i") },
	{ "symlink", WFS_FSCK_ALWAYS,
		"SELECT i.ino, i.size FROM inode i WHERE " IS_LNK("i") " AND NOT " TARGET("i")
		" AND (i.target IS NULL OR length(i.target) = 0)",
		"inode %1", "@1 was a symbolic link whose target of %2 bytes is lost; it is a damaged file now",
		"UPDATE inode AS i SET mode = 33188, target = NULL, verdict = 5, reason = 'content-lost',"
		" detail = 'it was a symbolic link, and its target is lost' WHERE " IS_LNK("i")
		" AND NOT " TARGET("i") " AND (i.target IS NULL OR length(i.target) = 0)" },
};

static const struct wfs_fix_step link_steps[] = {
	{ "symlink", WFS_FSCK_ALWAYS,
		"SELECT i.ino, i.size, length(i.target) FROM inode i WHERE " IS_LNK("i")
		" AND i.size <> length(i.target)",
		"inode %1", "@1 had size %2; it is %3 as its target",
		"UPDATE inode AS i SET size = length(i.target) WHERE " IS_LNK("i") },
};

/* Targets that are none, or of what is no link: the bytes become a file. */
static int fix_targets(struct wfs_fix *fix)
{
	sqlite3_stmt *stmt = NULL;
	int ret = 0, code = SQLITE_ROW;

	while (ret == 0 && code == SQLITE_ROW) {
		char name[64];
		int64_t ino;

		if (sqlite3_prepare_v2(fix->run->db, "SELECT i.ino, i.target FROM inode i"
			" WHERE i.target IS NOT NULL AND NOT (" IS_LNK("i") " AND " TARGET("i") ") LIMIT 1",
			-1, &stmt, NULL) != SQLITE_OK)
			return wfs_fix_failed(fix, "targets");
		code = sqlite3_step(stmt);
		if (code == SQLITE_ROW) {
			ino = sqlite3_column_int64(stmt, 0);
			snprintf(name, sizeof(name), "inode-%lld.target", (long long)ino);
			ret = wfs_lost_bytes(fix, "symlink", name, sqlite3_column_blob(stmt, 1),
				(size_t)sqlite3_column_bytes(stmt, 1), "no target of a symbolic link");
			if (ret == 0)
				ret = wfs_fix_exec(fix, "UPDATE inode AS i SET target = NULL, verdict ="
					" CASE WHEN " IS_LNK("i") " THEN 5 ELSE verdict END, reason = CASE WHEN "
					IS_LNK("i") " THEN 'content-lost' ELSE reason END, mode = CASE WHEN "
					IS_LNK("i") " THEN 33188 ELSE mode END WHERE ino = ?", "i", ino);
		}
		sqlite3_finalize(stmt);
	}
	return ret == 0 && code != SQLITE_DONE ? wfs_fix_failed(fix, "targets") : ret;
}

int wfs_fix_modes(struct wfs_fix *fix)
{
	int ret = wfs_fix_table(fix, mode_steps, WFS_ARRAY_SIZE(mode_steps));

	if (ret == 0)
		ret = fix_targets(fix);
	return ret ? ret : wfs_fix_table(fix, link_steps, WFS_ARRAY_SIZE(link_steps));
}

/* ---- entries ---- */

static const struct wfs_fix_step entry_steps[] = {
	{ "root", WFS_FSCK_ALWAYS,
		"SELECT id, parent, name FROM dirent WHERE ino = 1",
		"dirent %1", "the root was named as \"%3\" in inode %2; the entry is dropped",
		"DELETE FROM dirent WHERE ino = 1" },
	{ "dirent-parent", WFS_FSCK_ALWAYS,
		"SELECT d.parent, count(*) FROM dirent d WHERE d.parent BETWEEN 1 AND " WFS_FSCK_MAX_ID
		" AND d.parent NOT IN (SELECT ino FROM inode) GROUP BY d.parent",
		"inode %1", "%2 entries are in it, but it does not exist; the directory is made anew",
		"INSERT INTO inode (ino, mode, uid, gid, nlink, atime_ns, mtime_ns, ctime_ns, btime_ns)"
		" SELECT DISTINCT d.parent, 16832, r.uid, r.gid, 2, r.mtime_ns, r.mtime_ns, r.mtime_ns,"
		" r.mtime_ns FROM dirent d, inode r WHERE r.ino = 1 AND d.parent BETWEEN 1 AND "
		WFS_FSCK_MAX_ID " AND d.parent NOT IN (SELECT ino FROM inode)" },
	{ "dirent-dangling", WFS_FSCK_ALWAYS,
		"SELECT id, name, ino, parent FROM dirent WHERE ino NOT IN (SELECT ino FROM inode)",
		"dirent %1", "\"%2\" in @4 named inode %3, which does not exist; the name is dropped, and "
			     "what content it had is in lost+found",
		"DELETE FROM dirent WHERE ino NOT IN (SELECT ino FROM inode)" },
	{ "directory-names", WFS_FSCK_ALWAYS,
		"SELECT d.id, d.name, d.parent, d.ino FROM dirent d JOIN inode i ON i.ino = d.ino WHERE "
		IS_DIR("i") " AND EXISTS (SELECT 1 FROM dirent e WHERE e.ino = d.ino AND e.id < d.id)",
		"dirent %1", "\"%2\" in @3 was a second name of the directory @4; it is dropped",
		"DELETE FROM dirent WHERE id IN (SELECT d.id FROM dirent d JOIN inode i ON i.ino = d.ino"
		" WHERE " IS_DIR("i")
		" AND EXISTS (SELECT 1 FROM dirent e WHERE e.ino = d.ino AND e.id < d.id))" },
};

/* Entries that cannot stay as or where they are: each is handed on with its name. */
static int each_entry(struct wfs_fix *fix, const char *sql,
	int (*fn)(struct wfs_fix *fix, int64_t id, int64_t parent, const char *name, size_t len))
{
	struct wfs_fix_rows rows;
	int ret = wfs_fix_rows(fix, sql, &rows, "");

	for (size_t i = 0; i < rows.n && ret == 0; i++) {
		WFS_AUTO_FREE char *name = NULL;
		sqlite3_stmt *stmt = NULL;
		size_t len = 0;

		if (sqlite3_prepare_v2(fix->run->db, "SELECT name FROM dirent WHERE id = ?", -1, &stmt,
			    NULL) != SQLITE_OK)
			ret = wfs_fix_failed(fix, "names");
		sqlite3_bind_int64(stmt, 1, rows.list[i].a);
		if (ret == 0 && sqlite3_step(stmt) == SQLITE_ROW) {
			len = (size_t)sqlite3_column_bytes(stmt, 0);
			name = malloc(len + 1);
			if (name && len > 0)
				memcpy(name, sqlite3_column_blob(stmt, 0), len);
		}
		sqlite3_finalize(stmt);
		if (ret == 0)
			ret = name ? fn(fix, rows.list[i].a, rows.list[i].b, name, len) : -ENOMEM;
	}
	free(rows.list);
	return ret;
}

static int give_legal_name(struct wfs_fix *fix, int64_t id, int64_t parent, const char *name, size_t len)
{
	struct wfs_fsck_line text = { .len = 0 };
	char legal[256];
	size_t legal_len;
	int ret = wfs_lost_free_name(fix, parent, name, len, legal, &legal_len);

	if (ret)
		return ret;
	wfs_fsck_add(&text, "\"");
	wfs_fsck_add_bytes(&text, name, WFS_MIN(len, (size_t)100));
	wfs_fsck_add(&text, "\" in inode %lld was no legal name; it is \"", (long long)parent);
	wfs_fsck_add_bytes(&text, legal, legal_len);
	wfs_fsck_add(&text, "\" now");
	wfs_fix_sayf(fix, "dirent-name", "dirent", id, "%s", text.text);
	return wfs_fix_exec(fix, "UPDATE dirent SET name = ? WHERE id = ?", "bi", legal, legal_len, id);
}

static int move_to_lost(struct wfs_fix *fix, int64_t id, int64_t parent, const char *name, size_t len)
{
	struct wfs_fsck_line text = { .len = 0 };
	int ret = wfs_lost_move(fix, id, name, len);

	wfs_fsck_add(&text, "\"");
	wfs_fsck_add_bytes(&text, name, WFS_MIN(len, (size_t)100));
	wfs_fsck_add(&text, "\" was in inode %lld, where it cannot be reached; it is in /lost+found",
		(long long)parent);
	if (ret == 0)
		wfs_fix_sayf(fix, "dirent-parent", "dirent", id, "%s", text.text);
	return ret;
}

/* ---- cycles ---- */

/* 1, or 0 at the top: a directory without a name. */
static int parent_of(struct wfs_fix *fix, int64_t *ino)
{
	return wfs_fix_number(fix, "SELECT parent FROM dirent WHERE ino = ?", ino, "i", *ino);
}

/* From any directory upwards: one that is in the cycle; or the top where there is none. */
static int find_in_cycle(struct wfs_fix *fix, int64_t *ino)
{
	int64_t fast = *ino;
	int ret = 1;

	do {
		for (int i = 0; i < 2 && ret > 0; i++)
			ret = parent_of(fix, &fast);
		if (ret > 0)
			ret = parent_of(fix, ino);
	} while (ret > 0 && fast != *ino);
	if (ret == 0)
		*ino = fast;
	return WFS_MIN(ret, 0);
}

static int move_entry_to_lost(struct wfs_fix *fix, int64_t id)
{
	WFS_AUTO_FREE char *sql = wfs_format("SELECT id, parent FROM dirent WHERE id = %lld", (long long)id);

	return sql ? each_entry(fix, sql, move_to_lost) : -ENOMEM;
}

static int break_cycles(struct wfs_fix *fix)
{
	int64_t ino = 0, id = 0;
	int ret;

	while ((ret = wfs_fix_number(fix, WFS_FSCK_UNREACHED " LIMIT 1", &ino, "")) > 0) {
		ret = find_in_cycle(fix, &ino);
		if (ret == 0)
			ret = wfs_fix_number(fix, "SELECT min(id) FROM dirent WHERE ino = ?", &id, "i", ino);
		/* The top has no name: it gets one, and all below is reached. */
		if (ret == 0)
			ret = wfs_lost_link_inode(fix, "directory-names", ino);
		else if (ret > 0)
			ret = move_entry_to_lost(fix, id);
		if (ret < 0)
			return ret;
	}
	return ret;
}

/* ---- inodes without a name ---- */

int wfs_lost_link_inode(struct wfs_fix *fix, const char *kind, int64_t ino)
{
	char name[40], as[256] = "";
	int ret;

	snprintf(name, sizeof(name), "inode-%lld", (long long)ino);
	ret = wfs_lost_link(fix, ino, name, strlen(name), as);
	if (ret == 0)
		wfs_fix_sayf(fix, kind, "inode", ino, "it had no name; it is /lost+found/%s", as);
	return ret;
}

/* Those with nlink 0 are removed by recovery, where the store was not unmounted in order. */
static int name_inodes(struct wfs_fix *fix)
{
	struct wfs_fix_rows rows;
	int ret = wfs_fix_rows(fix, "SELECT i.ino FROM inode i WHERE i.ino <> 1"
		" AND NOT EXISTS (SELECT 1 FROM dirent d WHERE d.ino = i.ino)"
		" AND NOT EXISTS (SELECT 1 FROM tensor t WHERE t.ino = i.ino)"
		" AND (? OR i.nlink <> 0 OR " CHILDREN("i") ")", &rows, "i", (int64_t)fix->settled);

	for (size_t i = 0; i < rows.n && ret == 0; i++)
		ret = wfs_lost_link_inode(fix, "orphan", rows.list[i].a);
	free(rows.list);
	return ret;
}

/* ---- attributes, and tensors that wait ---- */

#define BAD_XATTR                                                                                     \
	"ino NOT IN (SELECT i.ino FROM inode i) OR length(name) NOT BETWEEN 1 AND 255"                \
	" OR instr(name, x'00') OR length(value) > 65536"

static int keep_xattrs(struct wfs_fix *fix)
{
	sqlite3_stmt *stmt = NULL;
	int ret = 0, code;

	if (sqlite3_prepare_v2(fix->run->db, "SELECT ino, name, value FROM xattr WHERE " BAD_XATTR, -1,
		    &stmt, NULL) != SQLITE_OK)
		return wfs_fix_failed(fix, "attributes");
	while (ret == 0 && (code = sqlite3_step(stmt)) != SQLITE_DONE) {
		char name[300];

		if (code != SQLITE_ROW) {
			ret = wfs_fix_failed(fix, "attributes");
			break;
		}
		snprintf(name, sizeof(name), "inode-%lld.xattr.%.*s",
			(long long)sqlite3_column_int64(stmt, 0), WFS_MIN(sqlite3_column_bytes(stmt, 1), 200),
			sqlite3_column_bytes(stmt, 1) ? (const char *)sqlite3_column_blob(stmt, 1) : "");
		ret = wfs_lost_bytes(fix, "xattr", name, sqlite3_column_blob(stmt, 2),
			(size_t)sqlite3_column_bytes(stmt, 2), "an attribute that no file can have");
	}
	sqlite3_finalize(stmt);
	return ret ? ret : wfs_fix_exec(fix, "DELETE FROM xattr WHERE " BAD_XATTR, "");
}

static const struct wfs_fix_step tensor_steps[] = {
	{ "tensor", WFS_FSCK_ALWAYS,
		"SELECT dir, name, ino FROM tensor WHERE " WFS_FSCK_BAD_TENSOR,
		"tensor %1 %2", "the row is dropped; its file, inode %3, if there is one, is in lost+found",
		"DELETE FROM tensor WHERE " WFS_FSCK_BAD_TENSOR },
};

int wfs_fix_names(struct wfs_fix *fix)
{
	int ret = wfs_fix_table(fix, entry_steps, WFS_ARRAY_SIZE(entry_steps));

	if (ret == 0)
		ret = each_entry(fix, "SELECT d.id, d.parent FROM dirent d WHERE NOT EXISTS"
			" (SELECT 1 FROM inode i WHERE i.ino = d.parent AND " IS_DIR("i") ")", move_to_lost);
	if (ret == 0)
		ret = each_entry(fix, "SELECT id, parent FROM dirent WHERE length(name) NOT BETWEEN 1 AND 255"
			" OR instr(name, x'00') OR instr(name, x'2f') OR name IN (x'2e', x'2e2e')",
			give_legal_name);
	if (ret == 0)
		ret = wfs_fix_table(fix, tensor_steps, WFS_ARRAY_SIZE(tensor_steps));
	if (ret == 0)
		ret = name_inodes(fix);
	if (ret == 0)
		ret = break_cycles(fix);
	return ret ? ret : keep_xattrs(fix);
}
