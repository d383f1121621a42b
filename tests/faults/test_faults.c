/*
 * Every call that can fail, failing: each scenario is run again and again with the n-th call
 * of a kind failing, once or from then on, in a process of its own that ends in order or
 * not. Another process then finds the store as it must be (tests/faults/world.h).
 *
 *   WEIGHTFS_FAULTS       how many faults are tried, drawn at random (default 300), or "all"
 *   WEIGHTFS_FAULT_SEED   of the draw (default: 1)
 *   WEIGHTFS_FAULT_ONLY   "SCENARIO/KIND", or a part of it: only these, and every n of them
 *   WEIGHTFS_FAULT_N      with it: only this n
 */
#include <errno.h>
#include <execinfo.h>
#include <fcntl.h>
#include <ftw.h>
#include <inttypes.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>
#include <sqlite3.h>

#include "tests/faults/fault.h"
#include "tests/faults/world.h"
#include "tests/unit/support.h"

#ifdef WFS_COVERAGE
void __gcov_dump(void);
#endif

#define DEFAULT_FAULTS 300
#define HANG_SECONDS 60
#define MOST_SHOWN 40

/* ---- scenarios ---- */

struct scenario {
	const char *name;
	void (*set_up)(struct world *w); /* without faults; NULL: there is no store yet */
	bool crashes;                    /* the set-up ends without closing the store */
	bool opens;                      /* opening it is a part of it */
	void (*run)(struct world *w);
};

static void run_make(struct world *w)
{
	world_open(w);
	world_put(w, "empty", EMPTY);
	world_put(w, "small", SMALL);
	world_put(w, "big", BIG);
	world_close(w);
}

static void set_up_dirty(struct world *w)
{
	world_put(w, "small", SMALL);
	world_put(w, "small-2", SMALL_2);
	world_put(w, "small-3", SMALL);
	world_put(w, "empty", EMPTY);
	world_put(w, "big", BIG);
	world_put(w, "a.safetensors", SHARD);
}

static void run_seal(struct world *w)
{
	world_seal_small(w);
	world_seal(w, "big");
	world_seal(w, "a.safetensors");
	world_seal(w, "small");
	world_collect(w);
}

static void set_up_twins(struct world *w)
{
	world_put(w, "a.safetensors", SHARD);
	world_put(w, "big", BIG);
	world_seal(w, "a.safetensors");
	world_seal(w, "big");
	world_collect(w);
	world_put(w, "b.safetensors", SHARD_2);
	world_put(w, "c.safetensors", SHARD);
	world_put(w, "big-2", BIG);
	world_put(w, "small", SMALL);
	world_put(w, "small-2", SMALL);
}

static void run_duplicates(struct world *w)
{
	world_seal(w, "b.safetensors");
	world_seal(w, "c.safetensors");
	world_seal(w, "big-2");
	world_seal_small(w);
	world_collect(w);
	world_unlink(w, "a.safetensors");
	world_collect(w);
}

static void set_up_sealed(struct world *w)
{
	set_up_twins(w);
	run_duplicates(w);
	world_clone(w, "big", "clone");
	world_put(w, "alone", BIG_PATCHED);
	world_seal(w, "alone");
}

static void run_unseal(struct world *w)
{
	world_write(w, "alone", BIG);           /* in place */
	world_write(w, "clone", BIG_PATCHED);   /* by a copy */
	world_write(w, "c.safetensors", SHARD_PATCHED);
	world_truncate(w, "big-2", BIG_CUT);
	world_truncate(w, "small", EMPTY);
	world_seal(w, "alone");
	world_seal(w, "c.safetensors");
	world_seal_small(w);
	world_collect(w);
}

static void run_names(struct world *w)
{
	world_clone(w, "big", "copy");
	world_clone(w, "small", "small-copy");
	world_put(w, ".tmp", SMALL_2);
	world_rename(w, ".tmp", "small");
	world_put(w, ".tmp", SHARD);
	world_rename(w, ".tmp", "b.safetensors");
	world_link(w, "big", "link");
	world_unlink(w, "big");
	world_attributes(w, "clone");
	world_directory(w);
	world_unlink(w, "clone");
	world_unlink(w, "link");
	world_collect(w);
}

