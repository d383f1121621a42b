/*
 * write_file.c - a small safetensors file: its header built, its data behind it.
 *
 *   cc write_file.c $(pkg-config --cflags --libs weightfs) -o write_file
 *   ./write_file new.safetensors
 */
#include <stdio.h>
#include <string.h>

#include <weightfs/weightfs.h>

static const float weight[2][3] = {{1, 2, 3}, {4, 5, 6}};
static const int64_t step[1] = {1000};
static const uint8_t mask[4] = {1, 0, 0, 1};

static const struct tensor {
	const char *name;
	enum wfs_dtype dtype;
	uint64_t shape[2];
	uint32_t ndim;
	const void *bytes; /* little endian, as this machine has them */
	size_t len;
} tensors[] = {
	{"weight", WFS_DTYPE_F32, {2, 3}, 2, weight, sizeof(weight)},
	{"step", WFS_DTYPE_I64, {1}, 1, step, sizeof(step)},
	{"mask", WFS_DTYPE_BOOL, {4}, 1, mask, sizeof(mask)},
};

#define N_TENSORS WFS_ARRAY_SIZE(tensors)

static int write_header(FILE *f, struct wfs_safetensors_entry *entries)
{
	const struct wfs_safetensors_meta meta = {
		.key = "format", .key_len = 6, .value = "pt", .value_len = 2};
	struct wfs_err err = WFS_ERR_INIT;
	uint64_t data_len;
	uint8_t *header;
	size_t len;

	if (wfs_safetensors_build(entries, N_TENSORS, &meta, 1, &header, &len, &data_len, &err)) {
		fprintf(stderr, "no header: %s\n", err.text);
		return 1;
	}
	fwrite(header, 1, len, f);
	free(header);
	return 0;
}

/* The bytes of the tensor that an entry was made from. */
static void write_data(FILE *f, const struct wfs_safetensors_entry *entry)
{
	for (size_t i = 0; i < N_TENSORS; i++)
		if (tensors[i].name == entry->name)
			fwrite(tensors[i].bytes, 1, tensors[i].len, f);
}

static int write_file(FILE *f)
{
	struct wfs_safetensors_entry entries[N_TENSORS];

	for (size_t i = 0; i < N_TENSORS; i++)
		entries[i] = (struct wfs_safetensors_entry){.name = tensors[i].name,
			.name_len = (uint32_t)strlen(tensors[i].name),
			.ndim = tensors[i].ndim,
			.shape = tensors[i].shape,
			.dtype = (uint8_t)tensors[i].dtype};
	if (write_header(f, entries) != 0)
		return 1;
	/* entries are now in the order in which the data must follow */
	for (size_t i = 0; i < N_TENSORS; i++)
		write_data(f, &entries[i]);
	return 0;
}

int main(int argc, char **argv)
{
	FILE *f;
	int ret;

	if (argc != 2) {
		fputs("usage: write_file FILE\n", stderr);
		return 2;
	}
	f = fopen(argv[1], "wb");
	if (!f) {
		perror(argv[1]);
		return 1;
	}
	ret = write_file(f);
	if (ferror(f))
		ret = 1;
	if (fclose(f) != 0 || ret) {
		fprintf(stderr, "%s: it could not be written\n", argv[1]);
		ret = 1;
	}
	return ret;
}
