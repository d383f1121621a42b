#include "fs/scratch.h"

#include <errno.h>
#include <string.h>

#include "lib/store_time.h"

void wfs_scratches_init(struct wfs_scratches *t)
{
	atomic_init(&t->n, 0);
	pthread_mutex_init(&t->lock, NULL);
	t->first = NULL;
}

static void free_one(struct wfs_scratch *s)
{
	free(s->variant);
	free(s->name);
	free(s);
}

void wfs_scratches_release(struct wfs_scratches *t)
{
	while (t->first) {
		struct wfs_scratch *s = t->first;

		t->first = s->next;
		free_one(s);
	}
	pthread_mutex_destroy(&t->lock);
}

/* ---- under lock ---- */

static bool is_over(const struct wfs_scratch *s)
{
	return s->handles == 0 && s->until_ns && s->until_ns < wfs_monotonic_ns();
}

static struct wfs_scratch **slot_of_name(
	struct wfs_scratches *t, uint64_t dir, const char *variant, const char *name)
{
	struct wfs_scratch **p = &t->first;

	while (*p && ((*p)->dir != dir || strcmp((*p)->name, name) != 0 ||
			     !wfs_is_same_text((*p)->variant, variant)))
		p = &(*p)->next;
	return p;
}

static struct wfs_scratch **slot_of_ino(struct wfs_scratches *t, uint64_t ino)
{
	struct wfs_scratch **p = &t->first;

	while (*p && (*p)->ino != ino)
		p = &(*p)->next;
	return p;
}

/* Its inode; 0 where there is none. */
static uint64_t end_slot(struct wfs_scratches *t, struct wfs_scratch **slot)
{
	struct wfs_scratch *s = *slot;
	uint64_t ino = s ? s->ino : 0;

	if (s) {
		*slot = s->next;
		free_one(s);
		atomic_fetch_sub(&t->n, 1);
	}
	return ino;
}

/* ---- */

static bool set_place(struct wfs_scratch *s, uint64_t dir, const char *variant, const char *name)
{
	char *v = variant ? strdup(variant) : NULL, *n = strdup(name);

	if (!n || (variant && !v)) {
		free(v);
		free(n);
		return false;
	}
	free(s->variant);
	free(s->name);
	s->dir = dir;
	s->variant = v;
	s->name = n;
	return true;
}

static int add(struct wfs_scratches *t, uint64_t dir, const char *variant, const char *name,
	const struct wfs_scratch *like)
{
	struct wfs_scratch *s = malloc(sizeof(*s));

	if (!s)
		return -ENOMEM;
	*s = *like;
	if (!set_place(s, dir, variant, name)) {
		free(s);
		return -ENOMEM;
	}
	pthread_mutex_lock(&t->lock);
	s->next = t->first;
	t->first = s;
	atomic_fetch_add(&t->n, 1);
	pthread_mutex_unlock(&t->lock);
	return 0;
}

int wfs_scratch_add(
	struct wfs_scratches *t, uint64_t dir, const char *variant, const char *name, uint64_t ino)
{
	const struct wfs_scratch like = {.ino = ino, .handles = 1};

	return add(t, dir, variant, name, &like);
}

int wfs_scratch_add_over(struct wfs_scratches *t, uint64_t dir, const char *variant,
	const char *name, uint64_t ino, int32_t tid, unsigned ms)
{
	const struct wfs_scratch like = {
		.ino = ino, .over = true, .tid = tid, .until_ns = wfs_monotonic_ns() + (int64_t)ms * 1000000};

	return add(t, dir, variant, name, &like);
}

/* Who has come to open it sees it; others see what was there before. */
static bool is_seen_by(const struct wfs_scratch *s, int32_t tid)
{
	if (s->put || s->refused || is_over(s))
		return false;
	return !s->over || (s->handles == 0 && s->tid == tid);
}

int wfs_scratch_find(struct wfs_scratches *t, uint64_t dir, const char *variant, const char *name,
	int32_t tid, uint64_t *ret_ino)
{
	const struct wfs_scratch *s;

	if (atomic_load(&t->n) == 0)
		return 0;
	pthread_mutex_lock(&t->lock);
	for (s = t->first; s; s = s->next)
		if (s->dir == dir && strcmp(s->name, name) == 0 &&
			wfs_is_same_text(s->variant, variant) && is_seen_by(s, tid))
			break;
	if (s)
		*ret_ino = s->ino;
	pthread_mutex_unlock(&t->lock);
	return s != NULL;
}

bool wfs_scratch_open(struct wfs_scratches *t, uint64_t ino)
{
	struct wfs_scratch *s;

	if (atomic_load(&t->n) == 0)
		return false;
	pthread_mutex_lock(&t->lock);
	s = *slot_of_ino(t, ino);
	if (s) {
		s->handles++;
	}
	pthread_mutex_unlock(&t->lock);
	return s != NULL;
}

