#include "lib/format.h"

#include <stdio.h>

char *wfs_vformat(const char *fmt, va_list ap)
{
	char *text;

	return vasprintf(&text, fmt, ap) < 0 ? NULL : text;
}

char *wfs_format(const char *fmt, ...)
{
	va_list ap;
	char *text;

	va_start(ap, fmt);
	text = wfs_vformat(fmt, ap);
	va_end(ap);
	return text;
}
