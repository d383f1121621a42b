/* fsck_fix_bytes.c - objects whose bytes are not where they should be. */
#include "lib/fsck_fix.h"

#include <fcntl.h>
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#define MAX_TRIES 20000 /* places of bad objects that are looked at */

/* Of this connection alone: objects whose bytes are not there, and how that was found. */
static const char tables[] =
	"CREATE TEMP TABLE IF NOT EXISTS bad (object INTEGER PRIMARY KEY, reason TEXT)";

static int mark(struct wfs_fix *fix, int64_t object, const char *reason)
{
	if (wfs_fsck_is_excused(fix->run, object))
		return 0;
	return wfs_fix_exec(fix, "INSERT OR IGNORE INTO temp.bad (object, reason) VALUES (?, ?)", "it",
		object, reason);
}

static int find_bad_in_database(struct wfs_fix *fix)
{
	struct wfs_fix_rows rows;
	int ret = wfs_fix_rows(fix, "SELECT o.id, b.object IS NULL FROM object o"
		" LEFT JOIN object_bytes b ON b.object = o.id WHERE o.data_file IS NULL"
		" AND (b.object IS NULL OR length(b.bytes) <> o.length"
		" OR (? AND wfs_digest(b.bytes) IS NOT o.digest))", &rows, "i",
		(int64_t)fix->run->options->check_bytes);

	for (size_t i = 0; i < rows.n && ret == 0; i++)
		ret = mark(fix, rows.list[i].a, rows.list[i].b ? "object-place" : "object-digest");
	free(rows.list);
	return ret;
}

/* 1: its bytes are those of its digest. */
static int is_sound(struct wfs_fix *fix, int64_t id)
{
	int64_t fits = 0;
	int ret = wfs_fix_number(fix, "SELECT digest IS wfs_digest_at(data_file, offset, length)"
		" FROM object WHERE id = ?", &fits, "i", id);

	return ret < 0 ? ret : fits != 0;
}

struct walk {
	int64_t file, size, end, owner;
	bool owner_was_read;
};

static int check_overlap(struct wfs_fix *fix, struct walk *w, int64_t id)
{
	int ret = 0;

	if (!w->owner_was_read) {
		w->owner_was_read = true;
		ret = is_sound(fix, w->owner);
		if (ret == 0)
			ret = mark(fix, w->owner, "extent-overlap");
	}
	if (ret >= 0)
		ret = is_sound(fix, id);
	return ret ? WFS_MIN(ret, 0) : mark(fix, id, "extent-overlap");
}

/* The row: id, data_file, offset, length. */
static int check_extent(struct wfs_fix *fix, struct walk *w, const int64_t row[4])
{
	int64_t end = 0;
	bool sane = row[2] >= 0 && row[3] > 0 && !__builtin_add_overflow(row[2], row[3], &end);
	int ret = 0;

	if (row[1] != w->file)
		*w = (struct walk){ .file = row[1], .size = wfs_fix_file_size(fix, row[1]) };
	if (w->size < 0)
		return mark(fix, row[0], "data-file-missing");
	if (!sane || end > w->size)
		return mark(fix, row[0], "extent-beyond-end");
	if (row[2] < w->end)
		ret = check_overlap(fix, w, row[0]);
	else if (fix->run->options->check_bytes && !wfs_fsck_is_excused(fix->run, row[0])) {
		ret = is_sound(fix, row[0]);
		if (ret == 0)
			ret = mark(fix, row[0], "object-digest");
	}
	if (end > w->end) {
		w->end = end;
		w->owner = row[0];
		w->owner_was_read = false;
	}
	return WFS_MIN(ret, 0);
}

static int find_bad_in_files(struct wfs_fix *fix)
{
	struct walk w = { .file = 0 };
	sqlite3_stmt *stmt = NULL;
	int ret = 0, code = SQLITE_ROW;

	if (sqlite3_prepare_v2(fix->run->db, "SELECT id, data_file, offset, length FROM object"
		" WHERE data_file IS NOT NULL ORDER BY data_file, offset", -1, &stmt, NULL) != SQLITE_OK)
		return wfs_fix_failed(fix, "extents");
	while (ret == 0 && (code = sqlite3_step(stmt)) == SQLITE_ROW) {
		int64_t row[4];

		for (int i = 0; i < 4; i++)
			row[i] = sqlite3_column_int64(stmt, i);
		ret = check_extent(fix, &w, row);
	}
	if (ret == 0 && code != SQLITE_DONE)
		ret = wfs_fix_failed(fix, "extents");
	sqlite3_finalize(stmt);
	return ret;
}