static void run_sync(struct world *w)
{
	world_put(w, "new", BIG);
	world_sync(w, "new");
	world_put(w, ".tmp", SMALL_2);
	world_rename(w, ".tmp", "small");
	world_sync(w, "big");
	world_sync(w, "new");
	world_checkpoint(w);
	world_write(w, "new", BIG_PATCHED);
	world_sync(w, "new");
	world_sync(w, "new");
	world_seal(w, "new");
	world_seal(w, "new");
	world_sync_all(w);
	world_tidy(w);
	world_put(w, "last", SMALL);
	world_sync(w, "last");
}

static void set_up_left(struct world *w)
{
	set_up_sealed(w);
	world_put(w, "dirty", BIG);
	world_put(w, "d.safetensors", SHARD_PATCHED);
	world_write(w, "alone", BIG);
	world_unlink(w, "clone");
}

static void run_recover(struct world *w)
{
	world_open(w);
	world_seal(w, "dirty");
	world_seal_small(w);
	world_collect(w);
	world_close(w);
}

static void exec(sqlite3 *db, const char *sql)
{
	if (sqlite3_exec(db, sql, NULL, NULL, NULL) != SQLITE_OK)
		fail_msg("%s: %s", sql, sqlite3_errmsg(db));
}

/* A store of format 1 with an empty file in it. */
static void set_up_version_1(struct world *w)
{
	WFS_AUTO_FREE char *file = wfs_test_path(w->path, "weightfs.db");
	WFS_AUTO_FREE char *schema;
	sqlite3 *db;
	size_t len;

	world_put(w, "empty", EMPTY);
	world_seal(w, "empty");
	world_close(w);
	unlink(file);
	schema = wfs_test_read("tests/unit/schema-1.sql", &len);
	schema[len] = '\0';
	assert_int_equal(sqlite3_open(file, &db), SQLITE_OK);
	exec(db, "PRAGMA auto_vacuum = INCREMENTAL");
	exec(db, schema);
	exec(db, "PRAGMA application_id = 0x57744653; PRAGMA user_version = 1;"
		"INSERT INTO meta VALUES ('clean', 1), ('created_ns', 1);"
		"INSERT INTO inode (ino, mode, uid, gid, nlink, atime_ns, mtime_ns, ctime_ns, btime_ns) "
		"VALUES (1, 16877, 0, 0, 2, 1, 1, 1, 1), (2, 33188, 0, 0, 1, 1, 1, 1, 1);"
		"INSERT INTO dirent (parent, name, ino) VALUES (1, CAST('empty' AS BLOB), 2)");
	sqlite3_close(db);
}

static void run_migrate(struct world *w)
{
	world_open(w);
	world_put(w, "big", BIG);
	world_seal(w, "big");
	world_close(w);
}

static void set_up_model(struct world *w)
{
	world_mkdir_model(w);
	world_put_tensor(w, "a", 21);
	world_put_tensor(w, "b", 22);
	world_settle(w);
}

static void run_tensors(struct world *w)
{
	world_put_tensor(w, "c", 23);
	world_put_tensor(w, "d", 24);
	world_settle(w);
	world_put_tensor(w, "a", 25);
	world_remove_tensor(w, "b");
	world_settle(w);
	world_collect(w);
}

static void set_up_composed(struct world *w)
{
	set_up_twins(w);
	world_seal(w, "b.safetensors");
	world_seal(w, "c.safetensors");
	world_collect(w);
}

static void run_repack(struct world *w)
{
	world_repack(w, "b.safetensors");
	world_collect(w);
	world_unlink(w, "a.safetensors");
	world_collect(w);
}

static void run_fsck(struct world *w)
{
	world_fsck(w);
}

static const struct scenario scenarios[] = {
	{ "make", NULL, false, true, run_make },
	{ "seal", set_up_dirty, false, false, run_seal },
	{ "duplicates", set_up_twins, false, false, run_duplicates },
	{ "unseal", set_up_sealed, false, false, run_unseal },
	{ "names", set_up_sealed, false, false, run_names },
	{ "sync", set_up_sealed, false, false, run_sync },
	{ "recover", set_up_left, true, true, run_recover },
	{ "migrate", set_up_version_1, false, true, run_migrate },
	{ "tensors", set_up_model, false, false, run_tensors },
	{ "repack", set_up_composed, false, false, run_repack },
	{ "look", set_up_left, false, false, world_look },
	{ "fsck", set_up_sealed, false, true, run_fsck },
};

/* ---- what fails ---- */

