/* lib/model_priv.h: files of a model directory are sealed because somebody looks. */
#include <errno.h>
#include <time.h>

#include "lib/file_priv.h"
#include "lib/model_priv.h"
#include "lib/seal.h"

#define BUSY_MS 200 /* for which a file whose close has returned may still count as open */

/*
 * Does somebody write it, or has it open to? Who only seals it is waited for. *ret_known: it was waited for
 * before, in vain, since it was opened.
 */
static bool is_written(struct wfs_store *s, uint64_t ino, bool give_up, bool *ret_known)
{
	struct wfs_file *f;
	bool written;

	*ret_known = false;
	if (wfs_file_get(s, ino, &f) != 0)
		return false;
	pthread_mutex_lock(&f->lock);
	/* It may have been sealed since it was busy. */
	written = f->content->staging && (f->writers > 0 || f->changing || !f->sealing);
	*ret_known = f->was_waited_for;
	f->was_waited_for |= written && give_up;
	pthread_mutex_unlock(&f->lock);
	wfs_file_unref(f);
	return written;
}

static int64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

static void sleep_ms(long ms)
{
	const struct timespec time = {.tv_nsec = ms * 1000000};

	nanosleep(&time, NULL);
}

int wfs_model_seal(struct wfs_store *s, uint64_t ino, int64_t until)
{
	int ret;

	while ((ret = wfs_seal(s, ino, NULL)) == -EBUSY || ret == -ETXTBSY) {
		bool is_over = now_ms() >= until;
		bool known, written = is_written(s, ino, is_over, &known);

		if (written && (known || is_over))
			return 1;
		sleep_ms(1);
	}
	return ret;
}

int64_t wfs_model_seal_until(void)
{
	return now_ms() + BUSY_MS;
}
