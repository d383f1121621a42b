/* fsck_fix_content.c - rows of objects, data files and manifests that do not agree. */
#include "lib/fsck_fix.h"

#include <errno.h>
#include <string.h>

#include "lib/array.h"

#define IS_REG WFS_FSCK_IS_REG

/* ---- objects and data files ---- */

static const struct wfs_fix_step object_steps[] = {
	{ "dangling-reference", WFS_FSCK_ALWAYS,
		"SELECT b.object FROM object_bytes b WHERE b.object NOT IN (SELECT id FROM object)",
		"object_bytes %1", "object %1 does not exist; its row is made anew from the bytes",
		"INSERT INTO object (id, digest, ordinal, length, refs) SELECT b.object,"
		" wfs_digest(b.bytes), 1 + b.object + coalesce((SELECT max(o.ordinal) FROM object o"
		" WHERE o.digest = wfs_digest(b.bytes)), 0), length(b.bytes), 0"
		" FROM object_bytes b WHERE b.object NOT IN (SELECT id FROM object)" },
	/* Both places: the one that has the bytes of the digest. */
	{ "object-place", WFS_FSCK_ALWAYS,
		"SELECT o.id, o.data_file FROM object o JOIN object_bytes b ON b.object = o.id"
		" WHERE o.data_file IS NOT NULL AND (wfs_digest(b.bytes) = o.digest"
		" OR wfs_digest_at(o.data_file, o.offset, o.length) IS NOT o.digest)",
		"object %1", "its bytes were both in data file %2 and in object_bytes, which is right",
		"UPDATE object SET data_file = NULL, offset = NULL WHERE data_file IS NOT NULL"
		" AND EXISTS (SELECT 1 FROM object_bytes b WHERE b.object = object.id"
		" AND (wfs_digest(b.bytes) = object.digest OR wfs_digest_at(object.data_file,"
		" object.offset, object.length) IS NOT object.digest))" },
	{ "object-place", WFS_FSCK_ALWAYS,
		"SELECT o.id, o.data_file FROM object o JOIN object_bytes b ON b.object = o.id"
		" WHERE o.data_file IS NOT NULL",
		"object %1", "its bytes were both in data file %2, which is right, and in object_bytes",
		"DELETE FROM object_bytes WHERE object IN"
		" (SELECT id FROM object WHERE data_file IS NOT NULL)" },
	{ "object-bytes", WFS_FSCK_ALWAYS,
		"SELECT o.id, o.length, length(b.bytes) FROM object o JOIN object_bytes b"
		" ON b.object = o.id WHERE length(b.bytes) <> o.length AND wfs_digest(b.bytes) = o.digest",
		"object %1", "length was %2; its bytes have its digest and are %3",
		"UPDATE object SET length = (SELECT length(b.bytes) FROM object_bytes b"
		" WHERE b.object = object.id) WHERE data_file IS NULL AND EXISTS (SELECT 1"
		" FROM object_bytes b WHERE b.object = object.id AND length(b.bytes) <> object.length"
		" AND wfs_digest(b.bytes) = object.digest)" },
	{ "dangling-reference", WFS_FSCK_ALWAYS,
		"SELECT min(o.id), o.data_file FROM object o WHERE o.data_file IS NOT NULL"
		" AND o.data_file NOT IN (SELECT id FROM data_file) GROUP BY o.data_file",
		"object %1", "data file %2 does not exist; its row is made anew",
		"INSERT INTO data_file (id, state) SELECT DISTINCT o.data_file, 1 FROM object o"
		" WHERE o.data_file IS NOT NULL AND o.data_file NOT IN (SELECT id FROM data_file)" },
	/* Of a manifest and a staging file one is wrong: not that which has the inode's size. */
	{ "inode-content", WFS_FSCK_ALWAYS,
		"SELECT i.ino, i.data_file FROM inode i JOIN manifest m ON m.id = i.manifest"
		" WHERE i.data_file IS NOT NULL AND i.size = m.size",
		"inode %1", "@1 has both a manifest, which has its size, and data file %2, which goes",
		"UPDATE inode SET data_file = NULL WHERE data_file IS NOT NULL AND size ="
		" (SELECT m.size FROM manifest m WHERE m.id = inode.manifest)" },
	{ "dangling-reference", WFS_FSCK_ALWAYS,
		"SELECT i.ino, i.data_file FROM inode i WHERE i.data_file IS NOT NULL"
		" AND i.data_file NOT IN (SELECT id FROM data_file)",
		"inode %1", "@1 names data file %2, which does not exist; its row is made anew",
		"INSERT INTO data_file (id, state) SELECT DISTINCT i.data_file, 0 FROM inode i"
		" WHERE i.data_file IS NOT NULL AND i.data_file NOT IN (SELECT id FROM data_file)" },
	/* A whole copy is beside the objects: without it the file is only read more slowly. */
	{ "dangling-reference", WFS_FSCK_ALWAYS,
		"SELECT m.id, m.whole FROM manifest m WHERE m.whole IS NOT NULL"
		" AND m.whole NOT IN (SELECT id FROM data_file)",
		"manifest %1", "its whole copy, data file %2, does not exist; the objects are read instead",
		"UPDATE manifest SET whole = NULL, shared = 0 WHERE whole IS NOT NULL"
		" AND whole NOT IN (SELECT id FROM data_file)" },
	{ "whole-copy-not-pack", WFS_FSCK_ALWAYS,
		"SELECT m.id, m.whole, d.state FROM manifest m JOIN data_file d ON d.id = m.whole"
		" WHERE d.state IS NOT 1",
		"manifest %1", "its whole copy, data file %2, has state %3; the objects are read instead",
		"UPDATE manifest SET whole = NULL, shared = 0 WHERE whole IN"
		" (SELECT id FROM data_file WHERE state IS NOT 1)" },
	{ "whole-copy-size", WFS_FSCK_ALWAYS,
		"SELECT id, size, whole, wfs_file_size(whole) FROM manifest WHERE whole IS NOT NULL"
		" AND refs <> 0 AND wfs_file_size(whole) <> size",
		"manifest %1", "size is %2, but its whole copy, data file %3, has %4 bytes (-1: is "
			       "missing); the objects are read instead",
		"UPDATE manifest SET whole = NULL, shared = 0 WHERE whole IS NOT NULL"
		" AND refs <> 0 AND wfs_file_size(whole) <> size" },
	{ "extent-not-pack", WFS_FSCK_ALWAYS,
		"SELECT d.id, d.state FROM data_file d WHERE d.state IS NOT 1 AND EXISTS"
		" (SELECT 1 FROM object o WHERE o.data_file = d.id)",
		"data_file %1", "objects are in it: state was %2, and is 1 (pack)",
		"UPDATE data_file SET state = 1 WHERE state IS NOT 1 AND EXISTS"
		" (SELECT 1 FROM object o WHERE o.data_file = data_file.id)" },
	{ "data-file-state", WFS_FSCK_ALWAYS,
		"SELECT d.id, d.state FROM data_file d WHERE (typeof(d.state) <> 'integer'"
		" OR d.state <> 0) AND EXISTS (SELECT 1 FROM inode i WHERE i.data_file = d.id)"
		" AND NOT EXISTS (SELECT 1 FROM object o WHERE o.data_file = d.id)"
		" AND NOT EXISTS (SELECT 1 FROM manifest m WHERE m.whole = d.id)",
		"data_file %1", "a dirty file names it: state was %2, and is 0 (staging)",
		"UPDATE data_file SET state = 0, holes = 0 WHERE (typeof(state) <> 'integer'"
		" OR state <> 0) AND EXISTS (SELECT 1 FROM inode i WHERE i.data_file = data_file.id)"
		" AND NOT EXISTS (SELECT 1 FROM object o WHERE o.data_file = data_file.id)"
		" AND NOT EXISTS (SELECT 1 FROM manifest m WHERE m.whole = data_file.id)" },
	/* Whoever names none of them is looked after with what is unnamed. */
	{ "data-file-state", WFS_FSCK_ALWAYS,
		"SELECT id, state FROM data_file WHERE typeof(state) <> 'integer'"
		" OR state NOT BETWEEN 0 AND 3",
		"data_file %1", "state was %2, and is 1 (pack)",
		"UPDATE data_file SET state = 1 WHERE typeof(state) <> 'integer'"
		" OR state NOT BETWEEN 0 AND 3" },
};

