#include "lib/content.h"

#include <errno.h>
#include <string.h>

#include "lib/compose.h"

struct wfs_content *wfs_content_new_empty(struct wfs_datafiles *table)
{
	struct wfs_content *c = calloc(1, sizeof(*c));

	if (!c)
		return NULL;
	atomic_init(&c->refs, 1);
	c->table = table;
	return c;
}

struct wfs_content *wfs_content_new_staging(struct wfs_datafiles *table, uint64_t data_file)
{
	struct wfs_content *c = wfs_content_new_empty(table);

	if (!c)
		return NULL;
	c->staging = wfs_datafile_get(table, data_file);
	if (!c->staging) {
		free(c);
		return NULL;
	}
	return c;
}

struct wfs_content *wfs_content_ref(struct wfs_content *c)
{
	atomic_fetch_add(&c->refs, 1);
	return c;
}

void wfs_content_unref(struct wfs_content *c)
{
	if (!c || atomic_fetch_sub(&c->refs, 1) > 1)
		return;
	if (c->staging)
		wfs_datafile_unref(c->table, c->staging);
	for (size_t i = 0; i < c->n; i++)
		if (c->extents[i].df)
			wfs_datafile_unref(c->table, c->extents[i].df);
	free(c->inline_bytes);
	free(c);
}

struct wfs_datafile *wfs_content_whole(const struct wfs_content *c)
{
	if (c->staging)
		return c->staging;
	if (c->n != 1 || !c->extents[0].df || c->extents[0].offset != 0)
		return NULL;
	return atomic_load(&c->extents[0].df->has_bad) ? NULL : c->extents[0].df;
}

const char *wfs_content_layout(const struct wfs_content *c)
{
	if (c->staging)
		return "dirty";
	if (c->n == 0)
		return "empty";
	if (wfs_content_whole(c))
		return "whole";
	for (size_t i = 0; i < c->n; i++)
		if (c->extents[i].df)
			return "composed";
	return "database";
}

/* ---- loading ---- */

/* The row of BYTES_GET: are these the bytes that were stored? */
static bool is_as_stored(struct wfs_db *db, sqlite3_stmt *row, uint64_t length)
{
	struct wfs_digest want, have;

	if ((uint64_t)sqlite3_column_bytes(row, 0) != length ||
		(size_t)sqlite3_column_bytes(row, 1) != sizeof(want.bytes))
		return false;
	memcpy(want.bytes, sqlite3_column_blob(row, 1), sizeof(want.bytes));
	have = wfs_digest_of(sqlite3_column_blob(row, 0), length, db->digest_bits);
	return wfs_digest_equal(&want, &have);
}

/* They are few: it costs next to nothing to see each time that they are what was stored. */
static int add_from_database(struct wfs_db *db, struct wfs_composer *p, const struct wfs_object *o)
{
	sqlite3_stmt *row;
	uint8_t *at;
	int ret = wfs_db_first(db, WFS_Q_BYTES_GET, &row, "i", o->id);

	if (ret < 0)
		return ret;
	if (ret == 0)
		return wfs_compose_lost(p, o->length);
	if (!is_as_stored(db, row, o->length)) {
		ret = wfs_compose_lost(p, o->length);
	} else {
		ret = wfs_compose_room(p, o->length, &at);
		if (ret == 0)
			memcpy(at, sqlite3_column_blob(row, 0), o->length);
	}
	wfs_db_done(row);
	return ret;
}

static int add_object(struct wfs_db *db, struct wfs_composer *p, const struct wfs_object *o)
{
	if (o->data_file)
		return wfs_compose_place(p, o->data_file, o->offset, o->length);
	return o->length ? add_from_database(db, p, o) : -EUCLEAN;
}

