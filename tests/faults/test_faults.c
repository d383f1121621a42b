/*
 * Every call that can fail, failing: each scenario is run again and again with the n-th call
 * of a kind failing, once or from then on, in a process of its own that ends in order or
 * not. Another process then finds the store as it must be (tests/faults/world.h).
 *
 *   WEIGHTFS_FAULTS       how many faults are tried, drawn at random (default 300), from places in the code where
 *                         none was tried yet as long as such are found; "places": one at each of them; or "all"
 *   WEIGHTFS_FAULT_SEED   of the draw (default: 1)
 *   WEIGHTFS_FAULT_ONLY   "SCENARIO/KIND", or a part of it: only these, and every n of them; with a number
 *                         in WEIGHTFS_FAULTS so many of each kind
 *   WEIGHTFS_FAULT_N      with it: only this n
 */
#include <errno.h>
#include <execinfo.h>
#include <fcntl.h>
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

#include "tests/faults/fault.h"
#include "tests/faults/scenario.h"
#include "tests/unit/support.h"

#ifdef WFS_COVERAGE
void __gcov_dump(void);
#endif

#define DEFAULT_FAULTS 300
#define HANG_SECONDS 60
#define MOST_SHOWN 40
#define MOST_SCENARIOS 64

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

/* Calls are only counted. */
static const struct way nothing = { "nothing", FAULT_ALL, 0, false, false };

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
	struct model saved_before, saved; /* what a backup has: that of the set-up, and now */
	struct model model;
	uint64_t hits;       /* of the run */
	uint64_t calls[WFS_ARRAY_SIZE(ways)]; /* of a run without a fault */
	struct fault_places places;           /* of the same run */
};

struct sweep {
	char *dir;
	char *template; /* a directory with the store after the set-up, and what lies beside it */
	char *path;     /* its copy for a run */
	struct scenario scenarios[MOST_SCENARIOS];
	size_t n_scenarios, pairs; /* pairs: of scenarios and ways that have had their draws */
	uint64_t *seen;            /* hash table of places that a way was tried at; 0: free */
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

static struct world make_world(struct sweep *sw, const struct trial *t, const char *dir)
{
	struct world w = { .m = &sw->shared->model, .saved = &sw->shared->saved,
		.max_size = t->scenario->max_size };