static const struct way {
	const char *name;
	uint32_t kinds;
	int error;
	bool halves, loses;
} ways[] = {
	{ "memory", FAULT_ALLOC, ENOMEM, false, false },
	{ "write-EIO", FAULT_WRITE, EIO, false, false },
	{ "write-ENOSPC", FAULT_WRITE, ENOSPC, false, false },
	{ "write-half", FAULT_WRITE, ENOSPC, true, false },
	{ "read", FAULT_READ, EIO, false, false },
	{ "sync", FAULT_SYNC, EIO, false, false },
	{ "sync-loses", FAULT_SYNC, EIO, false, true },
	{ "name-EIO", FAULT_NAME, EIO, false, false },
	{ "name-ENOSPC", FAULT_NAME, ENOSPC, false, false },
	{ "look", FAULT_LOOK, EIO, false, false },
	{ "map", FAULT_MAP, ENOMEM, false, false },
};

/* One run of one scenario. */
struct trial {
	const struct scenario *scenario;
	const struct way *way;
	uint64_t n;
	bool forever;
	bool crashes; /* the process ends without closing the store */
};

/* In memory that all processes share. */
struct shared {
	struct model before; /* after the set-up */
	struct model model;
	uint64_t calls, hits; /* of the run */
};

struct sweep {
	char *dir;
	char *template; /* the store after the set-up */
	char *path;     /* the store of a run */
	struct shared *shared;
	uint64_t tried, faults; /* runs; runs that a fault has hit */
	unsigned failures;
	uint64_t random;
	const char *only;
	uint64_t only_n;
};

/* ---- processes ---- */

static const int deadly[] = { SIGALRM, SIGSEGV, SIGBUS, SIGILL, SIGFPE };

static void on_signal(int signal_number)
{
	void *frames[24];

	backtrace_symbols_fd(frames, backtrace(frames, 24), STDERR_FILENO);
	signal(signal_number, SIG_DFL);
	raise(signal_number);
}

/* Run `fn` in a process of its own. What ends it, if not `fn`, is noted in the model. */
static void in_process(struct sweep *sw, void (*fn)(struct sweep *sw, const struct trial *t),
	const struct trial *t)
{
	struct world w = { .m = &sw->shared->model };
	int status = 0;
	pid_t pid;

	fflush(NULL);
	pid = fork();
	if (pid == 0) {
		/* Not cmocka's, which would go on with the next test. */
		for (size_t i = 0; i < WFS_ARRAY_SIZE(deadly); i++)
			signal(deadly[i], on_signal);
		alarm(HANG_SECONDS);
		fn(sw, t);
#ifdef WFS_COVERAGE
		__gcov_dump();
#endif
		_exit(0);
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		fail_msg("fork: %s", strerror(errno));
	if (WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM)
		world_fail(&w, "it hangs");
	else if (WIFSIGNALED(status))
		world_fail(&w, "it crashes with signal %d", WTERMSIG(status));
	else if (WEXITSTATUS(status) != 0)
		world_fail(&w, "it ends with status %d", WEXITSTATUS(status));
}

static unsigned count_descriptors(void)
{
	unsigned n = 0;

	for (int fd = 0; fd < 1024; fd++)
		n += fcntl(fd, F_GETFD) >= 0;
	return n;
}

/* What stays behind when the store is closed. */
struct base {
	long allocations;
	unsigned descriptors;
};

static struct base take_base(void)
{
	return (struct base){ fault_live_allocations(), count_descriptors() };
}

static void check_base(struct world *w, const struct base *base)
{
	struct base have = take_base();

	if (have.descriptors != base->descriptors)
		world_fail(w, "%d descriptors are left open", (int)have.descriptors - (int)base->descriptors);
	if (have.allocations != base->allocations)
		world_fail(w, "%ld allocations were not freed", have.allocations - base->allocations);
}

static void set_up(struct sweep *sw, const struct trial *t)
{
	struct world w = { .path = sw->template, .m = &sw->shared->model };

	if (world_open(&w) == 0)
		t->scenario->set_up(&w);
	if (!t->scenario->crashes)
		world_close(&w);
}

/* The scenario, with its fault; then everything without. */
static void run(struct sweep *sw, const struct trial *t)
{
	struct world w = { .path = sw->path, .m = &sw->shared->model };
	struct fault_plan plan = { .kinds = t->way->kinds, .error = (uint32_t)t->way->error, .n = t->n,
		.forever = t->forever, .loses = t->way->loses, .halves = t->way->halves };
	struct base base = take_base();

	if (!t->scenario->opens)
		world_open(&w);
	w.m->error = t->way->error;
	/* A directory that cannot be opened is not synced, either. */
	w.m->syncs = t->way->kinds == FAULT_SYNC || (t->way->kinds == FAULT_NAME && t->way->error == EIO);
	w.m->reads = t->way->kinds == FAULT_READ;
	fault_arm(&plan);
	t->scenario->run(&w);
	w.m->hits = fault_disarm();
	sw->shared->calls = fault_calls();
	sw->shared->hits = w.m->hits;
	if (w.m->failed)
		return;
	if (t->scenario->opens && !t->crashes)
		world_close(&w);
	if (!w.store && !t->crashes)
		check_base(&w, &base);
	if (t->crashes) {
		if (w.store && !t->way->loses)
			world_check(&w);
		return;
	}
	if (world_open(&w) != 0)
		return;
	/* A sync that failed may have made the store read-only: then not all that comes can work. */
	if (wfs_store_is_lost(w.store)) {
		world_close(&w);
		check_base(&w, &base);
		return;
	}
	world_check(&w);
	world_finish(&w);
	w.m->hits = 0;
	fault_arm(&(struct fault_plan){ .kinds = 0 });
	world_put(&w, "after", SHARD_2);
	world_seal(&w, "after");
	world_check(&w);
	world_close(&w);
	check_base(&w, &base);
}

/* The store as another process finds it. */
static void look(struct sweep *sw, const struct trial *t)
{
	struct world w = { .path = sw->path, .m = &sw->shared->model };
	struct base base = take_base();

	(void)t;
	fault_arm(&(struct fault_plan){ .kinds = 0 });
	w.m->hits = 0;
	if (world_open(&w) != 0)
		return;
	world_check(&w);
	world_finish(&w);
	world_check(&w);
	world_close(&w);
	check_base(&w, &base);
	world_check_clean(&w);
}

/* ---- copying a store ---- */

static const char *copy_from, *copy_to;

static int copy_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	WFS_AUTO_FREE char *to = NULL, *bytes = NULL;
	size_t len;

	(void)ftw;
	if (asprintf(&to, "%s%s", copy_to, path + strlen(copy_from)) < 0)
		abort();
	if (type == FTW_D)
		return mkdir(to, st->st_mode & 0777);
	/* What SQLite shares between processes dies with them. */
	if (strlen(path) > 4 && strcmp(path + strlen(path) - 4, "-shm") == 0)
		return 0;
	bytes = wfs_test_read(path, &len);
	wfs_test_write(to, bytes, len);
	return 0;
}

