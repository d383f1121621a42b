/* JSON text and numbers: no beginning of what is JSON is called bad, and strings only shrink. */
#include <string.h>

#include "lib/json_text.h"
#include "lib/utf8.h"
#include "tests/fuzz/fuzz.h"

#define BEGINNINGS 32

static void read_string(struct wfs_json *j)
{
	struct wfs_json_string s;
	char *out;

	if (!wfs_json_string(j, &s))
		return;
	out = malloc(s.len ? s.len : 1);
	WFS_FUZZ_CHECK(out && wfs_json_unescape(&s, out) <= s.len);
	WFS_FUZZ_CHECK(s.escaped || memcmp(out, s.raw, s.len) == 0);
	wfs_json_string_is(&s, "data_offsets");
	free(out);
}

/* One value that is no container. */
static void read_plain(struct wfs_json *j, enum wfs_json_kind kind)
{
	struct wfs_json_number number;

	if (kind == WFS_JSON_STRING)
		read_string(j);
	else if (kind == WFS_JSON_NUMBER)
		wfs_json_number(j, &number);
	else
		wfs_json_skip(j);
}

/* Everything by the functions that a header is read by, without wfs_json_skip where it can be done. */
static enum wfs_json_failure read_slowly(const char *text, size_t len)
{
	struct wfs_json j;
	struct wfs_json_string key;
	enum wfs_json_kind kind, open[WFS_JSON_MAX_DEPTH];
	bool more = true;

	wfs_json_init(&j, text, len);
	for (;;) {
		if (!wfs_json_peek(&j, &kind))
			return j.failure;
		if (kind < WFS_JSON_ARRAY)
			read_plain(&j, kind);
		else if (wfs_json_enter(&j))
			open[j.depth - 1] = kind;
		while (!j.failure && j.depth > 0 && wfs_json_more(&j, &more) && !more)
			;
		if (j.failure)
			return j.failure;
		if (j.depth == 0)
			break;
		if (open[j.depth - 1] == WFS_JSON_OBJECT && !wfs_json_key(&j, &key))
			return j.failure;
	}
	wfs_json_end(&j);
	return j.failure;
}

static enum wfs_json_failure read_fast(const char *text, size_t len)
{
	struct wfs_json j;

	wfs_json_init(&j, text, len);
	if (wfs_json_skip(&j))
		wfs_json_end(&j);
	WFS_FUZZ_CHECK(j.at <= len && (j.failure == WFS_JSON_FINE) == !j.why);
	return j.failure;
}

/* Up to a whole character. */
static size_t valid_len(const uint8_t *data, size_t size)
{
	size_t at = 0;

	return wfs_utf8_check((const char *)data, size, &at) == WFS_UTF8_INVALID ? at : size;
}

void wfs_fuzz_json(const uint8_t *data, size_t size)
{
	size_t len = valid_len(data, size);
	char *text = malloc(len ? len : 1);
	enum wfs_json_failure all;

	WFS_FUZZ_CHECK(text);
	if (len)
		memcpy(text, data, len);
	all = read_fast(text, len);
	WFS_FUZZ_CHECK(read_slowly(text, len) == all);
	for (size_t i = 0; i < BEGINNINGS && all != WFS_JSON_BAD; i++) {
		size_t part = len * i / BEGINNINGS;

		WFS_FUZZ_CHECK(read_fast(text, part) != WFS_JSON_BAD);
	}
	free(text);
}
