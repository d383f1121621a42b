/*
 * npy_to_safetensors.c - a NumPy array as a safetensors file with one tensor.
 *
 *   cc npy_to_safetensors.c $(pkg-config --cflags --libs weightfs) -o npy_to_safetensors
 *   ./npy_to_safetensors array.npy weight new.safetensors
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <weightfs/weightfs.h>

/* ---- what wfs_npy_to_c reads by and writes by ---- */

struct files {
	int from;
	FILE *to;
};

static ssize_t read_at(void *ctx, void *buf, size_t len, uint64_t offset)
{
	const struct files *files = ctx;
	ssize_t n = pread(files->from, buf, len, (off_t)offset);

	return n < 0 ? -errno : n;
}

static int append(void *ctx, const void *buf, size_t len)
{
	const struct files *files = ctx;

	return fwrite(buf, 1, len, files->to) == len ? 0 : -EIO;
}

/* ---- the conversion ---- */

static int read_npy(int fd, struct wfs_npy *ret, struct wfs_err *err)
{
	uint8_t head[WFS_NPY_PREFIX], *buf;
	ssize_t n = pread(fd, head, sizeof(head), 0);
	struct stat st;
	uint64_t need;
	int error;

	if (n < 0 || fstat(fd, &st) != 0)
		return -errno;
	need = wfs_npy_need(head, (size_t)n, (uint64_t)st.st_size);
	buf = malloc(need + 1);
	if (!buf)
		return -ENOMEM;
	if (pread(fd, buf, need, 0) != (ssize_t)need)
		error = -EIO;
	else
		error = wfs_npy_parse(buf, (uint64_t)st.st_size, ret, err);
	free(buf);
	return error;
}

static int convert(struct files *files, const char *name, struct wfs_err *err)
{
	struct wfs_safetensors_entry entry = {.name = name, .name_len = (uint32_t)strlen(name)};
	struct wfs_npy npy;
	uint64_t data_len;
	uint8_t *header;
	size_t len;
	int error = read_npy(files->from, &npy, err);

	if (error)
		return error;
	entry.dtype = (uint8_t)npy.dtype;
	entry.shape = npy.shape;
	entry.ndim = npy.ndim;
	error = wfs_safetensors_build(&entry, 1, NULL, 0, &header, &len, &data_len, err);
	if (error)
		return error;
	error = append(files, header, len);
	free(header);
	/* big-endian and Fortran order become what safetensors has */
	return error ? error : wfs_npy_to_c(&npy, read_at, append, files);
}

int main(int argc, char **argv)
{
	struct wfs_err err = WFS_ERR_INIT;
	struct files files;
	int error;

	if (argc != 4) {
		fputs("usage: npy_to_safetensors ARRAY NAME FILE\n", stderr);
		return 2;
	}
	files.from = open(argv[1], O_RDONLY);
	files.to = files.from < 0 ? NULL : fopen(argv[3], "wb");
	if (!files.to) {
		perror(files.from < 0 ? argv[1] : argv[3]);
		return 1;
	}
	error = convert(&files, argv[2], &err);
	if (fclose(files.to) != 0 && !error)
		error = -errno;
	close(files.from);
	if (error) {
		fprintf(stderr, "%s: %s\n", argv[1], err.reason ? err.text : strerror(-error));
		unlink(argv[3]);
	}
	return error ? 1 : 0;
}
