/* Which files have what is damaged, and what it is there: lib/damage.h. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "lib/array.h"
#include "lib/content.h"
#include "lib/damage.h"
#include "lib/format.h"
#include "lib/name.h"
#include "lib/npy.h"
#include "lib/store_priv.h"

#define TEXT_PLACES 4 /* of one file that a text names */

/* A row of a manifest with one of the objects. */
struct hit {
	uint64_t manifest, seq, object;
	uint64_t at, length; /* in the file */
	enum wfs_damage_reason reason;
};

struct hits {
	struct hit *list;
	size_t n, room;
};

static int compare_ids(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

static int add_hit(struct hits *hits, sqlite3_stmt *row)
{
	if (WFS_ARRAY_ROOM(hits->list, hits->n, hits->room))
		return -ENOMEM;
	hits->list[hits->n++] = (struct hit){
		.manifest = (uint64_t)sqlite3_column_int64(row, 0),
		.seq = (uint64_t)sqlite3_column_int64(row, 1),
		.object = (uint64_t)sqlite3_column_int64(row, 2),
	};
	return 0;
}

/* Rows come in order of manifest and place in it. `manifest` 0: of all. */
static int find_hits(struct wfs_store *s, const uint64_t *objects, size_t n, uint64_t manifest,
	struct hits *hits)
{
	sqlite3_stmt *row;
	int more = manifest ? wfs_db_first(&s->db, WFS_Q_DAMAGE_ROWS_OF, &row, "i", manifest)
			    : wfs_db_first(&s->db, WFS_Q_DAMAGE_ROWS, &row, "");

	for (; more > 0; more = wfs_db_next(&s->db, row)) {
		uint64_t object = (uint64_t)sqlite3_column_int64(row, 2);
		int err = 0;

		if (bsearch(&object, objects, n, sizeof(object), compare_ids))
			err = add_hit(hits, row);
		if (err) {
			wfs_db_done(row);
			return err;
		}
	}
	return more;
}

/* ---- one manifest ---- */

struct group {
	struct hit *hits; /* of one manifest, in order */
	size_t n;
	struct wfs_content *content;
	uint8_t *header;
	struct wfs_safetensors st; /* with header */
	bool is_array;             /* a header and an array behind it */
	size_t objects;            /* of the manifest */
	uint64_t *inos;
	size_t n_inos;
};

static void release_group(struct group *g)
{
	if (g->header)
		wfs_safetensors_release(&g->st);
	free(g->header);
	free(g->inos);
	wfs_content_unref(g->content);
}

/* Where the hits are in the file, and whether they have a mark. */
static int place_hits(struct wfs_store *s, struct group *g)
{
	uint64_t at = 0, seq = 0, reason;
	size_t i = 0;
	sqlite3_stmt *row;
	int more;

	for (more = wfs_db_first(&s->db, WFS_Q_MANIFEST_LOAD, &row, "i", g->hits->manifest);
		more > 0; more = wfs_db_next(&s->db, row), seq++) {
		uint64_t length = (uint64_t)sqlite3_column_int64(row, 1);

		if (i < g->n && g->hits[i].seq == seq) {
			g->hits[i].at = at;
			g->hits[i++].length = length;
		}
		at += length;
	}
	g->objects = seq;
	for (i = 0; i < g->n && more >= 0; i++) {
		more = wfs_db_number(&s->db, WFS_Q_DAMAGE_OF, &reason, "i", g->hits[i].object);
		if (more > 0)
			g->hits[i].reason = (enum wfs_damage_reason)reason;
	}
	return WFS_MIN(more, 0);
}

static int load_group(struct wfs_store *s, struct group *g)
{
	int ret = wfs_db_begin_read(&s->db);

	if (ret)
		return ret;
	ret = place_hits(s, g);
	if (ret == 0)
		ret = wfs_db_list(&s->db, WFS_Q_DAMAGE_INODES, &g->inos, &g->n_inos, "i",
			g->hits->manifest);
	/* A content that does not add up has no header that could be read. */
	if (ret == 0 && wfs_content_load(&s->db, &s->datafiles, g->hits->manifest, &g->content) < 0)
		g->content = NULL;
	return wfs_db_end(&s->db, ret);
}

static void read_header(struct group *g)
{
	char magic[sizeof(WFS_NPY_MAGIC)] = "";

	if (!g->content)
		return;
	if (wfs_content_header(g->content, &g->header, &g->st, NULL) != 0)
		g->header = NULL;
	if (g->header && g->st.verdict != WFS_SAFETENSORS_VALID) {
		wfs_safetensors_release(&g->st);
		free(g->header);
		g->header = NULL;
	}
	g->is_array = !g->header && g->objects <= 2 &&
		      wfs_content_read(g->content, magic, strlen(WFS_NPY_MAGIC), 0) > 0 &&
		      strcmp(magic, WFS_NPY_MAGIC) == 0;
}

static void describe_tensor(const struct group *g, struct wfs_damage_place *place)
{
	uint64_t data_at = WFS_SAFETENSORS_PREFIX + g->st.header_len, number = 0;

	place->part = place->at < data_at ? "header" : "part";
	for (size_t i = 0; i < g->st.n_tensors; i++) {
		const struct wfs_safetensors_tensor *t = &g->st.tensors[i];

		if (t->begin == t->end)
			continue;
		if (data_at + t->begin == place->at) {
			place->part = "tensor";
			place->tensor = t->name;
			place->tensor_len = t->name_len;
			place->number = number;
			return;
		}
		number++;
	}
}

static void describe(const struct group *g, const struct hit *hit, struct wfs_damage_place *place)
{
	*place = (struct wfs_damage_place){ .object = hit->object, .manifest = hit->manifest,
		.at = hit->at, .length = hit->length, .part = "part", .reason = hit->reason };
	if (g->objects == 1)
		place->part = "file";
	else if (g->header)
		describe_tensor(g, place);
	else if (hit->seq == 0)
		place->part = "header";
	else if (g->is_array)
		place->part = "array";
	else
		place->number = hit->seq - 1;
}

/* ---- names ---- */

struct name {
	uint64_t parent;
	char *text;
};

static int list_names(struct wfs_store *s, uint64_t ino, struct name **ret, size_t *ret_n)
{
	sqlite3_stmt *row;
	size_t room = 0;
	int more = wfs_db_begin_read(&s->db);

	if (more)
		return more;
	for (more = wfs_db_first(&s->db, WFS_Q_DAMAGE_NAMES, &row, "i", ino); more > 0;
		more = wfs_db_next(&s->db, row)) {
		const char *blob = sqlite3_column_blob(row, 1);
		char *text = strndup(blob ? blob : "", (size_t)sqlite3_column_bytes(row, 1));

		if (!text || WFS_ARRAY_ROOM(*ret, *ret_n, room)) {
			free(text);
			wfs_db_done(row);
			more = -ENOMEM;
			break;
		}
		(*ret)[(*ret_n)++] = (struct name){ (uint64_t)sqlite3_column_int64(row, 0), text };
	}
	return wfs_db_end(&s->db, more);
}

/* A file that was removed meanwhile has no names. */
static int each_name(struct wfs_store *s, struct wfs_damage_place *place, const struct group *g,
	int (*fn)(void *ctx, const struct wfs_damage_place *place), void *ctx)
{
	struct name *names = NULL;
	size_t n = 0;
	int ret = list_names(s, place->ino, &names, &n);

	for (size_t i = 0; i < n && ret == 0; i++) {
		WFS_AUTO_FREE char *dir = NULL;
		WFS_AUTO_FREE char *path = NULL;

		ret = wfs_name_path(s, names[i].parent, &dir);
		if (ret == -ENOENT) { /* removed since the names were listed */
			ret = 0;
			continue;
		}
		if (ret)
			break;
		path = wfs_format("%s%s%s", dir, strcmp(dir, "/") ? "/" : "", names[i].text);
		if (!path) {
			ret = -ENOMEM;
			break;
		}
		for (size_t k = 0; k < g->n && ret == 0; k++) {
			uint64_t ino = place->ino;

			describe(g, &g->hits[k], place);
			place->ino = ino;
			place->path = path;
			ret = fn(ctx, place);
		}
	}
	for (size_t i = 0; i < n; i++)
		free(names[i].text);
	free(names);
	return ret;
}

/* ---- the walk ---- */

static int find(struct wfs_store *s, const uint64_t *objects, size_t n, uint64_t manifest,
	struct hits *hits)
{
	int ret = wfs_db_begin_read(&s->db);

	return ret ? ret : wfs_db_end(&s->db, find_hits(s, objects, n, manifest, hits));
}

static int walk_group(struct wfs_store *s, struct hit *hits, size_t n,
	int (*fn)(void *ctx, const struct wfs_damage_place *place), void *ctx)
{
	struct group g = { .hits = hits, .n = n };
	int ret = load_group(s, &g);

	if (ret == 0)
		read_header(&g);
	for (size_t i = 0; i < g.n_inos && ret == 0; i++) {
		struct wfs_damage_place place = { .ino = g.inos[i] };

		ret = each_name(s, &place, &g, fn, ctx);
	}
	release_group(&g);
	return ret;
}

static int walk(struct wfs_store *s, const uint64_t *objects, size_t n, uint64_t manifest,
	int (*fn)(void *ctx, const struct wfs_damage_place *place), void *ctx)
{
	struct hits hits = { .list = NULL };
	int ret = n ? find(s, objects, n, manifest, &hits) : 0;

	for (size_t i = 0, next; i < hits.n && ret == 0; i = next) {
		for (next = i + 1; next < hits.n && hits.list[next].manifest == hits.list[i].manifest;
			next++)
			;
		ret = walk_group(s, &hits.list[i], next - i, fn, ctx);
	}
	free(hits.list);
	return ret;
}

int wfs_damage_each_place(struct wfs_store *s, const uint64_t *objects, size_t n,
	int (*fn)(void *ctx, const struct wfs_damage_place *place), void *ctx)
{
	return walk(s, objects, n, 0, fn, ctx);
}

/* ---- as text ---- */

struct line {
	char *text;
	uint64_t ino;
	size_t places;
	char *first_path;   /* of its first name: the others say the same */
	const char *reason; /* of the first place; static */
	int (*fn)(void *ctx, uint64_t ino, const char *reason, const char *text);
	void *ctx;
};

static int append(struct line *line, const char *fmt, ...) WFS_PRINTF(2, 3);

static int append(struct line *line, const char *fmt, ...)
{
	WFS_AUTO_FREE char *text = NULL;
	va_list args;
	char *both;

	va_start(args, fmt);
	text = wfs_vformat(fmt, args);
	va_end(args);
	both = text ? wfs_format("%s%s", line->text ? line->text : "", text) : NULL;
	if (!both)
		return -ENOMEM;
	free(line->text);
	line->text = both;
	return 0;
}

static int end_line(struct line *line)
{
	int ret = 0;

	if (line->places > TEXT_PLACES)
		ret = append(line, "; and %zu more", line->places - TEXT_PLACES);
	if (ret == 0 && line->places && line->fn)
		ret = line->fn(line->ctx, line->ino, line->reason, line->text);
	return ret;
}

static void clear_line(struct line *line)
{
	free(line->text);
	free(line->first_path);
	line->text = line->first_path = NULL;
	line->places = 0;
}

/* "tensor h.0.weight (number 3), 4096 bytes at 8392: they are not what was stored" */
static int add_place(struct line *line, const struct wfs_damage_place *place)
{
	unsigned long long length = place->length, at = place->at;
	const char *why = wfs_damage_reason_text(place->reason);
	const char *also = line->places ? "; " : "";

	if (line->places++ >= TEXT_PLACES)
		return 0;
	if (line->places == 1)
		line->reason = wfs_damage_reason_name(place->reason);
	if (place->tensor)
		return append(line, "%stensor %.*s (number %llu), %llu bytes at %llu: %s", also,
			(int)WFS_MIN(place->tensor_len, (size_t)200), place->tensor,
			(unsigned long long)place->number, length, at, why);
	return append(line, "%s%s, %llu bytes at %llu: %s", also, place->part, length, at, why);
}

static int take_place(void *ctx, const struct wfs_damage_place *place)
{
	struct line *line = ctx;
	int ret = 0;

	if (line->ino != place->ino || !line->first_path) {
		ret = end_line(line);
		clear_line(line);
		line->ino = place->ino;
		line->first_path = strdup(place->path);
		if (!line->first_path)
			return -ENOMEM;
	}
	if (ret || strcmp(line->first_path, place->path) != 0)
		return ret;
	return add_place(line, place);
}

/* ---- of one file, and of all ---- */

int wfs_damage_text(struct wfs_store *s, uint64_t ino, const char **ret_reason, char **ret)
{
	WFS_AUTO_FREE uint64_t *ids = NULL;
	struct line line = { .ino = ino };
	struct hits hits = { .list = NULL };
	struct wfs_damage_place place;
	struct group g;
	struct wfs_attr a;
	size_t n = 0;
	int err;

	if (!wfs_damage_is_any(s))
		return 0;
	err = wfs_name_getattr(s, ino, &a);
	if (err || !a.manifest)
		return err;
	err = wfs_damage_list(s, &ids, &n);
	if (!err)
		err = n ? find(s, ids, n, a.manifest, &hits) : 0;
	if (err || hits.n == 0) {
		free(hits.list);
		return err;
	}
	g = (struct group){ .hits = hits.list, .n = hits.n };
	err = load_group(s, &g);
	if (!err)
		read_header(&g);
	for (size_t i = 0; i < g.n && !err; i++) {
		describe(&g, &g.hits[i], &place);
		err = add_place(&line, &place);
	}
	if (!err)
		err = end_line(&line);
	release_group(&g);
	free(hits.list);
	if (err) {
		clear_line(&line);
		return err;
	}
	*ret_reason = line.reason;
	*ret = line.text;
	return 1;
}

int wfs_damage_each_file(struct wfs_store *s,
	int (*fn)(void *ctx, uint64_t ino, const char *reason, const char *text), void *ctx)
{
	struct line line = { .fn = fn, .ctx = ctx };
	WFS_AUTO_FREE uint64_t *ids = NULL;
	size_t n = 0;
	int ret;

	if (!wfs_damage_is_any(s))
		return 0;
	ret = wfs_damage_list(s, &ids, &n);
	if (ret == 0)
		ret = walk(s, ids, n, 0, take_place, &line);
	if (ret == 0)
		ret = end_line(&line);
	clear_line(&line);
	return ret;
}
