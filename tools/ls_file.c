#include "tools/ls_file.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "lib/digest.h"
#include "lib/dtype.h"
#include "lib/file.h"
#include "lib/safetensors.h"
#include "tools/ui.h"

/* Dimensions that a line of the table has room for. */
#define SHOWN_DIMS 8

/* What is known of one file. */
struct content {
	const struct target *target;
	const struct wfs_attr *attr;
	struct wfs_safetensors st; /* verdict other than VALID: no safetensors */
	uint8_t *header;
	const char *layout; /* how it is kept */
	size_t n_extents;
	bool sealed; /* pieces are known */
	struct wfs_piece *pieces;
	size_t n_pieces;
};

const char *ls_state(const struct wfs_attr *attr)
{
	return attr->data_file ? "dirty" : "sealed";
}

/* ---- gathering ---- */

static int read_header(struct wfs_store *store, struct content *c, struct wfs_err *err)
{
	struct wfs_file *f;
	int ret = wfs_file_get(store, c->attr->ino, &f);

	if (ret < 0)
		return ret;
	c->layout = wfs_file_layout(f, &c->n_extents);
	ret = wfs_file_header(f, &c->header, &c->st, err);
	wfs_file_unref(f);
	return ret;
}

static int gather(struct wfs_store *store, struct content *c, struct wfs_err *err)
{
	int ret = read_header(store, c, err);

	if (ret < 0) {
		c->st.verdict = WFS_SAFETENSORS_WRONG;
		return ret;
	}
	/* why it is no safetensors file is the gate's business, not ours */
	wfs_err_clear(err);
	ret = wfs_file_pieces(store, c->attr->ino, &c->pieces, &c->n_pieces);
	c->sealed = ret == 0;
	return ret == -EBUSY ? 0 : ret;
}

static void content_release(struct content *c)
{
	wfs_safetensors_release(&c->st);
	free(c->header);
	free(c->pieces);
}

/*
 * The piece that is exactly these bytes, or NULL. *at is where to look first and
 * moves on: offsets are asked for in ascending order.
 */
static const struct wfs_piece *find_piece(const struct content *c, size_t *at, uint64_t offset,
	uint64_t length)
{
	while (*at < c->n_pieces && c->pieces[*at].offset < offset)
		++*at;
	if (*at < c->n_pieces && c->pieces[*at].offset == offset && c->pieces[*at].length == length)
		return &c->pieces[*at];
	return NULL;
}

/* The digest of `length` bytes that are `piece`; NULL where there is none. */
static const char *digest_of(const struct content *c, const struct wfs_piece *piece,
	uint64_t length, char nothing[WFS_DIGEST_TEXT_SIZE])
{
	struct wfs_digest digest;

	if (piece)
		return piece->digest;
	if (!c->sealed || length > 0)
		return NULL;
	digest = wfs_digest_of(NULL, 0, 8 * WFS_DIGEST_SIZE);
	wfs_digest_text(&digest, nothing);
	return nothing;
}

static uint64_t data_start(const struct content *c)
{
	return WFS_SAFETENSORS_PREFIX + c->st.header_len;
}

/* ---- JSON ---- */

static void put_digest(json_t *o, const struct content *c, const struct wfs_piece *piece,
	uint64_t length)
{
	char nothing[WFS_DIGEST_TEXT_SIZE];

	ui_json_put(o, "digest", ui_json_text(digest_of(c, piece, length, nothing)));
	ui_json_put(o, "shared", piece ? ui_json_number(piece->refs) : json_null());
}

static json_t *shape_json(const struct content *c, const struct wfs_safetensors_tensor *t)
{
	WFS_AUTO_FREE uint64_t *dims = ui_alloc((size_t)t->ndim * sizeof(*dims));
	size_t n = wfs_safetensors_shape(&c->st, t, dims, t->ndim);
	json_t *shape = json_array();

	for (size_t i = 0; i < WFS_MIN(n, t->ndim); i++)
		ui_json_append(shape, ui_json_number(dims[i]));
	return shape;
}

