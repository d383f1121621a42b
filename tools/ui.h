/*
 * ui.h - what every command prints with: errors, sizes, names, tables, JSON.
 *
 * Names in a store are any bytes. For people they are escaped, so that no name
 * can move the cursor or fake a line; in JSON, which is always valid UTF-8,
 * bytes that are not UTF-8 become U+FFFD.
 *
 * One thread. Running out of memory ends the program with a message: a command
 * has nothing to undo.
 */
#ifndef WFS_TOOLS_UI_H
#define WFS_TOOLS_UI_H

#include <jansson.h>

#include "lib/base.h"
#include "lib/err.h"

/* ---- errors, on stderr ---- */

/* "weightfs: MESSAGE" and, where hint is not NULL, "  HINT". Returns 1. */
int ui_error(const char *hint, const char *fmt, ...) WFS_PRINTF(2, 3);

/*
 * The same for a call of the library that failed with `ret` (-errno) and
 * perhaps said why: "weightfs: WHAT: WHY". Returns 1.
 */
int ui_error_from(const struct wfs_err *err, int ret, const char *what);

/* ---- progress, on stderr where that is a terminal ---- */

/* One line, written over the last: `what` (escaped already), and how far it is. */
void ui_progress(const char *what, uint64_t done, uint64_t total);
/* Take the line away, before anything else is printed. */
void ui_progress_end(void);

/* ---- memory ---- */

/* As calloc, WFS_ARRAY_ROOM (lib/array.h) and wfs_format, but they do not fail. */
#define UI_ARRAY_ROOM(list, n, room) ui_array_room(&(list), sizeof(*(list)), n, &(room))
void *ui_alloc(size_t size);
void ui_array_room(void *ret_list, size_t size, size_t n, size_t *room);
char *ui_format(const char *fmt, ...) WFS_PRINTF(1, 2);

/* ---- text ---- */

/*
 * Bytes of the UTF-8 character at s (len > 0 bytes are there), its code point
 * in *ret; 0 if there is no valid one.
 */
size_t ui_utf8(const char *s, size_t len, uint32_t *ret);

/*
 * A name for people: control characters, those that change the direction of
 * text, backslashes and bytes that are not UTF-8 become \n, \t, \\, \xNN or
 * \u{NNNN}. The caller frees.
 */
char *ui_escape(const char *s, size_t len);

/* Bytes for people: "0 B", "1.5 KiB", "12.3 GiB". The caller frees. */
char *ui_size(uint64_t bytes);

/* ---- tables, on stdout ---- */

struct ui_table;

/*
 * A table whose columns are headed by `heads` (n of them; NULL: no heads).
 * A letter of `align` for each column: 'l' or 'r'.
 */
struct ui_table *ui_table_new(size_t n, const char *const *heads, const char *align);

/* The next cell, row by row; takes over `text` (from malloc), already escaped. */
void ui_table_take(struct ui_table *t, char *text);
/* The same for a copy of `text`. */
void ui_table_add(struct ui_table *t, const char *text);
void ui_table_add_number(struct ui_table *t, uint64_t n);

/* Print every full row, two spaces between columns, each behind `indent`; then free. */
void ui_table_print(struct ui_table *t, const char *indent);
void ui_table_free(struct ui_table *t); /* NULL is allowed */

/* ---- JSON, on stdout ---- */

/* A string whatever the bytes are; the caller's reference. */
json_t *ui_json_string(const char *s, size_t len);
/* The same for a C string; null for NULL. */
json_t *ui_json_text(const char *s);
/* A number; what does not fit in 63 bits becomes a string. */
json_t *ui_json_number(uint64_t n);

/* object[key] = value, taking over `value`. */
void ui_json_put(json_t *object, const char *key, json_t *value);
/* array[] = value, taking over `value`. */
void ui_json_append(json_t *array, json_t *value);

/* Print it, indented by 2, with a newline; takes it over. Returns 0, or 1 if stdout failed. */
int ui_json_print(json_t *value);

/* Flush stdout. 0, or 1 with a message where something was not written. */
int ui_finish(void);

#endif
