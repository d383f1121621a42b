/* format.h - text as printf makes it, in memory of its own. */
#ifndef WFS_FORMAT_H
#define WFS_FORMAT_H

#include <stdarg.h>

#include "lib/base.h"

/*
 * A new string, which the caller frees; NULL: there is no memory for it. (asprintf(3) leaves
 * its pointer undefined then, which nobody may free.)
 */
char *wfs_format(const char *fmt, ...) WFS_PRINTF(1, 2) WFS_WARN_UNUSED;
char *wfs_vformat(const char *fmt, va_list ap) WFS_PRINTF(1, 0) WFS_WARN_UNUSED;

#endif