/*
 * A staging file that is somebody else's: a pack with objects in it, or another's and this
 * inode has the size of a content that has lost its file.
 */
#define UNNAMED_OF_SIZE(size)                                                                         \
	"FROM manifest u WHERE u.size = " size " AND u.refs > (SELECT count(*) FROM inode k"          \
	" WHERE k.manifest = u.id)"
static const char wrong_claims[] =
	"SELECT i.ino, i.size FROM inode i JOIN data_file d ON d.id = i.data_file WHERE d.state <> 0"
	" AND (EXISTS (SELECT 1 FROM object o WHERE o.data_file = d.id)"
	" OR EXISTS (SELECT 1 FROM manifest m WHERE m.whole = d.id))"
	" OR i.size > 0 AND EXISTS (SELECT 1 FROM inode j WHERE j.data_file = i.data_file"
	" AND j.ino <> i.ino) AND EXISTS (SELECT 1 " UNNAMED_OF_SIZE("i.size") ")";

/* The one content of this size, or the one staging file, that has lost its file: this one. */
static int find_own_content(struct wfs_fix *fix, int64_t ino, int64_t size)
{
	struct wfs_fix_rows lost;
	int ret = wfs_fix_rows(fix, "SELECT u.id " UNNAMED_OF_SIZE("?1") " AND ?1 > 0", &lost, "i", size);
	const char *column = "manifest";
	bool found;

	if (ret == 0 && lost.n == 0) {
		free(lost.list);
		column = "data file";
		ret = wfs_fix_rows(fix, "SELECT d.id FROM data_file d WHERE d.state = 0 AND NOT EXISTS"
			" (SELECT 1 FROM inode i WHERE i.data_file = d.id)", &lost, "");
	}
	found = ret == 0 && lost.n == 1;
	if (found) {
		ret = wfs_fix_exec(fix, column[0] == 'm'
			? "UPDATE inode SET manifest = ?, data_file = NULL WHERE ino = ?"
			: "UPDATE inode SET data_file = ? WHERE ino = ?", "ii", lost.list[0].a, ino);
		wfs_fix_sayf(fix, "staging-shared", "inode", ino, "what it named is another's; %s %lld "
			"fits, which nothing named", column, (long long)lost.list[0].a);
	}
	free(lost.list);
	return ret ? ret : found;
}

