#include "tools/copy.h"

#include <errno.h>
#include <string.h>

#include "tools/ui.h"

#define BUFFER ((size_t)1 << 20)

int copy_write(int to, const void *buf, size_t len)
{
	const char *p = buf;

	while (len > 0) {
		ssize_t n = write(to, p, len);

		if (n < 0 && errno != EINTR)
			return -errno;
		if (n > 0) {
			p += n;
			len -= (size_t)n;
		}
	}
	return 0;
}

ssize_t copy_read(int from, void *buf, size_t len)
{
	size_t have = 0;

	while (have < len) {
		ssize_t n = read(from, (char *)buf + have, len - have);

		if (n == 0)
			break;
		if (n < 0 && errno != EINTR)
			return -errno;
		if (n > 0)
			have += (size_t)n;
	}
	return (ssize_t)have;
}

int copy_bytes(const struct copy *c)
{
	WFS_AUTO_FREE char *buf = ui_alloc(BUFFER);
	ssize_t n;
	int err;

	while ((n = copy_read(c->from, buf, BUFFER)) > 0) {
		err = copy_write(c->to, buf, (size_t)n);
		if (err)
			return ui_error(NULL, "%s: %s", c->to_name, strerror(-err));
	}
	return n < 0 ? ui_error(NULL, "%s: %s", c->from_name, strerror((int)-n)) : 0;
}
