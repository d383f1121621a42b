/*
 * plan_shards.c - how the safetensors files of a directory would be cut into shards of
 * another size, and the index of these shards, as transformers would write them.
 *
 *   cc plan_shards.c $(pkg-config --cflags --libs weightfs) -o plan_shards
 *   ./plan_shards path/to/model 5GB
 *
 * The tensors are taken in the order of the files' names and of their bytes. Prints a line for
 * each tensor (shard, name, bytes), and the index behind an empty line where there are
 * several shards.
 */
#include <errno.h>
#include <glob.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include <weightfs/weightfs.h>

struct model {
	char **names;
	uint64_t *sizes;
	size_t n;
	uint64_t parameters, bytes;
};

/* ---- reading ---- */

/* The first `need` bytes of a file, and its size. */
static uint8_t *read_header(const char *path, uint64_t *ret_file_size)
{
	FILE *f = fopen(path, "rb");
	uint8_t head[WFS_SAFETENSORS_PREFIX] = {0}, *buf = NULL;
	uint64_t need;

	if (!f)
		return NULL;
	if (fread(head, 1, sizeof(head), f) == sizeof(head) && fseek(f, 0, SEEK_END) == 0) {
		*ret_file_size = (uint64_t)ftell(f);
		need = wfs_safetensors_need(head, *ret_file_size);
		rewind(f);
		buf = malloc(need);
		if (buf && fread(buf, 1, need, f) != need) {
			free(buf);
			buf = NULL;
		}
	}
	fclose(f);
	return buf;
}

/* False: more than there are bytes in the world. */
static bool count(struct model *m, const struct wfs_safetensors_tensor *t)
{
	uint64_t bits;

	return !wfs_mul_overflows(t->end - t->begin, 8, &bits) &&
	       !wfs_add_overflows(m->bytes, t->end - t->begin, &m->bytes) &&
	       !wfs_add_overflows(m->parameters, bits / wfs_dtype_bits(t->dtype), &m->parameters);
}

static int add_tensors(struct model *m, const struct wfs_safetensors *st)
{
	size_t n = m->n + st->n_tensors;
	char **names = realloc(m->names, (n + 1) * sizeof(*names));
	uint64_t *sizes = names ? realloc(m->sizes, (n + 1) * sizeof(*sizes)) : NULL;

	m->names = names ? names : m->names;
	m->sizes = sizes ? sizes : m->sizes;
	for (size_t i = 0; sizes && i < st->n_tensors; i++) {
		const struct wfs_safetensors_tensor *t = &st->tensors[i];

		if (!count(m, t))
			return -EOVERFLOW;
		names[m->n] = strndup(t->name, t->name_len);
		if (!names[m->n])
			return -ENOMEM;
		sizes[m->n++] = t->end - t->begin;
	}
	return sizes ? 0 : -ENOMEM;
}

static int read_file(struct model *m, const char *path, struct wfs_err *err)
{
	struct wfs_safetensors st;
	uint64_t size;
	uint8_t *header = read_header(path, &size);
	int error = header ? wfs_safetensors_parse(header, size, &st, err) : -EIO;

	if (!error) {
		error = st.verdict == WFS_SAFETENSORS_VALID ? add_tensors(m, &st) : -EBADMSG;
		wfs_safetensors_release(&st);
	}
	free(header);
	if (error)
		fprintf(stderr, "%s: %s\n", path, err->reason ? err->text : strerror(-error));
	return error;
}

static int read_model(struct model *m, const char *dir, struct wfs_err *err)
{
	char pattern[4096];
	glob_t files;
	int error = 0;

	snprintf(pattern, sizeof(pattern), "%s/*.safetensors", dir);
	if (glob(pattern, 0, NULL, &files) != 0) {
		fprintf(stderr, "%s: no safetensors files\n", dir);
		return -ENOENT;
	}
	for (size_t i = 0; i < files.gl_pathc && !error; i++)
		error = read_file(m, files.gl_pathv[i], err);
	globfree(&files);
	return error;
}

/* ---- planning ---- */

static int print_index(
	const struct model *m, const struct wfs_index_entry *entries, struct wfs_err *err)
{
	json_t *metadata;
	char *text;
	size_t len;
	int error = wfs_shard_index_totals(NULL, m->parameters, m->bytes, &metadata);

	if (error)
		return error;
	error = wfs_shard_index_build(entries, m->n, metadata, &text, &len, err);
	json_decref(metadata);
	if (error)
		return error;
	putchar('\n');
	fwrite(text, 1, len, stdout);
	free(text);
	return 0;
}

/* entries[i] of tensor i; names has room for the name of each shard. */
static int name_shards(const struct model *m, const uint32_t *shard, uint32_t n_shards,
	char (*names)[WFS_SHARD_NAME_SIZE], struct wfs_index_entry *entries)
{
	int error = 0;

	for (uint32_t i = 0; i < n_shards && !error; i++)
		error = wfs_shard_name(names[i], sizeof(names[i]), "model", NULL,
			n_shards > 1 ? i + 1 : 0, n_shards > 1 ? n_shards : 0);
	for (size_t i = 0; i < m->n && !error; i++) {
		entries[i] =
			(struct wfs_index_entry){m->names[i], strlen(m->names[i]), names[shard[i]]};
		printf("%s\t%s\t%" PRIu64 "\n", entries[i].shard, m->names[i], m->sizes[i]);
	}
	return error;
}

static int plan(const struct model *m, uint64_t max, struct wfs_err *err)
{
	uint32_t *shard = calloc(m->n + 1, sizeof(*shard)), n_shards = 0;
	struct wfs_index_entry *entries = calloc(m->n + 1, sizeof(*entries));
	char(*names)[WFS_SHARD_NAME_SIZE] = NULL;
	int error = shard && entries ? wfs_shard_plan(m->sizes, NULL, m->n, max, shard, &n_shards)
				     : -ENOMEM;

	if (!error) {
		names = calloc(n_shards + 1, sizeof(*names));
		error = names ? name_shards(m, shard, n_shards, names, entries) : -ENOMEM;
	}
	if (!error && n_shards > 1)
		error = print_index(m, entries, err);
	free(shard);
	free(entries);
	free(names);
	return error;
}

int main(int argc, char **argv)
{
	struct wfs_err err = WFS_ERR_INIT;
	struct model m = {.n = 0};
	uint64_t max;
	int error;

	if (argc != 3 || !wfs_size_parse(argv[2], &max)) {
		fputs("usage: plan_shards DIRECTORY SIZE\n", stderr);
		return 2;
	}
	error = read_model(&m, argv[1], &err);
	if (!error) {
		error = plan(&m, max, &err);
		if (error)
			fprintf(stderr, "%s\n", err.reason ? err.text : strerror(-error));
	}
	for (size_t i = 0; i < m.n; i++)
		free(m.names[i]);
	free(m.names);
	free(m.sizes);
	return error ? 1 : 0;
}