static int fix_claims(struct wfs_fix *fix)
{
	struct wfs_fix_rows rows;
	int ret = wfs_fix_rows(fix, wrong_claims, &rows, "");

	for (size_t i = 0; i < rows.n && ret == 0; i++) {
		int64_t ino = rows.list[i].a;

		ret = find_own_content(fix, ino, rows.list[i].b);
		if (ret != 0) {
			ret = WFS_MIN(ret, 0);
			continue;
		}
		ret = wfs_fix_damage_inode(fix, ino, "content-lost",
			"the data file that it named is another's; its own may be in lost+found");
		if (ret == 0)
			ret = wfs_fix_exec(fix, "UPDATE inode SET data_file = NULL WHERE ino = ?", "i", ino);
	}
	free(rows.list);
	return ret;
}

/* A data file that a dirty inode shares with others: it gets a copy for itself. */
static int separate_staging(struct wfs_fix *fix)
{
	struct wfs_fix_rows rows;
	int ret = wfs_fix_rows(fix, "SELECT i.ino, i.data_file FROM inode i"
		" JOIN data_file d ON d.id = i.data_file WHERE d.state <> 0 OR i.ino >"
		" (SELECT min(j.ino) FROM inode j WHERE j.data_file = i.data_file)", &rows, "");

	for (size_t i = 0; i < rows.n && ret == 0; i++) {
		int64_t id = 0;

		ret = wfs_fix_copy(fix, rows.list[i].b, 0, -1, 0, &id);
		if (ret == 0)
			ret = wfs_fix_exec(fix, "UPDATE inode SET data_file = ? WHERE ino = ?", "ii", id,
				rows.list[i].a);
		if (ret == 0)
			wfs_fix_sayf(fix, "staging-shared", "inode", rows.list[i].a,
				"its data file %lld is also another's; it gets a copy, data file %lld",
				(long long)rows.list[i].b, (long long)id);
	}
	free(rows.list);
	return ret;
}

int wfs_fix_objects(struct wfs_fix *fix)
{
	int ret = wfs_fix_table(fix, object_steps, WFS_ARRAY_SIZE(object_steps));

	if (ret == 0)
		ret = fix_claims(fix);
	return ret ? ret : separate_staging(fix);
}

/* ---- manifests ---- */

/* A manifest's row and its list, as they are. */
struct list {
	int64_t id, size, objects;      /* as the row says */
	int64_t file_size;              /* of an inode that names it; -1: none does */
	bool has_digest;
	struct wfs_digest want, have;
	int64_t *seqs, *ids, *lengths;  /* length -1: no such object */
	size_t n, room;
	int64_t sum;                    /* of the lengths; -1 where it passes what fits */
	bool gap, dangling;
};

static void free_list(struct list *l)
{
	free(l->seqs);
	free(l->ids);
	free(l->lengths);
	*l = (struct list){ .id = 0 };
}

static int grow_list(struct list *l)
{
	size_t room = l->room ? 2 * l->room : 64;
	int64_t *seqs = reallocarray(l->seqs, room, sizeof(*seqs));
	int64_t *ids, *lengths;

	if (!seqs)
		return -ENOMEM;
	l->seqs = seqs;
	ids = reallocarray(l->ids, room, sizeof(*ids));
	if (!ids)
		return -ENOMEM;
	l->ids = ids;
	lengths = reallocarray(l->lengths, room, sizeof(*lengths));
	if (!lengths)
		return -ENOMEM;
	l->lengths = lengths;
	l->room = room;
	return 0;
}

static int add_item(struct list *l, int64_t seq, int64_t id, int64_t length)
{
	if (l->n == l->room && grow_list(l) != 0)
		return -ENOMEM;
	l->gap = l->gap || seq != (int64_t)l->n;
	l->dangling = l->dangling || length < 0;
	if (l->sum >= 0 && length > 0 && __builtin_add_overflow(l->sum, length, &l->sum))
		l->sum = -1;
	l->seqs[l->n] = seq;
	l->ids[l->n] = id;
	l->lengths[l->n++] = length;
	return 0;
}

static struct wfs_digest digest_of_list(const struct list *l)
{
	struct wfs_hasher hasher;

	wfs_hasher_init(&hasher, 128);
	for (size_t i = 0; i < l->n; i++) {
		uint8_t le[8];

		for (unsigned k = 0; k < sizeof(le); k++)
			le[k] = (uint8_t)((uint64_t)l->ids[i] >> (8 * k));
		wfs_hasher_update(&hasher, le, sizeof(le));
	}
	return wfs_hasher_final(&hasher);
}

