/* Data files that programs use themselves: lib/file.h, lib/file_priv.h, DESIGN §4 and §6. */
#include <errno.h>
#include <sys/stat.h>
#include <time.h>

#include "lib/file_priv.h"

/* ---- who ever had a data file ---- */

#define SEVERAL UINT64_MAX
#define BUCKETS 1024
#define HOLLOW_WAITS 20 /* of 5 ms */

struct wfs_pin_user {
	uint64_t data_file, ino; /* SEVERAL: more than one inode */
	unsigned files;          /* that have it pinned now */
	struct wfs_pin_user *next;
};

struct wfs_pins {
	pthread_mutex_t lock;
	struct wfs_pin_user *buckets[BUCKETS]; /* under lock */
};

struct wfs_pins *wfs_pins_new(void)
{
	struct wfs_pins *p = calloc(1, sizeof(*p));

	if (p)
		pthread_mutex_init(&p->lock, NULL);
	return p;
}

void wfs_pins_free(struct wfs_pins *p)
{
	if (!p)
		return;
	for (size_t i = 0; i < BUCKETS; i++) {
		while (p->buckets[i]) {
			struct wfs_pin_user *u = p->buckets[i];

			p->buckets[i] = u->next;
			free(u);
		}
	}
	pthread_mutex_destroy(&p->lock);
	free(p);
}

static struct wfs_pin_user *find_user(struct wfs_pins *p, uint64_t data_file)
{
	struct wfs_pin_user *u = p->buckets[data_file % BUCKETS];

	while (u && u->data_file != data_file)
		u = u->next;
	return u;
}

static struct wfs_pin_user *add_user(struct wfs_pins *p, uint64_t data_file, uint64_t ino)
{
	struct wfs_pin_user **head = &p->buckets[data_file % BUCKETS];
	struct wfs_pin_user *u = malloc(sizeof(*u));

	if (u) {
		*u = (struct wfs_pin_user){ data_file, ino, 0, *head };
		*head = u;
	}
	return u;
}

/* Before the inode's programs get the data file. Who had it before may have a mapping of it: the kernel knows. */
static int note_user(struct wfs_store *s, struct wfs_datafile *df, uint64_t ino)
{
	struct wfs_pins *p = s->pins;
	struct wfs_pin_user *u;

	pthread_mutex_lock(&p->lock);
	u = find_user(p, df->id);
	if (!u)
		u = add_user(p, df->id, ino);
	if (u && u->ino != ino)
		u->ino = u->files == 0 && wfs_datafile_is_ours(&s->datafiles, df) ? ino : SEVERAL;
	if (u)
		u->files++;
	pthread_mutex_unlock(&p->lock);
	return u ? 0 : -ENOMEM;
}

static void forget_user(struct wfs_store *s, struct wfs_datafile *df)
{
	struct wfs_pins *p = s->pins;
	struct wfs_pin_user *u;

	pthread_mutex_lock(&p->lock);
	u = find_user(p, df->id);
	if (u)
		u->files--;
	pthread_mutex_unlock(&p->lock);
}

/* Did this inode's programs, and no others, ever get the data file? */
static bool had_alone(struct wfs_pins *p, uint64_t data_file, uint64_t ino)
{
	struct wfs_pin_user *u;
	bool alone;

	pthread_mutex_lock(&p->lock);
	u = find_user(p, data_file);
	alone = u && u->ino == ino;
	pthread_mutex_unlock(&p->lock);
	return alone;
}

/* ---- pins ---- */

static int take(struct wfs_file *f, struct wfs_datafile *df)
{
	int ret = note_user(f->store, df, f->ino);

	if (ret)
		return ret;
	f->pinned = wfs_datafile_ref(&f->store->datafiles, df);
	f->pins = 1;
	return 1;
}

/* The data file has the bytes of the file and no more. */
static bool is_exact(struct wfs_file *f, struct wfs_datafile *df)
{
	struct stat st;

	return wfs_datafile_stat(&f->store->datafiles, df->id, &st) == 0 &&
	       (uint64_t)st.st_size == f->content->size;
}

/* Under f->lock, nobody changing the content. */
static int pin_locked(struct wfs_file *f, bool writes)
{
	struct wfs_content *c = f->content;
	struct wfs_datafile *whole;

	if (f->hollow)
		return -EAGAIN;
	/* It was opened before this was known. Who opens it now cannot be given other bytes. */
	if (f->pins > 0 && !c->staging && atomic_load(&f->pinned->has_bad))
		return -EIO;
	if (f->pins > 0 && (!writes || c->staging)) {
		f->pins++;
		return 1;
	}
	if (f->pins > 0)
		return -EAGAIN;
	if (c->staging)
		return take(f, c->staging);
	if (writes && c->size == 0)
		return -EAGAIN;
	whole = writes ? NULL : wfs_content_whole(c);
	return whole && is_exact(f, whole) ? take(f, whole) : 0;
}

void wfs_file_wait_for_clone(struct wfs_file *f)
{
	const struct timespec moment = { .tv_nsec = 5000000 };

	for (unsigned i = 0; i < HOLLOW_WAITS && wfs_pin_is_hollow(f); i++)
		nanosleep(&moment, NULL);
}

