#include "lib/err.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "lib/format.h"

void wfs_err_clear(struct wfs_err *err)
{
	*err = (struct wfs_err)WFS_ERR_INIT;
}

/* One line must stay one line, whatever was in the name that it quotes. */
static void make_printable(char *text)
{
	for (char *p = text; *p; p++)
		if ((unsigned char)*p < 0x20 || *p == 0x7f)
			*p = '?';
}

/* What is too long, mostly for a path, loses its middle: the end says what is wrong. */
WFS_PRINTF(3, 0)
static void format(char *buf, size_t size, const char *fmt, va_list ap)
{
	static const char cut[] = " ... ";
	size_t head = size / 3, tail = size - head - sizeof(cut);
	WFS_AUTO_FREE char *all = wfs_vformat(fmt, ap);
	size_t len = all ? strlen(all) : 0;

	if (!all) {
		snprintf(buf, size, "no memory for a message");
	} else if (len < size) {
		memcpy(buf, all, len + 1);
	} else {
		snprintf(buf, size, "%.*s%s%s", (int)head, all, cut, all + len - tail);
	}
}

int (wfs_err_set)(struct wfs_err *err, int ret, const char *reason, uint64_t offset,
	const char *fmt, ...)
{
	va_list ap;

	if (!err || err->reason)
		return ret;
	err->reason = reason;
	err->offset = offset;
	va_start(ap, fmt);
	format(err->text, sizeof(err->text), fmt, ap);
	va_end(ap);
	make_printable(err->text);
	return ret;
}

int (wfs_err_errno)(struct wfs_err *err, int ret, const char *fmt, ...)
{
	char what[160];
	va_list ap;

	if (!err || err->reason)
		return ret;
	va_start(ap, fmt);
	format(what, sizeof(what), fmt, ap);
	va_end(ap);
	return wfs_err_set(err, ret, "io", WFS_NO_OFFSET, "%s: %s", what, strerror(-ret));
}