int wfs_scratch_place(struct wfs_scratches *t, uint64_t ino, uint64_t *ret_dir, char **ret_variant,
	char **ret_name)
{
	struct wfs_scratch copy = {.name = NULL};
	const struct wfs_scratch *s;
	int found = 0;

	if (atomic_load(&t->n) == 0)
		return 0;
	pthread_mutex_lock(&t->lock);
	s = *slot_of_ino(t, ino);
	if (s)
		found = set_place(&copy, s->dir, s->variant, s->name) ? 1 : -ENOMEM;
	pthread_mutex_unlock(&t->lock);
	if (found > 0) {
		*ret_dir = copy.dir;
		*ret_variant = copy.variant;
		*ret_name = copy.name;
	}
	return found;
}

bool wfs_scratch_is_open(struct wfs_scratches *t, uint64_t ino)
{
	const struct wfs_scratch *s;
	bool is_open;

	pthread_mutex_lock(&t->lock);
	s = *slot_of_ino(t, ino);
	is_open = s && !s->put;
	pthread_mutex_unlock(&t->lock);
	return is_open;
}

void wfs_scratch_set_begun(struct wfs_scratches *t, uint64_t ino, unsigned ms)
{
	struct wfs_scratch *s;

	pthread_mutex_lock(&t->lock);
	s = *slot_of_ino(t, ino);
	if (s) {
		s->begun = true;
		s->refused = false;
		s->until_ns = wfs_monotonic_ns() + (int64_t)ms * 1000000;
	}
	pthread_mutex_unlock(&t->lock);
}

uint64_t wfs_scratch_take(struct wfs_scratches *t, uint64_t dir, const char *variant,
	const char *name, uint64_t except)
{
	struct wfs_scratch **p = &t->first;
	uint64_t ino;

	if (atomic_load(&t->n) == 0)
		return 0;
	pthread_mutex_lock(&t->lock);
	while (*p && ((*p)->ino == except || (*p)->dir != dir || strcmp((*p)->name, name) != 0 ||
			     !wfs_is_same_text((*p)->variant, variant)))
		p = &(*p)->next;
	ino = end_slot(t, p);
	pthread_mutex_unlock(&t->lock);
	return ino;
}

void wfs_scratch_set_put(struct wfs_scratches *t, uint64_t ino)
{
	struct wfs_scratch *s;

	pthread_mutex_lock(&t->lock);
	s = *slot_of_ino(t, ino);
	if (s)
		s->put = true;
	pthread_mutex_unlock(&t->lock);
}

void wfs_scratch_set_refused(struct wfs_scratches *t, uint64_t ino)
{
	struct wfs_scratch *s;

	pthread_mutex_lock(&t->lock);
	s = *slot_of_ino(t, ino);
	if (s)
		s->refused = true;
	pthread_mutex_unlock(&t->lock);
}

bool wfs_scratch_close(struct wfs_scratches *t, uint64_t ino, bool is_tensor)
{
	struct wfs_scratch **slot;
	bool unneeded = false;

	pthread_mutex_lock(&t->lock);
	slot = slot_of_ino(t, ino);
	if (*slot && --(*slot)->handles == 0 && is_tensor && ((*slot)->put || !(*slot)->begun)) {
		unneeded = !(*slot)->put;
		end_slot(t, slot);
	}
	pthread_mutex_unlock(&t->lock);
	return unneeded;
}

void wfs_scratch_end_if_unused(struct wfs_scratches *t, uint64_t ino)
{
	struct wfs_scratch **slot;

	pthread_mutex_lock(&t->lock);
	slot = slot_of_ino(t, ino);
	if (*slot && (*slot)->handles == 0)
		end_slot(t, slot);
	else if (*slot)
		(*slot)->put = true;
	pthread_mutex_unlock(&t->lock);
}

void wfs_scratch_remove(struct wfs_scratches *t, uint64_t ino)
{
	pthread_mutex_lock(&t->lock);
	end_slot(t, slot_of_ino(t, ino));
	pthread_mutex_unlock(&t->lock);
}

int wfs_scratch_rename(struct wfs_scratches *t, uint64_t ino, uint64_t dir, const char *variant,
	const char *name, uint64_t *ret_replaced)
{
	struct wfs_scratch **there, *s;
	int err = 0;

	*ret_replaced = 0;
	pthread_mutex_lock(&t->lock);
	there = slot_of_name(t, dir, variant, name);
	if (*there && (*there)->ino != ino)
		*ret_replaced = end_slot(t, there);
	s = *slot_of_ino(t, ino);
	if (s && !set_place(s, dir, variant, name))
		err = -ENOMEM;
	pthread_mutex_unlock(&t->lock);
	return s ? err : -ENOENT;
}

uint64_t wfs_scratch_take_old(struct wfs_scratches *t)
{
	struct wfs_scratch **p;
	uint64_t ino;

	if (atomic_load(&t->n) == 0)
		return 0;
	pthread_mutex_lock(&t->lock);
	for (p = &t->first; *p && !is_over(*p); p = &(*p)->next)
		;
	ino = end_slot(t, p);
	pthread_mutex_unlock(&t->lock);
	return ino;
}
