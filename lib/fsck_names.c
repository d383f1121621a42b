#include "lib/fsck_check.h"

/* Column types first: SQLite keeps whatever somebody put there. */
#define NOT_INTEGER(col) "typeof(" col ") <> 'integer'"
#define NOT_OR_NULL(type, col) "typeof(" col ") NOT IN ('null', '" type "')"

#define IS_DIR WFS_FSCK_IS_DIR
#define IS_REG WFS_FSCK_IS_REG
#define IS_LNK WFS_FSCK_IS_LNK

static const struct wfs_fsck_check inode_checks[] = {
	{ "column-type", WFS_FSCK_ALWAYS,
		"SELECT ino FROM inode WHERE " NOT_INTEGER("mode") " OR " NOT_INTEGER("uid")
		" OR " NOT_INTEGER("gid") " OR " NOT_INTEGER("nlink") " OR " NOT_INTEGER("rdev")
		" OR " NOT_INTEGER("size") " OR " NOT_INTEGER("blocks")
		" OR " NOT_INTEGER("atime_ns") " OR " NOT_INTEGER("mtime_ns")
		" OR " NOT_INTEGER("ctime_ns") " OR " NOT_INTEGER("btime_ns")
		" OR " NOT_INTEGER("verdict") " OR " NOT_OR_NULL("blob", "target")
		" OR " NOT_OR_NULL("integer", "manifest") " OR " NOT_OR_NULL("integer", "data_file")
		" OR " NOT_OR_NULL("text", "reason") " OR " NOT_OR_NULL("text", "detail"),
		"inode %1", "@1: a column has a value of a type that the schema does not have" },
	{ "mode", WFS_FSCK_ALWAYS,
		"SELECT ino, printf('%o', mode) FROM inode WHERE mode NOT BETWEEN 0 AND 65535"
		" OR (mode & 61440) NOT IN (4096, 8192, 16384, 24576, 32768, 40960, 49152)",
		"inode %1", "@1 has mode %2 (octal), which is no type of file" },
	{ "inode-range", WFS_FSCK_ALWAYS,
		"SELECT ino FROM inode WHERE uid NOT BETWEEN 0 AND 4294967295"
		" OR gid NOT BETWEEN 0 AND 4294967295 OR nlink NOT BETWEEN 0 AND 4294967295"
		" OR rdev < 0 OR size < 0 OR blocks < 0",
		"inode %1", "@1: uid, gid, nlink, rdev, size or blocks is out of range" },
	{ "inode-content", WFS_FSCK_ALWAYS,
		"SELECT i.ino FROM inode i WHERE NOT " IS_REG("i")
		" AND (i.manifest IS NOT NULL OR i.data_file IS NOT NULL)",
		"inode %1", "@1 is no regular file, but has content" },
	{ "inode-content", WFS_FSCK_ALWAYS,
		"SELECT i.ino FROM inode i WHERE i.manifest IS NOT NULL AND i.data_file IS NOT NULL"
		" AND " IS_REG("i"),
		"inode %1", "@1 has both a manifest and a staging data file" },
	{ "inode-content", WFS_FSCK_ALWAYS,
		"SELECT i.ino FROM inode i WHERE NOT " IS_LNK("i") " AND i.target IS NOT NULL"
		" AND (i.data_file IS NULL OR length(i.target) <> 16)",
		"inode %1", "@1 is no symbolic link, but has a target" },
	{ "inode-size", WFS_FSCK_ALWAYS,
		"SELECT i.ino, i.size, coalesce(m.size, 0) FROM inode i"
		" LEFT JOIN manifest m ON m.id = i.manifest WHERE " IS_REG("i")
		" AND i.data_file IS NULL AND (i.manifest IS NULL OR m.id IS NOT NULL)"
		" AND NOT (i.manifest IS NULL AND i.verdict = 5)" /* its content is lost */
		" AND i.size IS NOT coalesce(m.size, 0)",
		"inode %1", "@1 has size %2, its content is %3 bytes long" },
	{ "symlink", WFS_FSCK_ALWAYS,
		"SELECT i.ino, i.size, length(i.target) FROM inode i WHERE " IS_LNK("i")
		" AND (typeof(i.target) <> 'blob' OR length(i.target) NOT BETWEEN 1 AND 4095"
		" OR instr(i.target, x'00') OR i.size IS NOT length(i.target))",
		"inode %1", "@1 has size %2 and a target of %3 bytes" },
	{ "verdict", WFS_FSCK_ALWAYS,
		"SELECT ino, verdict FROM inode WHERE verdict NOT BETWEEN 0 AND 5",
		"inode %1", "@1 has verdict %2; 0 to 5 have a meaning" },
	{ "verdict", WFS_FSCK_ALWAYS,
		"SELECT ino, verdict, reason FROM inode WHERE verdict IN (3, 4, 5)"
		" AND reason IS NULL OR verdict IN (0, 2) AND reason IS NOT NULL"
		" AND NOT (reason = 'sync-failed' AND data_file IS NOT NULL)",
		"inode %1", "@1 has verdict %2, but reason %3" },
	{ "verdict", WFS_FSCK_ALWAYS,
		"SELECT ino, verdict, reason FROM inode i WHERE verdict = 1 AND reason <> 'warning'"
		" AND NOT (reason = 'sync-failed' AND data_file IS NOT NULL) OR verdict <> 0 AND NOT " IS_REG("i"),
		"inode %1", "@1 has verdict %2 and reason %3, which no such file has" },
	{ "id-range", WFS_FSCK_ALWAYS,
		"SELECT ino FROM inode WHERE ino NOT BETWEEN 1 AND " WFS_FSCK_MAX_ID
		" UNION ALL SELECT id FROM dirent WHERE id NOT BETWEEN 1 AND " WFS_FSCK_MAX_ID,
		"inode or dirent %1", "no such id was ever given out" },
	{ "orphan", WFS_FSCK_SETTLED,
		"SELECT i.ino FROM inode i WHERE i.nlink = 0"
		" AND NOT EXISTS (SELECT 1 FROM dirent d WHERE d.ino = i.ino)",
		"inode %1", "it has no name, and nobody can have it open" },
	{ "dangling-reference", WFS_FSCK_ALWAYS,
		"SELECT i.ino, i.manifest FROM inode i WHERE i.manifest IS NOT NULL"
		" AND NOT EXISTS (SELECT 1 FROM manifest m WHERE m.id = i.manifest)",
		"inode %1", "@1 names manifest %2, which does not exist" },
	{ "dangling-reference", WFS_FSCK_ALWAYS,
		"SELECT i.ino, i.data_file FROM inode i WHERE i.data_file IS NOT NULL"
		" AND NOT EXISTS (SELECT 1 FROM data_file d WHERE d.id = i.data_file)",
		"inode %1", "@1 names data file %2, which does not exist" },
	{ "staging-state", WFS_FSCK_ALWAYS,
		"SELECT i.ino, d.id, d.state FROM inode i JOIN data_file d ON d.id = i.data_file"
		" WHERE d.state IS NOT 0",
		"inode %1", "@1 is dirty, but its data file %2 has state %3 instead of 0" },
	{ "staging-shared", WFS_FSCK_ALWAYS,
		"SELECT data_file, sum(1), min(ino), max(ino) FROM inode"
		" WHERE data_file IS NOT NULL GROUP BY data_file HAVING sum(1) > 1",
		"data_file %1", "it belongs to %2 dirty files: @3, @4" },
};