	world_format(w.path, "%s/store", dir);
	world_format(w.side, "%s/side", dir);
	return w;
}

static void set_up(struct sweep *sw, const struct trial *t)
{
	struct world w = make_world(sw, t, sw->template);

	if (world_open(&w) == 0)
		t->scenario->set_up(&w);
	if (!t->scenario->crashes)
		world_close(&w);
}

/* Without faults: the store is to be as it must, and has to work. */
static void check(const struct trial *t, struct world *w)
{
	if (t->scenario->mend)
		t->scenario->mend(w);
	world_check(w);
	world_finish(w);
}

static void settle(const struct trial *t, struct world *w)
{
	uint64_t hits = w->m->hits;

	w->m->hits = 0;
	if (t->scenario->settle && !w->m->failed)
		t->scenario->settle(w);
	w->m->hits = hits;
}

static void note_run(struct sweep *sw, struct world *w)
{
	w->m->hits = fault_disarm();
	sw->shared->hits = w->m->hits;
	for (size_t i = 0; w->m->hits == 0 && i < WFS_ARRAY_SIZE(ways); i++)
		sw->shared->calls[i] = fault_calls_of(ways[i].kinds);
}

/* The scenario, with its fault; then everything without. */
static void run(struct sweep *sw, const struct trial *t)
{
	struct world w = make_world(sw, t, sw->path);
	struct fault_plan plan = { .kinds = t->way->kinds, .error = (uint32_t)t->way->error, .n = t->n,
		.forever = t->forever, .loses = t->way->loses, .halves = t->way->halves };
	struct base base;

	if (t->scenario->boot_id)
		setenv("WEIGHTFS_BOOT_ID", t->scenario->boot_id, 1);
	base = take_base();
	if (!t->scenario->opens)
		world_open(&w);
	w.m->error = t->way->error;
	/* A directory that cannot be opened is not synced, either. */
	w.m->syncs = t->way->kinds == FAULT_SYNC || (t->way->kinds == FAULT_NAME && t->way->error == EIO);
	w.m->reads = t->way->kinds == FAULT_READ;
	fault_arm(&plan);
	if (t->way == &nothing)
		fault_note_places(&sw->shared->places);
	t->scenario->run(&w);
	note_run(sw, &w);
	if (w.m->failed)
		return;
	if (t->scenario->opens && !t->crashes)
		world_close(&w);
	if (!w.store && !t->crashes)
		check_base(&w, &base);
	if (t->crashes) {
		if (w.store && !t->way->loses && !t->scenario->mend)
			world_check(&w);
		return;
	}
	if (!w.store)
		settle(t, &w);
	if (world_open(&w) != 0)
		return;
	/* A sync that failed may have made the store read-only: then not all that comes can work. */
	if (wfs_store_is_lost(w.store)) {
		world_close(&w);
		check_base(&w, &base);
		return;
	}
	check(t, &w);
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
	struct world w = make_world(sw, t, sw->path);
	struct base base;

	if (t->scenario->boot_id)
		setenv("WEIGHTFS_BOOT_ID", t->scenario->boot_id, 1);
	base = take_base();
	fault_arm(&(struct fault_plan){ .kinds = 0 });
	w.m->hits = 0;
	settle(t, &w);
	if (world_open(&w) != 0)
		return;
	check(t, &w);
	world_check(&w);
	world_close(&w);
	check_base(&w, &base);
	world_check_clean(&w);
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
	sw->shared->saved = sw->shared->saved_before;
	m->loses = t->way->loses;
	sw->shared->hits = 0;
	world_copy_tree(sw->template, sw->path);
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
	const struct trial none = { .scenario = s, .way = &nothing };

	if (access(sw->template, F_OK) == 0)
		wfs_test_rmdir(sw->template);
	if (mkdir(sw->template, 0700) != 0)
		fail_msg("%s: %s", sw->template, strerror(errno));
	memset(&sw->shared->model, 0, sizeof(sw->shared->model));
	if (s->set_up)
		in_process(sw, set_up, &none);
	if (sw->shared->model.failed)
		fail_msg("%s: set-up: %s", s->name, sw->shared->model.message);
	sw->shared->before = sw->shared->model;
	sw->shared->saved_before = sw->shared->saved;
	/* How many calls there are that can fail, and where. */
	sw->shared->places.n = 0;
	try(sw, &none);
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

#define SEEN_ROOM (1u << 18)

/* Was this way tried there before? From now on it was. */
static bool was_tried(struct sweep *sw, const struct way *way, uint64_t place)
{
	uint64_t key = (place ^ (uint64_t)(way - ways + 1)) * 0x9e3779b97f4a7c15 | 1;
	size_t at = key >> 40 & (SEEN_ROOM - 1), probes = 0;

	while (sw->seen[at] && sw->seen[at] != key && probes++ < SEEN_ROOM)
		at = (at + 1) & (SEEN_ROOM - 1);
	if (sw->seen[at] == key)
		return true;
	sw->seen[at] = key;
	return false;
}

/* Was it tried where the n-th call is made? What was not noted counts as new. */
static bool was_tried_at(struct sweep *sw, const struct way *way, uint64_t n)
{
	const struct fault_places *places = &sw->shared->places;

	for (uint64_t i = 0; i < places->n; i++)
		if (places->list[i].kind & way->kinds && --n == 0)
			return was_tried(sw, way, places->list[i].place);
	return false;
}

static void try_one(struct sweep *sw, const struct scenario *s, const struct way *way, uint64_t n)
{
	struct trial t = { s, way, n, draw(sw, 3) == 0, draw(sw, 2) == 0 };

	try(sw, &t);
}

/* One at each place that no scenario before has been to in this way. */
static void try_places(struct sweep *sw, const struct scenario *s, const struct way *way)
{
	const struct fault_places *places = &sw->shared->places;
	uint64_t n = 0;

	for (uint64_t i = 0; i < places->n; i++) {
		if (!(places->list[i].kind & way->kinds))
			continue;
		n++;
		if (!was_tried(sw, way, places->list[i].place))
			try_one(sw, s, way, n);
	}
}

#define MOST_DRAWS 20

/* Some of them. */
static void try_some(struct sweep *sw, const struct scenario *s, const struct way *way, uint64_t n)
{
	uint64_t calls = sw->shared->calls[way - ways];

	for (uint64_t i = 0; i < n && calls; i++) {
		uint64_t call = draw(sw, calls) + 1;

		for (unsigned draws = 1; draws < MOST_DRAWS && was_tried_at(sw, way, call); draws++)
			call = draw(sw, calls) + 1;
		try_one(sw, s, way, call);
	}
}

/* Of all draws those of the next pair: together they are as many as were asked for. */
static uint64_t share_of(struct sweep *sw, uint64_t draws)
{
	uint64_t all = sw->n_scenarios * WFS_ARRAY_SIZE(ways), at = sw->pairs++;

	return draws * (at + 1) / all - draws * at / all;
}

static void sweep(struct sweep *sw, const struct scenario *s)
{
	const char *wanted = getenv("WEIGHTFS_FAULTS");
	bool all = wanted ? strcmp(wanted, "all") == 0 : sw->only != NULL;
	bool places = wanted && strcmp(wanted, "places") == 0;
	uint64_t n = wanted && !all ? strtoull(wanted, NULL, 10) : DEFAULT_FAULTS;
	bool begun = false;

	for (size_t i = 0; i < WFS_ARRAY_SIZE(ways); i++) {
		uint64_t draws = sw->only ? n : share_of(sw, n);

		if (!is_wanted(sw, s, &ways[i]))
			continue;
		if (!begun)
			begin_scenario(sw, s);
		begun = true;
		if (all)
			try_all(sw, s, &ways[i]);
		else if (places)
			try_places(sw, s, &ways[i]);
		else
			try_some(sw, s, &ways[i], draws);
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
	sw->path = wfs_test_path(sw->dir, "run");
	sw->shared = mmap(NULL, sizeof(*sw->shared), PROT_READ | PROT_WRITE,
		MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	sw->seen = calloc(SEEN_ROOM, sizeof(*sw->seen));
	world_make_contents();
	return !sw->seen || sw->shared == MAP_FAILED ? -1 : 0;
}

static int end(void **state)
{
	struct sweep *sw = &the_sweep;

	(void)state;
	print_message("%" PRIu64 " faults tried in %" PRIu64 " runs\n", sw->faults, sw->tried);
	wfs_test_rmdir(sw->dir);
	free(sw->seen);
	return 0;
}

static void add_scenarios(struct sweep *sw, const struct scenario *list)
{
	for (; list->name && sw->n_scenarios < MOST_SCENARIOS; list++)
		sw->scenarios[sw->n_scenarios++] = *list;
}

int main(void)
{
	struct CMUnitTest tests[MOST_SCENARIOS];
	struct sweep *sw = &the_sweep;

	fault_hook_libraries();
	add_scenarios(sw, scenarios_of_stores);
	add_scenarios(sw, scenarios_of_backups);
	add_scenarios(sw, scenarios_of_damage);
	add_scenarios(sw, scenarios_of_fsck);
	add_scenarios(sw, scenarios_of_disks);
	for (size_t i = 0; i < sw->n_scenarios; i++)
		tests[i] = (struct CMUnitTest){ .name = sw->scenarios[i].name, .test_func = test_scenario,
			.initial_state = &sw->scenarios[i] };
	return _cmocka_run_group_tests("faults", tests, sw->n_scenarios, begin, end);
}
