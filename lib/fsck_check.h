/*
 * fsck_check.h - private to lib/fsck*.c: one run of the check, and the means that
 * its parts share.
 *
 * Most checks are one query that returns the rows that are wrong: a table of
 * struct wfs_fsck_check. The others walk a sorted query and keep only what one
 * manifest or one data file needs, so that memory does not grow with the store.
 *
 * The database may have been made by anybody. Any column may hold any type and
 * any number; SQLite's own limits, and a budget of steps for each check, bound
 * what one query can cost. A query that fails because of what is in the
 * database is a finding (kind "database") and the next check goes on; only a
 * failure of the environment (no memory, disk error) ends the run.
 *
 * Everything here belongs to the thread that called wfs_fsck.
 */
#ifndef WFS_FSCK_CHECK_H
#define WFS_FSCK_CHECK_H

#include <sqlite3.h>

#include "lib/base.h"
#include "lib/err.h"
#include "lib/fsck.h"

#define WFS_FSCK_ROOT 1

/*
 * Ids are counted up from 1; one near 2^48 was never given out. A row may have one that is
 * 2^20 below, so that the next ones are no findings. As text, for SQL.
 */
#define WFS_FSCK_MAX_ID "281474975662080"
#define WFS_FSCK_MAX_SEQUENCE "281474976710656"

/* The type bits of st_mode, as SQL on the row `t`. */
#define WFS_FSCK_TYPE(t) "(" t ".mode & 61440)"
#define WFS_FSCK_IS_DIR(t) WFS_FSCK_TYPE(t) " = 16384"
#define WFS_FSCK_IS_REG(t) WFS_FSCK_TYPE(t) " = 32768"
#define WFS_FSCK_IS_LNK(t) WFS_FSCK_TYPE(t) " = 40960"

/* Rows of table tensor that cannot be, whatever is wrong with them. */
#define WFS_FSCK_BAD_TENSOR                                                                          \
	"typeof(variant) <> 'blob' OR typeof(name) <> 'blob' OR typeof(form) <> 'integer'"           \
	" OR form NOT IN (0, 1) OR typeof(dtype) <> 'text' OR typeof(shape) <> 'text'"               \
	" OR typeof(start) <> 'integer' OR start < 0 OR typeof(length) <> 'integer' OR length < 0"   \
	" OR start > 4611686018427387904 OR length > 4611686018427387904"                            \
	" OR dir NOT IN (SELECT i.ino FROM inode i WHERE " WFS_FSCK_IS_DIR("i") ")"                  \
	" OR ino IS NOT NULL AND ino NOT IN (SELECT i.ino FROM inode i WHERE "                       \
	WFS_FSCK_IS_REG("i") ") OR EXISTS (SELECT 1 FROM inode i WHERE i.ino = tensor.ino"           \
	" AND i.data_file IS NULL AND start + tensor.length > i.size)"

/* How many names the inode of row `t` has, and how many links the directory should have. */
#define WFS_FSCK_NAMES(t)                                                                            \
	"(SELECT count(*) FROM dirent d WHERE d.ino = " t ".ino)"                                    \
	" + (SELECT count(*) FROM tensor t WHERE t.ino = " t ".ino)"

#define WFS_FSCK_LINKS(t)                                                                            \
	"2 + (SELECT count(*) FROM dirent d JOIN inode c ON c.ino = d.ino WHERE d.parent = " t ".ino" \
	" AND " WFS_FSCK_IS_DIR("c") ")"

#define WFS_FSCK_IS_NAMED(t) "EXISTS (SELECT 1 FROM dirent d WHERE d.ino = " t ".ino)"

/* Directories that have a name, but not below the root. */
#define WFS_FSCK_UNREACHED                                                                           \
	"WITH RECURSIVE reached (ino) AS (VALUES (1) UNION SELECT c.ino FROM reached r"              \
	" JOIN dirent d ON d.parent = r.ino JOIN inode c ON c.ino = d.ino"                           \
	" WHERE " WFS_FSCK_IS_DIR("c") ")"                                                           \
	" SELECT i.ino FROM inode i WHERE " WFS_FSCK_IS_DIR("i") " AND i.ino NOT IN reached"         \
	" AND " WFS_FSCK_IS_NAMED("i")