/*
 * A directory that was removed while somebody has it open has nlink 0, no name
 * and no entries; any other has one name and 2 links plus one for each ".." in it.
 */
static const struct wfs_fsck_check dirent_checks[] = {
	{ "column-type", WFS_FSCK_ALWAYS,
		"SELECT id FROM dirent WHERE " NOT_INTEGER("parent") " OR " NOT_INTEGER("ino"),
		"dirent %1", "parent or ino is not an integer" },
	{ "root", WFS_FSCK_ALWAYS,
		"SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM inode i WHERE i.ino = 1 AND " IS_DIR("i")
		")",
		"inode %1", "the root is missing or is no directory" },
	{ "root", WFS_FSCK_ALWAYS,
		"SELECT id, parent, name FROM dirent WHERE ino = 1",
		"dirent %1", "the root is named as \"%3\" in inode %2" },
	{ "dirent-name", WFS_FSCK_ALWAYS,
		"SELECT id, name, parent FROM dirent WHERE typeof(name) <> 'blob'"
		" OR length(name) NOT BETWEEN 1 AND 255 OR instr(name, x'00') OR instr(name, x'2f')"
		" OR name IN (x'2e', x'2e2e')",
		"dirent %1", "\"%2\" in inode %3 is no legal name" },
	{ "dirent-parent", WFS_FSCK_ALWAYS,
		"SELECT d.id, d.name, d.parent FROM dirent d WHERE NOT EXISTS"
		" (SELECT 1 FROM inode i WHERE i.ino = d.parent AND " IS_DIR("i") ")",
		"dirent %1", "\"%2\" is in inode %3, which is no directory" },
	{ "dirent-dangling", WFS_FSCK_ALWAYS,
		"SELECT d.id, d.name, d.ino FROM dirent d WHERE NOT EXISTS"
		" (SELECT 1 FROM inode i WHERE i.ino = d.ino)",
		"dirent %1", "\"%2\" names inode %3, which does not exist" },
	{ "nlink", WFS_FSCK_ALWAYS,
		"SELECT i.ino, i.nlink, " WFS_FSCK_NAMES("i") " AS names"
		" FROM inode i WHERE NOT " IS_DIR("i") " AND names IS NOT i.nlink",
		"inode %1", "@1 has nlink %2, but %3 names" },
	{ "nlink", WFS_FSCK_ALWAYS,
		"SELECT i.ino, i.nlink, " WFS_FSCK_LINKS("i") " AS links"
		" FROM inode i WHERE " IS_DIR("i") " AND links IS NOT i.nlink"
		" AND (i.ino = 1 OR " WFS_FSCK_IS_NAMED("i") ")",
		"inode %1", "@1 has nlink %2, should have %3" },
	{ "directory-names", WFS_FSCK_ALWAYS,
		"SELECT i.ino, (SELECT count(*) FROM dirent d WHERE d.ino = i.ino) AS names"
		" FROM inode i WHERE " IS_DIR("i") " AND i.ino <> 1 AND (names > 1 OR names = 0"
		" AND (i.nlink <> 0 OR EXISTS (SELECT 1 FROM dirent e WHERE e.parent = i.ino)))",
		"inode %1", "the directory @1 has %2 names instead of one" },
	{ "directory-cycle", WFS_FSCK_ALWAYS,
		WFS_FSCK_UNREACHED,
		"inode %1", "the directory @1 cannot be reached from the root" },
};

