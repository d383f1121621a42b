/*
 * list_tensors.c - the tensors of a safetensors file: name, dtype, shape, bytes.
 *
 *   cc list_tensors.c $(pkg-config --cflags --libs weightfs) -o list_tensors
 *   ./list_tensors model.safetensors
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include <weightfs/weightfs.h>

#define MAX_DIMS 16 /* that are shown */

static void print_tensor(const struct wfs_safetensors *st, const struct wfs_safetensors_tensor *t)
{
	uint64_t shape[MAX_DIMS];
	size_t ndim = wfs_safetensors_shape(st, t, shape, MAX_DIMS);

	/* a name has no NUL behind it, and may hold any character */
	fwrite(t->name, 1, t->name_len, stdout);
	printf("\t%s\t[", wfs_dtype_name(t->dtype));
	for (size_t i = 0; i < ndim && i < MAX_DIMS; i++)
		printf("%s%" PRIu64, i ? ", " : "", shape[i]);
	printf("%s]\t%" PRIu64 "\n", ndim > MAX_DIMS ? ", ..." : "", t->end - t->begin);
}

/* The header alone is read, however large the file is. NULL: errno says why. */
static uint8_t *read_header(FILE *f, uint64_t *ret_file_size)
{
	uint8_t head[WFS_SAFETENSORS_PREFIX] = {0}, *buf;
	uint64_t need;

	if (fseek(f, 0, SEEK_END) != 0)
		return NULL;
	*ret_file_size = (uint64_t)ftell(f);
	rewind(f);
	fread(head, 1, sizeof(head), f);
	rewind(f);
	need = wfs_safetensors_need(head, *ret_file_size);
	buf = malloc(need + 1);
	if (buf && fread(buf, 1, need, f) == need)
		return buf;
	free(buf);
	return NULL;
}

static int list(const char *path, FILE *f)
{
	struct wfs_err err = WFS_ERR_INIT;
	struct wfs_safetensors st;
	uint64_t file_size;
	uint8_t *header = read_header(f, &file_size);
	int error = header ? wfs_safetensors_parse(header, file_size, &st, &err) : -errno;

	if (error) {
		fprintf(stderr, "%s: %s\n", path, strerror(-error));
		free(header);
		return 1;
	}
	if (st.verdict != WFS_SAFETENSORS_VALID)
		fprintf(stderr, "%s: %s: %s\n", path, err.reason, err.text);
	for (size_t i = 0; i < st.n_tensors; i++) /* none where it is not valid */
		print_tensor(&st, &st.tensors[i]);
	error = st.verdict != WFS_SAFETENSORS_VALID;
	wfs_safetensors_release(&st);
	free(header); /* st pointed into it */
	return error;
}

int main(int argc, char **argv)
{
	FILE *f;
	int ret;

	if (argc != 2) {
		fputs("usage: list_tensors FILE\n", stderr);
		return 2;
	}
	f = fopen(argv[1], "rb");
	if (!f) {
		perror(argv[1]);
		return 1;
	}
	ret = list(argv[1], f);
	fclose(f);
	return ret;
}
