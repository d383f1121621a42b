/* What a power cut left, a store that is full, files that programs have themselves, and the gate. */
#include "tests/faults/scenario.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "lib/gate.h"
#include "lib/name.h"
#include "lib/quota.h"
#include "tests/faults/fault.h"
#include "tests/faults/world_priv.h"
#include "tests/unit/support.h"

/* ---- reports ---- */

struct report {
	const char *path;
	char reason[32];
	bool has_text;
};

static int match(void *ctx, const struct wfs_store_report *report)
{
	struct report *r = ctx;

	if (strcmp(report->path + 1, r->path) == 0 && report->reason) {
		snprintf(r->reason, sizeof(r->reason), "%s", report->reason);
		r->has_text = report->detail && report->detail[0];
	}
	return 0;
}

/* The reason that a file is reported for; "" if it is not. */
static struct report report_of(struct world *w, const char *name)
{
	struct report r = { .path = name };

	if (wfs_store_each_report(w->store, match, &r, NULL) != 0)
		world_fail(w, "the reports cannot be read");
	return r;
}

/* ---- power ---- */

static uint64_t data_file_of(struct world *w, const char *name)
{
	struct wfs_attr a = { .data_file = 0 };
	uint64_t ino = 0;

	if (world_inode(w, name, &ino) != 0 || wfs_name_getattr(w->store, ino, &a) != 0 || !a.data_file)
		world_fail(w, "%s has no data file", name);
	return a.data_file;
}

/* Files that nobody had flushed have lost bytes, or are not there; one was flushed. */
static void set_up_power(struct world *w)
{
	char path[PATH_ROOM];

	scenario_set_up_sealed(w);
	world_seal(w, "small-2");
	scenario_set_up_model(w);
	world_put(w, "flushed", BIG);
	world_sync(w, "flushed");
	world_put(w, "whole", BIG);
	world_put(w, "cut", BIG);
	world_put(w, "gone", BIG);
	world_put(w, "cut.safetensors", SHARD);
	world_sync_all(w);
	world_put_tensor(w, "late", 29); /* not settled */
	world_data_path(w, data_file_of(w, "cut"), path);
	if (truncate(path, (off_t)world_contents[BIG_CUT].len) != 0)
		world_fail(w, "%s: %s", path, strerror(errno));
	world_data_path(w, data_file_of(w, "cut.safetensors"), path);
	if (truncate(path, (off_t)world_contents[SHARD_CUT].len) != 0)
		world_fail(w, "%s: %s", path, strerror(errno));
	world_data_path(w, data_file_of(w, "gone"), path);
	if (unlink(path) != 0)
		world_fail(w, "%s: %s", path, strerror(errno));
	world_data_path(w, UINT64_C(0xabcd00) | data_file_of(w, "cut"), path); /* a removal that was lost */
	wfs_test_write(path, "removed", 7);
	world_set(world_name(w, "cut"), BIG_CUT);
	world_set(world_name(w, "cut.safetensors"), SHARD_CUT);
	world_set(world_name(w, "gone"), EMPTY);
	world_set(world_name(w, "m/late"), ABSENT);
	world_name(w, "whole")->lacks = world_name(w, "cut")->lacks = true;
	world_name(w, "cut.safetensors")->lacks = world_name(w, "gone")->lacks = true;
}

static void run_power(struct world *w)
{
	world_open(w);
	world_look(w);
	world_close(w);
}

/* Until it is sealed, each file that may lack bytes says so; no other one does, but what the disk could not show. */
static void mend_power(struct world *w)
{
	for (uint32_t i = 0; i < w->m->n && !w->m->finished; i++) {
		const struct name *n = &w->m->names[i];
		struct report r = report_of(w, n->name);
		bool is_reported = r.reason[0] && r.has_text;

		if (world_now(n) != ABSENT && n->lacks && !is_reported)
			world_fail(w, "%s may lack bytes, and nothing says so", n->name);
		if (!n->lacks && w->m->error != EIO && strcmp(r.reason, "power-cut") == 0)
			world_fail(w, "%s lacks nothing, and is reported", n->name);
	}
}

/* ---- quota ---- */

#define LIMIT (2u << 20)
#define FILES 12

