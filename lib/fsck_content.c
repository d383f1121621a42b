#include "lib/fsck_check.h"

#include <string.h>

#include "lib/digest.h"

#define SEQUENCE_CHECK(table, id)                                                                  \
	{                                                                                          \
		"sequence", WFS_FSCK_ALWAYS,                                                       \
			"SELECT '" table "', m.top, s.seq FROM (SELECT max(" id ") AS top FROM "   \
			table ") m LEFT JOIN sqlite_sequence s ON s.name = '" table "'"            \
			" WHERE m.top > coalesce(s.seq, 0)",                                       \
			"table %1", "its largest id is %2, but sqlite_sequence says %3: ids "      \
				    "would be used twice"                                          \
	}

static const struct wfs_fsck_check object_checks[] = {
	{ "column-type", WFS_FSCK_ALWAYS,
		"SELECT id FROM object WHERE typeof(digest) <> 'blob' OR length(digest) <> 16"
		" OR typeof(ordinal) <> 'integer' OR ordinal < 0 OR typeof(refs) <> 'integer'"
		" OR typeof(length) <> 'integer' OR length < 1"
		" OR typeof(data_file) NOT IN ('null', 'integer')"
		" OR typeof(offset) NOT IN ('null', 'integer')"
		" OR (data_file IS NULL) <> (offset IS NULL)",
		"object %1", "a column has a value of a type or range that the schema does not have" },
	{ "object-dead", WFS_FSCK_ALWAYS,
		"SELECT id FROM object WHERE refs = 0",
		"object %1", "no manifest names it" },
	{ "object-refs", WFS_FSCK_ALWAYS,
		"SELECT object, (SELECT refs FROM object o WHERE o.id = m.object) AS refs, rows"
		" FROM (SELECT object, count(*) AS rows FROM manifest_object GROUP BY object) m"
		" WHERE refs IS NOT NULL AND refs IS NOT rows",
		"object %1", "refs is %2, but %3 rows of manifest_object name it" },
	{ "object-refs", WFS_FSCK_ALWAYS,
		"SELECT id, refs FROM object WHERE refs <> 0 AND id NOT IN"
		" (SELECT object FROM manifest_object WHERE object IS NOT NULL)",
		"object %1", "refs is %2, but no row of manifest_object names it" },
	{ "object-bytes", WFS_FSCK_OBJECT,
		"SELECT o.id, o.length, length(b.bytes) FROM object o"
		" JOIN object_bytes b ON b.object = o.id"
		" WHERE typeof(b.bytes) <> 'blob' OR length(b.bytes) IS NOT o.length",
		"object %1", "length is %2, but object_bytes has %3 bytes" },
	{ "object-place", WFS_FSCK_OBJECT,
		"SELECT o.id FROM object o WHERE o.data_file IS NULL AND NOT EXISTS"
		" (SELECT 1 FROM object_bytes b WHERE b.object = o.id)",
		"object %1", "its bytes are neither in a data file nor in object_bytes" },
	{ "object-place", WFS_FSCK_ALWAYS,
		"SELECT o.id, o.data_file FROM object o JOIN object_bytes b ON b.object = o.id"
		" WHERE o.data_file IS NOT NULL",
		"object %1", "its bytes are both in data file %2 and in object_bytes" },
	{ "dangling-reference", WFS_FSCK_ALWAYS,
		"SELECT b.object FROM object_bytes b WHERE NOT EXISTS"
		" (SELECT 1 FROM object o WHERE o.id = b.object)",
		"object_bytes %1", "object %1 does not exist" },
	{ "dangling-reference", WFS_FSCK_ALWAYS,
		"SELECT o.id, o.data_file FROM object o WHERE o.data_file IS NOT NULL"
		" AND NOT EXISTS (SELECT 1 FROM data_file d WHERE d.id = o.data_file)",
		"object %1", "data file %2 does not exist" },
	{ "extent-not-pack", WFS_FSCK_ALWAYS,
		"SELECT o.id, o.data_file, d.state FROM object o"
		" JOIN data_file d ON d.id = o.data_file WHERE d.state IS NOT 1",
		"object %1", "its data file %2 has state %3, not 1 (pack)" },
};