/* ---- where else its bytes may be: the digest tells ---- */

/* Does a sound object live in this range? */
static int is_taken(struct wfs_fix *fix, int64_t object, int64_t file, int64_t offset, int64_t length)
{
	int64_t one;

	return wfs_fix_number(fix, "SELECT 1 FROM object WHERE data_file = ?1 AND offset < ?2 + ?3"
		" AND offset + length > ?2 AND id <> ?4 AND id NOT IN (SELECT object FROM temp.bad)",
		&one, "iiii", file, offset, length, object);
}

static int move_to(struct wfs_fix *fix, int64_t object, int64_t file, int64_t offset, int64_t length)
{
	int64_t one = 0;
	int taken = is_taken(fix, object, file, offset, length);
	int pack = wfs_fix_number(fix, "SELECT 1 FROM data_file WHERE id = ? AND state = 1", &one, "i",
		file);
	int ret = 0;

	if (taken < 0 || pack < 0)
		return taken < 0 ? taken : pack;
	if (taken || !pack) {
		ret = wfs_fix_copy(fix, file, offset, length, 1, &file);
		if (ret)
			return ret;
		offset = 0;
	}
	ret = wfs_fix_exec(fix, "UPDATE object SET data_file = ?, offset = ? WHERE id = ?", "iii", file,
		offset, object);
	if (ret == 0)
		ret = wfs_fix_exec(fix, "DELETE FROM object_bytes WHERE object = ?", "i", object);
	if (ret == 0)
		ret = wfs_fix_exec(fix, "DELETE FROM temp.bad WHERE object = ?", "i", object);
	if (ret == 0)
		wfs_fix_sayf(fix, "object-place", "object", object, "its bytes, by the digest, are in "
			"data file %lld at %lld, and it is there now", (long long)file, (long long)offset);
	return ret ? ret : 1;
}

/* Places that the neighbours in a list of parts imply, and the whole copy. */
static const char candidates[] =
	"WITH at (n) AS (SELECT coalesce(sum(o.length), 0) FROM manifest_object c"
	" JOIN object o ON o.id = c.object WHERE c.manifest = ?1 AND c.seq < ?2)"
	" SELECT whole, (SELECT n FROM at) FROM manifest WHERE id = ?1 AND whole IS NOT NULL"
	" UNION SELECT p.data_file, p.offset + p.length FROM manifest_object c JOIN object p"
	" ON p.id = c.object WHERE c.manifest = ?1 AND c.seq = ?2 - 1 AND p.data_file IS NOT NULL"
	" UNION SELECT p.data_file, p.offset - (SELECT length FROM object WHERE id = ?3)"
	" FROM manifest_object c JOIN object p ON p.id = c.object"
	" WHERE c.manifest = ?1 AND c.seq = ?2 + 1 AND p.data_file IS NOT NULL"
	" UNION SELECT p.data_file, (SELECT n FROM at) FROM manifest_object c JOIN object p"
	" ON p.id = c.object WHERE c.manifest = ?1 AND c.seq IN (0, 1) AND p.data_file IS NOT NULL"
	" UNION SELECT data_file, 0 FROM object WHERE id = ?3 AND data_file IS NOT NULL";