static void run_quota(struct world *w)
{
	struct statvfs st;
	char name[8];
	int ret;

	for (unsigned i = 0; i < FILES; i++) {
		snprintf(name, sizeof(name), "q%u", i);
		world_put(w, name, BIG);
		if (!world_is_there(w, name) || world_name(w, name)->torn)
			break;
	}
	ret = w->store ? wfs_quota_statvfs(w->store, &st) : -EIO;
	if (w->store && world_did(w, ret, "statvfs", "") && st.f_blocks * st.f_frsize > LIMIT)
		world_fail(w, "the store is larger than its limit");
	if (!fault_hits() && !world_name(w, "q11")->torn && world_is_there(w, "q11"))
		world_fail(w, "there is no limit");
	for (unsigned i = 0; i < FILES; i++) {
		snprintf(name, sizeof(name), "q%u", i);
		world_unlink(w, name);
	}
	world_collect(w);
	world_put(w, "again", BIG);
	if (!fault_hits() && world_name(w, "again")->torn)
		world_fail(w, "what was removed still counts");
	world_write(w, "alone", BIG);
	world_seal(w, "again");
	if (w->store)
		wfs_quota_count(w->store);
}

static void set_up_quota(struct world *w)
{
	scenario_set_up_sealed(w);
	w->m->limited = true;
}

/* ---- files that programs have themselves ---- */

static bool pin(struct world *w, const char *name, bool writes, struct wfs_file **f)
{
	int ret;

	if (!world_is_there(w, name) || !world_did(w, world_file(w, name, f), "open", name))
		return false;
	wfs_file_open(*f, writes);
	ret = wfs_file_pin(*f, true, writes);
	if (ret > 0)
		return true;
	world_did(w, ret == -ETXTBSY ? 0 : ret, "pin", name);
	wfs_file_close(*f, writes);
	wfs_file_unref(*f);
	return false;
}

static void unpin(struct wfs_file *f, bool writes)
{
	wfs_file_unpin(f, true);
	wfs_file_close(f, writes);
	wfs_file_unref(f);
}

/* Written by a program, past the driver. */
static void write_directly(struct world *w, const char *name, enum content content)
{
	const struct world_content *c = &world_contents[content];
	struct name *n = world_name(w, name);
	struct wfs_file *f;
	char path[40];
	int fd, out;

	world_create(w, name);
	if (!pin(w, name, true, &f))
		return;
	fd = wfs_file_pinned_fd(f);
	if (world_did(w, WFS_MIN(fd, 0), "open", "a pinned file")) {
		fault_pause();
		snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
		out = open(path, O_WRONLY | O_CLOEXEC);
		if (out < 0 || pwrite(out, c->bytes, c->len, 0) != (ssize_t)c->len)
			world_fail(w, "%s cannot be written directly", name);
		else
			world_set(n, content);
		close(out);
		close(fd);
		fault_resume();
	}
	unpin(f, true);
}

static void read_directly(struct world *w, const char *name)
{
	const struct world_content *c = &world_contents[world_now(world_name(w, name))];
	struct wfs_file *f;
	uint8_t *buf;
	int fd;

	if (!pin(w, name, false, &f))
		return;
	fd = wfs_file_pinned_fd(f);
	if (world_did(w, WFS_MIN(fd, 0), "open", "a pinned file")) {
		fault_pause();
		buf = malloc(c->len + 1);
		if (pread(fd, buf, c->len + 1, 0) != (ssize_t)c->len || memcmp(buf, c->bytes, c->len) != 0)
			world_fail(w, "%s has other bytes directly", name);
		free(buf);
		close(fd);
		fault_resume();
	}
	/* Sealed, collected and repacked meanwhile, its bytes stay. */
	world_seal(w, name);
	world_repack(w, name);
	world_collect(w);
	unpin(f, false);
}

static void run_direct(struct world *w)
{
	if (w->store)
		wfs_store_use_directly(w->store);
	write_directly(w, "direct", BIG_PATCHED);
	world_seal(w, "direct");
	read_directly(w, "direct");
	read_directly(w, "b.safetensors");
	read_directly(w, "alone");
	world_write(w, "alone", BIG);
	world_clone(w, "alone", "cloned");
	write_directly(w, "cloned", BIG_PATCHED);
	world_write(w, "direct", BIG);
	world_truncate(w, "direct", BIG_CUT);
	world_seal(w, "direct");
	world_seal(w, "cloned");
	world_collect(w);
}