static const struct wfs_fsck_check damage_checks[] = {
	{ "damage", WFS_FSCK_ALWAYS,
		"SELECT object, CASE WHEN typeof(reason) <> 'integer' OR reason NOT BETWEEN 1 AND 3"
		" THEN 'gives no reason' ELSE 'is on no object' END FROM damage"
		" WHERE typeof(reason) <> 'integer' OR reason NOT BETWEEN 1 AND 3"
		" OR object NOT IN (SELECT id FROM object)",
		"damage of object %1", "the mark %2" },
};

static const struct wfs_fsck_check manifest_checks[] = {
	{ "column-type", WFS_FSCK_ALWAYS,
		"SELECT id FROM manifest WHERE typeof(size) <> 'integer' OR size < 1"
		" OR typeof(objects) <> 'integer' OR objects < 1 OR typeof(refs) <> 'integer'"
		" OR typeof(digest) NOT IN ('null', 'blob')"
		" OR typeof(whole) NOT IN ('null', 'integer') OR typeof(shared) <> 'integer'"
		" OR shared NOT BETWEEN 0 AND CASE WHEN whole IS NULL THEN 0 ELSE size END"
		" OR typeof(solid) <> 'integer' OR solid NOT IN (0, 1)",
		"manifest %1",
		"a column has a value of a type or range that the schema does not have" },
	{ "column-type", WFS_FSCK_ALWAYS,
		"SELECT manifest, seq FROM manifest_object WHERE typeof(manifest) <> 'integer'"
		" OR typeof(seq) <> 'integer' OR typeof(object) <> 'integer'",
		"manifest_object %1 %2", "a column is not an integer" },
	{ "manifest-refs", WFS_FSCK_ALWAYS,
		"SELECT m.id, m.refs, (SELECT count(*) FROM inode i WHERE i.manifest = m.id) AS inodes"
		" FROM manifest m WHERE inodes IS NOT m.refs",
		"manifest %1", "refs is %2, but %3 inodes name it" },
	{ "manifest-dead", WFS_FSCK_SETTLED,
		"SELECT id FROM manifest WHERE refs = 0",
		"manifest %1", "no inode names it, and it was not taken apart" },
	{ "manifest-digest", WFS_FSCK_ALWAYS,
		"SELECT id FROM manifest WHERE refs = 0 AND digest IS NOT NULL",
		"manifest %1", "it is dead, but can still be found by its digest" },
	/* The next one with that digest only: all pairs of n equal ones would be n * n. */
	{ "manifest-duplicate", WFS_FSCK_ALWAYS,
		"SELECT a.id, b.id FROM manifest a JOIN manifest b ON b.id = (SELECT min(c.id)"
		" FROM manifest c WHERE c.digest = a.digest AND c.id > a.id)"
		" WHERE a.refs <> 0 AND b.refs <> 0 AND b.objects = a.objects AND NOT EXISTS"
		" (SELECT 1 FROM manifest_object x LEFT JOIN manifest_object y"
		" ON y.manifest = b.id AND y.seq = x.seq"
		" WHERE x.manifest = a.id AND y.object IS NOT x.object)",
		"manifest %1", "manifest %2 is the same content" },
	{ "dangling-reference", WFS_FSCK_ALWAYS,
		"SELECT r.manifest, r.seq FROM manifest_object r WHERE NOT EXISTS"
		" (SELECT 1 FROM manifest m WHERE m.id = r.manifest)",
		"manifest_object %1 %2", "manifest %1 does not exist" },
	{ "dangling-reference", WFS_FSCK_ALWAYS,
		"SELECT r.manifest, r.seq, r.object FROM manifest_object r WHERE NOT EXISTS"
		" (SELECT 1 FROM object o WHERE o.id = r.object)",
		"manifest_object %1 %2", "object %3 does not exist" },
	{ "dangling-reference", WFS_FSCK_ALWAYS,
		"SELECT m.id, m.whole FROM manifest m WHERE m.whole IS NOT NULL AND NOT EXISTS"
		" (SELECT 1 FROM data_file d WHERE d.id = m.whole)",
		"manifest %1", "its whole copy, data file %2, does not exist" },
	{ "whole-copy-not-pack", WFS_FSCK_ALWAYS,
		"SELECT m.id, m.whole, d.state FROM manifest m JOIN data_file d ON d.id = m.whole"
		" WHERE d.state IS NOT 1",
		"manifest %1", "its whole copy, data file %2, has state %3, not 1 (pack)" },
	{ "manifest-solid", WFS_FSCK_ALWAYS,
		"SELECT id, seq FROM " WFS_FSCK_NOT_SOLID(" AND m.refs <> 0"),
		"manifest %1", "it is marked solid, but object number %2 is not behind those before it" },
};

