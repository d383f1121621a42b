/*
 * The parser of lib/json_text.h: what it accepts, where it says that a text is
 * cut, where it says that it is wrong; and lib/utf8.h below it.
 */
#include "lib/json_text.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "lib/utf8.h"

/* A value followed by its end, so that no number touches the end of the text. */
static enum wfs_json_failure skip_text(const char *text, size_t len, size_t *ret_at)
{
	struct wfs_json j;

	wfs_json_init(&j, text, len);
	if (wfs_json_skip(&j))
		wfs_json_end(&j);
	*ret_at = j.at;
	assert_true((j.failure == WFS_JSON_FINE) == (j.why == NULL));
	return j.failure;
}

static void check_value(const char *value, enum wfs_json_failure want)
{
	char *text;
	size_t at;
	int len = asprintf(&text, "[%s]", value);

	assert_true(len > 0);
	if (skip_text(text, (size_t)len, &at) != want)
		fail_msg("%s is not %d", text, want);
	free(text);
}

/* Every beginning of a right text is cut, not bad. */
static void check_beginnings(const char *text)
{
	size_t at;

	assert_int_equal(skip_text(text, strlen(text), &at), WFS_JSON_FINE);
	for (size_t len = 0; len < strlen(text); len++) {
		char *copy = malloc(len + !len);

		memcpy(copy, text, len);
		if (skip_text(copy, len, &at) != WFS_JSON_CUT || at != len)
			fail_msg("%zu bytes of %s are not cut", len, text);
		free(copy);
	}
}

static void values_are_accepted(void **state)
{
	static const char *const values[] = {
		"null", "true", "false", "0", "-0", "1", "-1", "18446744073709551615", "1.5",
		"1e5", "1E+5", "1e-5", "0.0e999999999999", "1e-999999999999", "\"\"",
		"\"\\u0000\\n\\\"\\\\\\/\"", "\"\\ud83d\\ude00\"", "\"\x7f\"", "[]", "{}",
		" [ 1 , 2 ] ", "{\"a\":{\"b\":[null]}}", "\t\r\n0\n",
	};

	(void)state;
	for (size_t i = 0; i < WFS_ARRAY_SIZE(values); i++)
		check_value(values[i], WFS_JSON_FINE);
}

static void other_texts_are_bad(void **state)
{
	static const char *const values[] = {
		"nul", "nulll", "True", "01", "-", "+1", ".5", "1.", "1.e1", "1e", "1e+", "0x1",
		"NaN", "'a'", "\"\n\"", "\"\\x\"", "\"\\u12\"", "\"\\u12g4\"", "\"\\ud800\"",
		"\"\\ud800\\n\"", "\"\\ud800\\ud800\"", "\"\\udc00\"", "1 2", "1,", ",1", "[1}",
		"{1:2}", "{\"a\"}", "{\"a\" 1}", "{\"a\":1,}", "{,}", "{\"a\":}", "/**/1", "\f1",
	};

	(void)state;
	for (size_t i = 0; i < WFS_ARRAY_SIZE(values); i++)
		check_value(values[i], WFS_JSON_BAD);
}

/* The largest double by the arithmetic of serde_json, not the exact one. */
static void numbers_end_at_the_largest_double(void **state)
{
	static const char *const inside[] = { "1e308", "1.7976931348623157e308", "0.1e309",
		"0.00000000000000000000001e331", "0e999", "123456789012345678901234567890e-10" };
	static const char *const outside[] = { "1e309", "-1e309", "1.8e308", "1.0e309",
		"1.7976931348623159e308", "17976931348623159e292", "18446744073709551616e289",
		"1e2147483648", "1e99999999999999999999" };

	(void)state;
	for (size_t i = 0; i < WFS_ARRAY_SIZE(inside); i++)
		check_value(inside[i], WFS_JSON_FINE);
	for (size_t i = 0; i < WFS_ARRAY_SIZE(outside); i++)
		check_value(outside[i], WFS_JSON_BAD);
}