static void copy_store(const char *from, const char *to)
{
	struct stat st;

	if (stat(to, &st) == 0)
		wfs_test_rmdir(to);
	copy_from = from;
	copy_to = to;
	if (stat(from, &st) == 0 && nftw(from, copy_one, 16, FTW_PHYS) != 0)
		fail_msg("%s cannot be copied", from);
}

/* ---- one trial ---- */

static void show_failure(struct sweep *sw, const struct trial *t)
{
	if (sw->failures++ < MOST_SHOWN)
		print_error("%s/%s, call %" PRIu64 "%s, %s: %s\n", t->scenario->name, t->way->name, t->n,
			t->forever ? " and all behind it" : "", t->crashes ? "killed" : "closed",
			sw->shared->model.message);
}

/* True if there was such a call. */
static bool try(struct sweep *sw, const struct trial *t)
{
	struct model *m = &sw->shared->model;
	bool hit;

	*m = sw->shared->before;
	m->loses = t->way->loses;
	sw->shared->hits = 0;
	copy_store(sw->template, sw->path);
	in_process(sw, run, t);
	hit = sw->shared->hits > 0;
	if (!m->failed)
		in_process(sw, look, t);
	if (m->failed)
		show_failure(sw, t);
	sw->tried++;
	sw->faults += hit;
	return hit;
}

static void begin_scenario(struct sweep *sw, const struct scenario *s)
{
	struct stat st;

	if (stat(sw->template, &st) == 0)
		wfs_test_rmdir(sw->template);
	memset(&sw->shared->model, 0, sizeof(sw->shared->model));
	if (s->set_up)
		in_process(sw, set_up, &(struct trial){ .scenario = s });
	if (sw->shared->model.failed)
		fail_msg("%s: set-up: %s", s->name, sw->shared->model.message);
	sw->shared->before = sw->shared->model;
}

/* ---- which of them ---- */

static uint64_t draw(struct sweep *sw, uint64_t below)
{
	sw->random ^= sw->random << 13;
	sw->random ^= sw->random >> 7;
	sw->random ^= sw->random << 17;
	return (sw->random >> 11) % below;
}