static const struct wfs_fsck_check data_file_checks[] = {
	{ "data-file-state", WFS_FSCK_ALWAYS,
		"SELECT id, state, holes FROM data_file WHERE typeof(state) <> 'integer'"
		" OR state NOT BETWEEN 0 AND 3 OR typeof(holes) <> 'integer' OR holes < 0",
		"data_file %1", "state %2 or holes %3 has no meaning" },
	{ "data-file-pending", WFS_FSCK_SETTLED,
		"SELECT id, CASE state WHEN 2 THEN 'doomed' ELSE 'filling' END FROM data_file"
		" WHERE state IN (2, 3)",
		"data_file %1", "it is %2 in a store that was unmounted in order" },
	{ "data-file-empty", WFS_FSCK_ALWAYS,
		"SELECT d.id FROM data_file d WHERE d.state = 1 AND NOT EXISTS"
		" (SELECT 1 FROM object o WHERE o.data_file = d.id) AND NOT EXISTS"
		" (SELECT 1 FROM manifest m WHERE m.whole = d.id)",
		"data_file %1", "no object is in this pack, and it is no whole copy" },
	{ "staging-orphan", WFS_FSCK_ALWAYS,
		"SELECT d.id FROM data_file d WHERE d.state = 0 AND NOT EXISTS"
		" (SELECT 1 FROM inode i WHERE i.data_file = d.id)",
		"data_file %1", "no inode names this staging file" },
	{ "id-range", WFS_FSCK_ALWAYS,
		"SELECT 'object', id FROM object WHERE id NOT BETWEEN 1 AND " WFS_FSCK_MAX_ID
		" UNION ALL SELECT 'manifest', id FROM manifest WHERE id NOT BETWEEN 1 AND " WFS_FSCK_MAX_ID
		" UNION ALL SELECT 'data_file', id FROM data_file WHERE id NOT BETWEEN 1 AND "
		WFS_FSCK_MAX_ID,
		"%1 %2", "no such id was ever given out" },
	{ "sequence", WFS_FSCK_ALWAYS,
		"SELECT name, max(seq), sum(1) FROM sqlite_sequence GROUP BY name HAVING sum(1) <> 1"
		" OR typeof(max(seq)) <> 'integer' OR max(seq) NOT BETWEEN 0 AND "
		WFS_FSCK_MAX_SEQUENCE,
		"table %1", "sqlite_sequence has %3 rows for it, the last says %2" },
	{ "meta", WFS_FSCK_ALWAYS,
		"SELECT key, value FROM meta WHERE typeof(key) <> 'text' OR key IN ('clean', 'created_ns')"
		" AND (typeof(value) <> 'integer' OR key = 'clean' AND value NOT IN (0, 1))"
		" UNION ALL SELECT k, 'missing' FROM (SELECT 'clean' AS k UNION SELECT 'created_ns')"
		" WHERE k NOT IN (SELECT key FROM meta WHERE typeof(key) = 'text')",
		"meta %1", "%2 is no value for it" },
	SEQUENCE_CHECK("object", "id"),
	SEQUENCE_CHECK("manifest", "id"),
	SEQUENCE_CHECK("data_file", "id"),
	SEQUENCE_CHECK("inode", "ino"),
	SEQUENCE_CHECK("dirent", "id"),
};

/* ---- the rows of a manifest ---- */

/* The manifest that the walk is in, and what its rows have shown so far. */
struct manifest_walk {
	bool active; /* false: none yet */
	int64_t id;
	int64_t size, objects;
	bool has_digest;
	struct wfs_digest digest;
	int64_t rows;
	uint64_t bytes;  /* sum of lengths */
	bool gap;        /* seq is not 0, 1, 2, … */
	bool overflow;   /* the sum does not fit */
	bool incomplete; /* an object is missing: that is reported elsewhere */
	struct wfs_hasher hasher;
};

