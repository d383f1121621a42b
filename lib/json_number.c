#include "lib/json_number.h"

#include <limits.h>
#include <math.h>

/* No significand of 64 bits times 10^288 is too large for a double. */
#define SAFE_POWER 288
#define MAX_POWER 308

static const double powers[MAX_POWER - SAFE_POWER] = {
	1e289, 1e290, 1e291, 1e292, 1e293, 1e294, 1e295, 1e296, 1e297, 1e298,
	1e299, 1e300, 1e301, 1e302, 1e303, 1e304, 1e305, 1e306, 1e307, 1e308,
};

/* The number read so far is significand * 10^exponent. */
struct scan {
	const char *text;
	size_t len;
	size_t at;
	uint64_t significand;
	int exponent; /* saturates; a header has no 2^31 digits */
	bool is_u64;
	bool has_exponent;
	bool exponent_negative;
	bool exponent_huge; /* what is written behind the 'e' does not fit an int */
	const char *why;
};

static enum wfs_json_failure cut(struct scan *s)
{
	s->why = "the text ends too early";
	return WFS_JSON_CUT;
}

static enum wfs_json_failure bad(struct scan *s, const char *why)
{
	s->why = why;
	return WFS_JSON_BAD;
}

static bool char_here(const struct scan *s, char a, char b)
{
	return s->at < s->len && (s->text[s->at] == a || s->text[s->at] == b);
}

/* The digit that is next, or -1. */
static int digit_here(const struct scan *s)
{
	if (s->at == s->len || s->text[s->at] < '0' || s->text[s->at] > '9')
		return -1;
	return s->text[s->at] - '0';
}

static enum wfs_json_failure need_digit(struct scan *s)
{
	if (s->at == s->len)
		return cut(s);
	return digit_here(s) < 0 ? bad(s, "not a number") : WFS_JSON_FINE;
}

/* False, and the significand as it was, if the digit does not fit any more. */
static bool push_digit(struct scan *s, int digit)
{
	uint64_t v;

	if (wfs_mul_overflows(s->significand, 10, &v) || wfs_add_overflows(v, (unsigned)digit, &v))
		return false;
	s->significand = v;
	return true;
}

static enum wfs_json_failure scan_integer(struct scan *s)
{
	enum wfs_json_failure failure = need_digit(s);
	int digit;

	if (failure)
		return failure;
	if (digit_here(s) == 0) {
		s->at++;
		return digit_here(s) < 0 ? WFS_JSON_FINE : bad(s, "a number begins with 0");
	}
	for (; (digit = digit_here(s)) >= 0; s->at++) {
		if (s->is_u64 && push_digit(s, digit))
			continue;
		s->is_u64 = false;
		s->exponent++;
	}
	return WFS_JSON_FINE;
}

/* At the dot. The first digit that does not fit ends the significand, even if
 * a later one would fit; digits of the integer part have no say in that. */
static enum wfs_json_failure scan_fraction(struct scan *s)
{
	enum wfs_json_failure failure;
	bool full = false;
	int digit;

	s->is_u64 = false;
	s->at++;
	failure = need_digit(s);
	if (failure)
		return failure;
	for (; (digit = digit_here(s)) >= 0; s->at++) {
		full = full || !push_digit(s, digit);
		if (!full)
			s->exponent--;
	}
	return WFS_JSON_FINE;
}

static void add_exponent(struct scan *s, int exponent)
{
	if (s->exponent_negative)
		exponent = -exponent;
	if (__builtin_add_overflow(s->exponent, exponent, &s->exponent))
		s->exponent = exponent < 0 ? INT_MIN : INT_MAX;
}

/* At the 'e'. */
static enum wfs_json_failure scan_exponent(struct scan *s)
{
	enum wfs_json_failure failure;
	int exponent = 0;
	int digit;

	s->is_u64 = false;
	s->at++;
	s->exponent_negative = char_here(s, '-', '-');
	if (char_here(s, '+', '-'))
		s->at++;
	failure = need_digit(s);
	if (failure)
		return failure;
	s->has_exponent = true;
	for (; (digit = digit_here(s)) >= 0; s->at++)
		s->exponent_huge = s->exponent_huge ||
			__builtin_mul_overflow(exponent, 10, &exponent) ||
			__builtin_add_overflow(exponent, digit, &exponent);
	if (!s->exponent_huge)
		add_exponent(s, exponent);
	return WFS_JSON_FINE;
}

static bool is_too_large(const struct scan *s)
{
	if (s->significand == 0)
		return false;
	if (s->exponent_huge)
		return !s->exponent_negative;
	if (s->exponent <= SAFE_POWER)
		return false;
	return s->exponent > MAX_POWER ||
		!isfinite((double)s->significand * powers[s->exponent - SAFE_POWER - 1]);
}

static enum wfs_json_failure scan_range(struct scan *s, size_t start)
{
	bool at_end = s->at == s->len;
	bool grows = s->has_exponent && !s->exponent_negative;

	if (is_too_large(s) && (!at_end || grows)) {
		s->at = start;
		return bad(s, "a number too large for a double");
	}
	return at_end ? cut(s) : WFS_JSON_FINE;
}

/* serde_json reads the integer part of a negative number like any other. */
static enum wfs_json_failure scan_number(struct scan *s, bool negative)
{
	size_t start = s->at;
	enum wfs_json_failure failure;

	s->at += negative;
	failure = scan_integer(s);
	if (negative)
		s->is_u64 = false;
	if (!failure && char_here(s, '.', '.'))
		failure = scan_fraction(s);
	if (!failure && char_here(s, 'e', 'E'))
		failure = scan_exponent(s);
	return failure ? failure : scan_range(s, start);
}

enum wfs_json_failure wfs_json_number_scan(const char *text, size_t len, size_t *at,
	struct wfs_json_number *ret, const char **ret_why)
{
	struct scan s = { .text = text, .len = len, .at = *at, .is_u64 = true };
	enum wfs_json_failure failure = scan_number(&s, text[*at] == '-');

	*ret = (struct wfs_json_number){ s.is_u64, s.significand };
	*at = s.at;
	if (failure)
		*ret_why = s.why;
	return failure;
}
