#include "lib/gate.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "lib/file_priv.h"

#define SUFFIX ".safetensors"
/* https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md: a pointer is below 1024 bytes. */
#define LFS_BEGIN "version https://git-lfs.github.com/spec/"
#define LFS_MAX 1024

bool wfs_gate_name(const char *name)
{
	size_t len = strlen(name);

	return len > strlen(SUFFIX) && strcmp(name + len - strlen(SUFFIX), SUFFIX) == 0;
}

/* ---- the verdict ---- */

/* 1 for a file that is let through unread: empty, or a git-lfs pointer. */
static int is_opaque(struct wfs_file *f)
{
	char head[sizeof(LFS_BEGIN)];
	uint64_t size;
	ssize_t n;
	int err = wfs_file_size(f, &size);

	if (err)
		return err;
	if (size == 0)
		return 1;
	if (size >= LFS_MAX)
		return 0;
	n = wfs_file_read(f, head, strlen(LFS_BEGIN), 0);
	if (n < 0)
		return (int)n;
	return n == (ssize_t)strlen(LFS_BEGIN) && memcmp(head, LFS_BEGIN, strlen(LFS_BEGIN)) == 0;
}

struct verdict {
	enum wfs_verdict verdict;
	const char *reason; /* static, or NULL */
	char detail[256];
};

static void take_verdict(const struct wfs_safetensors *st, const struct wfs_err *why,
	struct verdict *v)
{
	switch (st->verdict) {
	case WFS_SAFETENSORS_VALID:
		v->verdict = WFS_VERDICT_VALID;
		if (!st->warnings)
			return;
		v->reason = "warning";
		wfs_safetensors_warning_text(st->warnings, v->detail, sizeof(v->detail));
		return;
	case WFS_SAFETENSORS_INCOMPLETE:
		v->verdict = WFS_VERDICT_INCOMPLETE;
		break;
	case WFS_SAFETENSORS_WRONG:
		v->verdict = WFS_VERDICT_WRONG;
		break;
	}
	v->reason = why->reason;
	if (why->offset == WFS_NO_OFFSET)
		snprintf(v->detail, sizeof(v->detail), "%s", why->text);
	else
		snprintf(v->detail, sizeof(v->detail), "%.200s (at byte %llu)", why->text,
			(unsigned long long)why->offset);
}

static int judge(struct wfs_file *f, struct verdict *v, struct wfs_err *why)
{
	WFS_AUTO_FREE uint8_t *buf = NULL;
	struct wfs_safetensors st;
	int ret = is_opaque(f);

	*v = (struct verdict){ WFS_VERDICT_OPAQUE, NULL, "" };
	if (ret)
		return ret < 0 ? ret : 0;
	ret = wfs_file_header(f, &buf, &st, why);
	if (ret)
		return ret;
	take_verdict(&st, why, v);
	wfs_safetensors_release(&st);
	return 0;
}

static int record(struct wfs_file *f, const struct verdict *v)
{
	struct wfs_db *db = &f->store->db;
	int ret = wfs_db_begin(db);

	if (ret)
		return ret;
	ret = wfs_db_run(db, WFS_Q_INODE_SET_VERDICT, "itti", (uint64_t)v->verdict, v->reason,
		v->reason ? v->detail : NULL, f->ino);
	return wfs_db_end(db, ret);
}

int wfs_gate_judge(struct wfs_file *f, enum wfs_verdict *ret, struct wfs_err *err)
{
	struct wfs_err why = WFS_ERR_INIT;
	struct verdict v;
	int e;

	wfs_file_was_written(f);
	atomic_store(&f->unjudged, false); /* a write from here on will be judged again */
	e = judge(f, &v, &why);
	if (!e)
		e = record(f, &v);
	if (e) {
		atomic_store(&f->unjudged, true);
		return e;
	}
	if (v.verdict >= WFS_VERDICT_INCOMPLETE)
		wfs_err_set(err, 0, v.reason, why.offset, "%s", v.detail);
	*ret = v.verdict;
	return 0;
}

/* ---- close ---- */

struct names {
	bool gated;   /* one of them is a shard's */
	bool judged;  /* there is a verdict */
};

static int look_at_names(struct wfs_store *s, uint64_t ino, struct names *names)
{
	uint64_t verdict = 0;
	sqlite3_stmt *row;
	int more;

	for (more = wfs_db_first(&s->db, WFS_Q_NAMES_OF, &row, "i", ino); more > 0;
		more = wfs_db_next(&s->db, row)) {
		const char *blob = sqlite3_column_blob(row, 0);
		WFS_AUTO_FREE char *name = strndup(blob ? blob : "",
			(size_t)sqlite3_column_bytes(row, 0));

		if (!name) {
			wfs_db_done(row);
			return -ENOMEM;
		}
		names->gated |= wfs_gate_name(name);
	}
	if (more == 0)
		more = wfs_db_number(&s->db, WFS_Q_INODE_VERDICT, &verdict, "i", ino);
	names->judged = verdict != WFS_VERDICT_NONE;
	return more < 0 ? more : 0;
}

