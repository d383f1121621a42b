#include "fs/notify.h"

#include <errno.h>
#include <string.h>

/* Under lock: the first of the queue, or NULL when it is time to end. */
static struct wfs_notice *take(struct wfs_notify *n)
{
	struct wfs_notice *notice;

	while (!n->stop && !n->first)
		pthread_cond_wait(&n->wake, &n->lock);
	notice = n->stop ? NULL : n->first;
	if (notice) {
		n->first = notice->next;
		if (!n->first)
			n->last = &n->first;
	}
	return notice;
}

static void *notify_main(void *ctx)
{
	struct wfs_notify *n = ctx;
	struct wfs_notice *notice;

	pthread_mutex_lock(&n->lock);
	while ((notice = take(n))) {
		pthread_mutex_unlock(&n->lock);
		/* -ENOENT: it knew nothing. */
		if (notice->is_pages)
			fuse_lowlevel_notify_inval_inode(n->session, notice->ino, 0, 0);
		else
			fuse_lowlevel_notify_inval_entry(
				n->session, notice->ino, notice->name, strlen(notice->name));
		free(notice);
		pthread_mutex_lock(&n->lock);
	}
	pthread_mutex_unlock(&n->lock);
	return NULL;
}

int wfs_notify_start(struct wfs_notify *n, struct fuse_session *session)
{
	int err;

	n->session = session;
	n->stop = false;
	n->first = NULL;
	n->last = &n->first;
	pthread_mutex_init(&n->lock, NULL);
	pthread_cond_init(&n->wake, NULL);
	err = pthread_create(&n->thread, NULL, notify_main, n);
	n->runs = err == 0;
	return -err;
}

void wfs_notify_stop(struct wfs_notify *n)
{
	if (!n->runs)
		return;
	pthread_mutex_lock(&n->lock);
	n->stop = true;
	pthread_cond_signal(&n->wake);
	pthread_mutex_unlock(&n->lock);
	pthread_join(n->thread, NULL);
	n->runs = false;
}

void wfs_notify_release(struct wfs_notify *n)
{
	while (n->first) {
		struct wfs_notice *notice = n->first;

		n->first = notice->next;
		free(notice);
	}
	pthread_mutex_destroy(&n->lock);
	pthread_cond_destroy(&n->wake);
}

static void put(struct wfs_notify *n, uint64_t ino, bool is_pages, const char *name)
{
	size_t len = strlen(name) + 1;
	struct wfs_notice *notice = malloc(sizeof(*notice) + len);

	if (!notice)
		return;
	notice->ino = ino;
	notice->is_pages = is_pages;
	notice->next = NULL;
	memcpy(notice->name, name, len);
	pthread_mutex_lock(&n->lock);
	*n->last = notice;
	n->last = &notice->next;
	pthread_cond_signal(&n->wake);
	pthread_mutex_unlock(&n->lock);
}

void wfs_notify_name(struct wfs_notify *n, uint64_t dir, const char *name)
{
	put(n, dir, false, name);
}

void wfs_notify_pages(struct wfs_notify *n, uint64_t ino)
{
	put(n, ino, true, "");
}
