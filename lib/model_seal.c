/* lib/model_priv.h: files of a model directory are sealed because somebody looks. */
#include <errno.h>
#include <string.h>
#include <time.h>

#include "lib/file_priv.h"
#include "lib/model_priv.h"
#include "lib/seal.h"

/*
 * For how many looks, a millisecond apart, a file whose close has returned may still count as open. Looks and no
 * time: on a busy machine the thread that is to hear of the close waits for a processor as this one does.
 */
#define PATIENCE 500

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

static void sleep_ms(long ms)
{
	const struct timespec time = {.tv_nsec = ms * 1000000};

	nanosleep(&time, NULL);
}

int wfs_model_seal(struct wfs_store *s, uint64_t ino, unsigned *looks)
{
	struct wfs_err err = WFS_ERR_INIT;
	int ret;

	while ((ret = wfs_seal(s, ino, &err)) == -EBUSY || ret == -ETXTBSY) {
		bool is_over = *looks >= PATIENCE;
		bool known, written = is_written(s, ino, is_over, &known);

		if (written && (known || is_over))
			return 1;
		wfs_err_clear(&err);
		if (written)
			++*looks;
		sleep_ms(1);
	}
	/* It waits until somebody puts the tensor again; the others do not wait for it. */
	return err.reason && strcmp(err.reason, WFS_REASON_SYNC_FAILED) == 0 ? 1 : ret;
}