static void long_integers_become_floats(void **state)
{
	char text[512];

	(void)state;
	memset(text, '0', sizeof(text));
	text[0] = '1';
	text[309] = '\0';
	check_value(text, WFS_JSON_FINE);
	text[309] = '0';
	text[310] = '\0';
	check_value(text, WFS_JSON_BAD);
	strcpy(text + 310, "e-9");
	check_value(text, WFS_JSON_FINE);
}

static void only_unsigned_integers_are_u64(void **state)
{
	static const char *const others[] = { "-0", "-1", "1.0", "1e0", "18446744073709551616" };
	struct wfs_json_number n;
	const char *why;
	size_t at = 0;

	(void)state;
	assert_int_equal(wfs_json_number_scan("18446744073709551615,", 21, &at, &n, &why), 0);
	assert_true(n.is_u64 && n.value == UINT64_MAX && at == 20);
	for (size_t i = 0; i < WFS_ARRAY_SIZE(others); i++) {
		at = 0;
		assert_int_equal(wfs_json_number_scan(others[i], strlen(others[i]), &at, &n, &why),
			WFS_JSON_CUT);
		assert_false(n.is_u64);
	}
}

static void a_cut_number_may_still_be_right(void **state)
{
	struct wfs_json_number n;
	const char *why;
	char text[400];
	size_t at = 0;

	(void)state;
	memset(text, '9', sizeof(text));
	assert_int_equal(wfs_json_number_scan(text, sizeof(text), &at, &n, &why), WFS_JSON_CUT);
	at = 0;
	assert_int_equal(wfs_json_number_scan("1e309", 5, &at, &n, &why), WFS_JSON_BAD);
	assert_int_equal(at, 0);
	at = 0;
	assert_int_equal(wfs_json_number_scan("1e-309", 6, &at, &n, &why), WFS_JSON_CUT);
}

static void beginnings_are_cut(void **state)
{
	(void)state;
	check_beginnings("{\"a\":[1,-2.5e+3,true,false,null],\"\\u00e9\\ud83d\\ude00\":\"\\n\xc3\xa9\"}");
	check_beginnings("[[],{},[{\"k\":0.0}],\"12345678\\\"\"]");
}

/* As deep as allowed in either kind, and one level more. */
static void depth_is_limited(void **state)
{
	char text[2 * (WFS_JSON_MAX_DEPTH + 1) + 1];
	size_t at;

	(void)state;
	memset(text, '[', WFS_JSON_MAX_DEPTH);
	memset(text + WFS_JSON_MAX_DEPTH, ']', WFS_JSON_MAX_DEPTH);
	assert_int_equal(skip_text(text, 2 * WFS_JSON_MAX_DEPTH, &at), WFS_JSON_FINE);
	memset(text, '[', WFS_JSON_MAX_DEPTH + 1);
	assert_int_equal(skip_text(text, WFS_JSON_MAX_DEPTH + 1, &at), WFS_JSON_BAD);
	assert_int_equal(at, WFS_JSON_MAX_DEPTH);
}

static void strings_are_unescaped(void **state)
{
	static const char text[] = "\"a\\u0000\\u00e9\\u4e2d\\ud83d\\ude00\\b\\f\\n\\r\\t\\/\\\\\\\"z\" ";
	static const char want[] = "a\0\xc3\xa9\xe4\xb8\xad\xf0\x9f\x98\x80\b\f\n\r\t/\\\"z";
	struct wfs_json_string s;
	enum wfs_json_kind kind;
	struct wfs_json j;
	char out[sizeof(text)];

	(void)state;
	wfs_json_init(&j, text, sizeof(text) - 1);
	assert_true(wfs_json_peek(&j, &kind) && kind == WFS_JSON_STRING);
	assert_true(wfs_json_string(&j, &s) && s.escaped);
	assert_int_equal(wfs_json_unescape(&s, out), sizeof(want) - 1);
	assert_memory_equal(out, want, sizeof(want) - 1);
	assert_true(wfs_json_end(&j));
}

