#include "lib/fsck_check.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "lib/digest.h"

#define READ_SIZE (1 << 20)       /* bytes hashed at a time */
#define BAD_MAX 1024              /* objects whose files are looked up in one pass */
#define BAD_FILES 4               /* manifests of one of them that are named */

/* An object whose bytes are not those of its digest, and some who have it. */
struct bad_object {
	int64_t id;
	uint64_t manifests;
	int64_t first[BAD_FILES]; /* the first of them */
};

struct reader {
	struct wfs_fsck_run *run;
	uint8_t *buf;  /* READ_SIZE */
	int64_t file;  /* that fd is open on; -1 if none is */
	int fd;        /* -1: it cannot be read */
	struct bad_object *bad;
	size_t n_bad;
};

static int compare_bad(const void *a, const void *b)
{
	const struct bad_object *x = a, *y = b;

	return x->id < y->id ? -1 : x->id > y->id;
}

/* Note every manifest that has one of the bad objects. */
static int find_holders(struct reader *r)
{
	sqlite3_stmt *stmt;
	int ret = wfs_fsck_query(r->run, "SELECT object, manifest FROM manifest_object", &stmt);

	while (ret >= 0 && (ret = wfs_fsck_step(r->run, stmt)) > 0) {
		struct bad_object key = { .id = sqlite3_column_int64(stmt, 0) };
		struct bad_object *hit =
			bsearch(&key, r->bad, r->n_bad, sizeof(key), compare_bad);
		int64_t manifest = sqlite3_column_int64(stmt, 1);
		uint64_t n = hit ? WFS_MIN(hit->manifests, BAD_FILES) : 0;

		if (!hit || (n > 0 && hit->first[n - 1] == manifest))
			continue;
		if (n < BAD_FILES)
			hit->first[n] = manifest;
		hit->manifests++;
	}
	sqlite3_finalize(stmt);
	return ret;
}

/* The paths of (some) files that have the manifest. */
static void add_files(struct wfs_fsck_run *run, struct wfs_fsck_line *line, int64_t manifest)
{
	sqlite3_stmt *stmt;
	int n = 0;

	if (wfs_fsck_query(run, "SELECT ino FROM inode WHERE manifest = ? LIMIT 9", &stmt) == 0 &&
	    stmt) {
		sqlite3_bind_int64(stmt, 1, manifest);
		while (wfs_fsck_step(run, stmt) > 0 && ++n < 9) {
			wfs_fsck_add(line, " ");
			wfs_fsck_add_path(run, line, sqlite3_column_int64(stmt, 0));
		}
		if (n == 9)
			wfs_fsck_add(line, " ...");
	}
	sqlite3_finalize(stmt);
}

static void report_bad(struct reader *r, const struct bad_object *bad)
{
	struct wfs_fsck_line where = { .len = 0 }, text = { .len = 0 };

	wfs_fsck_add(&where, "object %lld", (long long)bad->id);
	wfs_fsck_add(&text, "its bytes are not those of its digest; it is in%s",
		bad->manifests ? ":" : " no file");
	for (uint64_t i = 0; i < WFS_MIN(bad->manifests, BAD_FILES); i++)
		add_files(r->run, &text, bad->first[i]);
	if (bad->manifests > BAD_FILES)
		wfs_fsck_add(&text, " and other contents");
	wfs_fsck_report_at(r->run, "object-digest", where.text, text.text);
}

/* Report what was gathered, with one pass over the manifests for all of it. */
static int flush_bad(struct reader *r)
{
	int ret;

	if (r->n_bad == 0)
		return 0;
	qsort(r->bad, r->n_bad, sizeof(*r->bad), compare_bad);
	r->run->spent = 0;
	ret = find_holders(r);
	for (size_t i = 0; i < r->n_bad && ret == 0; i++)
		report_bad(r, &r->bad[i]);
	r->n_bad = 0;
	r->run->spent = 0;
	return ret;
}