static json_t *tensors_json(const struct content *c)
{
	json_t *tensors = json_array();
	size_t at = 0;

	for (size_t i = 0; i < c->st.n_tensors; i++) {
		const struct wfs_safetensors_tensor *t = &c->st.tensors[i];
		uint64_t bytes = t->end - t->begin, offset = data_start(c) + t->begin;
		json_t *o = json_object();

		ui_json_put(o, "name", ui_json_string(t->name, t->name_len));
		ui_json_put(o, "dtype", ui_json_text(wfs_dtype_name(t->dtype)));
		ui_json_put(o, "shape", shape_json(c, t));
		ui_json_put(o, "bytes", ui_json_number(bytes));
		ui_json_put(o, "offset", ui_json_number(offset));
		put_digest(o, c, find_piece(c, &at, offset, bytes), bytes);
		ui_json_append(tensors, o);
	}
	return tensors;
}

static json_t *header_json(const struct content *c)
{
	json_t *o = json_object();
	size_t at = 0;

	ui_json_put(o, "bytes", ui_json_number(data_start(c)));
	put_digest(o, c, find_piece(c, &at, 0, data_start(c)), data_start(c));
	return o;
}

static json_t *metadata_json(const struct content *c)
{
	json_t *list = json_object();

	for (size_t i = 0; i < c->st.n_meta; i++) {
		const struct wfs_safetensors_meta *m = &c->st.meta[i];

		/* jansson has no keys with a NUL in them: such a key ends there */
		WFS_AUTO_FREE char *key = ui_format("%.*s", (int)m->key_len, m->key);

		ui_json_put(list, key, ui_json_string(m->value, m->value_len));
	}
	return list;
}

static json_t *pieces_json(const struct content *c)
{
	json_t *pieces = json_array();

	for (size_t i = 0; i < c->n_pieces; i++) {
		json_t *o = json_object();

		ui_json_put(o, "offset", ui_json_number(c->pieces[i].offset));
		ui_json_put(o, "bytes", ui_json_number(c->pieces[i].length));
		put_digest(o, c, &c->pieces[i], c->pieces[i].length);
		ui_json_append(pieces, o);
	}
	return pieces;
}

static int print_json(const struct content *c)
{
	bool tensors = c->st.verdict == WFS_SAFETENSORS_VALID;
	json_t *root = json_object();

	ui_json_put(root, "store", ui_json_text(c->target->store));
	ui_json_put(root, "path", ui_json_text(c->target->path));
	ui_json_put(root, "type", ui_json_text("file"));
	ui_json_put(root, "size", ui_json_number(c->attr->size));
	ui_json_put(root, "state", ui_json_text(ls_state(c->attr)));
	ui_json_put(root, "layout", ui_json_text(c->layout));
	ui_json_put(root, "extents", ui_json_number(c->n_extents));
	ui_json_put(root, "verdict", ui_json_text(wfs_verdict_name(c->attr->verdict)));
	ui_json_put(root, "format", ui_json_text(tensors ? "safetensors" : "other"));
	if (tensors) {
		ui_json_put(root, "header", header_json(c));
		ui_json_put(root, "metadata", metadata_json(c));
		ui_json_put(root, "tensors", tensors_json(c));
	} else {
		ui_json_put(root, "pieces", pieces_json(c));
	}
	return ui_json_print(root);
}

/* ---- text ---- */

static char *shape_text(const struct content *c, const struct wfs_safetensors_tensor *t)
{
	uint64_t dims[SHOWN_DIMS];
	size_t n = wfs_safetensors_shape(&c->st, t, dims, SHOWN_DIMS);
	char text[SHOWN_DIMS * 24] = "";
	size_t at = 0;

	for (size_t i = 0; i < WFS_MIN(n, SHOWN_DIMS); i++)
		at += (size_t)snprintf(text + at, sizeof(text) - at, "%s%" PRIu64, i ? "," : "",
			dims[i]);
	if (n > SHOWN_DIMS)
		return ui_format("[%s,... %zu in all]", text, n);
	return ui_format("[%s]", text);
}

