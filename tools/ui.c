#include "tools/ui.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "lib/array.h"
#include "lib/format.h"

static void out_of_memory(void)
{
	fputs("weightfs: out of memory\n", stderr);
	exit(1);
}

void *ui_alloc(size_t size)
{
	void *p = calloc(1, size ? size : 1);

	if (!p)
		out_of_memory();
	return p;
}

void ui_array_room(void *ret_list, size_t size, size_t n, size_t *room)
{
	if (wfs_array_room(ret_list, size, n, 1, room))
		out_of_memory();
}

WFS_PRINTF(1, 0)
static char *format_list(const char *fmt, va_list args)
{
	char *text = wfs_vformat(fmt, args);

	if (!text)
		out_of_memory();
	return text;
}

char *ui_format(const char *fmt, ...)
{
	va_list args;
	char *text;

	va_start(args, fmt);
	text = format_list(fmt, args);
	va_end(args);
	return text;
}

/* ---- errors ---- */

int ui_error(const char *hint, const char *fmt, ...)
{
	WFS_AUTO_FREE char *raw = NULL;
	WFS_AUTO_FREE char *text = NULL;
	va_list args;

	va_start(args, fmt);
	raw = format_list(fmt, args);
	va_end(args);
	text = ui_escape(raw, strlen(raw));
	fflush(stdout);
	fprintf(stderr, "weightfs: %s\n", text);
	if (hint)
		fprintf(stderr, "  %s\n", hint);
	return 1;
}

/* ---- progress ---- */

#define PROGRESS_NAME 50 /* bytes of the name that are shown: its end tells files apart */

void ui_progress(const char *what, uint64_t done, uint64_t total)
{
	WFS_AUTO_FREE char *size = NULL;
	size_t len = strlen(what);

	if (!isatty(STDERR_FILENO))
		return;
	size = ui_size(total);
	fprintf(stderr, "\r\033[K%s%s  %3u %% of %s", len > PROGRESS_NAME ? "..." : "",
		what + (len > PROGRESS_NAME ? len - PROGRESS_NAME : 0),
		total ? (unsigned)((double)done * 100 / (double)total) : 0, size);
	fflush(stderr);
}

void ui_progress_end(void)
{
	if (isatty(STDERR_FILENO))
		fputs("\r\033[K", stderr);
}

/* What a person can do about an error of the library, by its reason. */
static const char *hint_for(const char *reason)
{
	static const struct {
		const char *reason, *hint;
	} hints[] = {
		{ "store-missing", "`weightfs mount STORE DIR` makes a store" },
		{ "not-a-store", "a store is a directory that holds weightfs.db; to make one, "
				 "mount an empty or missing directory" },
		{ "store-locked", "unmount it first: weightfs umount DIR" },
		{ "store-version", "use the version of weightfs that wrote it, or a newer one" },
		{ "backup-unfinished", "weightfs backup --finish DIR completes it" },
		{ "not-a-backup", "name a new or an empty directory, or remove this one" },
		{ "other-store", "name another directory" },
		{ "store-damaged", "weightfs fsck STORE says what is wrong" },
	};

	for (size_t i = 0; reason && i < WFS_ARRAY_SIZE(hints); i++)
		if (!strcmp(reason, hints[i].reason))
			return hints[i].hint;
	return NULL;
}

int ui_error_from(const struct wfs_err *err, int ret, const char *what)
{
	if (err && err->reason)
		return ui_error(hint_for(err->reason), "%s: %s", what, err->text);
	return ui_error(NULL, "%s: %s", what, strerror(-ret));
}

/* ---- text ---- */

size_t ui_utf8(const char *s, size_t len, uint32_t *ret)
{
	static const uint32_t least[] = { 0, 0, 0x80, 0x800, 0x10000 };
	unsigned char first = (unsigned char)s[0];
	uint32_t c;
	size_t n;

	if (first < 0x80) {
		*ret = first;
		return 1;
	}
	if (first >= 0xc2 && first < 0xe0)
		n = 2;
	else if (first >= 0xe0 && first < 0xf0)
		n = 3;
	else if (first >= 0xf0 && first < 0xf5)
		n = 4;
	else
		return 0;
	if (len < n)
		return 0;
	c = first & (0x7fu >> n);
	for (size_t i = 1; i < n; i++) {
		if (((unsigned char)s[i] & 0xc0) != 0x80)
			return 0;
		c = c << 6 | ((unsigned char)s[i] & 0x3f);
	}
	if (c < least[n] || c > 0x10ffff || (c >= 0xd800 && c < 0xe000))
		return 0;
	*ret = c;
	return n;
}

/* Must a character not reach a terminal as it is? */
static bool is_unsafe(uint32_t c)
{
	return c < 0x20 || (c >= 0x7f && c < 0xa0) || c == '\\' || /* controls */
	       c == 0x200e || c == 0x200f || c == 0x2028 || c == 0x2029 || /* marks, line ends */
	       (c >= 0x202a && c <= 0x202e) || (c >= 0x2066 && c <= 0x2069) || c == 0xfeff;
}

/* Write one character's escape to `to` (room for 12 bytes); returns its bytes. */
static size_t escape_one(char *to, uint32_t c)
{
	static const char letters[] = "\n\t\r\\", names[] = "ntr\\";
	const char *p = c && c < 0x80 ? strchr(letters, (int)c) : NULL;

	if (p)
		return (size_t)sprintf(to, "\\%c", names[p - letters]);
	return (size_t)sprintf(to, c < 0x80 ? "\\x%02" PRIx32 : "\\u{%" PRIx32 "}", c);
}

