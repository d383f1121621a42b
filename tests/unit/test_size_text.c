/* Sizes as text: lib/size_text.h. */
#include "lib/size_text.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

static void test_units(void **state)
{
	static const struct {
		const char *text;
		uint64_t bytes;
	} cases[] = {
		{ "0", 0 }, { "1", 1 }, { "17B", 17 }, { "5GB", UINT64_C(5000000000) },
		{ "5 GB", UINT64_C(5000000000) }, { "5gb", UINT64_C(5000000000) },
		{ "5GiB", UINT64_C(5368709120) }, { "5gib", UINT64_C(5368709120) }, { "10MB", 10000000 },
		{ "200KB", 200000 }, { "1KiB", 1024 }, { "2TB", UINT64_C(2000000000000) },
		{ "1PiB", UINT64_C(1) << 50 }, { "1.5KB", 1500 }, { "0.5KiB", 512 }, { ".5MB", 500000 },
		{ "2.GB", UINT64_C(2000000000) }, { "0.0001KB", 0 }, { "1.0000009MB", 1000000 },
		{ "9223372036854775807", INT64_MAX },
	};

	(void)state;
	for (size_t i = 0; i < WFS_ARRAY_SIZE(cases); i++) {
		uint64_t bytes = 99;

		if (!wfs_size_parse(cases[i].text, &bytes))
			fail_msg("%s is refused", cases[i].text);
		assert_int_equal(bytes, cases[i].bytes);
	}
}

static void test_refused(void **state)
{
	static const char *const cases[] = {
		"", "GB", ".", ".GB", "-1", "+1", "1 2", "5G", "5Gb/s", "5XB", "0x10", "1e9", "1,5GB",
		"5GBs", "9223372036854775808", "10000PB", "99999999999999999999", "5GB ",
	};

	(void)state;
	for (size_t i = 0; i < WFS_ARRAY_SIZE(cases); i++) {
		uint64_t bytes = 99;

		if (wfs_size_parse(cases[i], &bytes))
			fail_msg("'%s' is taken as %llu", cases[i], (unsigned long long)bytes);
		assert_int_equal(bytes, 99);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_units),
		cmocka_unit_test(test_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
