/*
 * query.h - every SQL statement that the driver runs, by name.
 *
 * Each is prepared once for a connection. Lists of columns that several share
 * are macros, so that the order that lib/name.c reads them in stands once.
 */
#ifndef WFS_QUERY_H
#define WFS_QUERY_H

#define WFS_ATTR_COLUMNS                                                                           \
	"i.ino, i.mode, i.uid, i.gid, i.nlink, i.rdev, i.size, i.blocks, i.atime_ns, i.mtime_ns, " \
	"i.ctime_ns, i.btime_ns, i.manifest, i.data_file, i.verdict"

#define WFS_QUERIES(Q)                                                                             \
	/* transactions, and the connection's view of the log: lib/db.c */                         \
	Q(BEGIN, "BEGIN IMMEDIATE")                                                                \
	Q(BEGIN_READ, "BEGIN")                                                                     \
	Q(COMMIT, "COMMIT")                                                                        \
	Q(ROLLBACK, "ROLLBACK")                                                                    \
	Q(PART, "SAVEPOINT part")                                                                  \
	Q(PART_END, "RELEASE part")                                                                \
	Q(PART_UNDO, "ROLLBACK TO part")                                                           \
	Q(VIEW, "SELECT 1 FROM meta")                                                              \
	/* meta */                                                                                 \
	Q(META_GET, "SELECT value FROM meta WHERE key = ?")                                        \
	Q(META_SET, "INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)")                      \
	/* names */                                                                                \
	Q(NAME_LOOKUP, "SELECT " WFS_ATTR_COLUMNS                                                  \
		       " FROM dirent d JOIN inode i ON i.ino = d.ino"                              \
		       " WHERE d.parent = ? AND d.name = ?")                                       \
	Q(NAME_FIND, "SELECT id, ino FROM dirent WHERE parent = ? AND name = ?")                   \
	Q(NAME_INSERT, "INSERT INTO dirent (parent, name, ino) VALUES (?, ?, ?)")                  \
	Q(NAME_DELETE, "DELETE FROM dirent WHERE id = ?")                                          \
	Q(NAME_SET_INO, "UPDATE dirent SET ino = ? WHERE id = ?")                                  \
	Q(NAME_ANY, "SELECT 1 FROM dirent WHERE parent = ? LIMIT 1")                               \
	Q(NAME_OF, "SELECT parent, name FROM dirent WHERE ino = ? LIMIT 1")                        \
	Q(NAMES_OF, "SELECT name FROM dirent WHERE ino = ?")                                       \
	Q(READDIR, "SELECT d.id, d.name, " WFS_ATTR_COLUMNS                                        \
		   " FROM dirent d JOIN inode i ON i.ino = d.ino"                                  \
		   " WHERE d.parent = ? AND d.id > ? ORDER BY d.id LIMIT ?")                       \
	/* inodes */                                                                               \
	Q(INODE_GET, "SELECT " WFS_ATTR_COLUMNS " FROM inode i WHERE i.ino = ?")                   \
	Q(INODE_INSERT, "INSERT INTO inode (mode, uid, gid, nlink, rdev, size, atime_ns, "         \
			"mtime_ns, ctime_ns, btime_ns, target, data_file) "                        \
			"VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)")                             \
	Q(INODE_SET, "UPDATE inode SET mode = ?, uid = ?, gid = ?, atime_ns = ?, mtime_ns = ?, "   \
		     "ctime_ns = ? WHERE ino = ?")                                                 \
	Q(INODE_NLINK, "UPDATE inode SET nlink = nlink + ?, ctime_ns = ? WHERE ino = ?")           \
	Q(INODE_CTIME, "UPDATE inode SET ctime_ns = ? WHERE ino = ?")                              \
	Q(INODE_TOUCH_DIR, "UPDATE inode SET mtime_ns = ?, ctime_ns = ?, nlink = nlink + ? "       \
			   "WHERE ino = ?")                                                        \
	Q(INODE_DELETE, "DELETE FROM inode WHERE ino = ?")                                         \
	Q(INODE_TARGET, "SELECT target FROM inode WHERE ino = ?")                                  \
	Q(INODE_MAKE_DIRTY, "UPDATE inode SET manifest = NULL, data_file = ?, size = ?, "          \
			    "target = NULL, "                                                      \
			    "verdict = 0, reason = NULL, detail = NULL WHERE ino = ?")             \
	Q(INODE_SET_STAGING, "UPDATE inode SET data_file = ? WHERE ino = ?")                       \
	Q(INODE_SEAL, "UPDATE inode SET manifest = ?, data_file = NULL, size = ?, blocks = ?, "    \
		      "mtime_ns = ?, ctime_ns = ?, target = NULL WHERE ino = ?")                   \
	Q(INODE_FLUSHED, "UPDATE inode SET target = ? WHERE ino = ? AND data_file = ?")            \
	Q(INODE_NOTE, "SELECT target FROM inode WHERE ino = ? AND data_file IS NOT NULL")          \
	Q(INODE_ORPHANS, "SELECT ino FROM inode WHERE nlink = 0 LIMIT ?")                          \
	Q(INODE_DIRTY, "SELECT ino FROM inode WHERE data_file IS NOT NULL ORDER BY ino")           \
	/* that a sync has failed is not forgotten by the gate */                                  \
	Q(INODE_SET_VERDICT, "UPDATE inode SET verdict = ?1, "                                     \
			     "reason = CASE reason WHEN 'sync-failed' THEN reason ELSE ?2 END, "   \
			     "detail = CASE reason WHEN 'sync-failed' THEN detail ELSE ?3 END "    \
			     "WHERE ino = ?4")                                                     \
	Q(INODE_SYNC_FAILED, "UPDATE inode SET reason = 'sync-failed', detail = ? "                \
			     "WHERE data_file = ? AND reason IS NOT 'sync-failed'")                \
	Q(INODE_SYNC_HEALED, "UPDATE inode SET reason = NULL, detail = NULL, verdict = 0 "         \
			     "WHERE data_file = ? AND reason = 'sync-failed'")                     \
	Q(INODE_OF_STAGING, "SELECT ino FROM inode WHERE data_file = ?")                           \
	Q(DATA_SYNC_FAILED, "SELECT data_file FROM inode WHERE reason = 'sync-failed' "            \
			    "AND data_file IS NOT NULL")                                           \
	Q(INODE_VERDICT, "SELECT verdict, reason, detail FROM inode WHERE ino = ?")                \
	Q(INODE_CLEAR_VERDICT, "UPDATE inode SET verdict = 0, "                                    \
			       "reason = CASE reason WHEN 'sync-failed' THEN reason END, "         \
			       "detail = CASE reason WHEN 'sync-failed' THEN detail END "          \
			       "WHERE ino = ? AND verdict <> 0")                                   \
	/* xattrs */                                                                               \
	Q(XATTR_GET, "SELECT value FROM xattr WHERE ino = ? AND name = ?")                         \
	Q(XATTR_SET, "INSERT OR REPLACE INTO xattr (ino, name, value) VALUES (?, ?, ?)")           \
	Q(XATTR_LIST, "SELECT name FROM xattr WHERE ino = ?")                                      \
	Q(XATTR_REMOVE, "DELETE FROM xattr WHERE ino = ? AND name = ?")                            \
	Q(XATTR_DELETE, "DELETE FROM xattr WHERE ino = ?")                                         \
	/* data files */                                                                           \
	Q(DATA_INSERT, "INSERT INTO data_file (state) VALUES (?)")                                 \
	Q(DATA_STATE, "UPDATE data_file SET state = ?, holes = 0 WHERE id = ?")                    \
	Q(DATA_GET, "SELECT state FROM data_file WHERE id = ?")                                    \
	Q(DATA_IN_USE, "SELECT 1 FROM object WHERE data_file = ?1 UNION ALL "                      \
		       "SELECT 1 FROM manifest WHERE whole = ?1 LIMIT 1")                          \
	Q(DATA_HOLED, "UPDATE data_file SET holes = holes + 1 WHERE id = ?")                       \
	Q(DATA_PUNCHED, "UPDATE data_file SET holes = 0 WHERE id = ? AND holes = ?")               \
	Q(DATA_WORK, "SELECT id, state, holes FROM data_file "                                     \
		     "WHERE (state >= 2 OR holes > 0) AND id > ? ORDER BY id LIMIT ?")             \
	Q(DATA_DELETE, "DELETE FROM data_file WHERE id = ? AND state = 2")                         \
	/* by both: what lies behind it is removed, and a sequence can be damaged */               \
	Q(DATA_LAST_ID, "SELECT max(coalesce((SELECT max(seq) FROM sqlite_sequence "               \
			"WHERE name = 'data_file'), 0), "                                          \
			"coalesce((SELECT max(id) FROM data_file), 0))")                           \
	Q(DATA_DOOM_FILLING, "UPDATE data_file SET state = 2 WHERE state = 3")                     \
	/* objects */                                                                              \
	Q(OBJECT_FIND, "SELECT id, ordinal, data_file, offset FROM object "                        \
		       "WHERE digest = ? AND ordinal > ? AND length = ? "                          \
		       "ORDER BY ordinal LIMIT 1")                                                 \
	Q(OBJECT_LAST, "SELECT max(ordinal) FROM object WHERE digest = ?")                         \
	Q(OBJECT_INSERT, "INSERT INTO object (digest, ordinal, length, refs, data_file, offset) "  \
			 "VALUES (?, ?, ?, ?, ?, ?)")                                              \
	Q(OBJECTS_MOVE, "UPDATE object SET data_file = ? WHERE data_file = ?")                     \
	Q(OBJECT_REF, "UPDATE object SET refs = refs + ? WHERE id = ?")                            \
	Q(OBJECT_GET, "SELECT refs, data_file, length FROM object WHERE id = ?")                   \
	Q(OBJECT_DELETE, "DELETE FROM object WHERE id = ?")                                        \
	Q(OBJECT_PLACE, "UPDATE object SET data_file = ?, offset = ? WHERE id = ?")                \
	Q(OBJECT_TO_DATABASE, "UPDATE object SET data_file = NULL, offset = NULL WHERE id = ?")    \
	Q(OBJECTS_OF_FILE, "SELECT id, refs, offset, length FROM object WHERE data_file = ? "      \
			   "ORDER BY offset")                                                      \
	Q(BYTES_INSERT, "INSERT INTO object_bytes (object, bytes) VALUES (?, ?)")                  \
	Q(BYTES_GET, "SELECT b.bytes, o.digest FROM object o JOIN object_bytes b "                 \
		     "ON b.object = o.id WHERE o.id = ?")                                          \
	Q(BYTES_SET, "INSERT OR REPLACE INTO object_bytes (object, bytes) VALUES (?, ?)")          \
	Q(BYTES_DELETE, "DELETE FROM object_bytes WHERE object = ?")                               \
	/* manifests */                                                                            \
	Q(MANIFEST_FIND, "SELECT id FROM manifest WHERE digest = ? AND objects = ? AND id > ? "    \
			 "ORDER BY id LIMIT 1")                                                    \
	Q(MANIFEST_INSERT, "INSERT INTO manifest (digest, size, objects, refs) "                   \
			   "VALUES (?, ?, ?, ?)")                                                  \
	Q(MANIFEST_ADD, "INSERT INTO manifest_object (manifest, seq, object) VALUES (?, ?, ?)")    \
	Q(MANIFEST_REF, "UPDATE manifest SET refs = refs + 1 WHERE id = ?")                        \
	Q(MANIFEST_UNREF, "UPDATE manifest SET refs = refs - 1, "                                  \
			  "digest = CASE refs WHEN 1 THEN NULL ELSE digest END WHERE id = ?")      \
	Q(MANIFEST_GET, "SELECT refs, size, objects, whole, shared, solid FROM manifest "          \
			"WHERE id = ?")                                                            \
	Q(MANIFEST_SOLID, "UPDATE manifest SET solid = 1 WHERE id = ?")                            \
	Q(MANIFEST_HOME, "SELECT o.data_file FROM manifest_object m JOIN object o "                \
			 "ON o.id = m.object WHERE m.manifest = ? AND m.seq = 0")                  \
	Q(MANIFEST_DEAD, "SELECT id FROM manifest WHERE refs = 0 LIMIT 1")                         \
	Q(MANIFEST_IDS, "SELECT object FROM manifest_object WHERE manifest = ? ORDER BY seq")      \
	Q(MANIFEST_LOAD, "SELECT o.id, o.length, o.data_file, o.offset, o.digest, o.refs "         \
			 "FROM manifest_object m JOIN object o ON o.id = m.object "                \
			 "WHERE m.manifest = ? ORDER BY m.seq")                                    \
	Q(MANIFEST_NTH, "SELECT o.length, o.digest FROM manifest_object m JOIN object o "          \
			"ON o.id = m.object WHERE m.manifest = ? AND m.seq = ?")                   \
	Q(MANIFEST_NTH_ID, "SELECT object FROM manifest_object WHERE manifest = ? AND seq = ?")    \
	Q(MANIFEST_TAIL, "SELECT seq, object FROM manifest_object WHERE manifest = ? "             \
			 "ORDER BY seq DESC LIMIT ?")                                              \
	Q(MANIFEST_CUT, "DELETE FROM manifest_object WHERE manifest = ? AND seq >= ?")             \
	Q(MANIFEST_DELETE, "DELETE FROM manifest WHERE id = ?")                                    \
	/* whole copies */                                                                         \
	Q(WHOLE_SET, "UPDATE manifest SET whole = ?, shared = ? WHERE id = ?")                     \
	Q(WHOLE_CLEAR, "UPDATE manifest SET whole = NULL, shared = 0, solid = 1 WHERE id = ?")     \
	Q(WHOLE_SHARED, "UPDATE manifest SET shared = ? WHERE id = ?")                             \
	Q(WHOLE_MOVE, "UPDATE manifest SET whole = ? WHERE whole = ?")                             \
	Q(WHOLE_OF_FILE, "SELECT id FROM manifest WHERE whole = ?")                                \
	Q(WHOLE_NEXT, "SELECT id, whole FROM manifest WHERE whole > ? ORDER BY whole LIMIT 1")     \
	Q(WHOLE_SHARED_SUM, "SELECT sum(shared) FROM manifest WHERE whole IS NOT NULL")            \
	Q(WHOLE_SUM, "SELECT sum(shared), sum(size - shared - coalesce((SELECT sum(length) "       \
		     "FROM object WHERE data_file = whole), 0)) "                                  \
		     "FROM manifest WHERE whole IS NOT NULL")                                      \
	/* tensors that are not in their shards yet */                                              \
	Q(TENSOR_SET, "INSERT OR REPLACE INTO tensor (dir, variant, name, ino, form, dtype, "       \
		      "shape, start, length) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)")                  \
	Q(TENSOR_GET, "SELECT ino, form FROM tensor WHERE dir = ? AND variant = ? AND name = ?")   \
	Q(TENSOR_OF_FILE, "SELECT dir, variant, name, form FROM tensor WHERE ino = ?")             \
	Q(TENSOR_ALL, "SELECT name, ino, dtype, shape, start, length FROM tensor "                 \
		      "WHERE dir = ? AND variant = ? ORDER BY ino, name")                                \
	Q(TENSOR_DELETE, "DELETE FROM tensor WHERE dir = ? AND variant = ? AND name = ?")          \
	Q(TENSOR_VARIANT, "SELECT variant FROM tensor WHERE dir = ? LIMIT 1")                      \
	Q(TENSOR_VARIANT_NEXT, "SELECT variant FROM tensor WHERE dir = ? AND variant > ? "         \
			       "ORDER BY variant LIMIT 1")                                         \
	Q(TENSOR_DIR, "SELECT dir FROM tensor WHERE dir > ? ORDER BY dir LIMIT 1")                 \
	Q(TENSOR_COUNT, "SELECT count(*) FROM tensor")                                             \
	Q(TENSOR_UNPUT, "DELETE FROM tensor WHERE ino = ?")                                        \
	/* damage: lib/damage.h */                                                                 \
	Q(DAMAGE_PLACES, "SELECT d.object, o.data_file, o.offset, o.length, d.reason "             \
			 "FROM damage d JOIN object o ON o.id = d.object ORDER BY d.object")       \
	Q(DAMAGE_OF, "SELECT reason FROM damage WHERE object = ?")                                 \
	Q(DAMAGE_SET, "INSERT OR REPLACE INTO damage (object, reason, found_ns) VALUES (?, ?, ?)") \
	Q(DAMAGE_CLEAR, "DELETE FROM damage WHERE object = ?")                                     \
	Q(DAMAGE_ROWS, "SELECT manifest, seq, object FROM manifest_object")                        \
	Q(DAMAGE_ROWS_OF, "SELECT manifest, seq, object FROM manifest_object WHERE manifest = ?")  \
	Q(DAMAGE_INODES, "SELECT ino FROM inode WHERE manifest = ? AND nlink > 0")                 \
	Q(DAMAGE_NAMES, "SELECT parent, name FROM dirent WHERE ino = ?")                           \
	Q(DAMAGE_LEFT_SOLID, "UPDATE manifest SET solid = 0 WHERE solid = 1 AND id IN "            \
			     "(SELECT manifest FROM manifest_object WHERE object = ?)")            \
	Q(DAMAGE_AT, "SELECT id, offset, offset + length FROM object WHERE data_file = ?1 "       \
		     "AND offset < ?2 AND offset + length > ?3 "                                   \
		     "AND offset >= (SELECT coalesce(max(offset), 0) FROM object "                 \
		     "WHERE data_file = ?1 AND offset <= ?3) ORDER BY offset")                     \
	Q(DAMAGE_FILES, "SELECT count(*) FROM inode WHERE nlink > 0 AND verdict <> 5 AND "         \
			"manifest IN (SELECT manifest FROM manifest_object "                       \
			"WHERE object IN (SELECT object FROM damage))")                            \
	Q(DAMAGE_COUNT, "SELECT count(*) FROM damage")                                             \
	Q(DAMAGE_PLACE, "SELECT data_file, offset, length, digest FROM object WHERE id = ?")       \
	Q(RECOVER_REPORTED, "SELECT count(*) FROM inode WHERE nlink > 0 AND data_file IS NOT NULL "  \
			    "AND (verdict = 5 OR reason = 'power-cut')")                           \
	Q(VERIFY_LAST, "SELECT coalesce(max(id), 0) FROM object")                                  \
	Q(VERIFY_TOTAL, "SELECT coalesce(sum(length), 0) FROM object")                             \
	Q(VERIFY_COPIES, "SELECT coalesce(sum(size - coalesce((SELECT sum(length) FROM object "    \
			 "WHERE data_file = whole), 0)), 0) FROM manifest "                        \
			 "WHERE whole IS NOT NULL AND refs > 0")                                   \
	Q(VERIFY_FILES, "SELECT id, digest, length, data_file, offset FROM object "                \
			"WHERE data_file IS NOT NULL AND (data_file, offset) > (?, ?) "            \
			"AND id <= ? ORDER BY data_file, offset LIMIT 256")                        \
	Q(VERIFY_ROWS, "SELECT o.id, o.digest, o.length, b.bytes FROM object o "                   \
		       "LEFT JOIN object_bytes b ON b.object = o.id "                              \
		       "WHERE o.data_file IS NULL AND o.id > ? AND o.id <= ? ORDER BY o.id "       \
		       "LIMIT 256")                                                                \
	Q(VERIFY_ROW, "SELECT o.id, o.digest, o.length, b.bytes FROM object o "                    \
		      "LEFT JOIN object_bytes b ON b.object = o.id "                               \
		      "WHERE o.data_file IS NULL AND o.id = ?")                                    \
	Q(WHOLE_DROP, "UPDATE manifest SET whole = NULL, shared = 0, solid = 0 "                   \
		      "WHERE id = ? AND whole = ?")                                                \
	/* figures for weightfs status */                                                          \
	Q(STAT_INODES, "SELECT "                                                                   \
		       "sum((mode & 61440) = 32768 AND nlink > 0), sum((mode & 61440) = 16384), "  \
		       "sum((mode & 61440) = 32768 AND nlink > 0 AND data_file IS NOT NULL), "     \
		       "sum(nlink > 0 AND verdict = 3), sum(nlink > 0 AND verdict = 4), "          \
		       "sum(nlink > 0 AND verdict = 5), "                                          \
		       "sum(nlink > 0 AND verdict = 1 AND reason IS NOT NULL), "                   \
		       "sum(CASE WHEN (mode & 61440) = 32768 AND data_file IS NULL "               \
		       "THEN size * nlink ELSE 0 END) FROM inode")                                 \
	Q(STAT_OBJECTS, "SELECT count(*), sum(length) FROM object")                                \
	Q(STAT_MANIFESTS, "SELECT count(*) FROM manifest")                                         \
	Q(STAT_DATA_EACH, "SELECT d.id, d.state, CASE WHEN d.holes > 0 AND m.id IS NULL THEN "     \
			  "(SELECT coalesce(sum(length), 0) FROM object WHERE data_file = d.id) "  \
			  "END, m.shared FROM data_file d LEFT JOIN manifest m ON m.whole = d.id") \
	Q(STAT_DEAD, "SELECT coalesce(sum(size), 0) FROM manifest WHERE refs = 0")                 \
	Q(STAT_DIRTY, "SELECT ino, data_file, nlink FROM inode WHERE data_file IS NOT NULL")       \
	Q(STAT_REPORT, "SELECT ino, size, data_file, verdict, reason, detail FROM inode "          \
		       "WHERE nlink > 0 AND ino IN (SELECT ino FROM inode "                        \
		       "WHERE data_file IS NOT NULL UNION SELECT ino FROM inode "                  \
		       "WHERE reason IS NOT NULL) ORDER BY ino")

enum wfs_query {
#define WFS_QUERY_ENUM(name, sql) WFS_Q_##name,
	WFS_QUERIES(WFS_QUERY_ENUM)
#undef WFS_QUERY_ENUM
	WFS_QUERY_COUNT,
};

/* The text of a query. */
const char *wfs_query_sql(enum wfs_query q);

#endif