/* ---- the gate ---- */

/* A shard that is wrong, or not complete, gets no name of a shard. */
static bool may_rename(struct world *w, const char *from, const char *to, bool is_good)
{
	struct wfs_err err = WFS_ERR_INIT;
	int ret;

	if (!world_is_there(w, from))
		return false;
	ret = wfs_gate_rename(w->store, WFS_ROOT_INO, from, WFS_ROOT_INO, to, 0, &err);
	if (ret == 0 && !is_good)
		world_fail(w, "the gate lets %s become %s", from, to);
	if (ret == -EBADMSG && is_good)
		world_fail(w, "the gate refuses %s: %s", from, err.text);
	if (ret == -EBADMSG && (!err.reason || !err.text[0]))
		world_fail(w, "the gate refuses %s, and nothing says why", from);
	return ret != -EBADMSG && world_did(w, ret, "rename", from);
}

static void try_link(struct world *w, const char *from, const char *to)
{
	struct wfs_err err = WFS_ERR_INIT;
	uint64_t ino = 0;
	int ret;

	if (!world_is_there(w, from) || !world_did(w, world_inode(w, from, &ino), "look up", from))
		return;
	ret = wfs_gate_link(w->store, ino, to, &err);
	if (ret == 0)
		world_fail(w, "the gate lets %s be called %s", from, to);
	else if (ret != -EBADMSG)
		world_did(w, ret, "link", from);
}

static void run_gate(struct world *w)
{
	world_put(w, "wrong.safetensors", SHARD_WRONG);
	world_put(w, "cut.safetensors", SHARD_CUT);
	world_put(w, "good.safetensors", SHARD);
	world_put(w, "wrong.tmp", SHARD_WRONG);
	world_put(w, "cut.tmp", SHARD_CUT);
	world_put(w, "good.tmp", SHARD_2);
	if (world_name(w, "wrong.tmp")->torn || world_name(w, "cut.tmp")->torn || world_name(w, "good.tmp")->torn ||
		world_now(world_name(w, "wrong.tmp")) == EMPTY || world_now(world_name(w, "cut.tmp")) == EMPTY)
		return;
	may_rename(w, "wrong.tmp", "x.safetensors", false);
	may_rename(w, "cut.tmp", "good.safetensors", false);
	try_link(w, "wrong.tmp", "x.safetensors");
	try_link(w, "cut.tmp", "x.safetensors");
	if (may_rename(w, "good.tmp", "good.safetensors", true))
		world_rename(w, "good.tmp", "good.safetensors");
	world_write(w, "cut.safetensors", SHARD); /* the rest of it */
	world_seal(w, "good.safetensors");
}

/* What was said at the last close is what is reported. */
static void mend_gate(struct world *w)
{
	for (uint32_t i = 0; i < w->m->n; i++) {
		const struct name *n = &w->m->names[i];
		struct report r;

		if (world_now(n) == ABSENT || n->torn || n->unjudged || !wfs_gate_name(n->name))
			continue;
		r = report_of(w, n->name);
		if (n->reason[0] && (strcmp(r.reason, n->reason) != 0 || !r.has_text))
			world_fail(w, "%s is reported as '%s', where '%s' was said", n->name, r.reason, n->reason);
		if (r.reason[0] && (world_now(n) == SHARD || world_now(n) == SHARD_2))
			world_fail(w, "%s is reported as '%s', and is right", n->name, r.reason);
	}
}

const struct scenario scenarios_of_disks[] = {
	{ .name = "power", .set_up = set_up_power, .run = run_power, .mend = mend_power, .crashes = true,
		.opens = true, .boot_id = "after-the-power-cut" },
	{ .name = "quota", .set_up = set_up_quota, .run = run_quota, .max_size = LIMIT },
	{ .name = "direct", .set_up = scenario_set_up_sealed, .run = run_direct },
	{ .name = "gate", .set_up = scenario_set_up_sealed, .run = run_gate, .mend = mend_gate },
	{ .name = NULL },
};
