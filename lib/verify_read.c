#include "lib/verify_read.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#define ALIGN UINT64_C(4096)

int wfs_verify_reader_init(struct wfs_verify_reader *r, struct wfs_datafiles *table)
{
	*r = (struct wfs_verify_reader){ .table = table, .fd = -1 };
	r->buf = aligned_alloc(ALIGN, WFS_VERIFY_WINDOW);
	return r->buf ? 0 : -ENOMEM;
}

static void close_file(struct wfs_verify_reader *r)
{
	if (r->fd >= 0)
		close(r->fd);
	r->fd = -1;
	r->file = 0;
	r->len = 0;
}

void wfs_verify_reader_release(struct wfs_verify_reader *r)
{
	close_file(r);
	free(r->buf);
}

static void give_up(struct wfs_verify_reader *r, int err)
{
	close(r->fd);
	r->fd = err;
}

static void open_file(struct wfs_verify_reader *r, uint64_t file)
{
	char path[WFS_DATAFILE_PATH_SIZE];
	const char *in_data = path + strlen("data/");
	int flags = O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC;
	struct stat st;

	if (r->file == file)
		return;
	close_file(r);
	wfs_datafile_path(file, path);
	r->file = file;
	r->is_direct = true;
	r->fd = openat(r->table->data_fd, in_data, flags | O_DIRECT);
	if (r->fd < 0 && errno == EINVAL) {
		r->is_direct = false;
		r->fd = openat(r->table->data_fd, in_data, flags);
	}
	if (r->fd < 0)
		r->fd = -errno;
	else if (fstat(r->fd, &st) != 0)
		give_up(r, -errno);
	else if (!S_ISREG(st.st_mode))
		give_up(r, -ENOENT);
}

/* The disk may refuse O_DIRECT only when it is read. */
static bool leave_direct(struct wfs_verify_reader *r)
{
	int flags = fcntl(r->fd, F_GETFL);

	if (!r->is_direct || flags < 0 || fcntl(r->fd, F_SETFL, flags & ~O_DIRECT) != 0)
		return false;
	r->is_direct = false;
	return true;
}

/* Is a page of it in the page cache? Where one cannot tell: yes. */
static bool is_cached(int fd, uint64_t at, size_t len)
{
	unsigned char pages[WFS_VERIFY_WINDOW / ALIGN];
	bool cached = false;
	void *map = mmap(NULL, len, PROT_READ, MAP_SHARED, fd, (off_t)at);

	if (map == MAP_FAILED)
		return true;
	if (mincore(map, len, pages) != 0)
		cached = true;
	for (size_t i = 0; i < (len + ALIGN - 1) / ALIGN && !cached; i++)
		cached = pages[i] & 1;
	munmap(map, len);
	return cached;
}

static ssize_t read_window(struct wfs_verify_reader *r, uint64_t at, size_t len)
{
	bool drop = !r->is_direct && !is_cached(r->fd, at, len);
	size_t done = 0;
	ssize_t n = 0;

	while (done < len) {
		n = pread(r->fd, r->buf + done, len - done, (off_t)(at + done));
		if (n < 0 && errno == EINTR)
			continue;
		/* The end of a file is where a direct read stops being aligned. */
		if (n <= 0 || (r->is_direct && (size_t)n % ALIGN))
			break;
		done += (size_t)n;
	}
	if (n < 0)
		n = -errno;
	if (n > 0 && done < len)
		done += (size_t)n;
	if (drop)
		posix_fadvise(r->fd, (off_t)at, (off_t)len, POSIX_FADV_DONTNEED);
	return done > 0 ? (ssize_t)done : n;
}

/* Have the byte at `at` in the window: 1, 0 (the file ends before it), or -errno of the disk. */
static int fill(struct wfs_verify_reader *r, uint64_t at)
{
	uint64_t from = at / ALIGN * ALIGN;
	size_t want = WFS_VERIFY_WINDOW;

	if (at >= r->at && at < r->at + r->len)
		return 1;
	for (;;) {
		ssize_t n = read_window(r, from, want);

		r->at = from;
		r->len = n > 0 ? (uint64_t)n : 0;
		if (at < r->at + r->len)
			return 1;
		if (n >= 0)
			return 0;
		if (n == -EINVAL && leave_direct(r))
			continue;
		/* What is behind it is another's fault. */
		if (want == ALIGN)
			return (int)n;
		want = WFS_MAX(want / 8 / ALIGN * ALIGN, ALIGN);
	}
}

/* What the disk says of these bytes is damage; that it could not be asked is none. */
static int failure_of(int err)
{
	if (err == -ENOENT || err == -ELOOP)
		return WFS_DAMAGE_MISSING;
	return err == -EIO ? WFS_DAMAGE_ERROR : err;
}

void wfs_verify_reader_forget(struct wfs_verify_reader *r)
{
	close_file(r);
}

int wfs_verify_digest(struct wfs_verify_reader *r, uint64_t file, uint64_t offset, uint64_t length,
	unsigned bits, struct wfs_digest *ret)
{
	struct wfs_hasher h;
	uint64_t end;

	if (wfs_add_overflows(offset, length, &end) || end > INT64_MAX)
		return WFS_DAMAGE_MISSING;
	open_file(r, file);
	if (r->fd < 0)
		return failure_of(r->fd);
	wfs_hasher_init(&h, bits);
	while (offset < end) {
		uint64_t part;
		int found;

		found = fill(r, offset);
		if (found <= 0)
			return found < 0 ? failure_of(found) : WFS_DAMAGE_MISSING;
		part = WFS_MIN(end - offset, r->at + r->len - offset);
		found = r->before ? r->before(r->ctx, part) : 0;
		if (found)
			return found;
		wfs_hasher_update(&h, r->buf + (offset - r->at), part);
		offset += part;
	}
	*ret = wfs_hasher_final(&h);
	return WFS_DAMAGE_NONE;
}