static bool is_wanted(const struct sweep *sw, const struct scenario *s, const struct way *way)
{
	char name[80];

	snprintf(name, sizeof(name), "%s/%s", s->name, way->name);
	return !sw->only || strstr(name, sw->only);
}

/* Every n, until there is no such call. */
static void try_all(struct sweep *sw, const struct scenario *s, const struct way *way)
{
	for (unsigned i = 0; i < 4; i++) {
		struct trial t = { s, way, sw->only_n ? sw->only_n : 1, i & 1, i & 2 };

		while (try(sw, &t) && !sw->only_n)
			t.n++;
	}
}

/* Some of them; more where there are more. */
static void try_some(struct sweep *sw, const struct scenario *s, const struct way *way, uint64_t n)
{
	struct trial t = { s, way, 0, false, false };
	uint64_t calls;

	try(sw, &t);
	calls = sw->shared->calls;
	for (uint64_t i = 0; i < n && calls; i++) {
		t.n = draw(sw, calls) + 1;
		t.forever = draw(sw, 3) == 0;
		t.crashes = draw(sw, 2) == 0;
		try(sw, &t);
	}
}

static void sweep(struct sweep *sw, const struct scenario *s)
{
	const char *wanted = getenv("WEIGHTFS_FAULTS");
	bool all = sw->only || (wanted && strcmp(wanted, "all") == 0);
	uint64_t n = wanted && !all ? strtoull(wanted, NULL, 10) : DEFAULT_FAULTS;

	begin_scenario(sw, s);
	for (size_t i = 0; i < WFS_ARRAY_SIZE(ways); i++) {
		if (!is_wanted(sw, s, &ways[i]))
			continue;
		if (all)
			try_all(sw, s, &ways[i]);
		else
			try_some(sw, s, &ways[i], n / (WFS_ARRAY_SIZE(scenarios) * WFS_ARRAY_SIZE(ways)));
	}
}

/* ---- cmocka ---- */

static struct sweep the_sweep;

static void test_scenario(void **state)
{
	struct sweep *sw = &the_sweep;
	uint64_t tried = sw->tried, faults = sw->faults;
	unsigned failures = sw->failures;
	const struct scenario *s = *state;

	sweep(sw, s);
	print_message("%s: %" PRIu64 " runs, %" PRIu64 " of them with a fault\n", s->name,
		sw->tried - tried, sw->faults - faults);
	if (sw->failures > failures)
		fail_msg("%s: %u of %" PRIu64 " runs went wrong", s->name, sw->failures - failures,
			sw->tried - tried);
}

static int begin(void **state)
{
	struct sweep *sw = &the_sweep;
	const char *seed = getenv("WEIGHTFS_FAULT_SEED"), *n = getenv("WEIGHTFS_FAULT_N");

	(void)state;
	sw->random = (seed ? strtoull(seed, NULL, 10) : 1) * 0x9e3779b97f4a7c15 + 1;
	sw->only = getenv("WEIGHTFS_FAULT_ONLY");
	sw->only_n = n ? strtoull(n, NULL, 10) : 0;
	if (!getenv("TMPDIR") && access("/dev/shm", W_OK) == 0)
		setenv("TMPDIR", "/dev/shm", 1); /* a sync takes no time there */
	sw->dir = wfs_test_mkdir();
	sw->template = wfs_test_path(sw->dir, "template");
	sw->path = wfs_test_path(sw->dir, "store");
	sw->shared = mmap(NULL, sizeof(*sw->shared), PROT_READ | PROT_WRITE,
		MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	world_make_contents();
	return sw->shared == MAP_FAILED ? -1 : 0;
}

static int end(void **state)
{
	struct sweep *sw = &the_sweep;

	(void)state;
	print_message("%" PRIu64 " faults tried in %" PRIu64 " runs\n", sw->faults, sw->tried);
	wfs_test_rmdir(sw->dir);
	return 0;
}

int main(void)
{
	struct CMUnitTest tests[WFS_ARRAY_SIZE(scenarios)];

	fault_hook_libraries();
	for (size_t i = 0; i < WFS_ARRAY_SIZE(scenarios); i++)
		tests[i] = (struct CMUnitTest){ .name = scenarios[i].name, .test_func = test_scenario,
			.initial_state = (void *)(uintptr_t)&scenarios[i] };
	return cmocka_run_group_tests(tests, begin, end);
}