static void begin_manifest(struct manifest_walk *w, sqlite3_stmt *stmt)
{
	const void *digest = sqlite3_column_blob(stmt, 1);

	w->active = true;
	w->id = sqlite3_column_int64(stmt, 0);
	w->has_digest = digest && sqlite3_column_bytes(stmt, 1) == WFS_DIGEST_SIZE;
	if (w->has_digest)
		memcpy(w->digest.bytes, digest, WFS_DIGEST_SIZE);
	w->size = sqlite3_column_int64(stmt, 2);
	w->objects = sqlite3_column_int64(stmt, 3);
	w->rows = 0;
	w->bytes = 0;
	w->gap = w->overflow = w->incomplete = false;
	wfs_hasher_init(&w->hasher, 128);
}

static void add_row(struct manifest_walk *w, sqlite3_stmt *stmt)
{
	uint64_t object = (uint64_t)sqlite3_column_int64(stmt, 5);
	int64_t length = sqlite3_column_int64(stmt, 6);
	uint8_t le[8];

	if (sqlite3_column_type(stmt, 4) == SQLITE_NULL)
		return; /* a manifest without rows */
	for (unsigned i = 0; i < sizeof(le); i++)
		le[i] = (uint8_t)(object >> (8 * i));
	wfs_hasher_update(&w->hasher, le, sizeof(le));
	w->gap = w->gap || sqlite3_column_int64(stmt, 4) != w->rows;
	w->rows++;
	w->incomplete = w->incomplete || sqlite3_column_type(stmt, 6) == SQLITE_NULL;
	w->overflow = w->overflow || length < 0 ||
		      wfs_add_overflows(w->bytes, (uint64_t)length, &w->bytes);
}

static void end_manifest(struct wfs_fsck_run *run, const struct manifest_walk *w)
{
	uint64_t before = run->summary.findings;
	struct wfs_digest digest;

	if (!w->active)
		return;
	digest = wfs_hasher_final(&w->hasher);
	if (w->incomplete && run->bad_manifest)
		run->bad_manifest(run->ctx, w->id);
	if (w->gap || w->rows != w->objects)
		wfs_fsck_report(run, "manifest-rows", "manifest", w->id,
			"it has %lld rows%s, should have %lld", (long long)w->rows,
			w->gap ? " with gaps between them" : "", (long long)w->objects);
	if (!w->incomplete && (w->overflow || w->bytes != (uint64_t)w->size))
		wfs_fsck_report(run, "manifest-size", "manifest", w->id,
			"size is %lld, but its objects have %llu bytes%s", (long long)w->size,
			(unsigned long long)w->bytes, w->overflow ? " or more" : "");
	if (!w->has_digest || !wfs_digest_equal(&digest, &w->digest))
		wfs_fsck_report(run, "manifest-digest", "manifest", w->id,
			"its digest is not that of its list of objects");
	if (!w->incomplete && run->summary.findings > before && run->bad_manifest)
		run->bad_manifest(run->ctx, w->id);
}

/* Dead manifests lose their rows piece by piece, so only the living are held to them. */
int wfs_fsck_walk_manifests(struct wfs_fsck_run *run)
{
	struct manifest_walk w = { .active = false };
	sqlite3_stmt *stmt;
	int ret;

	wfs_fsck_begin(run, "manifest-rows");
	ret = wfs_fsck_query(run,
		"SELECT m.id, m.digest, m.size, m.objects, r.seq, r.object, o.length"
		" FROM manifest m LEFT JOIN manifest_object r ON r.manifest = m.id"
		" LEFT JOIN object o ON o.id = r.object WHERE m.refs <> 0 ORDER BY m.id, r.seq",
		&stmt);
	while (ret >= 0 && (ret = wfs_fsck_step(run, stmt)) > 0) {
		if (!w.active || w.id != sqlite3_column_int64(stmt, 0)) {
			end_manifest(run, &w);
			begin_manifest(&w, stmt);
		}
		add_row(&w, stmt);
	}
	end_manifest(run, &w);
	sqlite3_finalize(stmt);
	return ret;
}

int wfs_fsck_content(struct wfs_fsck_run *run)
{
	int ret = wfs_fsck_table(run, object_checks, WFS_ARRAY_SIZE(object_checks));

	if (ret == 0)
		ret = wfs_fsck_table(run, damage_checks, WFS_ARRAY_SIZE(damage_checks));
	if (ret == 0)
		ret = wfs_fsck_table(run, manifest_checks, WFS_ARRAY_SIZE(manifest_checks));
	if (ret == 0)
		ret = wfs_fsck_walk_manifests(run);
	if (ret == 0)
		ret = wfs_fsck_table(run, data_file_checks, WFS_ARRAY_SIZE(data_file_checks));
	return ret;
}
