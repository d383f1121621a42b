#include "lib/tar.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define BLOCK 512u
#define LARGEST UINT64_C(077777777777) /* that a header has digits for */

/* The header of a member: offsets and sizes as POSIX says. */
struct header {
	char name[100], mode[8], uid[8], gid[8], size[12], mtime[12], sum[8], type, link[100];
	char magic[6], version[2], user[32], group[32], major[8], minor[8], prefix[155], rest[12];
};

int wfs_tar_bytes(struct wfs_tar *t, const void *bytes, size_t len)
{
	const char *p = bytes;

	while (len > 0) {
		ssize_t n = write(t->fd, p, len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		p += n;
		len -= (size_t)n;
		t->written += (uint64_t)n;
	}
	return 0;
}

int wfs_tar_end_file(struct wfs_tar *t)
{
	static const char zeros[BLOCK];

	return wfs_tar_bytes(t, zeros, (size_t)((BLOCK - t->written % BLOCK) % BLOCK));
}

static int put_header(struct wfs_tar *t, const char *name, char type, uint64_t size, int64_t mtime)
{
	struct header h = { .type = type, .magic = "ustar", .version = { '0', '0' } };
	const unsigned char *bytes = (const unsigned char *)&h;
	unsigned sum = 0;

	_Static_assert(sizeof(h) == BLOCK, "a header is one block");
	snprintf(h.name, sizeof(h.name), "%s", name);
	snprintf(h.mode, sizeof(h.mode), "%07o", type == '5' ? 0700u : 0600u);
	snprintf(h.uid, sizeof(h.uid), "%07o", 0u);
	snprintf(h.gid, sizeof(h.gid), "%07o", 0u);
	snprintf(h.size, sizeof(h.size), "%011llo", (unsigned long long)WFS_MIN(size, LARGEST));
	snprintf(h.mtime, sizeof(h.mtime), "%011llo",
		(unsigned long long)(mtime < 0 ? 0 : WFS_MIN((uint64_t)mtime, LARGEST)));
	memset(h.sum, ' ', sizeof(h.sum));
	for (size_t i = 0; i < sizeof(h); i++)
		sum += bytes[i];
	snprintf(h.sum, sizeof(h.sum), "%06o", sum);
	h.sum[7] = ' ';
	return wfs_tar_bytes(t, &h, sizeof(h));
}

int wfs_tar_directory(struct wfs_tar *t, const char *name)
{
	return put_header(t, name, '5', 0, 0);
}

/* ---- pax records ---- */

struct records {
	char text[512];
	size_t len;
};

/* "LENGTH KEY=VALUE\n", where LENGTH counts itself. */
static void add_record(struct records *r, const char *key, const char *value)
{
	size_t rest = strlen(key) + strlen(value) + 3, len = rest + 1;

	while (len != rest + (size_t)snprintf(NULL, 0, "%zu", len))
		len++;
	r->len += (size_t)snprintf(r->text + r->len, sizeof(r->text) - r->len, "%zu %s=%s\n", len, key, value);
}

static void add_number(struct records *r, const char *key, uint64_t n)
{
	char value[32];

	snprintf(value, sizeof(value), "%llu", (unsigned long long)n);
	add_record(r, key, value);
}

static int put_records(struct wfs_tar *t, const struct records *r, const char *name)
{
	char path[100];
	int ret;

	snprintf(path, sizeof(path), "PaxHeaders/%.80s", name);
	ret = put_header(t, path, 'x', r->len, 0);
	if (ret == 0)
		ret = wfs_tar_bytes(t, r->text, r->len);
	return ret ? ret : wfs_tar_end_file(t);
}

/* ---- the map of a sparse file ---- */

/* Its length, padded; written where `t` is not NULL. */
static int put_map(struct wfs_tar *t, uint64_t size, const struct wfs_tar_range *ranges, size_t n,
	uint64_t *ret_len)
{
	char line[64];
	uint64_t len = 0;
	int ret = 0;

	for (size_t i = 0; i <= n + 1 && ret == 0; i++) {
		int l;

		if (i == 0)
			l = snprintf(line, sizeof(line), "%zu\n", n + 1);
		else if (i <= n)
			l = snprintf(line, sizeof(line), "%llu\n%llu\n",
				(unsigned long long)ranges[i - 1].offset,
				(unsigned long long)ranges[i - 1].length);
		else
			l = snprintf(line, sizeof(line), "%llu\n0\n", (unsigned long long)size);
		len += (uint64_t)l;
		if (t)
			ret = wfs_tar_bytes(t, line, (size_t)l);
	}
	*ret_len = (len + BLOCK - 1) / BLOCK * BLOCK;
	return ret == 0 && t ? wfs_tar_end_file(t) : ret;
}

static void add_mtime(struct records *r, const struct timespec *mtime)
{
	char value[48];

	if (mtime->tv_sec < 0)
		return; /* before 1970 a fraction counts the other way */
	snprintf(value, sizeof(value), "%lld.%09ld", (long long)mtime->tv_sec, mtime->tv_nsec);
	add_record(r, "mtime", value);
}

int wfs_tar_begin_file(struct wfs_tar *t, const char *name, uint64_t size,
	const struct timespec *mtime, const struct wfs_tar_range *ranges, size_t n)
{
	bool is_sparse = n != 1 || ranges[0].offset != 0 || ranges[0].length != size;
	struct records r = { .len = 0 };
	uint64_t map = 0, stored = 0;
	int ret = 0;

	for (size_t i = 0; i < n; i++)
		stored += ranges[i].length;
	if (size == 0)
		is_sparse = false;
	if (is_sparse) {
		put_map(NULL, size, ranges, n, &map);
		add_number(&r, "GNU.sparse.major", 1);
		add_number(&r, "GNU.sparse.minor", 0);
		add_record(&r, "GNU.sparse.name", name);
		add_number(&r, "GNU.sparse.realsize", size);
	}
	if (map + stored > LARGEST)
		add_number(&r, "size", map + stored);
	add_mtime(&r, mtime);
	if (r.len)
		ret = put_records(t, &r, name);
	if (ret == 0)
		ret = put_header(t, name, '0', map + stored, mtime->tv_sec);
	return ret == 0 && is_sparse ? put_map(t, size, ranges, n, &map) : ret;
}

int wfs_tar_end(struct wfs_tar *t)
{
	static const char zeros[2 * BLOCK];

	return wfs_tar_bytes(t, zeros, sizeof(zeros));
}