static int try_places(struct wfs_fix *fix, int64_t object, int64_t manifest, int64_t seq)
{
	struct wfs_fix_rows places;
	int64_t length = 0;
	int ret = wfs_fix_number(fix, "SELECT length FROM object WHERE id = ? AND id IN"
		" (SELECT object FROM temp.bad)", &length, "i", object);

	if (ret <= 0)
		return ret;
	ret = wfs_fix_rows(fix, candidates, &places, "iii", manifest, seq, object);
	for (size_t i = 0; i < places.n && ret == 0; i++) {
		const struct wfs_fix_row *p = &places.list[i];
		int64_t fits = 0;

		if (p->b < 0)
			continue;
		ret = wfs_fix_number(fix, "SELECT digest IS wfs_digest_at(?2, ?3, length) FROM object"
			" WHERE id = ?1", &fits, "iii", object, p->a, p->b);
		if (ret >= 0)
			ret = fits ? move_to(fix, object, p->a, p->b, length) : 0;
	}
	free(places.list);
	return WFS_MIN(ret, 0);
}

static int look_once(struct wfs_fix *fix)
{
	struct wfs_fix_rows rows;
	int ret = wfs_fix_rows(fix, "SELECT c.object, c.manifest, c.seq FROM manifest_object c"
		" WHERE c.object IN (SELECT object FROM temp.bad) LIMIT ?", &rows, "i",
		(int64_t)MAX_TRIES);

	for (size_t i = 0; i < rows.n && ret == 0; i++)
		ret = try_places(fix, rows.list[i].a, rows.list[i].b, rows.list[i].c);
	free(rows.list);
	return ret;
}

/* What is in its place again says where its neighbours are. */
static int look_elsewhere(struct wfs_fix *fix)
{
	uint64_t before;
	int ret;

	do {
		before = fix->actions;
		ret = look_once(fix);
	} while (ret == 0 && fix->actions > before);
	return ret;
}

/* Two sound objects in one range: giving back one would take the bytes of the other. */
static int part_overlapping(struct wfs_fix *fix)
{
	struct wfs_fix_rows rows;
	int ret = wfs_fix_rows(fix, "SELECT id, data_file, offset FROM (SELECT id, data_file, offset,"
		" max(offset + length) OVER (PARTITION BY data_file ORDER BY offset, id"
		" ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS reached FROM object"
		" WHERE data_file IS NOT NULL AND id NOT IN (SELECT object FROM temp.bad))"
		" WHERE offset < reached", &rows, "");

	for (size_t i = 0; i < rows.n && ret == 0; i++) {
		int64_t id = 0, length = 0;

		if (wfs_fsck_is_excused(fix->run, rows.list[i].a))
			continue;
		ret = wfs_fix_number(fix, "SELECT length FROM object WHERE id = ?", &length, "i",
			rows.list[i].a);
		if (ret > 0)
			ret = wfs_fix_copy(fix, rows.list[i].b, rows.list[i].c, length, 1, &id);
		if (ret == 0)
			ret = wfs_fix_exec(fix, "UPDATE object SET data_file = ?, offset = 0 WHERE id = ?",
				"ii", id, rows.list[i].a);
		if (ret == 0)
			wfs_fix_sayf(fix, "extent-overlap", "object", rows.list[i].a,
				"another object has the same bytes of data file %lld; it gets a copy",
				(long long)rows.list[i].b);
	}
	free(rows.list);
	return ret;
}

/* ---- what stays bad ---- */

#define BAD_MARK "typeof(reason) <> 'integer' OR reason NOT BETWEEN 1 AND 3 OR object NOT IN (SELECT id FROM object)"

static const struct wfs_fix_step damage_steps[] = {
	/* The place is another's. */
	{ "extent-overlap", WFS_FSCK_ALWAYS,
		"SELECT b.object FROM temp.bad b WHERE b.reason = 'extent-overlap'",
		"object %1", "its bytes are not those of its digest, and others have the place",
		"UPDATE object SET data_file = NULL, offset = NULL WHERE id IN"
		" (SELECT object FROM temp.bad WHERE reason = 'extent-overlap')" },
	/* A mark without a reason hides nothing for certain: reads find out again. */
	{ "damage", WFS_FSCK_ALWAYS, "SELECT object FROM damage WHERE " BAD_MARK,
		"damage of object %1", "the mark is no mark of an object that there is; it is removed",
		"DELETE FROM damage WHERE " BAD_MARK },
};

