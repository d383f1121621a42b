#include "lib/size_text.h"

#include <ctype.h>
#include <strings.h>

/* 18 digits: of the largest unit, all that make a byte. */
#define FRACTION UINT64_C(1000000000000000000)

static const struct {
	const char *name;
	uint64_t bytes;
} units[] = {
	{ "", 1 }, { "B", 1 },
	{ "KB", UINT64_C(1000) }, { "KiB", UINT64_C(1) << 10 },
	{ "MB", UINT64_C(1000000) }, { "MiB", UINT64_C(1) << 20 },
	{ "GB", UINT64_C(1000000000) }, { "GiB", UINT64_C(1) << 30 },
	{ "TB", UINT64_C(1000000000000) }, { "TiB", UINT64_C(1) << 40 },
	{ "PB", UINT64_C(1000000000000000) }, { "PiB", UINT64_C(1) << 50 },
};

static uint64_t unit_of(const char *name)
{
	for (size_t i = 0; i < WFS_ARRAY_SIZE(units); i++)
		if (!strcasecmp(name, units[i].name))
			return units[i].bytes;
	return 0;
}

/* The digits of a number before its unit; what stands behind the point as a fraction of FRACTION.
 * False: no digit, or too many. */
static bool read_number(const char **text, uint64_t *whole, uint64_t *fraction)
{
	const char *p = *text;
	bool any = false;

	*whole = *fraction = 0;
	for (; isdigit((unsigned char)*p); p++, any = true) {
		if (__builtin_mul_overflow(*whole, 10, whole) ||
			__builtin_add_overflow(*whole, (uint64_t)(*p - '0'), whole))
			return false;
	}
	if (*p == '.') {
		p++;
		for (uint64_t place = FRACTION / 10; isdigit((unsigned char)*p);
			p++, place /= 10, any = true)
			*fraction += (uint64_t)(*p - '0') * place;
	}
	*text = p;
	return any;
}

bool wfs_size_parse(const char *text, uint64_t *ret)
{
	uint64_t whole, fraction, unit, bytes;

	if (!read_number(&text, &whole, &fraction))
		return false;
	while (*text == ' ')
		text++;
	unit = unit_of(text);
	if (!unit || __builtin_mul_overflow(whole, unit, &bytes))
		return false;
	if (bytes > INT64_MAX)
		return false;
	bytes += (uint64_t)((unsigned __int128)fraction * unit / FRACTION);
	if (bytes > INT64_MAX)
		return false;
	*ret = bytes;
	return true;
}