static void words_are_recognised_behind_escapes(void **state)
{
	struct wfs_json_string plain = { "dtype", 5, false };
	struct wfs_json_string escaped = { "d\\u0074ype", 10, true };
	struct wfs_json_string long_one = { "\\u0064\\u0074\\u0079\\u0070\\u0065\\u0065", 36, true };

	(void)state;
	assert_true(wfs_json_string_is(&plain, "dtype"));
	assert_false(wfs_json_string_is(&plain, "dtyp"));
	assert_true(wfs_json_string_is(&escaped, "dtype"));
	assert_false(wfs_json_string_is(&escaped, "shape"));
	assert_false(wfs_json_string_is(&long_one, "dtype"));
}

static void control_characters_are_found_anywhere(void **state)
{
	char text[32];
	size_t at;

	(void)state;
	for (size_t i = 1; i < 24; i++) {
		memset(text, 'x', sizeof(text));
		text[0] = text[25] = '"';
		text[26] = ' ';
		assert_int_equal(skip_text(text, 27, &at), WFS_JSON_FINE);
		text[i] = 0x1f;
		assert_int_equal(skip_text(text, 27, &at), WFS_JSON_BAD);
		assert_int_equal(at, i);
	}
}

static void utf8_is_checked(void **state)
{
	static const struct {
		const char *text;
		enum wfs_utf8 want;
		size_t at;
	} cases[] = {
		{ "", WFS_UTF8_VALID, 0 },
		{ "plain text of more than eight bytes", WFS_UTF8_VALID, 35 },
		{ "\xc2\x80\xdf\xbf\xe0\xa0\x80\xed\x9f\xbf\xee\x80\x80\xf0\x90\x80\x80\xf4\x8f\xbf\xbf",
			WFS_UTF8_VALID, 21 },
		{ "12345678\x80", WFS_UTF8_INVALID, 8 },
		{ "\xc0\x80", WFS_UTF8_INVALID, 0 },
		{ "\xc1\xbf", WFS_UTF8_INVALID, 0 },
		{ "\xe0\x9f\xbf", WFS_UTF8_INVALID, 0 },
		{ "a\xed\xa0\x80", WFS_UTF8_INVALID, 1 },
		{ "\xf0\x8f\xbf\xbf", WFS_UTF8_INVALID, 0 },
		{ "\xf4\x90\x80\x80", WFS_UTF8_INVALID, 0 },
		{ "\xf5\x80\x80\x80", WFS_UTF8_INVALID, 0 },
		{ "\xe2\x82", WFS_UTF8_CUT, 0 },
		{ "\xe2\x82x", WFS_UTF8_INVALID, 0 },
		{ "ab\xf0\x9f\x98", WFS_UTF8_CUT, 2 },
		{ "\xed\xa0", WFS_UTF8_INVALID, 0 },
	};

	(void)state;
	for (size_t i = 0; i < WFS_ARRAY_SIZE(cases); i++) {
		size_t at;

		assert_int_equal(wfs_utf8_check(cases[i].text, strlen(cases[i].text), &at),
			cases[i].want);
		assert_int_equal(at, cases[i].at);
	}
	assert_int_equal(wfs_utf8_prefix("a\xe2\x82\xac", 4, 3), 1);
	assert_int_equal(wfs_utf8_prefix("a\xe2\x82\xac", 4, 4), 4);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(values_are_accepted),
		cmocka_unit_test(other_texts_are_bad),
		cmocka_unit_test(numbers_end_at_the_largest_double),
		cmocka_unit_test(long_integers_become_floats),
		cmocka_unit_test(only_unsigned_integers_are_u64),
		cmocka_unit_test(a_cut_number_may_still_be_right),
		cmocka_unit_test(beginnings_are_cut),
		cmocka_unit_test(depth_is_limited),
		cmocka_unit_test(strings_are_unescaped),
		cmocka_unit_test(words_are_recognised_behind_escapes),
		cmocka_unit_test(control_characters_are_found_anywhere),
		cmocka_unit_test(utf8_is_checked),
	};

	return cmocka_run_group_tests_name("json_text", tests, NULL, NULL);
}
