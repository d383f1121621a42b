/*
 * utf8.h - is this text UTF-8?
 *
 * UTF-8 as Rust and Python mean it: no surrogates, no overlong forms, nothing
 * above U+10FFFF; NUL is a character like any other. Pure, any thread.
 */
#ifndef WFS_UTF8_H
#define WFS_UTF8_H

#include "lib/base.h"

enum wfs_utf8 {
	WFS_UTF8_VALID,
	WFS_UTF8_CUT,     /* right so far; the last character lacks its end */
	WFS_UTF8_INVALID, /* whatever follows */
};

/* *ret_at (may be NULL): where the first character begins that is not valid,
 * or len. */
enum wfs_utf8 wfs_utf8_check(const char *text, size_t len, size_t *ret_at);

/* The largest n <= max, at most len, that does not split a character of a valid text. */
size_t wfs_utf8_prefix(const char *text, size_t len, size_t max);

#endif