static int load_rows(struct wfs_db *db, struct wfs_composer *p, uint64_t id)
{
	sqlite3_stmt *row;
	int more;

	for (more = wfs_db_first(db, WFS_Q_MANIFEST_LOAD, &row, "i", id); more > 0;
		more = wfs_db_next(db, row)) {
		struct wfs_object o = {
			.id = (uint64_t)sqlite3_column_int64(row, 0),
			.length = (uint64_t)sqlite3_column_int64(row, 1),
			.data_file = (uint64_t)sqlite3_column_int64(row, 2),
			.offset = (uint64_t)sqlite3_column_int64(row, 3),
		};
		int ret = add_object(db, p, &o);

		if (ret) {
			wfs_db_done(row);
			return ret;
		}
	}
	return more;
}

static int load_manifest(struct wfs_db *db, struct wfs_composer *p, uint64_t id)
{
	uint64_t size, data_file;
	bool is_solid;
	sqlite3_stmt *row;
	int found = wfs_db_first(db, WFS_Q_MANIFEST_GET, &row, "i", id);

	if (found <= 0)
		return found < 0 ? found : -EUCLEAN;
	size = (uint64_t)sqlite3_column_int64(row, 1);
	data_file = (uint64_t)sqlite3_column_int64(row, 3);
	is_solid = sqlite3_column_int(row, 5) != 0;
	wfs_db_done(row);
	if (!data_file && is_solid) {
		found = wfs_db_number(db, WFS_Q_MANIFEST_HOME, &data_file, "i", id);
		if (found < 0)
			return found;
	}
	if (data_file)
		return wfs_compose_place(p, data_file, 0, size);
	found = load_rows(db, p, id);
	if (found)
		return found;
	return size == p->content->size ? 0 : -EUCLEAN;
}

int wfs_content_load(struct wfs_db *db, struct wfs_datafiles *table, uint64_t id,
	struct wfs_content **ret)
{
	struct wfs_composer p;
	int err = wfs_compose_begin(&p, table);

	if (!err)
		err = load_manifest(db, &p, id);
	if (err) {
		wfs_compose_abandon(&p);
		return err;
	}
	*ret = wfs_compose_end(&p);
	(*ret)->manifest = id;
	return 0;
}

int wfs_content_of_object(struct wfs_db *db, struct wfs_datafiles *table,
	const struct wfs_object *object, struct wfs_content **ret)
{
	struct wfs_composer p;
	int err = wfs_compose_begin(&p, table);

	if (!err)
		err = add_object(db, &p, object);
	if (err)
		wfs_compose_abandon(&p);
	else
		*ret = wfs_compose_end(&p);
	return err;
}

/* ---- reading ---- */

int wfs_content_size(struct wfs_content *c, uint64_t *ret)
{
	struct stat st;
	int fd;

	if (!c->staging) {
		*ret = c->size;
		return 0;
	}
	fd = wfs_datafile_use(c->table, c->staging);
	if (fd < 0)
		return fd;
	fd = fstat(fd, &st) != 0 ? -errno : 0;
	wfs_datafile_unuse(c->table, c->staging);
	if (fd == 0)
		*ret = (uint64_t)st.st_size;
	return fd;
}

size_t wfs_content_find(const struct wfs_content *c, uint64_t offset)
{
	size_t low = 0, high = c->n;

	while (high - low > 1) {
		size_t mid = low + (high - low) / 2;

		if (c->extents[mid].at <= offset)
			low = mid;
		else
			high = mid;
	}
	return low;
}

static ssize_t read_staging(struct wfs_content *c, char *buf, size_t len, uint64_t offset)
{
	size_t done = 0;
	int fd = wfs_datafile_use(c->table, c->staging);

	if (fd < 0)
		return fd;
	if (wfs_datafile_is_bad(c->table, c->staging, offset, len)) {
		wfs_datafile_unuse(c->table, c->staging);
		return -EIO;
	}
	while (done < len) {
		ssize_t n = pread(fd, buf + done, len - done, (off_t)(offset + done));

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && done == 0) {
			wfs_datafile_unuse(c->table, c->staging);
			return -errno;
		}
		if (n <= 0)
			break;
		done += (size_t)n;
	}
	wfs_datafile_unuse(c->table, c->staging);
	return (ssize_t)done;
}