/* One query for the row (first) and the list. */
static int read_list(struct wfs_fix *fix, int64_t id, struct list *l)
{
	sqlite3_stmt *stmt = NULL;
	int ret = 0, code;

	free_list(l);
	l->id = id;
	if (sqlite3_prepare_v2(fix->run->db, "SELECT m.size, m.objects, m.digest, coalesce((SELECT"
		" max(i.size) FROM inode i WHERE i.manifest = m.id AND i.size IN (m.size, (SELECT"
		" sum(p.length) FROM manifest_object q JOIN object p ON p.id = q.object"
		" WHERE q.manifest = m.id))), (SELECT max(i.size) FROM inode i WHERE i.manifest = m.id),"
		" -1), r.seq, r.object, o.length FROM manifest m"
		" LEFT JOIN manifest_object r ON r.manifest = m.id LEFT JOIN object o ON o.id = r.object"
		" WHERE m.id = ? ORDER BY r.seq", -1, &stmt, NULL) != SQLITE_OK)
		return wfs_fix_failed(fix, "a manifest");
	sqlite3_bind_int64(stmt, 1, id);
	while (ret == 0 && (code = sqlite3_step(stmt)) != SQLITE_DONE) {
		if (code != SQLITE_ROW) {
			ret = wfs_fix_failed(fix, "a manifest");
			break;
		}
		l->size = sqlite3_column_int64(stmt, 0);
		l->objects = sqlite3_column_int64(stmt, 1);
		l->file_size = sqlite3_column_int64(stmt, 3);
		l->has_digest = sqlite3_column_bytes(stmt, 2) == WFS_DIGEST_SIZE;
		if (l->has_digest)
			memcpy(l->want.bytes, sqlite3_column_blob(stmt, 2), WFS_DIGEST_SIZE);
		if (sqlite3_column_type(stmt, 4) != SQLITE_NULL)
			ret = add_item(l, sqlite3_column_int64(stmt, 4), sqlite3_column_int64(stmt, 5),
				sqlite3_column_type(stmt, 6) == SQLITE_NULL
					? -1 : sqlite3_column_int64(stmt, 6));
	}
	sqlite3_finalize(stmt);
	l->have = digest_of_list(l);
	return ret;
}

static bool digest_fits(const struct list *l)
{
	return l->has_digest && wfs_digest_equal(&l->want, &l->have);
}

/* Are its rows those of the content, all of it and in order? Two of three witnesses say so. */
static bool list_is_right(const struct list *l)
{
	bool size_fits = l->sum == l->size, file_fits = l->sum == l->file_size;

	if (l->dangling || l->n == 0 || l->sum < 1)
		return false;
	if (digest_fits(l))
		return true;
	return !l->gap && ((size_fits && (int64_t)l->n == l->objects) || file_fits);
}

/* Make the row and the numbers of the rows those of the list. */
static int write_list(struct wfs_fix *fix, const struct list *l)
{
	int ret = 0;

	/* Upwards: a number is only ever made smaller, and what is below is in place. */
	for (size_t i = 0; i < l->n && ret == 0; i++)
		if (l->seqs[i] != (int64_t)i && l->seqs[i] > (int64_t)i)
			ret = wfs_fix_exec(fix, "UPDATE manifest_object SET seq = ? WHERE manifest = ?"
				" AND seq = ?", "iii", (int64_t)i, l->id, l->seqs[i]);
	return ret ? ret : wfs_fix_exec(fix, "UPDATE manifest SET size = ?, objects = ?, digest = ?,"
		" shared = CASE WHEN whole IS NULL THEN 0 ELSE min(shared, ?1) END WHERE id = ?", "iibi",
		l->sum, (int64_t)l->n, l->have.bytes, sizeof(l->have.bytes), l->id);
}

/* Negative numbers would be in the way of the right ones. */
static int shift_negative(struct wfs_fix *fix, struct list *l)
{
	int64_t by;
	int ret = 0;

	if (l->n == 0 || l->seqs[0] >= 0)
		return 0;
	by = INT64_C(1) << 40;
	for (size_t i = l->n; i-- > 0 && ret == 0;) {
		int64_t seq = by + (int64_t)i;

		ret = wfs_fix_exec(fix, "UPDATE OR REPLACE manifest_object SET seq = ? WHERE manifest = ?"
			" AND seq = ?", "iii", seq, l->id, l->seqs[i]);
		l->seqs[i] = seq;
	}
	return ret;
}

/*
 * The list is right, but the lengths do not add up to the file's size: a length is wrong.
 * Whose, its digest says. 1: repaired, l->sum follows.
 */
static int fix_length(struct wfs_fix *fix, struct list *l)
{
	int64_t want = l->size == l->file_size || l->file_size < 0 ? l->size : l->file_size;
	int ret = 0;

	for (size_t i = 0; i < l->n && ret == 0; i++) {
		int64_t length = want - (l->sum - l->lengths[i]), fits = 0;

		if (length < 1 || length == l->lengths[i])
			continue;
		ret = wfs_fix_number(fix, "SELECT 1 FROM object WHERE id = ?1 AND digest ="
			" wfs_digest_at(data_file, offset, ?2)", &fits, "ii", l->ids[i], length);
		if (ret <= 0)
			continue;
		ret = wfs_fix_exec(fix, "UPDATE object SET length = ? WHERE id = ?", "ii", length,
			l->ids[i]);
		if (ret)
			return ret;
		wfs_fix_sayf(fix, "manifest-size", "object", l->ids[i],
			"length was %lld; by its digest it is %lld", (long long)l->lengths[i],
			(long long)length);
		l->lengths[i] = length;
		l->sum = want;
		return 1;
	}
	return ret;
}