static const struct wfs_fix_step file_steps[] = {
	{ "data-file-missing", WFS_FSCK_ALWAYS,
		"SELECT i.ino, i.data_file FROM inode i WHERE i.data_file IS NOT NULL"
		" AND i.verdict <> 5 AND wfs_file_size(i.data_file) < 0",
		"inode %1", "@1 is damaged and cannot be read any more: its data file %2 is missing",
		"UPDATE inode SET verdict = 5, reason = 'data-file-missing', detail ="
		" 'the data file with its bytes is gone from the store' WHERE data_file IS NOT NULL"
		" AND verdict <> 5 AND wfs_file_size(data_file) < 0" },
};

/* The file cannot be read; what is sound of it can, one part behind the other, in lost+found. */
static int keep_sound_parts(struct wfs_fix *fix, int64_t manifest)
{
	struct wfs_fix_rows parts;
	char name[60];
	int64_t id;
	int ret = wfs_fix_rows(fix, "SELECT object FROM manifest_object WHERE manifest = ?"
		" AND object NOT IN (SELECT object FROM temp.bad) ORDER BY seq", &parts, "i", manifest);

	if (ret || parts.n == 0) {
		free(parts.list);
		return ret;
	}
	ret = wfs_fix_exec(fix, "INSERT INTO manifest (size, objects, refs) VALUES (1, 1, 1)", "");
	id = wfs_fix_insert_id(fix);
	for (size_t i = 0; i < parts.n && ret == 0; i++)
		ret = wfs_fix_exec(fix, "INSERT INTO manifest_object (manifest, seq, object)"
			" VALUES (?, ?, ?)", "iii", id, (int64_t)i, parts.list[i].a);
	free(parts.list);
	snprintf(name, sizeof(name), "manifest-%lld.parts", (long long)manifest);
	if (ret == 0)
		ret = wfs_fix_settle_list(fix, &id);
	return ret ? ret : wfs_lost_manifest(fix, "object-damaged", id, name,
			"the sound parts of what is damaged");
}

static int mark_files(struct wfs_fix *fix)
{
	struct wfs_fix_rows rows;
	int ret = wfs_fix_rows(fix, "SELECT c.manifest, min(c.object), count(*) FROM manifest_object c"
		" WHERE c.object IN (SELECT object FROM temp.bad) GROUP BY c.manifest", &rows, "");

	for (size_t i = 0; i < rows.n && ret == 0; i++) {
		char detail[200];

		snprintf(detail, sizeof(detail), "%lld of its parts, the first of them object %lld, "
			"have lost their bytes", (long long)rows.list[i].c, (long long)rows.list[i].b);
		ret = wfs_fix_damage(fix, rows.list[i].a, "object-damaged", detail);
		if (ret == 0)
			ret = keep_sound_parts(fix, rows.list[i].a);
	}
	free(rows.list);
	return ret;
}

/* ---- bytes of packs that no row claims ---- */

static int rescue_range(struct wfs_fix *fix, int64_t file, int64_t from, int64_t to)
{
	struct wfs_digest digest;
	char name[80];
	int64_t one;
	int ret = wfs_fix_hash(fix, file, from, to - from, &digest);

	if (ret <= 0)
		return ret;
	/* What moved to the database, or is shared, can leave its bytes behind. */
	ret = wfs_fix_number(fix, "SELECT 1 FROM object WHERE digest = ? AND length = ?", &one, "bi",
		digest.bytes, sizeof(digest.bytes), to - from);
	if (ret != 0)
		return WFS_MIN(ret, 0);
	ret = wfs_fix_exec(fix, "INSERT INTO object (digest, ordinal, length, refs, data_file, offset)"
		" SELECT ?1, coalesce(max(ordinal) + 1, 0), ?2, 1, ?3, ?4 FROM object WHERE digest = ?1",
		"biii", digest.bytes, sizeof(digest.bytes), to - from, file, from);
	if (ret)
		return ret;
	snprintf(name, sizeof(name), "data-file-%016llx-at-%lld", (unsigned long long)file,
		(long long)from);
	return wfs_lost_object(fix, "data-file-unclaimed", wfs_fix_insert_id(fix), name,
		"bytes of a pack that no object claimed");
}