static bool is_bad(struct wfs_content *c, const struct wfs_extent *e, uint64_t skip, uint64_t len)
{
	return e->is_lost ||
	       (e->df && wfs_datafile_is_bad(c->table, e->df, e->offset + skip, len));
}

static int read_extent(struct wfs_content *c, const struct wfs_extent *e, char *buf, size_t len,
	uint64_t skip)
{
	int fd, ret;

	if (is_bad(c, e, skip, len))
		return -EIO;
	if (!e->df) {
		memcpy(buf, e->bytes + skip, len);
		return 0;
	}
	fd = wfs_datafile_use(c->table, e->df);
	if (fd < 0)
		return fd;
	ret = wfs_pread_all(fd, buf, len, e->offset + skip);
	wfs_datafile_unuse(c->table, e->df);
	return ret;
}

static ssize_t read_sealed(struct wfs_content *c, char *buf, size_t len, uint64_t offset)
{
	size_t done = 0;
	size_t i;

	if (offset >= c->size)
		return 0;
	len = WFS_MIN(len, c->size - offset);
	for (i = wfs_content_find(c, offset); done < len; i++) {
		const struct wfs_extent *e = &c->extents[i];
		uint64_t skip = offset + done - e->at;
		size_t part = WFS_MIN(len - done, e->length - skip);
		int ret = read_extent(c, e, buf + done, part, skip);

		if (ret)
			return ret;
		done += part;
	}
	return (ssize_t)done;
}

ssize_t wfs_content_read(struct wfs_content *c, void *buf, size_t len, uint64_t offset)
{
	if (offset > INT64_MAX - len)
		return offset > INT64_MAX ? -EINVAL : 0;
	return c->staging ? read_staging(c, buf, len, offset) : read_sealed(c, buf, len, offset);
}

/* The bytes of one extent before its first bad one; they are looked for in halves. */
static size_t sound_in(struct wfs_content *c, const struct wfs_extent *e, uint64_t skip, size_t len)
{
	size_t low = 0, high = len;

	if (!is_bad(c, e, skip, len))
		return len;
	while (high - low > 1) {
		size_t mid = low + (high - low) / 2;

		if (is_bad(c, e, skip, mid))
			high = mid;
		else
			low = mid;
	}
	return low;
}

size_t wfs_content_sound(struct wfs_content *c, size_t len, uint64_t offset)
{
	size_t done = 0, i;

	if (c->staging || offset >= c->size)
		return len;
	len = WFS_MIN(len, c->size - offset);
	for (i = wfs_content_find(c, offset); done < len; i++) {
		const struct wfs_extent *e = &c->extents[i];
		uint64_t skip = offset + done - e->at;
		size_t part = WFS_MIN(len - done, e->length - skip);
		size_t sound = sound_in(c, e, skip, part);

		done += sound;
		if (sound < part)
			break;
	}
	return done;
}

static struct wfs_datafile *place_of(struct wfs_content *c, uint64_t offset, size_t len,
	uint64_t *ret_offset)
{
	const struct wfs_extent *e;

	*ret_offset = offset;
	if (c->staging)
		return c->staging;
	e = &c->extents[wfs_content_find(c, offset)];
	*ret_offset = e->offset + (offset - e->at);
	if (is_bad(c, e, offset - e->at, len))
		return NULL;
	return e->at + e->length - offset >= len ? e->df : NULL;
}

/* Of a pack that was cut short the reader hears by wfs_content_read. */
static bool is_there(const struct wfs_span *span)
{
	struct stat st;

	return fstat(span->fd, &st) == 0 && (uint64_t)st.st_size >= span->offset + span->len;
}