static int accept_list(struct wfs_fix *fix, struct list *l)
{
	int ret = 0;

	if (l->sum != l->size && l->sum != l->file_size)
		ret = fix_length(fix, l);
	if (ret >= 0)
		ret = shift_negative(fix, l);
	if (ret == 0)
		ret = write_list(fix, l);
	if (ret == 0)
		wfs_fix_sayf(fix, "manifest-rows", "manifest", l->id, "size, number and digest are "
			"those of its %zu objects, %lld bytes (size was %lld, objects %lld)", l->n,
			(long long)l->sum, (long long)l->size, (long long)l->objects);
	return ret;
}

/*
 * One row is missing: an object that is named once less than it counts may be it, and
 * the digest of the list says whether it is. 1: put back.
 */
static int fill_gap(struct wfs_fix *fix, struct list *l)
{
	struct list tried = { .id = l->id };
	struct wfs_fix_rows rows;
	size_t at = 0;
	int ret, found = 0;

	if (!l->has_digest || (int64_t)l->n + 1 != l->objects || l->n == 0 || l->seqs[0] < 0)
		return 0;
	while (at < l->n && l->seqs[at] == (int64_t)at)
		at++;
	ret = wfs_fix_rows(fix, "SELECT o.id FROM object o LEFT JOIN (SELECT object, count(*) AS n"
		" FROM manifest_object GROUP BY object) r ON r.object = o.id"
		" WHERE o.refs > coalesce(r.n, 0) LIMIT 1000", &rows, "");
	for (size_t i = 0; i < rows.n && ret == 0 && !found; i++) {
		struct wfs_digest have;

		tried.n = 0;
		for (size_t k = 0; k <= l->n && ret == 0; k++) {
			if (k == at)
				ret = add_item(&tried, 0, rows.list[i].a, 1);
			if (k < l->n && ret == 0)
				ret = add_item(&tried, 0, l->ids[k], 1);
		}
		have = digest_of_list(&tried);
		if (ret == 0 && wfs_digest_equal(&have, &l->want)) {
			ret = wfs_fix_exec(fix, "INSERT INTO manifest_object (manifest, seq, object)"
				" VALUES (?, ?, ?)", "iii", l->id, (int64_t)at, rows.list[i].a);
			found = 1;
			wfs_fix_sayf(fix, "manifest-rows", "manifest", l->id, "by its digest, row %zu was "
				"object %lld, and is again", at, (long long)rows.list[i].a);
		}
	}
	free(rows.list);
	free_list(&tried);
	return ret ? ret : found;
}

/* The parts that are left, as a file in lost+found. */
static int keep_parts(struct wfs_fix *fix, struct list *l)
{
	struct wfs_fsck_line text = { .len = 0 };
	char name[80];
	int ret = wfs_fix_exec(fix, "DELETE FROM manifest_object WHERE manifest = ? AND object NOT IN"
		" (SELECT id FROM object)", "i", l->id);

	if (ret == 0)
		ret = read_list(fix, l->id, l);
	if (ret == 0 && (l->n == 0 || l->sum < 1))
		return wfs_fix_exec(fix, "DELETE FROM manifest WHERE id = ?", "i", l->id);
	if (ret == 0)
		ret = shift_negative(fix, l);
	if (ret == 0)
		ret = write_list(fix, l);
	if (ret == 0)
		ret = wfs_fix_exec(fix, "UPDATE manifest SET whole = NULL, shared = 0, solid = 0"
			" WHERE id = ?", "i", l->id);
	snprintf(name, sizeof(name), "manifest-%lld.parts", (long long)l->id);
	wfs_fsck_add(&text, "what is left of its content are %zu objects, %lld bytes", l->n,
		(long long)l->sum);
	return ret ? ret : wfs_lost_manifest(fix, "manifest-rows", l->id, name, text.text);
}

int wfs_fix_settle_list(struct wfs_fix *fix, int64_t *id)
{
	struct list l = { .id = 0 };
	int64_t other = 0;
	int ret = read_list(fix, *id, &l);

	if (ret == 0)
		ret = write_list(fix, &l);
	if (ret == 0)
		ret = wfs_fix_number(fix, "SELECT id FROM manifest WHERE digest = ? AND objects = ? AND id <> ?",
			&other, "bii", l.have.bytes, sizeof(l.have.bytes), (int64_t)l.n, *id);
	free_list(&l);
	if (ret <= 0)
		return ret;
	ret = wfs_fix_exec(fix, "DELETE FROM manifest_object WHERE manifest = ?", "i", *id);
	if (ret == 0)
		ret = wfs_fix_exec(fix, "DELETE FROM manifest WHERE id = ?", "i", *id);
	*id = other;
	return ret;
}

