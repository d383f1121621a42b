/*
 * What lib/npy.h says and makes of files, for tests that compare it with NumPy.
 * File names on stdin, one per line; for each a line
 *
 *     VERDICT OFFSET DTYPE ORDER BYTES DATA_AT DATA_LEN SHAPE<TAB>NAME
 *
 * VERDICT is valid or the reason, OFFSET that of the reason. DTYPE is its name,
 * ORDER C or F, BYTES little or big, SHAPE as 2,3. What there is not is '-'. Of a
 * valid file NAME.out is made: the same array in little endian and C order, with
 * the header that lib/npy.h builds.
 *
 * npy_cli TILE STAGE GAP: convert within these sizes (struct wfs_npy_room).
 */
#include "lib/npy.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "lib/npy_priv.h"

struct files {
	int from;
	int to;
};

static _Noreturn void give_up(const char *what)
{
	perror(what);
	exit(1);
}

static ssize_t read_at(void *ctx, void *buf, size_t len, uint64_t offset)
{
	const struct files *files = ctx;
	ssize_t n = pread(files->from, buf, len, (off_t)offset);

	return n < 0 ? -errno : n;
}

static int append(void *ctx, const void *buf, size_t len)
{
	const struct files *files = ctx;

	for (const char *p = buf; len;) {
		ssize_t n = write(files->to, p, len);

		if (n < 0)
			return -errno;
		p += n;
		len -= (size_t)n;
	}
	return 0;
}

/* Only what the parser asks for, so that a sanitizer sees every byte read too far. */
static uint8_t *read_header(int fd, uint64_t file_size)
{
	uint8_t head[WFS_NPY_PREFIX];
	uint64_t need;
	ssize_t n = pread(fd, head, sizeof(head), 0);
	uint8_t *buf;

	if (n < 0)
		give_up("read");
	need = wfs_npy_need(head, (size_t)n, file_size);
	buf = malloc(need + !need);
	if (!buf || pread(fd, buf, need, 0) != (ssize_t)need)
		give_up("read");
	return buf;
}

static void convert(
	const struct wfs_npy *npy, const struct wfs_npy_room *room, int fd, const char *name)
{
	WFS_AUTO_FREE uint8_t *header = NULL;
	WFS_AUTO_FREE char *out = NULL;
	struct files files = {.from = fd};
	size_t len;
	int e;

	if (asprintf(&out, "%s.out", name) < 0)
		give_up("asprintf");
	files.to = open(out, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
	if (files.to < 0 || wfs_npy_build(npy->dtype, npy->shape, npy->ndim, &header, &len) != 0)
		give_up(out);
	e = append(&files, header, len);
	if (!e)
		e = room ? wfs_npy_to_c_within(npy, room, read_at, append, &files)
			 : wfs_npy_to_c(npy, read_at, append, &files);
	if (e || close(files.to) != 0)
		give_up(out);
}

static void show(const struct wfs_npy *npy)
{
	printf("valid - %s %s %s %llu %llu ", wfs_dtype_name(npy->dtype),
		npy->fortran_order ? "F" : "C", npy->big_endian ? "big" : "little",
		(unsigned long long)npy->data_at, (unsigned long long)npy->data_len);
	for (uint32_t i = 0; i < npy->ndim; i++)
		printf("%s%llu", i ? "," : "", (unsigned long long)npy->shape[i]);
	printf("%s", npy->ndim ? "" : "-");
}

static void judge(const char *name, const struct wfs_npy_room *room)
{
	WFS_AUTO_CLOSE int fd = open(name, O_RDONLY | O_CLOEXEC);
	struct wfs_err err = WFS_ERR_INIT;
	struct wfs_npy npy;
	struct stat st;
	WFS_AUTO_FREE uint8_t *buf = NULL;

	if (fd < 0 || fstat(fd, &st) != 0)
		give_up(name);
	buf = read_header(fd, (uint64_t)st.st_size);
	if (wfs_npy_parse(buf, (uint64_t)st.st_size, &npy, &err) == 0) {
		convert(&npy, room, fd, name);
		show(&npy);
	} else {
		printf("%s %llu - - - - - -", err.reason, (unsigned long long)err.offset);
	}
	printf("\t%s\n", name);
}

int main(int argc, char **argv)
{
	WFS_AUTO_FREE char *line = NULL;
	struct wfs_npy_room room;
	size_t max = 0;
	ssize_t len;

	if (argc == 4)
		room = (struct wfs_npy_room){strtoul(argv[1], NULL, 10), strtoul(argv[2], NULL, 10),
			strtoul(argv[3], NULL, 10)};
	else if (argc != 1)
		return 2;
	while ((len = getline(&line, &max, stdin)) > 0) {
		if (line[len - 1] == '\n')
			line[len - 1] = '\0';
		judge(line, argc == 4 ? &room : NULL);
		fflush(stdout);
	}
	return 0;
}