int wfs_span_begin(struct wfs_span *span, struct wfs_content *c, uint64_t offset, size_t len)
{
	uint64_t size;
	int ret = wfs_content_size(c, &size);

	if (ret || offset >= size || len == 0)
		return ret;
	span->len = WFS_MIN(len, size - offset);
	span->df = place_of(c, offset, span->len, &span->offset);
	if (!span->df)
		return 0;
	span->fd = wfs_datafile_use(c->table, span->df);
	if (span->fd < 0)
		return span->fd;
	if (!c->staging && !is_there(span)) {
		wfs_datafile_unuse(c->table, span->df);
		return 0;
	}
	span->content = wfs_content_ref(c);
	return 1;
}

void wfs_span_end(struct wfs_span *span)
{
	wfs_datafile_unuse(span->content->table, span->df);
	wfs_content_unref(span->content);
}

/* ---- the header ---- */

static int read_prefix(struct wfs_content *c, uint64_t size, uint8_t **ret)
{
	uint8_t head[WFS_SAFETENSORS_PREFIX] = { 0 };
	uint64_t need;
	ssize_t n = wfs_content_read(c, head, sizeof(head), 0);
	uint8_t *buf;

	if (n < 0)
		return (int)n;
	need = wfs_safetensors_need(head, size);
	buf = malloc(WFS_MAX(need, sizeof(head)));
	if (!buf)
		return -ENOMEM;
	n = wfs_content_read(c, buf, need, 0);
	if (n < 0 || (uint64_t)n < need) {
		free(buf);
		return n < 0 ? (int)n : -EIO;
	}
	*ret = buf;
	return 0;
}

int wfs_content_header(struct wfs_content *c, uint8_t **ret_buf, struct wfs_safetensors *ret,
	struct wfs_err *err)
{
	uint8_t *buf = NULL;
	uint64_t size;
	int e = wfs_content_size(c, &size);

	if (!e)
		e = read_prefix(c, size, &buf);
	if (!e)
		e = wfs_safetensors_parse(buf, size, ret, err);
	if (e)
		free(buf);
	else
		*ret_buf = buf;
	return e;
}

/* ---- holes ---- */

/* lseek within [from, from + length) of a data file: relative place, or -1 if all is the other kind. */
static int64_t seek_in_file(struct wfs_content *c, struct wfs_datafile *df, uint64_t from,
	uint64_t length, int whence)
{
	int fd = wfs_datafile_use(c->table, df);
	off_t found;

	if (fd < 0)
		return fd;
	found = lseek(fd, (off_t)from, whence);
	if (found < 0)
		found = errno == ENXIO ? (off_t)(from + length) : -errno;
	wfs_datafile_unuse(c->table, df);
	if (found < 0)
		return found;
	return (int64_t)WFS_MIN((uint64_t)found - from, length);
}

static int64_t seek_staging(struct wfs_content *c, uint64_t offset, int whence)
{
	int fd = wfs_datafile_use(c->table, c->staging);
	int64_t found;

	if (fd < 0)
		return fd;
	found = lseek(fd, (off_t)offset, whence);
	if (found < 0)
		found = -errno;
	wfs_datafile_unuse(c->table, c->staging);
	return found;
}

static int64_t seek_sealed(struct wfs_content *c, uint64_t offset, int whence)
{
	for (size_t i = wfs_content_find(c, offset); i < c->n; i++) {
		const struct wfs_extent *e = &c->extents[i];
		uint64_t skip = offset > e->at ? offset - e->at : 0;
		int64_t found;

		if (!e->df)
			found = whence == SEEK_DATA ? 0 : (int64_t)(e->length - skip);
		else
			found = seek_in_file(c, e->df, e->offset + skip, e->length - skip, whence);
		if (found < 0)
			return found;
		if ((uint64_t)found < e->length - skip)
			return (int64_t)(e->at + skip) + found;
	}
	return whence == SEEK_HOLE ? (int64_t)c->size : -ENXIO;
}

int64_t wfs_content_seek(struct wfs_content *c, uint64_t offset, int whence)
{
	if (offset > INT64_MAX)
		return -ENXIO;
	if (c->staging)
		return seek_staging(c, offset, whence);
	return offset >= c->size ? -ENXIO : seek_sealed(c, offset, whence);
}