static int give_up_list(struct wfs_fix *fix, struct list *l)
{
	struct wfs_fsck_line detail = { .len = 0 };
	int ret;

	fix->rows_were_lost = true;
	wfs_fsck_add(&detail, "the list of its parts is damaged; what is left of them is lost+found/"
		"manifest-%lld.parts", (long long)l->id);
	ret = wfs_fix_damage(fix, l->id, "content-lost", detail.text);
	if (ret == 0)
		ret = wfs_fix_exec(fix, "UPDATE inode SET manifest = NULL WHERE manifest = ?", "i", l->id);
	return ret ? ret : keep_parts(fix, l);
}

static int fix_list(struct wfs_fix *fix, int64_t id, struct list *l)
{
	int ret = read_list(fix, id, l);

	if (ret)
		return ret;
	if (digest_fits(l) && !l->gap && !l->dangling && (int64_t)l->n == l->objects &&
		l->sum == l->size)
		return 0;
	if (list_is_right(l))
		return accept_list(fix, l);
	/* Where no file names it, nothing says that there was more. */
	if (l->file_size < 0 && l->n > 0 && !l->dangling && l->sum > 0)
		return accept_list(fix, l);
	ret = fill_gap(fix, l);
	if (ret > 0)
		ret = read_list(fix, id, l);
	else if (ret == 0)
		return give_up_list(fix, l);
	return ret ? ret : list_is_right(l) ? accept_list(fix, l) : give_up_list(fix, l);
}

struct bad_lists {
	int64_t *ids;
	size_t n, room;
	bool out_of_memory;
};

static void note_bad(void *ctx, int64_t id)
{
	struct bad_lists *bad = ctx;

	if (WFS_ARRAY_ROOM(bad->ids, bad->n, bad->room))
		bad->out_of_memory = true;
	else
		bad->ids[bad->n++] = id;
}

static int fix_lists(struct wfs_fix *fix)
{
	struct list l = { .id = 0 };
	struct bad_lists bad = { NULL, 0, 0, false };
	struct wfs_fsck_run run = *fix->run;
	int ret;

	run.fn = NULL;
	run.bad_manifest = note_bad;
	run.ctx = &bad;
	ret = wfs_fsck_walk_manifests(&run);
	if (ret == 0 && bad.out_of_memory)
		ret = -ENOMEM;
	for (size_t i = 0; i < bad.n && ret == 0; i++)
		ret = fix_list(fix, bad.ids[i], &l);
	free(bad.ids);
	free_list(&l);
	return ret;
}

static const struct wfs_fix_step manifest_steps[] = {
	{ "dangling-reference", WFS_FSCK_ALWAYS,
		"SELECT DISTINCT r.manifest FROM manifest_object r"
		" WHERE r.manifest NOT IN (SELECT id FROM manifest)",
		"manifest %1", "it did not exist, but its list does; its row is made anew",
		"INSERT INTO manifest (id, size, objects, refs) SELECT DISTINCT r.manifest, 1, 1, 1"
		" FROM manifest_object r WHERE r.manifest NOT IN (SELECT id FROM manifest)" },
};

/* The dead lose their rows piece by piece; these are not dead. */
#define IN_USE_WITHOUT_REFS                                                                          \
	"refs = 0 AND (digest IS NOT NULL OR id IN"                                                  \
	" (SELECT i.manifest FROM inode i WHERE i.manifest IS NOT NULL))"

static const struct wfs_fix_step living_steps[] = {
	{ "manifest-refs", WFS_FSCK_ALWAYS,
		"SELECT id FROM manifest WHERE " IN_USE_WITHOUT_REFS,
		"manifest %1", "refs was 0, but it is in use",
		"UPDATE manifest SET refs = 1 WHERE " IN_USE_WITHOUT_REFS },
};

static const struct wfs_fix_step solid_steps[] = {
	{ "manifest-solid", WFS_FSCK_ALWAYS,
		"SELECT DISTINCT id FROM " WFS_FSCK_NOT_SOLID(""),
		"manifest %1", "it is not solid, and no longer marked so",
		"UPDATE manifest SET solid = 0 WHERE id IN"
		" (SELECT id FROM " WFS_FSCK_NOT_SOLID("") ")" },
};

/* Two that are one: the older keeps all files. */
static int merge_equal(struct wfs_fix *fix)
{
	struct wfs_fix_rows rows;
	int ret = wfs_fix_rows(fix, "SELECT a.id, b.id FROM manifest a JOIN manifest b ON b.id ="
		" (SELECT min(c.id) FROM manifest c WHERE c.digest = a.digest AND c.id > a.id)"
		" WHERE a.objects = b.objects ORDER BY a.id DESC", &rows, "");

	for (size_t i = 0; i < rows.n && ret == 0; i++) {
		int64_t a = rows.list[i].a, b = rows.list[i].b;

		ret = wfs_fix_exec(fix, "UPDATE inode SET manifest = ? WHERE manifest = ?", "ii", a, b);
		if (ret == 0)
			ret = wfs_fix_exec(fix, "DELETE FROM manifest_object WHERE manifest = ?", "i", b);
		if (ret == 0)
			ret = wfs_fix_exec(fix, "DELETE FROM manifest WHERE id = ?", "i", b);
		if (ret == 0)
			wfs_fix_sayf(fix, "manifest-duplicate", "manifest", b,
				"manifest %lld is the same content and has its files now", (long long)a);
	}
	free(rows.list);
	return ret;
}