int wfs_file_pin(struct wfs_file *f, bool reads, bool writes)
{
	int ret;

	for (;;) {
		struct wfs_content *c;

		pthread_mutex_lock(&f->lock);
		while (f->changing)
			pthread_cond_wait(&f->changed, &f->lock);
		ret = pin_locked(f, writes);
		if (ret > 0 && reads)
			f->pins_to_read++;
		pthread_mutex_unlock(&f->lock);
		if (ret != -EAGAIN)
			return ret;
		/*
		 * Readers have it, and the writer needs the same data file; or the bytes are not
		 * there; or it is empty.
		 */
		ret = wfs_file_staging(f, UINT64_MAX, &c);
		if (ret)
			return ret;
		wfs_content_unref(c);
	}
}

struct wfs_datafile *wfs_pin_take_unused(struct wfs_file *f)
{
	struct wfs_datafile *df = f->pins == 0 ? f->pinned : NULL;

	if (df) {
		f->pinned = NULL;
		f->hollow = false;
	}
	return df;
}

void wfs_pin_drop(struct wfs_file *f, struct wfs_datafile *df)
{
	if (df) {
		forget_user(f->store, df);
		wfs_datafile_unref(&f->store->datafiles, df);
	}
}

bool wfs_file_unpin(struct wfs_file *f, bool reads)
{
	struct wfs_datafile *df = NULL;
	bool wants_seal;

	pthread_mutex_lock(&f->lock);
	f->pins_to_read -= reads;
	f->pins--;
	/* Who changes the content has counted who has the data file, and drops this in the end. */
	if (!f->changing)
		df = wfs_pin_take_unused(f);
	wants_seal = f->pins == 0 && f->writers == 0 && f->content->staging;
	pthread_mutex_unlock(&f->lock);
	wfs_pin_drop(f, df);
	return wants_seal;
}

int wfs_file_pinned_fd(struct wfs_file *f)
{
	return wfs_datafile_open(&f->store->datafiles, f->pinned->id);
}

struct wfs_datafile *wfs_file_pinned(struct wfs_file *f)
{
	struct wfs_datafile *df;

	pthread_mutex_lock(&f->lock);
	df = f->pinned;
	pthread_mutex_unlock(&f->lock);
	return df;
}

bool wfs_pin_is_hollow(struct wfs_file *f)
{
	bool hollow;

	pthread_mutex_lock(&f->lock);
	hollow = f->hollow;
	pthread_mutex_unlock(&f->lock);
	return hollow;
}

bool wfs_pin_is_left(struct wfs_file *f, struct wfs_datafile *df)
{
	return atomic_load(&f->store->is_direct) && had_alone(f->store->pins, df->id, f->ino) &&
	       !wfs_datafile_is_ours(&f->store->datafiles, df);
}

bool wfs_pin_may_reuse(struct wfs_file *f, struct wfs_datafile *df)
{
	struct wfs_datafile *pinned = wfs_file_pinned(f);

	if (!atomic_load(&f->store->is_direct))
		return true;
	if (pinned)
		return !wfs_pin_is_hollow(f) && pinned == df && had_alone(f->store->pins, df->id, f->ino);
	return had_alone(f->store->pins, df->id, f->ino) ||
	       wfs_datafile_is_ours(&f->store->datafiles, df);
}

/* ---- a clone into a file that cp(1) has just made ---- */

/* Without a block or a byte. */
static bool is_empty(struct wfs_file *f, struct wfs_datafile *df)
{
	struct stat st;

	return wfs_datafile_stat(&f->store->datafiles, df->id, &st) == 0 && st.st_size == 0 &&
	       st.st_blocks == 0;
}

int wfs_pin_begin_hollow(struct wfs_file *f)
{
	struct wfs_datafile *df = NULL;
	bool is_read, is_hollow;
	int ret;

	pthread_mutex_lock(&f->lock);
	is_read = f->pins_to_read > 0;
	is_hollow = f->hollow;
	if (f->pins > 0 && !is_read && !is_hollow) {
		f->hollow = true; /* nobody comes to read it from here on */
		df = f->pinned;
	}
	pthread_mutex_unlock(&f->lock);
	if (is_read || is_hollow)
		return -EOPNOTSUPP;
	if (!df)
		return 0;
	ret = is_empty(f, df) ? wfs_datafile_close_off(&f->store->datafiles, df) : -EOPNOTSUPP;
	if (ret == 0 && is_empty(f, df))
		return 0;
	/* Not empty: somebody has written meanwhile. */
	wfs_pin_cancel_hollow(f);
	return -EOPNOTSUPP;
}

void wfs_pin_cancel_hollow(struct wfs_file *f)
{
	struct wfs_datafile *df = wfs_file_pinned(f);

	if (df)
		wfs_datafile_reopen(&f->store->datafiles, df->id);
	wfs_pin_filled(f);
}

void wfs_pin_filled(struct wfs_file *f)
{
	pthread_mutex_lock(&f->lock);
	f->hollow = false;
	pthread_mutex_unlock(&f->lock);
}