/* Rows (id, seq) of manifests that are marked solid, where they are not; `also` is SQL on the manifest m. */
#define WFS_FSCK_NOT_SOLID(also)                                                                     \
	"(SELECT m.id, r.seq, o.data_file, o.offset, o.length,"                                      \
	" first_value(o.data_file) OVER w AS home, sum(o.length) OVER w - o.length AS at"            \
	" FROM manifest m JOIN manifest_object r ON r.manifest = m.id"                               \
	" JOIN object o ON o.id = r.object WHERE m.solid = 1" also                                   \
	" WINDOW w AS (PARTITION BY m.id ORDER BY r.seq))"                                           \
	" WHERE data_file IS NULL OR data_file IS NOT home OR offset IS NOT at"

struct wfs_fsck_run {
	const char *path;     /* of the store */
	const char *db_name;  /* in it: "weightfs.db", or the copy that is being repaired */
	int store_fd;
	int data_fd;          /* of STORE/data; -1 if it is missing */
	sqlite3 *db;          /* in one read transaction from open to close */
	sqlite3 *fresh;       /* without one: sees the newest state; NULL until needed */
	sqlite3_stmt *name_of; /* one name of an inode; NULL until needed */
	bool in_use;          /* somebody may write the store meanwhile */
	bool clean;           /* meta says that the last unmount was orderly */
	bool holds_lock;      /* STORE/lock is ours: nobody else writes */
	int64_t *excused;     /* objects whose files are all known to be damaged; sorted */
	size_t n_excused;
	const struct wfs_fsck_options *options;
	void (*fn)(void *ctx, const struct wfs_fsck_finding *finding);
	void *ctx;
	struct wfs_fsck_summary summary;
	struct wfs_err *err;
	const char *doing;    /* the check that runs, for the text of a failure */
	int failed;           /* wfs_fsck_could_not, or a path that could not be read: nothing more is found, and the run ends with it */
	uint64_t spent;       /* steps of SQLite's machine in this check, in units of its handler */
	void (*bad_manifest)(void *ctx, int64_t id); /* also told of each; NULL: nobody */
	uint64_t budget;      /* no sound database of this size needs so many */
};

/*
 * A system call on a data file has failed with errno `error`. That the file is not there, or that the disk cannot
 * read it, is for the caller to judge; that there was no memory or no descriptor says nothing of
 * the file, and becomes run->failed.
 */
void wfs_fsck_could_not(struct wfs_fsck_run *run, int64_t data_file, int error);

enum wfs_fsck_when {
	WFS_FSCK_ALWAYS,
	/*
	 * Only on a clean store that nobody uses. Elsewhere the state is one
	 * that the driver passes through: while mounted it is still at work;
	 * after a crash the next mount's recovery finishes that work.
	 */
	WFS_FSCK_SETTLED,
	/* Always, but not of an object (the first column) that is excused. */
	WFS_FSCK_OBJECT,
};

/*
 * A check that is one query. Each row is one finding. In `where` and `text`,
 * %1 is the row's first column and @1 the path of the inode with that number.
 */
struct wfs_fsck_check {
	const char *kind;
	enum wfs_fsck_when when;
	const char *sql;
	const char *where;
	const char *text;
};

/* A line of bounded length; what does not fit is left out. Always printable ASCII. */
struct wfs_fsck_line {
	char text[900];
	size_t len;
};

void wfs_fsck_add(struct wfs_fsck_line *line, const char *fmt, ...) WFS_PRINTF(2, 3);
/* Any bytes, those that are not printable as \xNN. */
void wfs_fsck_add_bytes(struct wfs_fsck_line *line, const void *bytes, size_t len);
/* One path of an inode from the root; begins with "?" if the root is not reached. */
void wfs_fsck_add_path(struct wfs_fsck_run *run, struct wfs_fsck_line *line, int64_t ino);