/* The last cells of a row: bytes, offset, digest and how often it is shared. */
static void add_place(struct ui_table *table, const struct content *c,
	const struct wfs_piece *piece, uint64_t offset, uint64_t length)
{
	char nothing[WFS_DIGEST_TEXT_SIZE];
	const char *digest = digest_of(c, piece, length, nothing);

	ui_table_add_number(table, length);
	ui_table_add_number(table, offset);
	ui_table_add(table, digest ? digest : "-");
	ui_table_take(table, piece ? ui_format("%" PRIu64, piece->refs) : ui_format("-"));
}

static void print_tensors(const struct content *c)
{
	static const char *const heads[] = { "TENSOR", "DTYPE", "SHAPE", "BYTES", "OFFSET",
		"DIGEST", "SHARED" };
	struct ui_table *table = ui_table_new(WFS_ARRAY_SIZE(heads), heads, "lllrrlr");
	size_t at = 0;

	ui_table_add(table, "(header)");
	ui_table_add(table, "-");
	ui_table_add(table, "-");
	add_place(table, c, find_piece(c, &at, 0, data_start(c)), 0, data_start(c));
	for (size_t i = 0; i < c->st.n_tensors; i++) {
		const struct wfs_safetensors_tensor *t = &c->st.tensors[i];
		uint64_t bytes = t->end - t->begin, offset = data_start(c) + t->begin;

		ui_table_take(table, ui_escape(t->name, t->name_len));
		ui_table_add(table, wfs_dtype_name(t->dtype));
		ui_table_take(table, shape_text(c, t));
		add_place(table, c, find_piece(c, &at, offset, bytes), offset, bytes);
	}
	ui_table_print(table, "");
}

static void print_pieces(const struct content *c)
{
	static const char *const heads[] = { "BYTES", "OFFSET", "DIGEST", "SHARED" };
	struct ui_table *table = ui_table_new(WFS_ARRAY_SIZE(heads), heads, "rrlr");

	for (size_t i = 0; i < c->n_pieces; i++)
		add_place(table, c, &c->pieces[i], c->pieces[i].offset, c->pieces[i].length);
	ui_table_print(table, "");
}

static int print_text(const struct content *c)
{
	WFS_AUTO_FREE char *path = ui_escape(c->target->path, strlen(c->target->path));
	WFS_AUTO_FREE char *size = ui_size(c->attr->size);
	bool tensors = c->st.verdict == WFS_SAFETENSORS_VALID;

	printf("%s: %s, %s", path, size, ls_state(c->attr));
	if (c->sealed && c->n_extents > 1)
		printf(" (%s of %zu extents)", c->layout, c->n_extents);
	else if (c->sealed && c->n_extents == 1)
		printf(" (%s)", c->layout);
	printf(", verdict %s", wfs_verdict_name(c->attr->verdict));
	if (tensors)
		printf(", safetensors with %zu tensor%s", c->st.n_tensors,
			c->st.n_tensors == 1 ? "" : "s");
	putchar('\n');
	if (tensors)
		print_tensors(c);
	else
		print_pieces(c);
	return ui_finish();
}

int ls_file(struct wfs_store *store, const struct target *target, const struct wfs_attr *attr,
	bool json)
{
	struct content c = { .target = target, .attr = attr };
	struct wfs_err err = WFS_ERR_INIT;
	int ret = gather(store, &c, &err);

	if (ret < 0)
		ret = ui_error_from(&err, ret, target->path);
	else
		ret = json ? print_json(&c) : print_text(&c);
	content_release(&c);
	return ret;
}
