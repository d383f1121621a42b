/*
 * What lib/safetensors.h says of files, for tests that compare it with other
 * readers. File names on stdin, one per line; for each a line
 *
 *     VERDICT REASON OFFSET WARNINGS REBUILT<TAB>NAME
 *
 * VERDICT is valid, incomplete or wrong; REASON and OFFSET are '-' where there
 * is none; WARNINGS is the set as a number. REBUILT: a header built anew from
 * what was read is the "same" bytes, "differs", or is "refused"; '-' if the file
 * is not valid.
 */
#include "lib/safetensors.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

static _Noreturn void give_up(const char *what)
{
	perror(what);
	exit(1);
}

/* Only what the parser asks for, so that a sanitizer sees every byte read too far. */
static uint8_t *read_file(const char *name, uint64_t *ret_size)
{
	WFS_AUTO_CLOSE int fd = open(name, O_RDONLY | O_CLOEXEC);
	uint8_t head[WFS_SAFETENSORS_PREFIX];
	struct stat st;
	uint64_t need;
	uint8_t *buf;

	if (fd < 0 || fstat(fd, &st) != 0 || pread(fd, head, sizeof(head), 0) < 0)
		give_up(name);
	need = wfs_safetensors_need(head, (uint64_t)st.st_size);
	buf = malloc(need + !need);
	if (!buf || pread(fd, buf, need, 0) != (ssize_t)need)
		give_up(name);
	*ret_size = (uint64_t)st.st_size;
	return buf;
}

static uint64_t *read_shape(const struct wfs_safetensors *st,
	const struct wfs_safetensors_tensor *t)
{
	uint64_t *dims = calloc(t->ndim + 1, sizeof(*dims));

	if (!dims)
		give_up("calloc");
	wfs_safetensors_shape(st, t, dims, t->ndim);
	return dims;
}

static struct wfs_safetensors_entry *make_entries(const struct wfs_safetensors *st)
{
	struct wfs_safetensors_entry *entries = calloc(st->n_tensors + 1, sizeof(*entries));

	if (!entries)
		give_up("calloc");
	for (size_t i = 0; i < st->n_tensors; i++) {
		const struct wfs_safetensors_tensor *t = &st->tensors[i];

		entries[i] = (struct wfs_safetensors_entry){ .name = t->name,
			.name_len = t->name_len, .ndim = t->ndim,
			.shape = read_shape(st, t), .dtype = t->dtype };
	}
	return entries;
}

static const char *rebuild(const struct wfs_safetensors *st, const uint8_t *file)
{
	WFS_AUTO_FREE struct wfs_safetensors_entry *entries = make_entries(st);
	WFS_AUTO_FREE uint8_t *buf = NULL;
	const char *word = "refused";
	uint64_t data_len;
	size_t len;

	if (wfs_safetensors_build(entries, st->n_tensors, st->meta, st->n_meta, &buf, &len,
		    &data_len, NULL) == 0)
		word = len == WFS_SAFETENSORS_PREFIX + st->header_len && data_len == st->data_len &&
				memcmp(buf, file, len) == 0 ?
			"same" :
			"differs";
	for (size_t i = 0; i < st->n_tensors; i++)
		free((void *)entries[i].shape);
	return word;
}

static void judge(const char *name)
{
	static const char *const words[] = { "valid", "incomplete", "wrong" };
	struct wfs_err err = WFS_ERR_INIT;
	struct wfs_safetensors st;
	uint64_t size;
	WFS_AUTO_FREE uint8_t *buf = read_file(name, &size);
	bool valid;

	if (wfs_safetensors_parse(buf, size, &st, &err) != 0)
		give_up("parse");
	valid = st.verdict == WFS_SAFETENSORS_VALID;
	printf("%s %s ", words[st.verdict], err.reason ? err.reason : "-");
	if (err.offset == WFS_NO_OFFSET)
		printf("-");
	else
		printf("%llu", (unsigned long long)err.offset);
	printf(" %u %s\t%s\n", st.warnings, valid ? rebuild(&st, buf) : "-", name);
	wfs_safetensors_release(&st);
}

int main(void)
{
	WFS_AUTO_FREE char *line = NULL;
	size_t max = 0;
	ssize_t len;

	while ((len = getline(&line, &max, stdin)) > 0) {
		if (line[len - 1] == '\n')
			line[len - 1] = '\0';
		judge(line);
		fflush(stdout);
	}
	return 0;
}