static void use_file(struct reader *r, int64_t file)
{
	char path[WFS_FSCK_PATH_SIZE];
	struct stat st;

	if (r->file == file)
		return;
	if (r->fd >= 0)
		close(r->fd);
	wfs_fsck_data_path(file, path);
	r->file = file;
	r->fd = openat(r->run->data_fd, path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	if (r->fd < 0 || fstat(r->fd, &st) != 0)
		wfs_fsck_could_not(r->run, file, errno);
	else if (S_ISREG(st.st_mode))
		return;
	if (r->fd >= 0)
		close(r->fd);
	r->fd = -1;
}

/* True if all of the extent could be read. */
static bool hash_extent(struct reader *r, int64_t offset, int64_t length, struct wfs_digest *ret)
{
	struct wfs_hasher hasher;

	if (r->fd < 0 || offset < 0 || length < 0)
		return false;
	wfs_hasher_init(&hasher, 128);
	while (length > 0) {
		ssize_t n = pread(r->fd, r->buf, (size_t)WFS_MIN(length, READ_SIZE), offset);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			wfs_fsck_could_not(r->run, r->file, errno);
		if (n <= 0)
			return false;
		wfs_hasher_update(&hasher, r->buf, (size_t)n);
		length -= n;
		if (__builtin_add_overflow(offset, (int64_t)n, &offset))
			return false;
	}
	*ret = wfs_hasher_final(&hasher);
	return true;
}

/* Rows for is_sound. Objects without a place are reported elsewhere. */
static const char in_database[] =
	"SELECT o.id, o.digest, o.length, NULL, NULL, b.bytes FROM object o"
	" JOIN object_bytes b ON b.object = o.id WHERE o.data_file IS NULL";
/* In the order of the disk. */
static const char in_files[] =
	"SELECT id, digest, length, data_file, offset FROM object"
	" WHERE data_file IS NOT NULL ORDER BY data_file, offset";

/* The row: id, digest, length, data_file, offset, bytes. */
static bool is_sound(struct reader *r, sqlite3_stmt *stmt)
{
	bool in_file = sqlite3_column_type(stmt, 3) != SQLITE_NULL;
	const void *digest = sqlite3_column_blob(stmt, 1);
	struct wfs_digest want, have;

	if (!digest || sqlite3_column_bytes(stmt, 1) != WFS_DIGEST_SIZE)
		return false;
	memcpy(want.bytes, digest, WFS_DIGEST_SIZE);
	if (in_file) {
		use_file(r, sqlite3_column_int64(stmt, 3));
		if (!hash_extent(r, sqlite3_column_int64(stmt, 4), sqlite3_column_int64(stmt, 2),
			    &have))
			return false;
	} else {
		const void *bytes = sqlite3_column_blob(stmt, 5);

		have = wfs_digest_of(bytes, (size_t)sqlite3_column_bytes(stmt, 5), 128);
	}
	return wfs_digest_equal(&want, &have);
}

/* A range may have been punched out because its object died since this run began. */
static bool was_meant(struct wfs_fsck_run *run, sqlite3_stmt *stmt)
{
	if (sqlite3_column_type(stmt, 3) == SQLITE_NULL)
		return true;
	return wfs_fsck_still(run, WFS_FSCK_STILL_THERE, sqlite3_column_int64(stmt, 0),
		sqlite3_column_int64(stmt, 3));
}

static int read_objects(struct reader *r, const char *sql)
{
	sqlite3_stmt *stmt;
	int ret;

	wfs_fsck_begin(r->run, "object-digest");
	ret = wfs_fsck_query(r->run, sql, &stmt);
	while (ret >= 0 && (ret = wfs_fsck_step(r->run, stmt)) > 0) {
		if (wfs_fsck_is_excused(r->run, sqlite3_column_int64(stmt, 0)) || is_sound(r, stmt) ||
			!was_meant(r->run, stmt))
			continue;
		r->bad[r->n_bad++] = (struct bad_object){ .id = sqlite3_column_int64(stmt, 0) };
		if (r->n_bad == BAD_MAX)
			ret = flush_bad(r);
	}
	sqlite3_finalize(stmt);
	return ret < 0 ? ret : flush_bad(r);
}

/* ---- whole copies ---- */

/* The manifest that the walk is in, and the first object that its whole copy does not have. */
struct copy_walk {
	int64_t manifest, file; /* manifest 0: none yet */
	int64_t at;             /* in the file */
	int64_t bad, bad_at;    /* bad 0: none */
};

static void end_copy(struct reader *r, const struct copy_walk *w)
{
	struct wfs_fsck_line where = { .len = 0 }, text = { .len = 0 };

	if (!w->bad || !wfs_fsck_still(r->run, WFS_FSCK_STILL_WHOLE, w->manifest, w->file))
		return;
	wfs_fsck_add(&where, "manifest %lld", (long long)w->manifest);
	wfs_fsck_add(&text, "its whole copy, data file %lld, has other bytes at %lld than those of "
		"the digest of object %lld; it is read in:", (long long)w->file,
		(long long)w->bad_at, (long long)w->bad);
	add_files(r->run, &text, w->manifest);
	wfs_fsck_report_at(r->run, "whole-copy-digest", where.text, text.text);
}

/* The row: manifest, whole, object, digest, length, data_file, offset. */
static void check_copied(struct reader *r, struct copy_walk *w, sqlite3_stmt *stmt)
{
	int64_t length = sqlite3_column_int64(stmt, 4), at = w->at;
	bool is_there = sqlite3_column_int64(stmt, 5) == w->file &&
			sqlite3_column_int64(stmt, 6) == at;
	const void *digest = sqlite3_column_blob(stmt, 3);
	struct wfs_digest want, have;
	bool is_bad = !digest || sqlite3_column_bytes(stmt, 3) != WFS_DIGEST_SIZE ||
		      __builtin_add_overflow(at, length, &w->at);

	if (w->bad || is_there)
		return; /* one is enough; what lives there was read as an object */
	if (!is_bad) {
		memcpy(want.bytes, digest, WFS_DIGEST_SIZE);
		use_file(r, w->file);
		is_bad = !hash_extent(r, at, length, &have) || !wfs_digest_equal(&want, &have);
	}
	if (is_bad) {
		w->bad = sqlite3_column_int64(stmt, 2);
		w->bad_at = at;
	}
}

static int read_copies(struct reader *r)
{
	struct copy_walk w = { .manifest = 0 };
	sqlite3_stmt *stmt;
	int ret;

	wfs_fsck_begin(r->run, "whole-copy-digest");
	ret = wfs_fsck_query(r->run,
		"SELECT m.id, m.whole, o.id, o.digest, o.length, o.data_file, o.offset"
		" FROM manifest m JOIN manifest_object c ON c.manifest = m.id"
		" JOIN object o ON o.id = c.object WHERE m.whole IS NOT NULL AND m.refs <> 0"
		" ORDER BY m.id, c.seq", &stmt);
	while (ret >= 0 && (ret = wfs_fsck_step(r->run, stmt)) > 0) {
		if (w.manifest != sqlite3_column_int64(stmt, 0)) {
			end_copy(r, &w);
			w = (struct copy_walk){ .manifest = sqlite3_column_int64(stmt, 0),
				.file = sqlite3_column_int64(stmt, 1) };
		}
		check_copied(r, &w, stmt);
	}
	end_copy(r, &w);
	sqlite3_finalize(stmt);
	return ret;
}

int wfs_fsck_bytes(struct wfs_fsck_run *run)
{
	WFS_AUTO_FREE uint8_t *buf = malloc(READ_SIZE);
	WFS_AUTO_FREE struct bad_object *bad = calloc(BAD_MAX, sizeof(*bad));
	struct reader r = { .run = run, .buf = buf, .bad = bad, .file = -1, .fd = -1 };
	int ret;

	if (!buf || !bad)
		return -ENOMEM;
	ret = read_objects(&r, in_database);
	if (ret == 0)
		ret = read_objects(&r, in_files);
	if (ret == 0)
		ret = read_copies(&r);
	if (r.fd >= 0)
		close(r.fd);
	return ret;
}