/* The parts of a gap that are no holes. */
static int rescue_gap(struct wfs_fix *fix, int64_t file, int64_t from, int64_t to)
{
	WFS_AUTO_CLOSE int fd = wfs_fix_open(fix, file);
	int ret = 0;

	while (fd >= 0 && from < to && ret == 0) {
		off_t data = lseek(fd, from, SEEK_DATA), hole;

		if (data < 0 || data >= to)
			break;
		hole = lseek(fd, data, SEEK_HOLE);
		hole = hole < 0 || hole > to ? (off_t)to : hole;
		ret = rescue_range(fix, file, data, hole);
		from = hole;
	}
	return ret;
}

static int rescue_file(struct wfs_fix *fix, int64_t file)
{
	struct wfs_fix_rows rows;
	int64_t at = 0;
	int ret = wfs_fix_rows(fix, "SELECT offset, length FROM object WHERE data_file = ?"
		" ORDER BY offset", &rows, "i", file);

	for (size_t i = 0; i < rows.n && ret == 0; i++) {
		if (rows.list[i].a > at)
			ret = rescue_gap(fix, file, at, rows.list[i].a);
		at = WFS_MAX(at, rows.list[i].a + rows.list[i].b);
	}
	free(rows.list);
	return ret ? ret : rescue_gap(fix, file, at, wfs_fix_file_size(fix, file));
}

static int rescue_all(struct wfs_fix *fix)
{
	struct wfs_fix_rows rows;
	int ret = wfs_fix_rows(fix, "SELECT d.id FROM data_file d WHERE d.state = 1 AND NOT EXISTS"
		" (SELECT 1 FROM manifest m WHERE m.whole = d.id)", &rows, "");

	for (size_t i = 0; i < rows.n && ret == 0; i++)
		ret = rescue_file(fix, rows.list[i].a);
	free(rows.list);
	fix->rows_were_lost = false;
	return ret;
}

/* Some part of it, at its place, has not the bytes of the object. */
#define BAD_COPY(m)                                                                                  \
	"EXISTS (SELECT 1 FROM (SELECT o.digest, o.length, sum(o.length) OVER (ORDER BY c.seq)"       \
	" - o.length AS at FROM manifest_object c JOIN object o ON o.id = c.object"                   \
	" WHERE c.manifest = " m ".id) WHERE digest IS NOT wfs_digest_at(" m ".whole, at, length))"

static int drop_bad_copies(struct wfs_fix *fix)
{
	static const struct wfs_fix_step step[] = {
		{ "whole-copy-digest", WFS_FSCK_ALWAYS,
			"SELECT m.id, m.whole FROM manifest m WHERE m.whole IS NOT NULL"
			" AND " BAD_COPY("m"),
			"manifest %1", "its whole copy, data file %2, has other bytes than its objects; "
				       "these are read instead",
			"UPDATE manifest AS m SET whole = NULL, shared = 0 WHERE whole IS NOT NULL"
			" AND " BAD_COPY("m") },
	};

	return fix->run->options->check_bytes ? wfs_fix_table(fix, step, 1) : 0;
}

int wfs_fix_bytes(struct wfs_fix *fix)
{
	int ret = wfs_fix_exec(fix, tables, "");

	if (ret == 0)
		ret = wfs_fix_exec(fix, "DELETE FROM temp.bad", "");
	if (ret == 0)
		ret = wfs_fsck_find_excused(fix->run);
	if (ret == 0)
		ret = find_bad_in_database(fix);
	if (ret == 0)
		ret = find_bad_in_files(fix);
	if (ret == 0)
		ret = look_elsewhere(fix);
	if (ret == 0)
		ret = part_overlapping(fix);
	if (ret == 0)
		ret = wfs_fix_table(fix, damage_steps, WFS_ARRAY_SIZE(damage_steps));
	if (ret == 0)
		ret = mark_files(fix);
	if (ret == 0)
		ret = wfs_fix_table(fix, file_steps, WFS_ARRAY_SIZE(file_steps));
	if (ret == 0)
		ret = drop_bad_copies(fix);
	return ret == 0 && fix->rows_were_lost ? rescue_all(fix) : ret;
}
