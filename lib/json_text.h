/*
 * json_text.h - a strict pull parser for JSON text in memory.
 *
 * It accepts exactly what Rust's serde_json accepts by from_str(), because the
 * verdict on a safetensors header is serde_json's: raw control characters and
 * lone surrogates in strings are refused, containers nest to 127 levels,
 * numbers must fit a double by serde_json's own arithmetic, white space is
 * space, tab, line feed and carriage return. It builds no tree, allocates
 * nothing and never recurses: the caller asks for the next thing and says what
 * it is prepared to take. Everything that is not a safetensors header is read
 * by jansson, not by this.
 *
 * The text may be the beginning of a longer one. The parser therefore tells
 * "the text ended" (WFS_JSON_CUT) from "no continuation could make this JSON"
 * (WFS_JSON_BAD).
 *
 * Every function returns true, or false once anything went wrong; then
 * json->failure, json->why and json->at say what and where, and every later
 * call on the same parser is an error of the caller. The text must be UTF-8
 * (lib/utf8.h), but may be cut within a character.
 *
 * Order of calls for a value: wfs_json_peek, then the function for its kind
 * (or wfs_json_skip for any kind). For a container: wfs_json_enter, then
 * wfs_json_more before each element until it says that there is none; in an
 * object wfs_json_key comes between wfs_json_more and the value.
 *
 * A parser is the caller's storage, holds no resources, and belongs to one
 * thread at a time. Strings that it hands out point into the text.
 */
#ifndef WFS_JSON_TEXT_H
#define WFS_JSON_TEXT_H

#include "lib/base.h"
#include "lib/json_number.h"

/* Open containers at most: the 128th is serde_json's "recursion limit exceeded". */
#define WFS_JSON_MAX_DEPTH 127

enum wfs_json_kind {
	WFS_JSON_NULL,
	WFS_JSON_BOOL,
	WFS_JSON_NUMBER,
	WFS_JSON_STRING,
	WFS_JSON_ARRAY,
	WFS_JSON_OBJECT,
};

struct wfs_json {
	const char *text; /* borrowed */
	size_t len;       /* bytes of text */
	size_t at;        /* next byte to be read; after a failure, the byte that is wrong */
	enum wfs_json_failure failure;
	const char *why;                            /* static text; NULL while fine */
	unsigned depth;                             /* open containers */
	bool fresh;                                 /* the innermost container has no element yet */
	uint64_t objects[WFS_JSON_MAX_DEPTH / 64 + 1]; /* bit i: container i is an object */
};

/* A string as it stands between its quotes. */
struct wfs_json_string {
	const char *raw; /* len bytes, not terminated */
	size_t len;
	bool escaped; /* there are escapes in it; if not, raw is the string itself */
};

void wfs_json_init(struct wfs_json *j, const char *text, size_t len);

/* What kind of value comes next, by its first byte. Skips white space before it. */
bool wfs_json_peek(struct wfs_json *j, enum wfs_json_kind *ret);

/* Open the array or object that wfs_json_peek saw. */
bool wfs_json_enter(struct wfs_json *j);

/* In a container: is there another element (the parser is then before it), or
 * did it end (the parser is then after it)? */
bool wfs_json_more(struct wfs_json *j, bool *ret);

/* An object's next key, and the colon behind it. */
bool wfs_json_key(struct wfs_json *j, struct wfs_json_string *ret);

/* The value that wfs_json_peek saw, if it is a string, a number. */
bool wfs_json_string(struct wfs_json *j, struct wfs_json_string *ret);

/* On failure ret->is_u64 is set nevertheless: see json_number.h. */
bool wfs_json_number(struct wfs_json *j, struct wfs_json_number *ret);

/* Pass over the next value, whatever it is. It is checked in full. */
bool wfs_json_skip(struct wfs_json *j);

/* Nothing but white space is left. */
bool wfs_json_end(struct wfs_json *j);

/*
 * Write the string itself to out[], which has room for s->len bytes (escapes
 * only ever shrink), and return its length. It may hold NUL.
 */
size_t wfs_json_unescape(const struct wfs_json_string *s, char *out);

/* Whether the string is `word`, an ASCII text of at most 24 bytes. */
bool wfs_json_string_is(const struct wfs_json_string *s, const char *word);

#endif