char *ui_escape(const char *s, size_t len)
{
	char *text = ui_alloc(len * 8 + 1); /* the longest is \u{feff}, of three bytes */
	size_t at = 0;
	uint32_t c;

	for (size_t i = 0; i < len;) {
		size_t n = ui_utf8(s + i, len - i, &c);

		if (n == 0) {
			at += (size_t)sprintf(text + at, "\\x%02x", (unsigned char)s[i++]);
			continue;
		}
		if (is_unsafe(c)) {
			at += escape_one(text + at, c);
		} else {
			memcpy(text + at, s + i, n);
			at += n;
		}
		i += n;
	}
	text[at] = 0;
	return text;
}

char *ui_size(uint64_t bytes)
{
	static const char units[] = "KMGTPE";
	double n = (double)bytes;
	size_t unit = 0;

	if (bytes < 1024)
		return ui_format("%" PRIu64 " B", bytes);
	for (n /= 1024; n >= 1023.95 && unit < sizeof(units) - 2; n /= 1024)
		unit++;
	return ui_format("%.1f %ciB", n, units[unit]);
}

/* ---- tables ---- */

struct ui_table {
	size_t n;          /* columns */
	const char *align; /* borrowed */
	bool heads;        /* the first row is the heads */
	char **cells;
	size_t n_cells, room;
};

struct ui_table *ui_table_new(size_t n, const char *const *heads, const char *align)
{
	struct ui_table *t = ui_alloc(sizeof(*t));

	t->n = n;
	t->align = align;
	t->heads = heads != NULL;
	for (size_t i = 0; heads && i < n; i++)
		ui_table_add(t, heads[i]);
	return t;
}

void ui_table_take(struct ui_table *t, char *text)
{
	UI_ARRAY_ROOM(t->cells, t->n_cells, t->room);
	t->cells[t->n_cells++] = text;
}

void ui_table_add(struct ui_table *t, const char *text)
{
	ui_table_take(t, ui_format("%s", text));
}

void ui_table_add_number(struct ui_table *t, uint64_t n)
{
	ui_table_take(t, ui_format("%" PRIu64, n));
}

/* Characters of valid UTF-8. */
static size_t width(const char *s)
{
	size_t n = 0;

	for (; *s; s++)
		n += ((unsigned char)*s & 0xc0) != 0x80;
	return n;
}

static void print_row(const struct ui_table *t, char **cells, const size_t *widths)
{
	for (size_t i = 0; i < t->n; i++) {
		size_t pad = widths[i] - width(cells[i]);

		if (t->align[i] == 'r')
			printf("%*s%s", (int)pad, "", cells[i]);
		else
			printf("%s%*s", cells[i], i + 1 < t->n ? (int)pad : 0, "");
		fputs(i + 1 < t->n ? "  " : "\n", stdout);
	}
}

void ui_table_print(struct ui_table *t, const char *indent)
{
	WFS_AUTO_FREE size_t *widths = ui_alloc(t->n * sizeof(*widths));

	for (size_t i = 0; i < t->n_cells; i++)
		widths[i % t->n] = WFS_MAX(widths[i % t->n], width(t->cells[i]));
	/* heads without a row below them say nothing */
	if (!t->heads || t->n_cells >= 2 * t->n) {
		for (size_t i = 0; i + t->n <= t->n_cells; i += t->n) {
			fputs(indent, stdout);
			print_row(t, t->cells + i, widths);
		}
	}
	ui_table_free(t);
}

void ui_table_free(struct ui_table *t)
{
	for (size_t i = 0; t && i < t->n_cells; i++)
		free(t->cells[i]);
	if (t)
		free(t->cells);
	free(t);
}

/* ---- JSON ---- */

json_t *ui_json_string(const char *s, size_t len)
{
	WFS_AUTO_FREE char *text = ui_alloc(len * 3 + 1); /* U+FFFD is three bytes */
	size_t at = 0;
	uint32_t c;
	json_t *ret;

	for (size_t i = 0; i < len;) {
		size_t n = ui_utf8(s + i, len - i, &c);

		memcpy(text + at, n ? s + i : "\xef\xbf\xbd", n ? n : 3);
		at += n ? n : 3;
		i += n ? n : 1;
	}
	ret = json_stringn(text, at);
	if (!ret)
		out_of_memory();
	return ret;
}

json_t *ui_json_text(const char *s)
{
	return s ? ui_json_string(s, strlen(s)) : json_null();
}

json_t *ui_json_number(uint64_t n)
{
	char text[24];
	json_t *ret;

	if (n > INT64_MAX) {
		snprintf(text, sizeof(text), "%" PRIu64, n);
		return ui_json_text(text);
	}
	ret = json_integer((json_int_t)n);
	if (!ret)
		out_of_memory();
	return ret;
}

void ui_json_put(json_t *object, const char *key, json_t *value)
{
	if (json_object_set_new(object, key, value) < 0)
		out_of_memory();
}

void ui_json_append(json_t *array, json_t *value)
{
	if (json_array_append_new(array, value) < 0)
		out_of_memory();
}

int ui_json_print(json_t *value)
{
	if (json_dumpf(value, stdout, JSON_INDENT(2)) == 0)
		putchar('\n');
	json_decref(value);
	return ui_finish();
}

int ui_finish(void)
{
	if (fflush(stdout) != 0 || ferror(stdout))
		return ui_error(NULL, "standard output: %s", strerror(errno));
	return 0;
}