static const struct wfs_fsck_check tensor_checks[] = {
	{ "tensor", WFS_FSCK_ALWAYS,
		"SELECT dir, name, ino FROM tensor WHERE " WFS_FSCK_BAD_TENSOR,
		"tensor %1 %2", "a column has a value that the schema does not have, %1 is no directory, "
				"or its file, inode %3, does not exist or is too short" },
};

static const struct wfs_fsck_check xattr_checks[] = {
	{ "dangling-reference", WFS_FSCK_ALWAYS,
		"SELECT x.ino, x.name FROM xattr x WHERE NOT EXISTS"
		" (SELECT 1 FROM inode i WHERE i.ino = x.ino)",
		"xattr %1 %2", "inode %1 does not exist" },
	{ "xattr", WFS_FSCK_ALWAYS,
		"SELECT ino, name, length(name), length(value) FROM xattr"
		" WHERE typeof(name) <> 'blob' OR length(name) NOT BETWEEN 1 AND 255"
		" OR instr(name, x'00') OR typeof(value) <> 'blob' OR length(value) > 65536",
		"xattr %1 %2", "name of %3 bytes and value of %4 bytes, or not bytes at all" },
};

int wfs_fsck_names(struct wfs_fsck_run *run)
{
	int ret = wfs_fsck_table(run, inode_checks, WFS_ARRAY_SIZE(inode_checks));

	if (ret == 0)
		ret = wfs_fsck_table(run, dirent_checks, WFS_ARRAY_SIZE(dirent_checks));
	if (ret == 0)
		ret = wfs_fsck_table(run, tensor_checks, WFS_ARRAY_SIZE(tensor_checks));
	if (ret == 0)
		ret = wfs_fsck_table(run, xattr_checks, WFS_ARRAY_SIZE(xattr_checks));
	return ret;
}