int wfs_fix_manifests(struct wfs_fix *fix)
{
	int ret = wfs_fix_table(fix, manifest_steps, WFS_ARRAY_SIZE(manifest_steps));

	if (ret == 0)
		ret = wfs_fix_table(fix, living_steps, WFS_ARRAY_SIZE(living_steps));
	if (ret == 0)
		ret = fix_lists(fix);
	return ret ? ret : merge_equal(fix);
}

/* ---- what an inode says of its content ---- */

#define WRONG_CONTENT                                                                                \
	"i.size <> m.size AND i.verdict <> 5 AND m.refs < (SELECT count(*) FROM inode j"             \
	" WHERE j.manifest = m.id)"

/* A dirty file whose flush has failed (docs/decisions/0020): whatever the gate says of it. */
#define SYNC_FAILED "(reason = 'sync-failed' AND data_file IS NOT NULL)"
#define WRONG_VERDICT                                                                                \
	"verdict IN (3, 4, 5) AND reason IS NULL"                                                    \
	" OR verdict IN (0, 2) AND reason IS NOT NULL AND NOT " SYNC_FAILED                          \
	" OR verdict <> 0 AND NOT " IS_REG("inode")

static const struct wfs_fix_step inode_steps[] = {
	{ "inode-content", WFS_FSCK_ALWAYS,
		"SELECT i.ino, i.manifest FROM inode i WHERE i.manifest IS NOT NULL"
		" AND i.data_file IS NOT NULL AND " IS_REG("i"),
		"inode %1", "@1 has both a manifest and a staging data file; the latter is newer",
		"UPDATE inode SET manifest = NULL WHERE manifest IS NOT NULL AND data_file IS NOT NULL" },
	{ "content-lost", WFS_FSCK_ALWAYS,
		"SELECT i.ino, i.manifest FROM inode i WHERE i.manifest IS NOT NULL"
		" AND i.manifest NOT IN (SELECT id FROM manifest)",
		"inode %1", "@1 is damaged and cannot be read any more: its content, manifest %2, does "
			    "not exist",
		"UPDATE inode SET manifest = NULL, verdict = 5, reason = 'content-lost', detail ="
		" 'its content, manifest ' || manifest || ', does not exist' WHERE manifest IS NOT NULL"
		" AND manifest NOT IN (SELECT id FROM manifest)" },
	{ "content-lost", WFS_FSCK_ALWAYS,
		"SELECT ino, size FROM inode i WHERE " IS_REG("i") " AND manifest IS NULL"
		" AND data_file IS NULL AND size <> 0 AND verdict <> 5",
		"inode %1", "@1 is damaged and cannot be read any more: it had %2 bytes, and nothing "
			    "names them",
		"UPDATE inode AS i SET verdict = 5, reason = 'content-lost', detail = 'it had ' || size ||"
		" ' bytes; what named them is lost, they may be in lost+found' WHERE " IS_REG("i")
		" AND manifest IS NULL AND data_file IS NULL AND size <> 0 AND verdict <> 5" },
	/* A size that is not the content's, and a content that has one file too many: it is not its. */
	{ "content-lost", WFS_FSCK_ALWAYS,
		"SELECT i.ino, i.manifest, i.size FROM inode i JOIN manifest m ON m.id = i.manifest WHERE "
		WRONG_CONTENT,
		"inode %1", "@1 is damaged and cannot be read any more: it has %3 bytes, and manifest %2, "
			    "which it named, is another file's",
		"UPDATE inode SET manifest = NULL, verdict = 5, reason = 'content-lost', detail ="
		" 'what it named is the content of another file' WHERE ino IN (SELECT i.ino FROM inode i"
		" JOIN manifest m ON m.id = i.manifest WHERE " WRONG_CONTENT ")" },
	{ "inode-size", WFS_FSCK_ALWAYS,
		"SELECT i.ino, i.size, m.size FROM inode i JOIN manifest m ON m.id = i.manifest"
		" WHERE i.size <> m.size",
		"inode %1", "@1 had size %2; it is %3 as its content",
		"UPDATE inode SET size = (SELECT m.size FROM manifest m WHERE m.id = inode.manifest)"
		" WHERE manifest IS NOT NULL" },
	{ "verdict", WFS_FSCK_ALWAYS,
		"SELECT ino, verdict, reason FROM inode WHERE " WRONG_VERDICT,
		"inode %1", "@1 had verdict %2 and reason %3; no verdict is taken, until the next close",
		"UPDATE inode SET verdict = 0, reason = NULL, detail = NULL WHERE " WRONG_VERDICT },
	{ "verdict", WFS_FSCK_ALWAYS,
		"SELECT ino, reason FROM inode WHERE verdict = 1 AND reason <> 'warning' AND NOT " SYNC_FAILED,
		"inode %1", "@1 is valid, but had the reason %2",
		"UPDATE inode SET reason = NULL, detail = NULL WHERE verdict = 1 AND reason <> 'warning' AND NOT " SYNC_FAILED },
};