/* Hand a finding to the caller of wfs_fsck: `where` is "NOUN ID". */
void wfs_fsck_report(struct wfs_fsck_run *run, const char *kind, const char *noun, int64_t id,
	const char *fmt, ...) WFS_PRINTF(5, 6);
/* The same with any `where`. */
void wfs_fsck_report_at(struct wfs_fsck_run *run, const char *kind, const char *where,
	const char *text);

/* A check begins: its name, and a new budget of steps. */
void wfs_fsck_begin(struct wfs_fsck_run *run, const char *doing);

/*
 * Prepare a query. 0 or -errno. Where the database is at fault that is reported
 * as a finding, and *ret is NULL, which wfs_fsck_step takes for "no row". The caller
 * finalizes *ret in any case.
 */
int wfs_fsck_query(struct wfs_fsck_run *run, const char *sql, sqlite3_stmt **ret);
/* 1 a row, 0 the end (or a fault of the database, reported), -errno. */
int wfs_fsck_step(struct wfs_fsck_run *run, sqlite3_stmt *stmt);

/* All checks of a table, in order. */
int wfs_fsck_table(struct wfs_fsck_run *run, const struct wfs_fsck_check *checks, size_t n);

/*
 * True if the newest state still has the row: `sql` with up to two numbers
 * bound finds something. What is on the disk is newer than the transaction that this
 * run reads in, so who misses bytes there asks before he says so.
 */
bool wfs_fsck_still(struct wfs_fsck_run *run, const char *sql, int64_t a, int64_t b);

/* The template of a check, filled in from the row. */
void wfs_fsck_fill(struct wfs_fsck_run *run, sqlite3_stmt *stmt, const char *template,
	struct wfs_fsck_line *line);

/*
 * Objects that are damaged, and known to be: every file that has one of them says
 * so (verdict 5) and is read as EIO. What is wrong with their bytes is not found again.
 */
int wfs_fsck_find_excused(struct wfs_fsck_run *run);
bool wfs_fsck_is_excused(const struct wfs_fsck_run *run, int64_t object);

/* Look at all of run->path, run->db_name, and fill run->summary. 0 or -errno with run->err. */
int wfs_fsck_check_all(struct wfs_fsck_run *run);
void wfs_fsck_close(struct wfs_fsck_run *run);

/* -errno of a code of SQLite that is the environment's fault, 0 of one that is the database's. */
int wfs_fsck_errno(int code);

/* SQLite's progress handler: not 0, which ends the query, once the budget is spent. */
#define WFS_FSCK_STEPS_UNIT 65536 /* steps of its machine between two calls */
int wfs_fsck_count_steps(void *ctx);

/* True if another open file holds STORE/lock now. */
bool wfs_fsck_in_use(struct wfs_fsck_run *run);

/*
 * The parts, in the order of the run. Schema: 1 if all tables are there, so that
 * the others make sense, 0 if not, -errno. The others: 0 or -errno. Count fills
 * in the summary.
 */
int wfs_fsck_schema(struct wfs_fsck_run *run);
int wfs_fsck_integrity(struct wfs_fsck_run *run);
int wfs_fsck_count(struct wfs_fsck_run *run);
int wfs_fsck_names(struct wfs_fsck_run *run);
int wfs_fsck_content(struct wfs_fsck_run *run);
int wfs_fsck_walk_manifests(struct wfs_fsck_run *run); /* part of content */
int wfs_fsck_data(struct wfs_fsck_run *run);
int wfs_fsck_bytes(struct wfs_fsck_run *run);

/* Place of a data file below STORE/data: "xx/ID". */
#define WFS_FSCK_PATH_SIZE 32
void wfs_fsck_data_path(int64_t id, char buf[WFS_FSCK_PATH_SIZE]);

/* For wfs_fsck_still: does object ?1 still live in data file ?2? */
#define WFS_FSCK_STILL_THERE "SELECT 1 FROM object WHERE id = ? AND data_file = ?"
/* And is data file ?2 still the whole copy of manifest ?1, which somebody names? */
#define WFS_FSCK_STILL_WHOLE "SELECT 1 FROM manifest WHERE id = ? AND whole = ? AND refs <> 0"

#endif
