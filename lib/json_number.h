/*
 * json_number.h - one number of a JSON text.
 *
 * Which numbers there are, and which are out of range, is serde_json's rule
 * (without its feature float_roundtrip): a significand of 64 bits, rounded to a
 * double, times a power of ten; digits that do not fit the significand are
 * dropped. This differs from the correctly rounded value near the largest
 * double, and there it decides whether a header loads. Pure, any thread.
 */
#ifndef WFS_JSON_NUMBER_H
#define WFS_JSON_NUMBER_H

#include "lib/base.h"

enum wfs_json_failure {
	WFS_JSON_FINE,
	WFS_JSON_CUT, /* the text ended where more was needed */
	WFS_JSON_BAD, /* not JSON, whatever follows */
};

struct wfs_json_number {
	bool is_u64;    /* an integer from 0 to 2^64-1, written without sign, '.' and exponent */
	uint64_t value; /* if is_u64 */
};

/*
 * Read the number at text[*at], which is '-' or a digit; *at is then behind it,
 * or at the byte that is wrong. A number that touches the end of the text is
 * CUT, since digits may follow, unless it is out of range whatever they are.
 * ret->is_u64 is right even then: it is false once no continuation can make
 * an unsigned integer. *ret_why, static text, is set unless WFS_JSON_FINE.
 */
enum wfs_json_failure wfs_json_number_scan(const char *text, size_t len, size_t *at,
	struct wfs_json_number *ret, const char **ret_why);

#endif
