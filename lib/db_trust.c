#include "lib/db_trust.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

#include "lib/format.h"

#define MAX_VALUE (64 << 20) /* bytes of a row: four times what the largest of ours takes */
#define MAX_SQL 100000
#define MAGIC_SIZE 8

/* ---- files ---- */

static const unsigned char journal_magic[MAGIC_SIZE] = { 0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7 };

/*
 * A journal that ends so has the name of a super-journal before it, which SQLite
 * would remove. There is one only where several databases change together: never here.
 */
static bool names_another(const char *path, off_t size)
{
	WFS_AUTO_CLOSE int fd = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	unsigned char tail[MAGIC_SIZE];

	if (fd < 0 || size < MAGIC_SIZE)
		return fd < 0;
	return pread(fd, tail, sizeof(tail), size - MAGIC_SIZE) != MAGIC_SIZE ||
	       memcmp(tail, journal_magic, MAGIC_SIZE) == 0;
}

int wfs_db_trust_files(const char *path, struct wfs_err *err)
{
	static const char *const beside[] = { "", "-wal", "-shm", "-journal" };

	for (size_t i = 0; i < WFS_ARRAY_SIZE(beside); i++) {
		WFS_AUTO_FREE char *name = wfs_format("%s%s", path, beside[i]);
		struct stat st;

		if (!name)
			return -ENOMEM;
		if (lstat(name, &st) != 0)
			continue;
		if (!S_ISREG(st.st_mode))
			return wfs_err_set(err, -EUCLEAN, "store-damaged", WFS_NO_OFFSET,
				"%s is not a regular file; it is not touched", name);
		if (strcmp(beside[i], "-journal") == 0 && names_another(name, st.st_size))
			return wfs_err_set(err, -EUCLEAN, "store-damaged", WFS_NO_OFFSET,
				"%s is not of weightfs: it names another file; it is not touched", name);
	}
	return 0;
}

/* ---- the connection ---- */

int wfs_db_trust_nothing(sqlite3 *handle)
{
	static const struct {
		int what, on;
	} config[] = {
		{ SQLITE_DBCONFIG_DEFENSIVE, 1 }, { SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0 },
		{ SQLITE_DBCONFIG_ENABLE_TRIGGER, 0 }, { SQLITE_DBCONFIG_ENABLE_VIEW, 0 },
		{ SQLITE_DBCONFIG_DQS_DDL, 0 }, { SQLITE_DBCONFIG_DQS_DML, 0 },
	};
	static const struct {
		int what, most;
	} limits[] = {
		{ SQLITE_LIMIT_LENGTH, MAX_VALUE }, { SQLITE_LIMIT_SQL_LENGTH, MAX_SQL },
		{ SQLITE_LIMIT_ATTACHED, 0 }, { SQLITE_LIMIT_TRIGGER_DEPTH, 1 },
		{ SQLITE_LIMIT_EXPR_DEPTH, 100 }, { SQLITE_LIMIT_WORKER_THREADS, 0 },
	};

	for (size_t i = 0; i < WFS_ARRAY_SIZE(config); i++)
		sqlite3_db_config(handle, config[i].what, config[i].on, NULL);
	for (size_t i = 0; i < WFS_ARRAY_SIZE(limits); i++)
		sqlite3_limit(handle, limits[i].what, limits[i].most);
	return sqlite3_exec(handle, "PRAGMA cell_size_check = ON", NULL, NULL, NULL);
}

/* ---- the schema ---- */

/* Behind white space and comments. */
static const char *skip_space(const char *p)
{
	for (;;) {
		if (isspace((unsigned char)*p)) {
			p++;
		} else if (p[0] == '-' && p[1] == '-') {
			p += strcspn(p, "\n");
		} else if (p[0] == '/' && p[1] == '*') {
			const char *end = strstr(p + 2, "*/");

			p = end ? end + 2 : p + strlen(p);
		} else {
			return p;
		}
	}
}

/* Of letters as SQLite takes them; what is behind 0x7f is one, too. */
static bool is_of_word(char c)
{
	return isalnum((unsigned char)c) || c == '_' || c == '$' || (unsigned char)c >= 0x80;
}

static size_t word_at(const char *p)
{
	size_t len = 0;

	while (is_of_word(p[len]))
		len++;
	return len;
}

struct word {
	const char *at;
	size_t len;
};

struct words {
	struct word *list;
	size_t n;
};

static int compare_words(const void *a, const void *b)
{
	const struct word *x = a, *y = b;
	int order = strncasecmp(x->at, y->at, WFS_MIN(x->len, y->len));

	return order ? order : (x->len > y->len) - (x->len < y->len);
}

/* The words of our own schema, sorted. */
static int find_words(const char *sql, struct words *ret)
{
	struct word *list = reallocarray(NULL, strlen(sql), sizeof(*list));
	size_t n = 0;

	if (!list)
		return -ENOMEM;
	for (const char *p = skip_space(sql); *p; p = skip_space(p)) {
		size_t len = word_at(p);

		if (len)
			list[n++] = (struct word){ p, len };
		p += len ? len : 1;
	}
	qsort(list, n, sizeof(*list), compare_words);
	*ret = (struct words){ list, n };
	return 0;
}

static bool is_known(const struct words *known, const char *at, size_t len)
{
	struct word word = { at, len };

	return strncmp(at, "sqlite_", strlen("sqlite_")) == 0 ||
	       bsearch(&word, known->list, known->n, sizeof(word), compare_words);
}

/* The first word or sign of `sql` that is not ours; NULL: there is none. */
static const char *find_foreign(const char *sql, const struct words *known)
{
	for (const char *p = skip_space(sql); *p; p = skip_space(p)) {
		size_t len = word_at(p);

		if (len == 0 && !strchr("(),;=<>", *p))
			return p;
		if (len > 0 && !is_known(known, p, len))
			return p;
		p += len ? len : 1;
	}
	return NULL;
}

static int check_row(sqlite3_stmt *row, const struct words *known, struct wfs_err *err)
{
	const char *name = (const char *)sqlite3_column_text(row, 0);
	const char *sql = (const char *)sqlite3_column_text(row, 1);
	const char *foreign;

	if (!sql) /* as an index has it that SQLite made itself; or there was no memory for the text */
		return sqlite3_column_type(row, 1) == SQLITE_NULL ? 0 : -ENOMEM;
	foreign = find_foreign(sql, known);
	if (!foreign)
		return 0;
	return wfs_err_set(err, -EUCLEAN, "store-damaged", WFS_NO_OFFSET,
		"the schema of the database is not of weightfs: \"%.40s\" in '%.60s'; run weightfs fsck",
		foreign, name ? name : "");
}

int wfs_db_trust_schema(sqlite3 *handle, const char *known, struct wfs_err *err)
{
	struct words words;
	sqlite3_stmt *row = NULL;
	int ret = find_words(known, &words);
	int code;

	if (ret)
		return ret;
	code = sqlite3_prepare_v2(handle, "SELECT name, sql FROM sqlite_schema", -1, &row, NULL);
	while (code == SQLITE_OK && ret == 0 && (code = sqlite3_step(row)) == SQLITE_ROW) {
		ret = check_row(row, &words, err);
		code = SQLITE_OK;
	}
	sqlite3_finalize(row);
	free(words.list);
	return ret || code == SQLITE_DONE ? ret : code;
}