static int forget_verdict(struct wfs_store *s, uint64_t ino)
{
	int ret = wfs_db_begin(&s->db);

	if (ret)
		return ret;
	return wfs_db_end(&s->db, wfs_db_run(&s->db, WFS_Q_INODE_CLEAR_VERDICT, "i", ino));
}

/* Does the store's setting refuse this verdict at close(2)? */
static int refuse_at_close(const struct wfs_store *s, enum wfs_verdict verdict)
{
	switch (s->options.validate) {
	case WFS_VALIDATE_OFF:
		return 0;
	case WFS_VALIDATE_STRICT:
		return verdict >= WFS_VERDICT_INCOMPLETE ? -EBADMSG : 0;
	case WFS_VALIDATE_ON:
		break;
	}
	return verdict == WFS_VERDICT_WRONG ? -EBADMSG : 0;
}

int wfs_gate_close(struct wfs_store *s, struct wfs_file *f, struct wfs_err *err)
{
	struct names names = { false, false };
	enum wfs_verdict verdict;
	int ret = wfs_db_begin_read(&s->db);

	if (ret)
		return ret;
	ret = wfs_db_end(&s->db, look_at_names(s, f->ino, &names));
	if (ret)
		return ret;
	/* A refused rename leaves its verdict on bytes that nobody touched since. */
	if (!names.gated)
		return names.judged && atomic_load(&f->unjudged) ? forget_verdict(s, f->ino) : 0;
	ret = wfs_gate_judge(f, &verdict, err);
	return ret ? ret : refuse_at_close(s, verdict);
}

/* ---- rename and link ---- */

static int judge_inode(struct wfs_store *s, uint64_t ino, enum wfs_verdict *ret,
	struct wfs_err *err)
{
	struct wfs_file *f;
	int e = wfs_file_get(s, ino, &f);

	if (e)
		return e;
	e = wfs_gate_judge(f, ret, err);
	wfs_file_unref(f);
	return e;
}

static int judge_publish(struct wfs_store *s, uint64_t ino, struct wfs_err *err)
{
	enum wfs_verdict verdict;
	int ret = judge_inode(s, ino, &verdict, err);

	if (ret)
		return ret;
	return verdict >= WFS_VERDICT_INCOMPLETE && s->options.validate != WFS_VALIDATE_OFF
		? -EBADMSG
		: 0;
}

/* A shard takes the place of another: not a bad one of a good one. */
static int judge_replace(struct wfs_store *s, uint64_t ino, uint64_t target, struct wfs_err *err)
{
	enum wfs_verdict verdict;
	int ret = judge_inode(s, target, &verdict, NULL);

	if (ret || verdict != WFS_VERDICT_VALID)
		return ret;
	return judge_publish(s, ino, err);
}

/* The inode `from` is about to get the name new_name, which now names `target` (or nothing: 0). */
static int check_move(struct wfs_store *s, const struct wfs_attr *from, const char *name,
	const char *new_name, const struct wfs_attr *target, struct wfs_err *err)
{
	if (!wfs_gate_name(new_name) || !S_ISREG(from->mode))
		return 0;
	if (!wfs_gate_name(name))
		return judge_publish(s, from->ino, err);
	if (!target || !S_ISREG(target->mode) || target->ino == from->ino)
		return 0;
	return judge_replace(s, from->ino, target->ino, err);
}

int wfs_gate_rename(struct wfs_store *s, uint64_t parent, const char *name, uint64_t new_parent,
	const char *new_name, unsigned flags, struct wfs_err *err)
{
	struct wfs_attr from, target;
	bool has_target;
	int ret;

	if (!wfs_gate_name(new_name) && !(flags & RENAME_EXCHANGE && wfs_gate_name(name)))
		return 0;
	ret = wfs_name_lookup(s, parent, name, &from);
	if (ret)
		return ret;
	ret = wfs_name_lookup(s, new_parent, new_name, &target);
	if (ret && ret != -ENOENT)
		return ret;
	has_target = ret == 0;
	ret = check_move(s, &from, name, new_name, has_target ? &target : NULL, err);
	if (!ret && flags & RENAME_EXCHANGE && has_target)
		ret = check_move(s, &target, new_name, name, &from, err);
	return ret;
}

int wfs_gate_link(struct wfs_store *s, uint64_t ino, const char *new_name, struct wfs_err *err)
{
	struct names names = { false, false };
	struct wfs_attr a;
	int ret;

	if (!wfs_gate_name(new_name))
		return 0;
	ret = wfs_name_getattr(s, ino, &a);
	if (ret || !S_ISREG(a.mode))
		return ret;
	ret = wfs_db_begin_read(&s->db);
	if (ret)
		return ret;
	ret = wfs_db_end(&s->db, look_at_names(s, ino, &names));
	/* One more name of a shard changes nothing about what it holds. */
	return ret || names.gated ? ret : judge_publish(s, ino, err);
}