int wfs_fix_inodes(struct wfs_fix *fix)
{
	return wfs_fix_table(fix, inode_steps, WFS_ARRAY_SIZE(inode_steps));
}

/* ---- counts, once all rows are there ---- */

#define LARGEST_IDS                                                                                  \
	"(SELECT 'object' AS name, max(id) AS top FROM object"                                       \
	" UNION ALL SELECT 'manifest', max(id) FROM manifest"                                        \
	" UNION ALL SELECT 'data_file', max(id) FROM data_file"                                      \
	" UNION ALL SELECT 'inode', max(ino) FROM inode"                                             \
	" UNION ALL SELECT 'dirent', max(id) FROM dirent)"

static const struct wfs_fix_step count_steps[] = {
	{ "object-refs", WFS_FSCK_ALWAYS,
		"SELECT o.id, o.refs, r.n FROM object o JOIN (SELECT object, count(*) AS n"
		" FROM manifest_object GROUP BY object) r ON r.object = o.id WHERE o.refs <> r.n",
		"object %1", "refs was %2; %3 rows of manifest_object name it",
		"UPDATE object SET refs = r.n FROM (SELECT object, count(*) AS n FROM manifest_object"
		" GROUP BY object) r WHERE r.object = object.id AND refs <> r.n" },
	{ "manifest-refs", WFS_FSCK_ALWAYS,
		"SELECT m.id, m.refs, (SELECT count(*) FROM inode i WHERE i.manifest = m.id) AS n"
		" FROM manifest m WHERE m.refs <> n",
		"manifest %1", "refs was %2; %3 inodes name it",
		"UPDATE manifest SET refs = (SELECT count(*) FROM inode i WHERE i.manifest = manifest.id)" },
	{ "manifest-digest", WFS_FSCK_ALWAYS,
		"SELECT id FROM manifest WHERE refs = 0 AND digest IS NOT NULL",
		"manifest %1", "it is dead, and can no longer be found by its digest",
		"UPDATE manifest SET digest = NULL WHERE refs = 0" },
	{ "nlink", WFS_FSCK_ALWAYS,
		"SELECT i.ino, i.nlink, " WFS_FSCK_NAMES("i") " AS n FROM inode i WHERE NOT "
		WFS_FSCK_IS_DIR("i") " AND i.nlink <> n",
		"inode %1", "@1 had nlink %2; it has %3 names",
		"UPDATE inode SET nlink = " WFS_FSCK_NAMES("inode") " WHERE NOT "
		WFS_FSCK_IS_DIR("inode") },
	{ "nlink", WFS_FSCK_ALWAYS,
		"SELECT i.ino, i.nlink, " WFS_FSCK_LINKS("i") " AS n FROM inode i WHERE "
		WFS_FSCK_IS_DIR("i") " AND i.nlink <> n AND (i.ino = 1 OR " WFS_FSCK_IS_NAMED("i") ")",
		"inode %1", "@1 had nlink %2; it should be %3",
		"UPDATE inode AS i SET nlink = " WFS_FSCK_LINKS("i") " WHERE " WFS_FSCK_IS_DIR("i")
		" AND (i.ino = 1 OR " WFS_FSCK_IS_NAMED("i") ")" },
	{ "sequence", WFS_FSCK_ALWAYS,
		"SELECT t.name, t.top, s.seq FROM " LARGEST_IDS " t LEFT JOIN sqlite_sequence s"
		" ON s.name = t.name WHERE t.top > coalesce(s.seq, 0)",
		"table %1", "its largest id is %2, but sqlite_sequence said %3",
		"UPDATE sqlite_sequence SET seq = max(seq, t.top) FROM " LARGEST_IDS " t"
		" WHERE t.name = sqlite_sequence.name AND t.top IS NOT NULL" },
	{ "sequence", WFS_FSCK_ALWAYS,
		"SELECT name, top FROM " LARGEST_IDS
		" WHERE top > 0 AND name NOT IN (SELECT s.name FROM sqlite_sequence s)",
		"table %1", "sqlite_sequence has a row for it again, with %2",
		"INSERT INTO sqlite_sequence (name, seq) SELECT name, top FROM " LARGEST_IDS
		" WHERE top > 0 AND name NOT IN (SELECT s.name FROM sqlite_sequence s)" },
	{ "sequence", WFS_FSCK_ALWAYS,
		"SELECT name, count(*) FROM sqlite_sequence GROUP BY name HAVING count(*) > 1",
		"table %1", "sqlite_sequence has one row for it again",
		"DELETE FROM sqlite_sequence WHERE rowid NOT IN (SELECT rowid FROM (SELECT rowid, max(seq)"
		" FROM sqlite_sequence WHERE seq IS NOT NULL GROUP BY name))" },
};

int wfs_fix_counts(struct wfs_fix *fix)
{
	int ret = wfs_fix_table(fix, solid_steps, WFS_ARRAY_SIZE(solid_steps));

	return ret ? ret : wfs_fix_table(fix, count_steps, WFS_ARRAY_SIZE(count_steps));
}
